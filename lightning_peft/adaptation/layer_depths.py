"""The depths of parameters by which learning rates decay: timm's of its models, else by blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_peft.adaptation.handle import find_adaptation
from lightning_peft.anatomy.names import inside

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["Depths", "layer_depths"]


@dataclass(frozen=True)
class Depths:
    """The depth of each module and parameter of a model.

    Depth 0 is everything before the first block, 1 to n are the blocks, and n + 1 is everything
    after the last one, with the head. A module between two blocks (a downsampling) has the depth of
    the block before it. "Before" and "after" mean the order in which modules are registered.

    Attributes:
        modules: The depth of each module, by name.
        parameters: The depth of each parameter, by name; a shared one under its first name.
        last: The depth of the head, n + 1.
    """

    modules: dict[str, int]
    parameters: dict[str, int]
    last: int

    @classmethod
    def of(cls, model: nn.Module, found: Anatomy) -> Depths:
        """Compute the depths of a model.

        Args:
            model: The model.
            found: Its anatomy.
        """
        index = {name: i + 1 for i, name in enumerate(found.blocks)}
        last = len(index) + 1
        modules: dict[str, int] = {}
        seen = 0
        for name, _ in model.named_modules():
            seen = max(seen, index.get(name, 0))
            parent = name.rpartition(".")[0]
            if name in index:
                modules[name] = index[name]
            elif name and inside(name, found.head):
                modules[name] = last
            elif parent in modules and inside(parent, found.blocks):
                modules[name] = modules[parent]
            else:
                modules[name] = seen
        parameters = {
            name: last if inside(name, found.head) else modules[name.rpartition(".")[0]]
            for name, _ in model.named_parameters()
        }
        return cls(modules, parameters, last)


def layer_depths(
    module: nn.Module, found: Anatomy, by_blocks: Depths
) -> tuple[dict[str, int], int]:
    """Return the depth of each parameter, and that of the head.

    Args:
        module: The model, or a module that holds it.
        found: Its anatomy.
        by_blocks: The depths by blocks, for a model that names no groups.

    Returns:
        The depths by name; 0 is the first layer, the largest number is the head's.
    """
    path, backbone = _with_groups(module)
    if backbone is None:
        return by_blocks.parameters, by_blocks.last
    groups, last = _groups(backbone)
    depths = {}
    for name, _ in module.named_parameters():
        own = name.removeprefix(f"{path}.") if path else name
        outside = path and not name.startswith(f"{path}.")
        head = inside(name, found.head)
        depths[name] = last if outside or head else _depth(own, groups, last)
    return depths, last


def _with_groups(module: nn.Module) -> tuple[str, nn.Module | None]:
    """Return the timm model in a module, and its name there."""
    for path, part in module.named_modules():
        if callable(getattr(part, "group_matcher", None)):
            return path, part
    return "", None


def _groups(backbone: Any) -> tuple[dict[str, int], int]:
    """Return timm's group of each parameter of a model as if it was not adapted, and its head's."""
    from timm.models import group_parameters

    adaptation = find_adaptation(backbone)
    names = {name: name for name, _ in backbone.named_parameters()}
    if adaptation is not None:  # it may have renamed parameters, and added others
        before = {now: name for name, now in adaptation.base_names.items()}
        names = {before[name]: name for name in names if name in before}
    head = f"{_classifier(backbone)}.weight"  # which a backbone beside its head has not
    named = _Named({*names, head})
    found = group_parameters(named, backbone.group_matcher(coarse=False), reverse=True)
    groups = {now: found[name] for name, now in names.items()}
    return groups, max(found.values())


def _classifier(backbone: Any) -> str:
    """Return the name that timm gives the last layer of the head of a model."""
    name = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return str(name if isinstance(name, str) else name[0])


class _Named:
    """What timm asks a model for: the names of its parameters."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = names

    def named_parameters(self) -> Iterator[tuple[str, None]]:
        """Yield the names, without parameters."""
        return ((name, None) for name in self.names)


def _depth(name: str, groups: Mapping[str, int], last: int) -> int:
    """Return the depth of a parameter; that of an adapter is the place's in which it sits."""
    if name in groups:
        return groups[name]
    place = name.rpartition(".")[0]
    while place:
        beside = [group for other, group in groups.items() if other.startswith(f"{place}.")]
        if beside:
            return max(beside)
        place = place.rpartition(".")[0]
    return last
