"""Loading trained-only checkpoints into a sharded module, on any number of processes.

Lightning's ``ModelParallelStrategy`` reads a checkpoint directly into the sharded module, and
requires all of its keys. Ours only hold trained state, so this module replaces that one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_peft.adaptation.checks import key_problems
from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.errors import CheckpointError
from lightning_peft.lightning.checkpoint import (
    check_recorded,
    needed_keys,
    recorded_in,
    refuse_unfit,
    trained_state,
)

__all__ = ["TrainedOnlyLoad", "read_trained_only"]

_METADATA = "meta.pt"
_STATE = "state_dict"


class TrainedOnlyLoad:
    """A replacement for ``ModelParallelStrategy.load_checkpoint``.

    Args:
        strategy: The strategy.
        strict_backbone: Whether a checkpoint of another backbone is an error or a warning.
    """

    def __init__(self, strategy: Any, strict_backbone: bool = True) -> None:
        self.strategy = strategy
        self.strict_backbone = strict_backbone

    def __call__(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint into the sharded module and the optimizers.

        Args:
            checkpoint_path: A distributed checkpoint, or a file with a full one.
            weights_only: As for ``Trainer.fit``; ``None`` unpickles plain types only.

        Returns:
            The rest of the checkpoint.

        Raises:
            CheckpointError: If it is not a checkpoint, or does not fit the adapted module.
        """
        path = Path(self.strategy.broadcast(checkpoint_path))
        return read_trained_only(
            path,
            self.strategy.model,
            self.strategy.optimizers,
            weights_only is not False,
            self.strict_backbone,
        )


def read_trained_only(
    path: Path,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    weights_only: bool = True,
    strict_backbone: bool = True,
) -> dict[str, Any]:
    """Read trained state from a checkpoint into a sharded module; frozen state stays as it is.

    Args:
        path: A distributed checkpoint, or a file with a full one.
        module: The sharded module, adapted.
        optimizers: Optimizers whose state is read too.
        weights_only: Whether to unpickle plain types only.
        strict_backbone: Whether a checkpoint of another backbone is an error or a warning.

    Returns:
        The rest of the checkpoint.

    Raises:
        CheckpointError: If it is not a checkpoint, or does not fit the adapted module.
        BackboneMismatchError: If it was trained on another backbone.
    """
    if (path / _METADATA).is_file():
        about = torch.load(path / _METADATA, weights_only=weights_only, map_location="cpu")
        _check(module, about, strict_backbone)
        _read_shards(path, module, optimizers)
        return dict(about)
    if path.is_file():
        whole = torch.load(path, weights_only=weights_only, map_location="cpu", mmap=True)
        _check(module, whole, strict_backbone)
        _read_whole(whole, module, optimizers)
        return dict(whole)
    raise CheckpointError(
        f"expected a distributed checkpoint or a file with a whole one, got {path}: it is neither. "
        "A run that was stopped while writing leaves one without its last file."
    )


def _check(module: nn.Module, about: Mapping[str, Any], strict_backbone: bool) -> None:
    for adaptation in find_adaptations(module).values():
        adaptation.state.ask("loading a checkpoint")
    recorded = recorded_in(about)
    if recorded is not None:
        check_recorded(find_adaptations(module), recorded, strict_backbone)


def _read_shards(path: Path, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    there = {
        key.removeprefix(f"{_STATE}."): torch.empty(entry.size, device="meta")
        for key, entry in stored.items()
        if key.startswith(f"{_STATE}.") and isinstance(entry, dcp.metadata.TensorStorageMetadata)
    }
    own = get_model_state_dict(module)
    state = {name: own[name] for name in _chosen(there, module, own)}
    dcp.load({_STATE: state}, checkpoint_id=path)
    module.load_state_dict(state, strict=False)
    for index, optimizer in enumerate(optimizers):
        key = f"optimizer_{index}"
        found = {key: get_optimizer_state_dict(module, optimizer)}
        dcp.load(found, checkpoint_id=path)
        set_optimizer_state_dict(module, optimizer, optim_state_dict=found[key])


def _read_whole(
    whole: dict[str, Any], module: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> None:
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    state = trained_state(module, whole)
    del whole[_STATE]
    names = _chosen(state, module, get_model_state_dict(module))
    set_model_state_dict(module, {name: state[name] for name in names}, options=options)
    states = whole.get("optimizer_states", [])
    for optimizer, saved in zip(optimizers, states, strict=True):
        named = _by_name(saved, module, optimizer)
        set_optimizer_state_dict(module, optimizer, optim_state_dict=named, options=options)


def _chosen(
    there: Mapping[str, torch.Tensor], module: nn.Module, own: Mapping[str, Any]
) -> list[str]:
    """Check keys and shapes both ways, and return the keys to read."""
    refuse_unfit(key_problems(there, own, needed_keys(module, own)))
    return [name for name in own if name in there]


def _by_name(
    saved: Mapping[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Return an optimizer's state under the parameters' names; elsewhere they are numbered."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    own = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    numbers = list(chain.from_iterable(group["params"] for group in saved["param_groups"]))
    if len(numbers) != len(own):
        raise CheckpointError(
            f"the optimizer's state is of {len(numbers)} parameters, the optimizer has {len(own)}: "
            "expected the same. Was the checkpoint made with other parameter groups?"
        )
    name_of = dict(zip(numbers, own, strict=True))
    return {
        "state": {name_of[number]: entry for number, entry in saved["state"].items()},
        "param_groups": [
            {**group, "params": [name_of[number] for number in group["params"]]}
            for group in saved["param_groups"]
        ],
    }
