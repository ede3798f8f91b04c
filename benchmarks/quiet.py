"""Leave the terminal to a line of progress."""

from __future__ import annotations

import logging
import warnings

__all__ = ["QUIETENED", "quiet"]

QUIETENED = ("lightning.pytorch", "lightning", "lightning_peft", "transformers")
"""The loggers that say nothing but errors."""


def quiet() -> None:
    """Ignore warnings, and let loggers say nothing but errors."""
    warnings.simplefilter("ignore")
    for name in QUIETENED:
        logging.getLogger(name).setLevel(logging.ERROR)
