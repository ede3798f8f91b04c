"""The shipped backbone: a small vision transformer pretrained on synthetic glyphs.

It is an ordinary timm ``VisionTransformer`` (24x24 grayscale, six blocks of width 128) whose patch
embedding is a few convolutions, because a plain patch embedding hardly learns from images
this small. ``import lightning_peft`` registers it with timm; its weights are beside this file, so
nothing is downloaded. ``tools/glyph_vit`` of the repository made them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._builder import resolve_pretrained_cfg
from timm.models.vision_transformer import PatchEmbed, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from lightning_peft.errors import PEFTError

__all__ = ["ConvStem", "DamagedWeightsError", "glyph_vit", "verify_weights"]

WEIGHTS = Path(__file__).with_name("glyph_vit.safetensors")
# Read from the file that the pretraining script writes, so that they cannot drift apart.
RECORD: dict[str, Any] = json.loads(
    Path(__file__).with_name("glyph_vit.json").read_text(encoding="utf-8")
)
"""The data that pretraining wrote about the weights: ``sha256``, ``num_classes``, ``mean`` ..."""


class DamagedWeightsError(PEFTError, ValueError):
    """The shipped weights are missing, or differ from the released ones."""


class ConvStem(PatchEmbed):
    """Patch embedding of three 3x3 convolutions with BatchNorm, two of them strided.

    One token stands for 4x4 pixels and has seen a few more on every side.

    Takes the arguments of timm's ``PatchEmbed``, except that ``patch_size`` must be 4.

    Shape:
        ``(B, in_chans, H, W)`` to ``(B, H // 4 * W // 4, embed_dim)``.
    """

    def __init__(self, *, in_chans: int = 1, embed_dim: int = 128, **kwargs: Any) -> None:
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, **kwargs)
        if self.patch_size != (4, 4):
            raise ValueError(
                f"Expected patch_size=4, which two convolutions of stride 2 give, got "
                f"{self.patch_size}: leave patch_size out."
            )
        factory: dict[str, Any] = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype")}
        width = embed_dim // 2
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, width // 2, 3, stride=2, padding=1, bias=False, **factory),
            nn.BatchNorm2d(width // 2, **factory),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, padding=1, bias=False, **factory),
            nn.BatchNorm2d(width, **factory),
            nn.GELU(),
            nn.Conv2d(width, embed_dim, 3, stride=2, padding=1, bias=False, **factory),
            nn.BatchNorm2d(embed_dim, **factory),
        )


def verify_weights(path: Path = WEIGHTS, sha256: str | None = None) -> None:
    """Check that a weight file is the released one.

    Args:
        path: The safetensors file.
        sha256: Expected digest in hexadecimal; that of the shipped weights by default.

    Raises:
        DamagedWeightsError: If there is no such file, or its SHA-256 differs.
    """
    expected = RECORD["sha256"] if sha256 is None else sha256
    repair = "reinstall with 'pip install --force-reinstall --no-deps lightning-peft'"
    if not path.is_file():
        raise DamagedWeightsError(
            f"Expected the weights of glyph_vit at {path}, got no such file: {repair}."
        )
    content = path.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != expected:
        raise DamagedWeightsError(
            f"Expected {path} to have the SHA-256 {expected}, got {got} ({len(content)} bytes): "
            f"the file is damaged or was replaced; {repair}, or pass your own weights as "
            "pretrained_cfg_overlay={'file': ...}."
        )


def _to_float32(state_dict: dict[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """Widen the float16 of the file first: timm rescales the stem for other channel counts."""
    wide = {k: v.float() if v.is_floating_point() else v for k, v in state_dict.items()}
    filtered: dict[str, Tensor] = checkpoint_filter_fn(wide, model)
    return filtered


default_cfgs = generate_default_cfgs(
    {
        "glyph_vit.synthetic": {
            "file": str(WEIGHTS),
            "num_classes": RECORD["num_classes"],
            "input_size": (1, 24, 24),
            "pool_size": None,
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (RECORD["mean"],),
            "std": (RECORD["std"],),
            "first_conv": "patch_embed.proj.0",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def glyph_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build a 1.2M-parameter ViT for 24x24 grayscale images, pretrained on synthetic glyphs.

    Args:
        pretrained: Load the shipped weights, after checking their SHA-256.
        **kwargs: As for every timm ViT: ``num_classes``, ``in_chans``, ``img_size``,
            ``drop_path_rate``, ``global_pool`` (``"avg"`` by default; there is no class token) ...

    Returns:
        The model; it takes images of shape ``(B, in_chans, 24, 24)``.

    Raises:
        DamagedWeightsError: If the shipped weights do not have the expected SHA-256.
    """
    if pretrained:
        cfg = resolve_pretrained_cfg(
            "glyph_vit", kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
        )
        # Weights that the user passes instead are not checked.
        if cfg.file == str(WEIGHTS) and not cfg.state_dict:
            verify_weights()
    # timm's default depends on whether the variant is a feature extractor, as for its own ViTs.
    out_indices = kwargs.pop("out_indices", 3)
    defaults: dict[str, Any] = {
        "patch_size": 4,
        "embed_dim": 128,
        "depth": 6,
        "num_heads": 4,
        "class_token": False,
        "global_pool": "avg",
        "embed_layer": ConvStem,
    }
    return build_model_with_cfg(
        VisionTransformer,
        "glyph_vit",
        pretrained,
        pretrained_filter_fn=_to_float32,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **(defaults | kwargs),
    )
