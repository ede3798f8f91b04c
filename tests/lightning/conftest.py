"""What a callback has said."""

import logging

import pytest


@pytest.fixture
def said(caplog):
    """What the callback has said: rank-zero information of either namespace."""
    caplog.set_level(logging.INFO)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)
