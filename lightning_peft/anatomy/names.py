"""Names of tensors that several modules share, such as tied embeddings, and of parts of a model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import chain

from torch import Tensor, nn

__all__ = ["bare_name", "every_name", "inside", "parameter_at", "parameters_inside", "shared_names"]


_AROUND = re.compile(r"(?:\.token_adapter)?(?:\.base_layer)+\.")


def bare_name(name: str) -> str:
    """Return the name of a tensor without the layers that ``peft`` has put around its module."""
    return _AROUND.sub(".", name)


def every_name(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter and buffer of a model under every name that it has.

    Args:
        model: Any module.

    Yields:
        The name and the tensor, in the order of the modules.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for key, tensor in chain(module._parameters.items(), module._buffers.items()):
            if tensor is not None:
                yield prefix + key, tensor


def shared_names(model: nn.Module) -> dict[str, str]:
    """Find the parameters and buffers that a model has under more than one name.

    Args:
        model: Any module.

    Returns:
        The first name of such a tensor, by each of its further names.
    """
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for name, tensor in every_name(model):
        earlier = first.setdefault(id(tensor), name)
        if earlier != name:
            found[name] = earlier
    return found


def parameters_inside(
    model: nn.Module, roots: tuple[str, ...], without: Collection[str] = ()
) -> tuple[str, ...]:
    """Return the parameters that have a name in some modules, under the first name of each.

    A weight of a language model's output that is tied to its embedding has its first name there.

    Args:
        model: Any module.
        roots: Names of modules and parameters.
        without: Names that do not count.
    """
    found: dict[int, str] = {}
    within: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), name)
        if roots and name not in without and inside(name, roots):
            within.add(id(parameter))
    return tuple(name for key, name in found.items() if key in within)


def parameter_at(model: nn.Module, name: str) -> nn.Parameter:
    """Return a parameter as it is registered.

    ``get_parameter`` takes the attribute, which is the sum where an update is in the weight.

    Args:
        model: Any module.
        name: The parameter's name.

    Raises:
        AttributeError: If there is none of this name.
    """
    path, _, key = name.rpartition(".")
    found = model.get_submodule(path)._parameters.get(key)
    if found is None:
        raise AttributeError(f"{type(model).__name__} has no parameter '{name}'")
    return found


def inside(name: str, roots: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of the roots or lies below one (``""`` holds everything)."""
    return any(root in ("", name) or name.startswith(f"{root}.") for root in roots)
