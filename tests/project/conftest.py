"""What the harnesses of benchmarks change in a process is as before after a test."""

import logging

import pytest

from benchmarks.quiet import QUIETENED


@pytest.fixture(autouse=True)
def loggers_as_before():
    """Give loggers back the levels that they had; a harness keeps them quiet."""
    levels = {name: logging.getLogger(name).level for name in QUIETENED}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
