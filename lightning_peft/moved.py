"""Old names of modules, for whole modules that 0.1 pickled (``torch.save(module)``).

Adapter directories and checkpoints name no modules and need none of this. It goes in 0.3.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "find_moved_modules"]

MOVED = {
    "attach": "lightning.attachment",
    "averaging": "lightning.averaging",
    "lifecycle": "lightning.hooks",
    "methods.hf_layer": "methods.from_peft.layer",
    "modes": "adaptation.modes",
    "modules.image": "lightning.modules.image",
    "modules.metrics": "evaluation.metrics",
    "modules.regression": "lightning.modules.regression",
    "modules.text": "lightning.modules.text",
    "random_resume": "lightning.random_resume",
    "targets": "anatomy.targets",
}
"""The old name of a module and the new one, both below this package."""

_ROOT = __name__.rpartition(".")[0]
_FOLDERS = {name.rpartition(".")[0] for name in MOVED} - {""}


class _Moved(MetaPathFinder, Loader):
    """Find a module under its old name, after every other finder has failed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a name in :data:`MOVED`, or for the former folder of one."""
        root, _, name = fullname.partition(".")
        if root != _ROOT or name not in MOVED.keys() | _FOLDERS:
            return None
        return ModuleSpec(fullname, self, is_package=name in _FOLDERS)

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None, so that the import system creates the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Replace the old module by the one under its new name."""
        old = module.__name__.partition(".")[2]
        if old in _FOLDERS:
            return  # a folder: its modules are imported by their own names
        new = f"{_ROOT}.{MOVED[old]}"
        warnings.warn(
            f"{module.__name__} is {new} since 0.2; the old name goes in 0.3. If a pickle names "
            "it, save an adapter or a checkpoint instead: these name no modules.",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[module.__name__] = importlib.import_module(new)


def find_moved_modules() -> None:
    """Make imports of old names succeed, with a warning. Calling it again has no effect."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
