"""What Lightning and others say that is no news in a run of this command.

Only messages that were looked at are here, each with the reason. Everything else is shown, and the
log of the run holds Lightning's own messages (the device that was found, the checkpoint that was
read).
"""

from __future__ import annotations

import warnings

__all__ = ["NOISE", "quiet"]

NOISE = (
    # images that are in memory load fastest in the process itself
    r".*does not have many workers.*",
    # steps are counted over epochs, so a short epoch does not keep anything from being logged
    r"The number of training batches \(\d+\) is smaller than the logging interval.*",
    # the default of a run on a shared machine: one device; more are asked for with trainer.devices
    r"GPU available but not used.*",
    # the directory holds the config of this very run, written before training
    r"Checkpoint directory .* exists and is not empty.*",
    r"Experiment logs directory .* exists and is not empty.*",
    # a run is measured in steps
    r"`max_epochs` was not set.*",
)


def quiet() -> None:
    """Leave out the known noise from here on."""
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=pattern)
