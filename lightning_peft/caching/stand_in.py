"""The replacement for a backbone's forward while its features are cached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

__all__ = ["CachedForward", "Runner"]


class Runner(Protocol):
    """An object that runs a backbone and keeps its features."""

    def run(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return the output of the forward, from the cache if possible."""


class CachedForward:
    """A replacement for the forward of one backbone.

    It is an object, not a closure: a copy or a pickle of the backbone has one without a cache, and
    runs the backbone's own forward.
    """

    def __init__(self, module: nn.Module, cache: Runner | None, kept: Any) -> None:
        self.module = module
        self.cache = cache
        self.kept = kept

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "cache": None, "kept": self.kept}

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        if self.kept is not None:
            return self.kept(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the backbone's forward."""
        if self.cache is None:
            return self._own(*args, **kwargs)
        return self.cache.run(self._own, args, kwargs)
