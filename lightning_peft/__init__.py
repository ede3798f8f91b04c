"""lightning-peft: parameter-efficient fine-tuning for PyTorch Lightning.

Every public name is reachable from here and is imported on first access: importing this package
loads neither torch nor lightning nor timm. ``__init__.pyi`` lists the names, for type checkers and
for this file.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from lightning_peft.backbones._register import register_when_timm_is_imported
from lightning_peft.moved import find_moved_modules

__version__ = "0.2.0"

_IMPORT = re.compile(r"^from (\S+) import (?:\(\s*)?(\w+) as \2\b", flags=re.MULTILINE)
_STUB = Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8")
_MODULE_OF = {name: module for module, name in _IMPORT.findall(_STUB)}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'lightning_peft' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_timm_is_imported()
find_moved_modules()
