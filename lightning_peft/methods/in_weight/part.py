"""Parts: linear layers that stand for a parameter of another module."""

from __future__ import annotations

import re

from torch import Tensor, nn

from lightning_peft.anatomy.names import parameter_at
from lightning_peft.anatomy.parts import parts_of

__all__ = ["Part", "add_part", "layer_at", "remove_part", "with_parts"]


class Part(nn.Linear):
    """A matrix that another module holds, with the interface of a linear layer.

    It has no parameter of its own: it reads and hands on those of its holder.

    Args:
        holder: The module with the parameter.
        weight: The parameter's name; more than two dimensions are read as rows times the rest.
    """

    def __init__(self, holder: nn.Module, weight: str) -> None:
        nn.Module.__init__(self)
        self.__dict__["_place"] = (holder,)  # a reference, not a child
        parameter = parameter_at(holder, weight)
        self.out_features = parameter.shape[0]
        self.in_features = parameter[0].numel()
        bias = _bias_of(holder, weight)
        self.names = {"weight": weight, "bias": bias}
        self.training = holder.training

    @property
    def holder(self) -> nn.Module:
        """The module with the parameter."""
        holder: nn.Module = self.__dict__["_place"][0]
        return holder

    def attribute(self, name: str) -> str:
        """Return the name in the holder of the part's ``weight`` or ``bias``."""
        found = self.names[name]
        if found is None:
            raise ValueError(f"expected a {name}, {type(self.holder).__name__} has none")
        return found

    def own(self, name: str) -> Tensor | None:
        """Return the holder's parameter as ``weight``, a matrix, or ``bias``."""
        attribute = self.names.get(name)
        if attribute is None:
            return None
        parameter = self.holder._parameters[attribute]
        if parameter is None or parameter.ndim <= 2:
            return parameter
        return parameter.flatten(1)

    @property
    def weight(self) -> Tensor | None:  # type: ignore[override]
        """The matrix, ``(out_features, in_features)``."""
        return self.own("weight")

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The bias that belongs to it, if the holder has one for each row."""
        return self.own("bias")

    def weights(self) -> dict[str, Tensor | None]:
        """Return both by name."""
        return {"weight": self.weight, "bias": self.bias}


def with_parts(model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Replace the names of modules with parts by the names of their parts.

    Args:
        model: The backbone.
        names: Names of modules to adapt.
    """
    found: list[str] = []
    for name in names:
        parts = parts_of(model.get_submodule(name))
        found += [f"{name}.{part}" for part in parts] if parts else [name]
    return tuple(dict.fromkeys(found))


def layer_at(model: nn.Module, name: str) -> nn.Module:
    """Return the layer of a name; a part that is not added yet is made, and not added.

    Args:
        model: The backbone.
        name: The name of a module, or of a part of one.
    """
    holder_name, _, key = name.rpartition(".")
    try:
        return model.get_submodule(name)
    except AttributeError:
        holder = model.get_submodule(holder_name)
        return Part(holder, parts_of(holder)[key])


def add_part(model: nn.Module, name: str) -> bool:
    """Add a part to its holder, if it is the name of one.

    Args:
        model: The backbone; its holder of the part is changed.
        name: The name of a module, or of a part of one.

    Returns:
        Whether it is a part.
    """
    holder_name, _, key = name.rpartition(".")
    holder = model.get_submodule(holder_name)
    if key in holder._modules:
        return isinstance(holder._modules[key], Part)
    holder.add_module(key, Part(holder, parts_of(holder)[key]))
    return True


def remove_part(part: Part) -> bool:
    """Remove a part, or the layer around it, from its holder; return whether others are left."""
    modules = part.holder._modules
    for key, module in list(modules.items()):
        if _inner(module) is part:
            del modules[key]
    return any(isinstance(_inner(module), Part) for module in modules.values())


def _inner(module: nn.Module | None) -> nn.Module | None:
    """Return the base of a layer of ``peft``, or the module itself."""
    return None if module is None else module._modules.get("base_layer", module)


def _bias_of(holder: nn.Module, weight: str) -> str | None:
    """Return the name of the bias with an entry for each row of a weight, or ``None``."""
    wanted = re.sub("weight", "bias", weight, count=1)
    bias = holder._parameters.get(wanted)
    rows = parameter_at(holder, weight).shape[0]
    same = bias is not None and len(bias) == rows and not isinstance(holder, _TRANSPOSED)
    return wanted if same else None


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
