"""Lightning checkpoints with only the trained state, checked both ways when they are loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.checks import key_problems, value_problems
from lightning_peft.adaptation.handle import Adaptation, find_adaptations
from lightning_peft.anatomy.fingerprint import differences
from lightning_peft.errors import (
    AdapterFileError,
    BackboneMismatchError,
    CheckpointError,
    shown,
    some,
)
from lightning_peft.files.description import FORMAT_VERSION, check_description, check_format
from lightning_peft.files.writing import versions
from lightning_peft.lightning.further_names import further_names, join
from lightning_peft.methods.from_peft.start import kept_weights

__all__ = [
    "CHECKPOINT_KEY",
    "check_recorded",
    "complete_checkpoint",
    "needed_keys",
    "recorded_in",
    "refuse_unfit",
    "slim_checkpoint",
]

CHECKPOINT_KEY = "lightning_peft"
_COMPILED = "_orig_mod."


def slim_checkpoint(pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
    """Remove the frozen part of every adapted backbone from a checkpoint.

    The state of each adaptation, and everything outside the backbones, remains.

    Args:
        pl_module: The LightningModule that is being saved.
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
    for holder, section in _sections(checkpoint):
        holder[section] = {name: t for name, t in holder[section].items() if name not in drop}
    checkpoint[CHECKPOINT_KEY] = {
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "adaptations": {_plain(path): a.describe() for path, a in adaptations.items()},
    }


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
    _check_sections(checkpoint)
    if recorded is not None:
        check_recorded(adaptations, recorded, strict_backbone)
    own = pl_module.state_dict()
    by_plain = {_plain(name): name for name in own}
    for holder, section in _sections(checkpoint):
        state = {
            by_plain.get(_plain(name), name): tensor for name, tensor in holder[section].items()
        }
        if recorded is None:
            state = _renamed(state, adaptations, further_names(pl_module))
            state = _with_rewritten(state, own, adaptations)
        holder[section] = _filled(state, own, pl_module, fresh=recorded is None)


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


def recorded_in(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the entry of lightning-peft in a checkpoint, checked as data.

    Args:
        checkpoint: The loaded checkpoint.

    Returns:
        Its entry ``lightning_peft``, or ``None`` if it has none.

    Raises:
        CheckpointError: If it has a later format, or an entry has the wrong type.
    """
    recorded = checkpoint.get(CHECKPOINT_KEY)
    if recorded is None:
        return None
    try:
        if not isinstance(recorded, dict) or not isinstance(recorded.get("adaptations"), dict):
            raise AdapterFileError(f"expected its '{CHECKPOINT_KEY}' to name the adaptations")
        if "format_version" not in recorded:
            raise AdapterFileError("expected a format version, got none")
        check_format(recorded, "the checkpoint")
        for path, description in recorded["adaptations"].items():
            if not isinstance(path, str) or not isinstance(description, dict):
                raise AdapterFileError(f"expected descriptions by name, got {shown(path)}")
            check_description(description, f"'{path}'")
            if not isinstance(description.get("fingerprint"), dict):
                raise AdapterFileError(f"'{path}': expected the backbone's fingerprint, got none")
        steppers = recorded.get("steppers") or {}
        if not isinstance(steppers, dict) or not all(map(_are_states, steppers.values())):
            raise AdapterFileError("expected the steppers' states in lists, got something else")
    except AdapterFileError as error:
        raise CheckpointError(f"the checkpoint cannot be read: {error}") from error
    return recorded


def _are_states(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


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


def check_recorded(
    adaptations: Mapping[str, Adaptation], recorded: Mapping[str, Any], strict_backbone: bool
) -> None:
    """Compare the adaptations of a checkpoint with those of a module.

    Args:
        adaptations: The module's adaptations, by the path of the backbone.
        recorded: The entry of lightning-peft in the checkpoint.
        strict_backbone: Whether a checkpoint of another backbone is an error or a warning.

    Raises:
        CheckpointError: If it has a newer format, or was made with another method.
        BackboneMismatchError: If the adapter was trained on another backbone.
    """
    now = {_plain(path): adaptation for path, adaptation in adaptations.items()}
    problems, other = [], []
    for path, description in recorded["adaptations"].items():
        if path not in now:
            problems.append(f"it adapts '{path}', the module adapts {sorted(now)}")
            continue
        method = now[path].method.to_config()
        if method != description["method"]:
            problems.append(f"'{path}' was adapted with {description['method']}, now with {method}")
        found = differences(description["fingerprint"], now[path].fingerprint)
        other += [f"'{path}': {phrase}" for phrase in found]
    if problems:
        raise CheckpointError(
            "the checkpoint was made with another adaptation: "
            + "; ".join(problems)
            + ". Use the method that it was trained with."
        )
    if other:
        message = (
            "the checkpoint was trained on another backbone: " + "; ".join(other) + ". Build the "
            "module with the same pretrained weights, or pass strict_backbone=False."
        )
        if strict_backbone:
            raise BackboneMismatchError(message)
        warnings.warn(message, stacklevel=2)


def _renamed(
    state: Mapping[str, Tensor],
    adaptations: Mapping[str, Adaptation],
    further: Mapping[str, str],
) -> dict[str, Tensor]:
    """Return the entries of a checkpoint from before the adaptation, by their present names."""
    names = {
        join(path, before): join(path, now)
        for path, adaptation in adaptations.items()
        for before, now in adaptation.base_names.items()
    }
    names = {name.replace(".base_layer.", "."): name for name in further} | names
    return {names.get(name, name): tensor for name, tensor in state.items()}


def _with_rewritten(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], adaptations: Mapping[str, Adaptation]
) -> dict[str, Tensor]:
    """Replace original weights by those that the adapter's initialisation made of them.

    Raises:
        CheckpointError: If they are not the weights that it was computed from.
    """
    kept = {
        join(path, name): weight
        for path, adaptation in adaptations.items()
        for name, weight in kept_weights(adaptation.model).items()
    }
    found = [name for name in kept if name in state]
    other = [name for name in found if not torch.equal(state[name].to(kept[name]), kept[name])]
    if other:
        raise CheckpointError(
            "the checkpoint is from before the adaptation and holds other weights than those that "
            f"the adapter's initial values were computed from, in {some(other)}: expected "
            "the same. Load it into the module before adapting it."
        )
    return {**state, **{name: own[name] for name in found}}


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
    filled.update({name: filled[first] for name, first in shared.items() if name not in state})
    return filled


def _plain(name: str) -> str:
    """Remove the parts that ``torch.compile`` adds to a name: only one side may be compiled."""
    return name.replace(_COMPILED, "").removesuffix("._orig_mod")
