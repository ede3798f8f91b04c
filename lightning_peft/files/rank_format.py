"""AdaLoRA's adapters in ``peft``'s format: without the ranks that its training pruned.

``peft`` writes the rows of ``A`` and ``E`` and the columns of ``B`` that ``rank_pattern`` keeps,
and makes its layers as small when it reads them. Here a layer keeps its first size, and a pruned
entry of ``E`` is zero, which is the same function: what a file leaves out is zero after loading.
The first rank, by which updates are divided (``ranknum``), is in no file of ``peft``, since the
config says it. A layer that is narrower than the first rank never had the others: in a file they
are pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.errors import AdapterFileError, shown, some
from lightning_peft.methods.from_peft.inject import ADAPTER_NAME

__all__ = ["divisors", "note_ranks", "pruned_for_peft", "with_all_ranks", "without_ranks"]

_DIMENSION = {"lora_A": 0, "lora_B": 1, "lora_E": 0}
"""The dimension of each factor that has an entry for each rank."""


def divisors(model: nn.Module) -> dict[str, Tensor]:
    """Return the entries of the state dict with the ranks that updates are divided by.

    Only those that the config says, too.

    Args:
        model: The adapted model.
    """
    found = {}
    for name, layer in _layers(model).items():
        divisor = layer.ranknum[ADAPTER_NAME].detach()
        if torch.equal(divisor, torch.full_like(divisor, float(_config(model).init_r))):
            found[f"{name}.ranknum.{ADAPTER_NAME}"] = divisor
    return found


@contextmanager
def without_ranks(model: nn.Module) -> Iterator[None]:
    """Let ``peft`` name all entries of a state dict inside the context.

    With ranks in its config it would prune the tensors, by a function of its tuner that an
    injection has not, and rename the entries of the config.

    Args:
        model: The adapted model.
    """
    config = _config(model)
    if config is None:
        yield
        return
    ranks, config.rank_pattern = config.rank_pattern, None
    try:
        yield
    finally:
        config.rank_pattern = ranks


def pruned_for_peft(
    model: nn.Module,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config and tensors of a file with no ranks but those that are left.

    A rank that was pruned but has grown since, between two allocations, is left, too: the file
    computes what the model does.

    Args:
        model: The adapted model.
        config: The content of ``adapter_config.json``.
        state: The tensors under the names that ``peft`` uses.
        names: The model's name for each of these.
    """
    own = _config(model)
    if own is None:
        return dict(config), dict(state)
    kept = {name: _kept(layer, name, own.rank_pattern) for name, layer in _layers(model).items()}
    # where peft would scale by the rank that is left, or look for the layer under another name,
    # the file holds the pruned ranks as zeros
    foreign = own.lora_alpha <= 0 or any(ADAPTER_NAME in name for name in kept)
    masks = {
        name: mask.tolist() + [False] * (own.init_r - len(mask)) for name, mask in kept.items()
    }
    keys = {name: key for key, name in names.items()}
    written = dict(state)
    if foreign or all(map(all, masks.values())):
        for name in kept:
            for factor, dimension in _DIMENSION.items():
                key = keys[f"{name}.{factor}.{ADAPTER_NAME}"]
                written[key] = _with_zeros(state[key], dimension, own.init_r)
        return {**config, "rank_pattern": None}, written
    for name, mask in kept.items():
        for factor, dimension in _DIMENSION.items():
            key = keys[f"{name}.{factor}.{ADAPTER_NAME}"]
            (places,) = mask.to(state[key].device).nonzero(as_tuple=True)
            written[key] = state[key].index_select(dimension, places)
    ranks = {f"{name}.lora_E": mask for name, mask in masks.items()}
    return {**config, "rank_pattern": ranks}, written


def _with_zeros(tensor: Tensor, dimension: int, rank: int) -> Tensor:
    """Return a factor with zeros for the ranks that its layer never had."""
    lost = rank - tensor.shape[dimension]
    if lost <= 0:
        return tensor
    shape = list(tensor.shape)
    shape[dimension] = lost
    return torch.cat([tensor, tensor.new_zeros(shape)], dimension)


def with_all_ranks(
    model: nn.Module, state: Mapping[str, Tensor], ranks: object
) -> dict[str, Tensor]:
    """Return the tensors of a file in the sizes of the model's layers.

    Args:
        model: The adapted model.
        state: The tensors of the file under the model's names.
        ranks: ``rank_pattern`` of its config.

    Raises:
        AdapterFileError: If the ranks do not fit the layers. Tensors that do not fit the ranks keep
            their size, which is reported with all others that do not fit the model.
    """
    found = {**divisors(model), **state}
    for name, layer in _layers(model).items():
        own = len(layer.lora_E[ADAPTER_NAME])
        for factor, dimension in _DIMENSION.items():
            entry = f"{name}.{factor}.{ADAPTER_NAME}"
            tensor = state.get(entry)
            if not ranks and tensor is not None and tensor.shape[dimension] > own:
                beyond = tensor.narrow(dimension, own, tensor.shape[dimension] - own)
                if not beyond.any():  # what peft has and a narrow layer has not
                    found[entry] = tensor.narrow(dimension, 0, own).clone()
    for name, mask in _read(model, ranks).items():
        (places,) = torch.tensor(mask, dtype=torch.bool).nonzero(as_tuple=True)
        for factor, dimension in _DIMENSION.items():
            entry = f"{name}.{factor}.{ADAPTER_NAME}"
            tensor = state.get(entry)
            if tensor is None or tensor.dim() != 2 or tensor.shape[dimension] != len(places):
                continue
            shape = list(tensor.shape)
            shape[dimension] = len(mask)
            whole = tensor.new_zeros(shape)
            found[entry] = whole.index_copy_(dimension, places.to(tensor.device), tensor)
    return found


def note_ranks(model: nn.Module, ranks: object) -> None:
    """Note in the model which ranks the file that was loaded has pruned.

    Args:
        model: The adapted model.
        ranks: ``rank_pattern`` of the file's config; ``None`` if it has pruned none.
    """
    config = _config(model)
    if config is not None:
        read = _read(model, ranks)
        config.rank_pattern = {f"{n}.lora_E.{ADAPTER_NAME}": mask for n, mask in read.items()}
        if all(map(all, config.rank_pattern.values())):
            config.rank_pattern = None


def _read(model: nn.Module, ranks: object) -> dict[str, list[bool]]:
    """Return which ranks each layer keeps, by its name."""
    layers = _layers(model)
    if not ranks or not layers:
        return {}
    if not isinstance(ranks, Mapping):
        raise AdapterFileError(f"expected 'rank_pattern' to be a mapping, got {shown(ranks)}.")
    read: dict[str, list[bool]] = {}
    problems = []
    for key, mask in ranks.items():
        name, _, adapter = str(key).partition(".lora_E")
        if name not in layers or adapter.count(".") > 1:
            problems.append(f"{shown(key)}, which is no layer of AdaLoRA")
            continue
        rank, first = len(layers[name].lora_E[ADAPTER_NAME]), _config(model).init_r
        whole = isinstance(mask, list) and all(type(entry) is bool for entry in mask)
        if not whole or len(mask) not in (rank, first) or any(mask[rank:]):
            problems.append(f"{shown(mask)} for {shown(name)}, which has {rank} ranks")
            continue
        read[name] = mask[:rank]
    if problems:
        raise AdapterFileError(
            "expected 'rank_pattern' to say of each rank of a layer whether it is left, got "
            + some(problems, separator="; ")
            + ". Take both files from the same save."
        )
    return read


def _kept(layer: Any, name: str, ranks: Mapping[str, list[bool]] | None) -> Tensor:
    values = layer.lora_E[ADAPTER_NAME].detach().flatten()
    left = (ranks or {}).get(f"{name}.lora_E.{ADAPTER_NAME}", [True] * len(values))
    return torch.tensor(left, device=values.device) | (values != 0)


def _config(model: nn.Module) -> Any:
    """Return the model's config if its tuner is AdaLoRA; the ranks of LoRA are another matter."""
    config = getattr(model, "peft_config", {}).get(ADAPTER_NAME)
    kind = getattr(config, "peft_type", None)
    return config if getattr(kind, "value", kind) == "ADALORA" else None


def _layers(model: nn.Module) -> dict[str, Any]:
    if _config(model) is None:
        return {}
    return {
        name: module
        for name, module in model.named_modules()
        if ADAPTER_NAME in getattr(module, "lora_E", ())
    }
