"""Registering ``glyph_vit`` with timm without importing timm.

timm takes seconds to import and many programs that use this package never need it, so
``import lightning_peft`` must not import it. Yet ``timm.create_model("glyph_vit")`` has to work
whichever of the two is imported first. Hence the model is registered at once if timm is imported,
else right after its import.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["register", "register_when_timm_is_imported"]


def register() -> None:
    """Register the shipped backbones in timm's model registry; imports timm."""
    importlib.import_module("lightning_peft.backbones.glyph_vit")


class _AfterTimm:
    """An import hook that registers the backbones after timm's import, and stays until then.

    A check whether timm exists (``importlib.util.find_spec("timm")``) also calls this hook and must
    not use it up.
    """

    def __init__(self) -> None:
        self._searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "timm" or self._searching:
            return None
        self._searching = True  # the real search comes back to this hook
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:  # not installed: the import statement reports it
            return None
        # The loader belongs to this one spec. Its method is shadowed and the loader kept, so that
        # timm.__loader__ stays an ordinary one.
        loader = spec.loader
        execute = loader.exec_module

        def execute_then_register(module: ModuleType) -> None:
            del loader.exec_module
            execute(module)
            _remove_hook()
            register()

        loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec


def _install_hook() -> None:
    if not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


def _remove_hook() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AfterTimm)]


def register_when_timm_is_imported() -> None:
    """Register now if timm is imported already, else as soon as it is. Safe to call again."""
    if "timm" in sys.modules:
        register()
    else:
        _install_hook()
