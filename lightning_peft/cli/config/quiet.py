"""Expected messages of Lightning and others, which this command silences.

Each message here was checked, and the reason stands above it. Everything else is shown, and the
log of the run holds Lightning's own messages (the device that was found, the checkpoint that was
read).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["NOISE", "quiet"]

NOISE = (
    # images that are in memory load fastest in the process itself
    r".*does not have many workers.*",
    # steps are counted over epochs, so a short epoch does not keep anything from being logged
    r"The number of training batches \(\d+\) is smaller than the logging interval.*",
    # trainer=cpu asks for just that
    r"GPU available but not used.*",
    # the directory holds the config of this very run, written before training
    r"Checkpoint directory .* exists and is not empty.*",
    r"Experiment logs directory .* exists and is not empty.*",
    # a resumed run has a directory of its own, and keeps the best of what it finds itself
    r"The dirpath has changed from .*",
    # the BatchNorm layers of a frozen backbone are kept in evaluation mode on purpose
    r"Found \d+ module\(s\) in eval mode at the start of training.*",
    # the module checks labels before they go to the device; the data module has no hook of its own
    r"You have overridden `on_before_batch_transfer` in `LightningModule`.*",
    # a run may end before its first validation; after one, a wrong name is an error
    r"`ModelCheckpoint\(monitor=.*\)` could not find the monitored key.*",
    # the adapter comes in through configure_model; what is frozen is not copied
    r"You're using the WeightAveraging callback with a model that overrides.*",
    # SWA puts its own schedule, which it steps every epoch, in the place of the one of the run
    r"SWA is currently only supported every epoch\. Found .*",
    # Lightning uses what torch has renamed
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)

LOGGERS = ("lightning", "lightning.pytorch", "lightning.fabric")

# when peft is imported, and no layer is quantised: that a kernel for 4 bits is not installed
OF_AN_IMPORT = "bitsandbytes.backends.cpu.ops"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the known messages, and send Lightning's messages to the log of the run."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger, list(logger.handlers), logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = []  # they write everything to the console
        logger.propagate = True
    importing = logging.getLogger(OF_AN_IMPORT)
    level = importing.level
    importing.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for pattern in NOISE:
                warnings.filterwarnings("ignore", message=pattern)
            yield
    finally:
        importing.setLevel(level)
        for logger, handlers, propagate in before:
            logger.handlers[:] = handlers
            logger.propagate = propagate
