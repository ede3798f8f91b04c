"""Merging into a weight that several modules share, such as tied embeddings.

An adapter acts where its own module is called; a merged weight acts wherever it is read. Both are
the same only if the adapter's module is the weight's only reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from lightning_peft.errors import some
from lightning_peft.methods.base import Adapter

__all__ = ["refuse_shared"]


def refuse_shared(model: nn.Module, adapters: Sequence[Adapter]) -> None:
    """Refuse to merge adapters into weights that other modules read too.

    Args:
        model: The adapted backbone, not merged; not changed.
        adapters: The handles on its adapters.

    Raises:
        ValueError: Naming all of them, with the way out.
    """
    readers = _readers(model)
    problems = []
    for adapter in adapters:
        owner = adapter.owner
        tied = {id(p): _others(readers.get(id(p), []), owner) for p in owner.parameters()}
        if not any(tied.values()):
            continue
        for parameter in adapter.written():
            others = tied.get(id(parameter), [])
            if others:
                mine = [name for name, _ in readers[id(parameter)] if name not in others]
                problems.append(f"{_plain(mine[:1])} (which is {_plain(others[:4])} too)")
    if problems:
        raise ValueError(
            "expected weights that only the adapted module reads, got "
            f"{some(problems)}: the sum would change the other reader, which the "
            "adapter does not. Keep the adapter beside the weights; or give each reader of a fresh "
            "backbone a weight of its own (reader.weight = "
            "nn.Parameter(reader.weight.detach().clone()); for transformers "
            "config.tie_word_embeddings = False as well), load the adapter into it with "
            "strict_backbone=False and merge there"
        )


def _others(readers: Sequence[tuple[str, list[nn.Module]]], owner: nn.Module) -> list[str]:
    """Return the names under which a parameter is reached without passing its adapter."""
    return [name for name, around in readers if not any(module is owner for module in around)]


def _readers(model: nn.Module) -> dict[int, list[tuple[str, list[nn.Module]]]]:
    """Return every name of each parameter, with the modules on the way to it."""
    readers: dict[int, list[tuple[str, list[nn.Module]]]] = {}
    for path, around in _paths(model, "", []):
        for key, parameter in around[-1]._parameters.items():
            if parameter is not None:
                readers.setdefault(id(parameter), []).append((path + key, around))
    return readers


def _paths(
    module: nn.Module, path: str, above: list[nn.Module]
) -> Iterator[tuple[str, list[nn.Module]]]:
    around = [*above, module]
    yield path, around
    for key, child in module._modules.items():
        if child is not None:
            yield from _paths(child, f"{path}{key}.", around)


def _plain(names: Sequence[str]) -> str:
    return ", ".join(name.replace(".base_layer", "") for name in names)
