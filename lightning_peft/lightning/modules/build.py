"""The parts of an image classifier, and checks of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_peft.anatomy.wide import narrowed
from lightning_peft.backbones.data_config import check_timm_name
from lightning_peft.errors import DataError

__all__ = ["build_backbone", "check_arguments", "check_head_of_model", "mixing", "plain"]


def build_backbone(
    backbone: str | nn.Module,
    num_classes: int,
    pretrained: bool,
    options: Mapping[str, Any],
    regularisers: Mapping[str, float],
) -> nn.Module:
    """Build the backbone, or check the given one.

    A new head of timm starts with weights as ``nn.Linear`` draws them, or smaller ones
    (:mod:`lightning_peft.anatomy.wide`).

    Args:
        backbone: A timm name or a module.
        num_classes: Classes of its head.
        pretrained: Load pretrained weights.
        options: More arguments of ``timm.create_model``.
        regularisers: Further arguments, left out if they are 0, since not every model has them.

    Returns:
        The backbone.

    Raises:
        DataError: If timm has no such model or it takes no such regulariser, or if a module is
            passed with another head or with arguments for timm.
    """
    asked = {name: value for name, value in regularisers.items() if value}
    if isinstance(backbone, nn.Module):
        if asked or options:
            raise DataError(
                f"Expected {sorted([*asked, *options])} only with a timm name, got a module as "
                "backbone: set them where the module is built."
            )
        found = getattr(backbone, "num_classes", num_classes)
        if found != num_classes:
            raise DataError(
                f"Expected a backbone with a head of {num_classes} classes, got "
                f"{type(backbone).__name__} with {found}: build it with num_classes={num_classes}."
            )
        return backbone
    import timm

    check_timm_name(backbone)
    arguments = asked | dict(options)
    try:
        model: nn.Module = timm.create_model(
            backbone, pretrained=pretrained, num_classes=num_classes, **arguments
        )
    except TypeError as error:
        refused = [name for name in arguments if name in str(error)]
        if not refused:
            raise
        raise DataError(f"timm's '{backbone}' takes no {refused}: leave it out.") from error
    own = getattr(model, "pretrained_cfg", {}).get("num_classes")
    return model if pretrained and own == num_classes else narrowed(model)


def mixing(mixup: float, cutmix: float, num_classes: int) -> Callable[..., Any] | None:
    """Build the mixing of a batch ``(images, labels)``: mixup, CutMix, one of both, or None."""
    if not mixup and not cutmix:
        return None
    from torchvision.transforms import v2

    steps: list[Any] = []
    if mixup:
        steps.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
    if cutmix:
        steps.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    chosen: Callable[..., Any] = steps[0] if len(steps) == 1 else v2.RandomChoice(steps)
    return chosen


def check_arguments(
    num_classes: int,
    class_names: Sequence[str] | None,
    parts: Mapping[str, float],
    amounts: Mapping[str, float],
    *,
    task: str = "multiclass",
    positive: Mapping[str, float] | None = None,
) -> None:
    """Refuse arguments of a classifier that are out of range, all at once."""
    wrong = [f"{k} in [0, 1), got {v!r}" for k, v in parts.items() if not 0 <= v < 1]
    wrong += [f"{k} of 0 or more, got {v!r}" for k, v in amounts.items() if not v >= 0]
    wrong += [f"{k} above 0, got {v!r}" for k, v in (positive or {}).items() if not v > 0]
    named, least = ("num_outputs", 1) if task == "regression" else ("num_classes", 2)
    if num_classes < least:
        wrong.append(f"{named} of {least} or more, got {num_classes!r}")
    if task == "binary" and num_classes != 2:
        wrong.append(f"num_classes=2 for a binary task, got {num_classes!r}")
    if class_names is not None and len(class_names) != num_classes:
        wrong.append(f"{num_classes} class_names, got {len(class_names)}")
    if wrong:
        raise DataError("Expected " + "; ".join(wrong) + ".")


def plain(value: Any) -> Any:
    """Convert mappings and sequences of any kind, such as Hydra's, to dicts, lists and tuples."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def check_head_of_model(
    backbone: nn.Module, size: int, head_dropout: float | None, options: Mapping[str, Any]
) -> None:
    """Refuse a model of transformers with another head, or with arguments that are for a name.

    Args:
        backbone: The model.
        size: The number of outputs of its head.
        head_dropout: As given.
        options: Values of its config, as given.

    Raises:
        DataError: If it does not fit.
    """
    asked = [*([] if head_dropout is None else ["head_dropout"]), *sorted(options)]
    if asked:
        raise DataError(
            f"Expected {asked} only with the name of a model, got a module as backbone: set them "
            "where the module is built."
        )
    found = getattr(getattr(backbone, "config", None), "num_labels", size)
    if found != size:
        raise DataError(
            f"Expected a backbone with a head of {size} outputs, got {type(backbone).__name__} "
            f"with {found}: build it with num_labels={size}."
        )
