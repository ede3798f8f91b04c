"""Importing Lightning under the name that the user's program uses.

``lightning.pytorch`` and ``pytorch_lightning`` are two copies of one library, and each refuses the
modules of the other. A program that imported one must not pay for importing the other, so the
choice is made once, by which of them is already imported.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["pl", "pl_import"]


def _choose() -> str:
    for name in ("lightning.pytorch", "pytorch_lightning"):
        if name in sys.modules:
            return name
    return "lightning.pytorch"


if TYPE_CHECKING:
    import lightning.pytorch as pl
else:
    pl = importlib.import_module(_choose())


def pl_import(submodule: str) -> ModuleType:
    """Import a submodule of the chosen namespace, such as ``"utilities.types"``."""
    return importlib.import_module(f"{pl.__name__}.{submodule}")
