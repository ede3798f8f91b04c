"""What a checkpoint says of the adaptations in it, checked as data and against a module."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from lightning_peft.adaptation.handle import Adaptation
from lightning_peft.anatomy.fingerprint import differences
from lightning_peft.errors import AdapterFileError, BackboneMismatchError, CheckpointError, shown
from lightning_peft.files.description import check_description, check_format
from lightning_peft.lightning.checkpoint_kinds import KINDS
from lightning_peft.lightning.further_names import plain_name

__all__ = ["CHECKPOINT_KEY", "check_recorded", "recorded_in"]

CHECKPOINT_KEY = "lightning_peft"


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
        kind, trained = recorded.get("checkpoints", "slim"), recorded.get("trained")
        if kind not in KINDS or (kind == "merged") != isinstance(trained, dict):
            raise AdapterFileError(
                f"expected a checkpoint of the form {', '.join(KINDS)}, and what is trained beside "
                f"a merged one, got {shown(kind)}"
            )
    except AdapterFileError as error:
        raise CheckpointError(f"the checkpoint cannot be read: {error}") from error
    return recorded


def _are_states(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def check_recorded(
    adaptations: Mapping[str, Adaptation],
    recorded: Mapping[str, Any],
    strict_backbone: bool,
    brought: Collection[str] = (),
) -> None:
    """Compare the adaptations of a checkpoint with those of a module.

    Args:
        adaptations: The module's adaptations, by the path of the backbone.
        recorded: The entry of lightning-peft in the checkpoint.
        strict_backbone: Whether a checkpoint of another backbone is an error or a warning.
        brought: Paths of backbones whose weights are in the checkpoint, so that any may be there.

    Raises:
        CheckpointError: If it has a newer format, or was made with another method.
        BackboneMismatchError: If the adapter was trained on another backbone.
    """
    now = {plain_name(path): adaptation for path, adaptation in adaptations.items()}
    problems, other = [], []
    for path, description in recorded["adaptations"].items():
        if path not in now:
            problems.append(f"it adapts '{path}', the module adapts {sorted(now)}")
            continue
        method = now[path].method.to_config()
        if method != description["method"]:
            problems.append(f"'{path}' was adapted with {description['method']}, now with {method}")
        if path in brought:
            continue
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
            "module with the same pretrained weights, or pass strict_backbone=False. Of a module "
            "whose weights are drawn anew, train with checkpoints='full': such a file brings them."
        )
        if strict_backbone:
            raise BackboneMismatchError(message)
        warnings.warn(message, stacklevel=2)
