"""Giving a module its own tensor where it shares one, as ``peft`` copies what it trains whole.

A language model's output may be its embedding. ``modules_to_save=["lm_head"]`` of ``peft`` trains a
copy and leaves the embedding as it is; its file holds the copy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_peft.anatomy.names import parameter_at
from lightning_peft.methods.base import Adapter

__all__ = ["PartedTensor", "part", "parted_tensors"]


def part(model: nn.Module, names: Iterable[str]) -> list[nn.Parameter]:
    """Give parameters that are shared a tensor of their own, with the same values.

    Args:
        model: The backbone; changed in place.
        names: Names of parameters.

    Returns:
        The new parameters, which require a gradient.
    """
    made = []
    for name in names:
        shared = parameter_at(model, name)
        own = nn.Parameter(shared.detach().clone())
        _put(model, name, own)
        made.append(own)
    return made


def parted_tensors(
    model: nn.Module, before: Mapping[str, Tensor], names: Iterable[str], stay: Collection[str]
) -> list[Adapter]:
    """Return the handles on parameters that were parted.

    Args:
        model: The adapted backbone.
        before: Every tensor of it by its name before.
        names: The names of those that were parted.
        stay: Those of them that are switched on always, as a head is.
    """
    now: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        now.setdefault(id(parameter), name)
    return [PartedTensor(model, name, now[id(before[name])], name in stay) for name in names]


class PartedTensor:
    """A handle on a parameter that was parted from another.

    Args:
        model: The adapted backbone.
        name: The parameter's name.
        other: The name of the parameter that it was.
        stays: Whether it is switched on always.
    """

    def __init__(self, model: nn.Module, name: str, other: str, stays: bool) -> None:
        self.model = model
        self.name = name
        self.other = other
        self.stays = stays
        self._aside: nn.Parameter | None = None
        self._merged = False

    @property
    def owner(self) -> nn.Module:
        """See :class:`Adapter`."""
        return self.model.get_submodule(self.name.rpartition(".")[0])

    def written(self) -> Iterable[nn.Parameter]:
        """See :class:`Adapter`: the weights stay as they are."""
        return ()

    @property
    def enabled(self) -> bool:
        """See :class:`Adapter`."""
        return self._aside is None

    def set_enabled(self, enabled: bool) -> None:
        """See :class:`Adapter`: off, the parameter is the shared one again."""
        if self.stays or enabled == self.enabled:
            return
        if enabled:
            assert self._aside is not None
            _put(self.model, self.name, self._aside)
            self._aside = None
        else:
            self._aside = parameter_at(self.model, self.name)
            _put(self.model, self.name, parameter_at(self.model, self.other))

    def merge(self) -> float:
        """See :class:`Adapter`: the copy is a weight of the model already."""
        self._merged = True
        return 0.0

    def unmerge(self) -> None:
        """See :class:`Adapter`."""
        self._merged = False

    def unload(self) -> None:
        """See :class:`Adapter`: merged, the two stay apart."""
        if not self._merged:
            _put(self.model, self.name, parameter_at(self.model, self.other))
            return
        config: Any = getattr(self.model, "config", None)
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False  # or transformers would save one of them only


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, key = name.rpartition(".")
    model.get_submodule(path)._parameters[key] = parameter
