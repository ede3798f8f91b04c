"""What tests of reports share."""

import pytest


@pytest.fixture
def sketched(monkeypatch):
    """Draw nothing, where a test only asks which pictures a page has."""
    monkeypatch.setattr("lightning_peft.cli.comparing.figures.markup", lambda *a, **k: "<svg/>")
