"""A trainer that leaves no files and prints nothing."""

from __future__ import annotations

from typing import Any

import lightning as L


def quiet_trainer(*callbacks: L.Callback, **settings: Any) -> L.Trainer:
    """Make a trainer on the CPU without logger, checkpoints, progress bar and summary.

    Settings come before these defaults.
    """
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(callbacks=list(callbacks), **{**quiet, **settings})
