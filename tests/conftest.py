"""What holds for all tests."""

import gc
import os

import pytest

gc.disable()  # until the tests are collected: what is imported stays

import torch  # noqa: E402

from tests.support import any_processor  # noqa: E402

if os.environ.get("ANY_PROCESSOR"):
    any_processor.install()

# The first backward decides whether this process may fork: after a fake tensor has pretended that
# there is a GPU (torch.compile and exports do), it starts threads for it, and every test of several
# ranks behind it in the same process would fail.
torch.zeros((), requires_grad=True).backward()

# a forked process has no threads but its first, and waits for ever for those of its parent's pool
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

# nothing in a test has to survive a crash of the machine, and a flush waits for the disk
os.fsync = lambda file: None


def pytest_collection_finish():
    """Leave what the libraries made out of garbage collections: millions of objects, each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    gc.enable()


def pytest_sessionfinish():
    """Let everything be freed at the end, as it would have been."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc):
    """Make no slow cases where they would only be deselected: they are three quarters of all."""
    if metafunc.config.option.markexpr != "not slow":
        return
    own = metafunc.definition.own_markers
    for place, mark in enumerate(own):
        if mark.name != "parametrize" or not callable(mark.kwargs.get("ids", str)):
            continue
        names, values, *rest = mark.args
        quick = [value for value in values if not _is_slow(value)]
        if quick:
            own[place] = pytest.mark.parametrize(names, quick, *rest, **mark.kwargs).mark


def _is_slow(value):
    return any(mark.name == "slow" for mark in getattr(value, "marks", ()))
