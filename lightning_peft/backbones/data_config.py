"""The images that a backbone expects: size, channels, normalisation, as in ``timm.data``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_peft.backbones._register import register
from lightning_peft.errors import DataError, near, shown

__all__ = ["DataConfig", "check_timm_name", "data_config"]


def _are_numbers(value: Any, kinds: tuple[type, ...] = (int, float)) -> bool:
    return (
        isinstance(value, Iterable)
        and not isinstance(value, str | Mapping)
        and all(isinstance(one, kinds) and not isinstance(one, bool) for one in value)
    )


FITS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "input_size": (
        "channels, height and width",
        lambda value: _are_numbers(value, (int,)) and len(value) == 3 and min(value) > 0,
    ),
    "mean": ("a number for each channel", _are_numbers),
    "std": ("a number for each channel", _are_numbers),
    "interpolation": ("the name of an interpolation", lambda value: isinstance(value, str)),
    "crop_pct": ("a share above 0", lambda value: _are_numbers([value]) and value > 0),
    "crop_mode": ("the name of a mode", lambda value: isinstance(value, str)),
}
"""By key of a configuration: what it holds, and whether a value is that."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The preparation of images for a backbone.

    Attributes:
        input_size: Channels, height and width in pixels.
        mean: Mean of each channel, in units of images in [0, 1].
        std: Standard deviation of each channel, in the same units.
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.
        crop_pct: The fraction of the shorter side that the evaluation crop keeps.
        crop_mode: ``"center"``, ``"border"`` or ``"squash"``, as in timm.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.input_size[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width, in pixels."""
        return self.input_size[1:]

    @property
    def pil_mode(self) -> str:
        """The mode in which PIL reads an image for this backbone: ``"L"`` or ``"RGB"``."""
        return "L" if self.channels == 1 else "RGB"

    def eval_transform(self) -> Callable[[Any], Tensor]:
        """Build timm's evaluation transform: a PIL image in :attr:`pil_mode` to ``(C, H, W)``."""
        from timm.data import create_transform

        transform: Callable[[Any], Tensor] = create_transform(**dataclasses.asdict(self))
        return transform


def data_config(
    backbone: str | nn.Module | Mapping[str, Any] | DataConfig | None,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> DataConfig:
    """Find the data configuration of a backbone.

    Args:
        backbone: A timm name, a timm model, a mapping with the keys of :class:`DataConfig`, or None
            for timm's defaults.
        image_size: Height and width in pixels, instead of the backbone's own.
        channels: Channels, instead of the backbone's own. The statistics of the backbone's channels
            are averaged if their number differs.
        mean: Mean of each channel, or of all.
        std: Standard deviation of each channel, or of all.

    Returns:
        The configuration.

    Raises:
        DataError: If timm does not know the name, the module has no configuration, or the
            statistics do not fit the channels.
    """
    found = _resolve(backbone)
    size = found.image_size if image_size is None else (image_size, image_size)
    depth = found.channels if channels is None else channels
    return dataclasses.replace(
        found,
        input_size=(depth, *size),
        mean=_per_channel("mean", found.mean if mean is None else mean, depth, mean is None),
        std=_per_channel("std", found.std if std is None else std, depth, std is None),
    )


def _resolve(backbone: str | nn.Module | Mapping[str, Any] | DataConfig | None) -> DataConfig:
    if backbone is None:
        return DataConfig()
    if isinstance(backbone, DataConfig):
        return backbone
    if isinstance(backbone, Mapping):
        return _from_mapping(backbone)
    from timm.data import resolve_data_config

    if isinstance(backbone, nn.Module):
        if not hasattr(backbone, "pretrained_cfg"):
            raise DataError(
                f"{type(backbone).__name__} does not say which images it expects: it has no timm "
                "`pretrained_cfg`. Pass a mapping with input_size, mean and std instead."
            )
        return _from_mapping(resolve_data_config(model=backbone) | _built_size(backbone))
    return _from_mapping(resolve_data_config(pretrained_cfg=_config_of(backbone)))


def check_timm_name(name: str) -> None:
    """Refuse a name that timm does not know; names of other sources are left to timm.

    Args:
        name: As for ``timm.create_model``, such as ``"resnet18"`` or ``"hf-hub:..."``.

    Raises:
        DataError: If there is no such architecture, or it has no such weights.
    """
    from timm import get_pretrained_cfg, is_model, list_models
    from timm.models import parse_model_name

    register()
    source, path = parse_model_name(name)
    if source:
        return
    architecture = str(path).split(".")[0]
    if not is_model(architecture):
        raise DataError(f"timm has no model '{name}'. {near(architecture, list_models())}")
    try:
        get_pretrained_cfg(path)
    except RuntimeError as error:
        options = list_models(f"{architecture}.*", include_tags=True)
        raise DataError(f"timm has no weights '{name}'. {near(name, options)}") from error


def _config_of(name: str) -> dict[str, Any]:
    from timm import get_pretrained_cfg
    from timm.models import load_model_config_from_hf, parse_model_name

    check_timm_name(name)
    source, path = parse_model_name(name)
    if source:
        config: dict[str, Any] = load_model_config_from_hf(path)[0]
        return config
    found = get_pretrained_cfg(path)
    return {"tag": ""} if found is None else dict(found.to_dict())  # timm refuses an empty dict


def _built_size(model: nn.Module) -> dict[str, Any]:
    """Return the size that the model was built for, if its weights were trained on another."""
    weight = next((p for p in model.parameters() if p.dim() == 4), None)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    pretrained: Any = model.pretrained_cfg
    channels, *old = pretrained.get("input_size") or (3, 224, 224)
    channels = channels if weight is None else weight.shape[1]
    height, width = size if isinstance(size, tuple) else old
    return {"input_size": (channels, height, width)}


def _from_mapping(values: Mapping[str, Any]) -> DataConfig:
    names = [field.name for field in dataclasses.fields(DataConfig)]
    unknown = [key for key in values if key not in names]
    if unknown:
        hints = " ".join(f"'{key}': {near(str(key), names)}" for key in unknown)
        raise DataError(f"A data configuration has the keys {names}, got others. {hints}")
    wrong = [
        f"{key}: expected {FITS[key][0]}, got {shown(value, 40)}"
        for key, value in values.items()
        if not FITS[key][1](value)
    ]
    if wrong:
        raise DataError(f"A data configuration does not fit an image. {'; '.join(wrong)}.")
    plain: dict[str, Any] = {
        k: tuple(v) if k in ("input_size", "mean", "std") else v for k, v in values.items()
    }
    found = dataclasses.replace(DataConfig(), **plain)
    depth = found.channels
    return dataclasses.replace(
        found,
        mean=_per_channel("mean", found.mean, depth, True),
        std=_per_channel("std", found.std, depth, True),
    )


def _per_channel(
    name: str, value: float | Sequence[float], channels: int, average: bool
) -> tuple[float, ...]:
    values = (float(value),) if isinstance(value, int | float) else tuple(map(float, value))
    if len(values) == channels:
        return values
    if len(values) == 1 or average:
        return (sum(values) / len(values),) * channels
    raise DataError(
        f"Expected one {name} for each of {channels} channels, or one for all, got {values}."
    )
