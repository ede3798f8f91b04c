"""Lightning checkpoints with only the trained state, checked both ways when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_peft.adaptation.checks import key_problems, value_problems
from lightning_peft.adaptation.handle import Adaptation, find_adaptations
from lightning_peft.errors import (
    CheckpointError,
    shown,
    some,
)
from lightning_peft.files.description import FORMAT_VERSION
from lightning_peft.files.writing import versions
from lightning_peft.lightning.checkpoint_before import renamed, with_rewritten
from lightning_peft.lightning.checkpoint_kinds import (
    CheckpointKind,
    brings_its_base,
    frozen_names,
    full_state,
    merged_state,
    present_state,
)
from lightning_peft.lightning.checkpoint_record import (
    CHECKPOINT_KEY,
    check_recorded,
    recorded_in,
)
from lightning_peft.lightning.further_names import further_names, join, plain_name

__all__ = [
    "CHECKPOINT_KEY",
    "check_recorded",
    "complete_checkpoint",
    "needed_keys",
    "recorded_in",
    "refuse_unfit",
    "slim_checkpoint",
    "trained_state",
]


def slim_checkpoint(
    pl_module: nn.Module, checkpoint: dict[str, Any], kind: CheckpointKind = "slim"
) -> None:
    """Remove the frozen part of every adapted backbone from a checkpoint.

    The state of each adaptation, and everything outside the backbones, remains.

    Args:
        pl_module: The LightningModule that is being saved.
        kind: ``"full"`` leaves the base there, under the names that it has without the adapter;
            ``"merged"`` leaves the state of the module without an adapter, which is in the weights,
            and puts the slim one into the new key.
        checkpoint: Lightning's checkpoint; changed in place. The key ``lightning_peft`` is added:
            the format's version, how each backbone was adapted, its fingerprint, and package
            versions.

    Raises:
        MethodError: If an adapter is merged, and what was trained in place would have it twice, or
            in another state in which this is refused.
    """
    adaptations = find_adaptations(pl_module)
    if not adaptations:
        return
    drop: set[str] = set()
    for path, adaptation in adaptations.items():
        adaptation.state.ask("saving a checkpoint")
        keep = adaptation.state_names()
        drop |= {join(path, name) for name in adaptation.model.state_dict() if name not in keep}
    drop |= set(further_names(pl_module))
    about: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "adaptations": {plain_name(path): a.describe() for path, a in adaptations.items()},
    }
    if kind != "slim":
        about["checkpoints"] = kind
    whole = checkpoint.get("state_dict")
    for holder, section in _sections(checkpoint):
        if kind == "full":
            holder[section] = full_state(pl_module, holder[section])
        else:
            holder[section] = {n: t for n, t in holder[section].items() if n not in drop}
    if kind == "merged" and whole is not None:
        about["trained"] = checkpoint["state_dict"]
        checkpoint["state_dict"] = merged_state(pl_module, whole)
    checkpoint[CHECKPOINT_KEY] = about


def complete_checkpoint(
    pl_module: nn.Module, checkpoint: dict[str, Any], *, strict_backbone: bool = True
) -> None:
    """Check a checkpoint against an adapted module, and add the frozen part to it.

    Frozen entries come from the module itself, so that Lightning's own strict loading finds every
    key. A checkpoint without an adapter, from before lightning-peft was added, is loaded as the
    backbone's weights, and the adapter keeps its initial values.

    Args:
        pl_module: The adapted LightningModule.
        checkpoint: The loaded checkpoint; changed in place.
        strict_backbone: Whether another backbone is an error (``True``) or a warning.

    Raises:
        CheckpointError: If it was made with another method, or keys are missing or unknown; all of
            them are listed.
        BackboneMismatchError: If the adapter was trained on another backbone.
        MethodError: If an adapter is merged, or in another state in which this is refused.
    """
    adaptations = find_adaptations(pl_module)
    if not adaptations or "state_dict" not in checkpoint:
        return
    for adaptation in adaptations.values():
        adaptation.state.ask("loading a checkpoint")
    recorded = recorded_in(checkpoint)
    if recorded is not None and recorded.get("checkpoints") == "merged":
        checkpoint["state_dict"] = recorded["trained"]
    _check_sections(checkpoint)
    brought: dict[str, Adaptation] = {}
    full = recorded is not None and recorded.get("checkpoints") == "full"
    if full:
        brought = {plain_name(path): a for path, a in adaptations.items() if brings_its_base(a)}
    if recorded is not None:
        check_recorded(adaptations, recorded, strict_backbone, set(brought))
    own = pl_module.state_dict()
    by_plain = {plain_name(name): name for name in own}
    for holder, section in _sections(checkpoint):
        state = {
            by_plain.get(plain_name(name), name): tensor for name, tensor in holder[section].items()
        }
        if recorded is None:
            state = renamed(state, adaptations, further_names(pl_module))
            state = with_rewritten(state, own, adaptations)
        if full:
            # a base that stays is the same as that of the file
            kept = frozen_names({p: a for p, a in adaptations.items() if not brings_its_base(a)})
            state = present_state(pl_module, state)
            state = {name: tensor for name, tensor in state.items() if name not in kept}
        if recorded is not None and not full and section == "state_dict":
            for path, adaptation in adaptations.items():  # what a run has written to goes on so
                frozen = frozen_names({path: adaptation}) & set(state)
                adaptation.written.update(name.removeprefix(f"{path}.") for name in frozen)
        holder[section] = _filled(state, own, pl_module, fresh=recorded is None)
    for path, adaptation in brought.items():
        described = (recorded or {})["adaptations"].get(path)
        if described is not None:
            adaptation.fingerprint = dict(described["fingerprint"])


def trained_state(pl_module: nn.Module, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a checkpoint of any form holds of the trained state of an adapted module.

    Args:
        pl_module: The adapted module; it is not changed.
        checkpoint: The loaded checkpoint; it is not changed.

    Returns:
        Tensors by the module's names.

    Raises:
        CheckpointError: As for :func:`recorded_in`.
    """
    recorded = recorded_in(checkpoint) or {}
    state: dict[str, Tensor] = dict(recorded.get("trained") or checkpoint["state_dict"])
    if recorded.get("checkpoints") == "full":
        state = present_state(pl_module, state)
        adaptations = find_adaptations(pl_module).items()
        frozen = {
            join(p, n) for p, a in adaptations for n in set(a.model.state_dict()) - a.state_names()
        }
        state = {name: tensor for name, tensor in state.items() if name not in frozen}
    return state


def _sections(checkpoint: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Find the places of a checkpoint with weights of the whole module, as mapping and key.

    Averaging keeps a second set: ``WeightAveraging`` next to the first,
    ``StochasticWeightAveraging`` in its own state.
    """
    callbacks = checkpoint.get("callbacks")
    states = callbacks.values() if isinstance(callbacks, dict) else ()
    found = [(checkpoint, key) for key in ("state_dict", "current_model_state")]
    found += [(state, "average_model_state") for state in states if isinstance(state, dict)]
    return [(holder, key) for holder, key in found if holder.get(key) is not None]


def _check_sections(checkpoint: dict[str, Any]) -> None:
    for holder, section in _sections(checkpoint):
        state = holder[section]
        if not isinstance(state, Mapping):
            raise CheckpointError(
                f"expected '{section}' to hold tensors by name, got {shown(state)}"
            )
        wrong = [
            f"{shown(name)} ({type(value).__name__})"
            for name, value in state.items()
            if not isinstance(name, str) or not isinstance(value, Tensor)
        ]
        if wrong:
            raise CheckpointError(
                f"expected '{section}' to hold tensors by name, got {some(wrong)}."
            )


def needed_keys(
    pl_module: nn.Module, own: Mapping[str, Tensor], *, fresh: bool = False
) -> set[str]:
    """Return the names of the entries that a checkpoint must hold for a module.

    Args:
        pl_module: The adapted module.
        own: Its state dict.
        fresh: Whether the checkpoint is from before the adaptation, so that it must hold the
            backbone and no adapter.
    """
    optional: set[str] = set()
    for path, adaptation in find_adaptations(pl_module).items():
        trained = set(adaptation.trained_names())
        adapter = set(adaptation.adapter_names())
        backbone = set(adaptation.base_names.values())
        for name in adaptation.model.state_dict():
            new = name in adapter or name not in backbone
            if new if fresh else not (name in trained or name in adapter):
                optional.add(join(path, name))
    return set(own) - optional - set(further_names(pl_module))


def refuse_unfit(problems: Sequence[str]) -> None:
    """Refuse a checkpoint that does not fit, if there are problems.

    Raises:
        CheckpointError: Listing all of them.
    """
    if problems:
        raise CheckpointError(
            "the checkpoint does not fit the adapted module: "
            + "; ".join(problems)
            + ". Was it made with another method, rank, target or head?"
        )


def _filled(
    state: dict[str, Tensor], own: Mapping[str, Tensor], pl_module: nn.Module, fresh: bool
) -> dict[str, Tensor]:
    """Check the keys, and add entries that may be absent: frozen ones, or a new adapter's."""
    problems = key_problems(state, own, needed_keys(pl_module, own, fresh=fresh))
    refuse_unfit([*problems, *value_problems(state, own)])
    shared = further_names(pl_module)
    filled = {name: state.get(name, tensor) for name, tensor in own.items()}
    # a shared tensor is saved under one name: the others must not restore its old value
    # (one that is not persistent, as the original rows of peft's tokens, is in no state)
    filled.update(
        {n: filled[first] for n, first in shared.items() if n not in state and first in filled}
    )
    return filled
