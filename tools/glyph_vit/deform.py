"""Glyphs drawn with a random pen and deformed until they look handwritten.

All of it is batched tensor arithmetic, thousands of images a second, so that the data never holds
up the training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.glyph_vit.glyphs import BOX, CANVAS, IMAGE_SIZE

__all__ = ["synthesize"]


def _uniform(
    low: float, high: float, *shape: int, generator: torch.Generator | None = None
) -> Tensor:
    return torch.empty(shape).uniform_(low, high, generator=generator)


def _warp(n: int, strength: float, generator: torch.Generator | None) -> Tensor:
    """Random sampling grids, ``(n, 24, 24, 2)``: affine, perspective and elastic together."""
    s, g = strength, generator
    angle = _uniform(-0.35 * s, 0.35 * s, n, generator=g)
    shear = _uniform(-0.45 * s, 0.45 * s, n, generator=g)
    # The glyph fills 1 / zoom of the frame. Digits are narrower in handwriting than in type.
    size = _uniform(1 - 0.05 * s, 1 + 0.25 * s, n, generator=g)
    width = torch.exp(_uniform(-0.3 * s, 0.35 * s, n, generator=g))
    cos, sin = torch.cos(angle), torch.sin(angle)
    linear = torch.stack(
        [
            torch.stack([width * size * cos, width * size * (shear - sin)], 1),
            torch.stack([size * sin, size * cos], 1),
        ],
        1,
    )
    line = torch.linspace(-1 + 1 / IMAGE_SIZE, 1 - 1 / IMAGE_SIZE, IMAGE_SIZE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y], -1).view(1, -1, 2) + _uniform(
        -0.15 * s, 0.15 * s, n, 1, 2, generator=g
    )
    tilt = _uniform(-0.15 * s, 0.15 * s, n, 1, 2, generator=g)
    points = points / (1 + (points * tilt).sum(-1, keepdim=True))
    points = (points @ linear.transpose(1, 2)).view(n, IMAGE_SIZE, IMAGE_SIZE, 2)
    for cells, amount in ((3, 0.18), (5, 0.09)):
        knots = torch.empty(n, 2, cells, cells).normal_(generator=g) * amount * s
        bend = F.interpolate(knots, size=IMAGE_SIZE, mode="bicubic", align_corners=True)
        points = points + bend.permute(0, 2, 3, 1)
    return points * (BOX / CANVAS)


def _degrade(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    """Low resolution, blur, contrast and noise; ``images`` is ``(n, 1, 24, 24)`` in [0, 1]."""
    g, n = generator, len(images)
    parts: list[Tensor] = []
    # Resolution and blur differ from part to part of the batch: one size a tensor operation.
    # Where the first part is resampled it goes through 8x8, as coarse as scans of digits come.
    for part in images.chunk(8):
        if float(_uniform(0, 1, 1, generator=g)) < 0.65 * strength:
            side = int(torch.randint(7, 15, (1,), generator=g)) if parts else 8
            mode = ("bilinear", "bicubic")[int(torch.randint(0, 2, (1,), generator=g))]
            part = F.interpolate(part, size=side, mode="area")
            part = F.interpolate(part, size=IMAGE_SIZE, mode=mode, align_corners=False)
        elif float(_uniform(0, 1, 1, generator=g)) < 0.5 * strength:
            sigma = float(_uniform(0.4, 1.2, 1, generator=g))
            kernel = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * sigma**2))
            kernel = kernel / kernel.sum()
            part = F.conv2d(part, kernel.view(1, 1, 1, 5), padding=(0, 2))
            part = F.conv2d(part, kernel.view(1, 1, 5, 1), padding=(2, 0))
        parts.append(part)
    images = torch.cat(parts).clamp(0, 1)
    gamma = torch.exp(_uniform(-0.4 * strength, 0.4 * strength, n, 1, 1, 1, generator=g))
    gain = _uniform(1 - 0.35 * strength, 1.0, n, 1, 1, 1, generator=g)
    level = _uniform(0, 0.08 * strength, n, 1, 1, 1, generator=g)
    noise = torch.empty_like(images).normal_(generator=g)
    return (images.clamp_min(1e-4) ** gamma * gain + level * noise).clamp(0, 1)


def synthesize(
    fields: Tensor, strength: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw glyphs with a random pen and deform them.

    Bright ink on a dark ground: affine, perspective and elastic deformation, a stroke width that
    varies between and within glyphs, low resolution, blur, contrast and noise.

    Args:
        fields: Rows of ``GlyphBank.fields``, shape ``(n, 2, 56, 56)``.
        strength: 0 draws the bare glyph in its own weight, 1 deforms in full.
        generator: Source of all randomness.

    Returns:
        Images in [0, 1], shape ``(n, 1, 24, 24)``.
    """
    g, n = generator, len(fields)
    distance = F.grid_sample(
        fields, _warp(n, strength, g), padding_mode="border", align_corners=False
    )
    pen = (_uniform(0, 1, n, 1, 1, 1, generator=g) < 0.6 * strength).float()
    typeset = _uniform(-0.4 * strength, 0.9 * strength, n, 1, 1, 1, generator=g)
    stroke = _uniform(0.7, 2.4, n, 1, 1, 1, generator=g)
    pressure = torch.empty(n, 1, 4, 4).normal_(generator=g) * 0.3 * strength
    pressure = F.interpolate(pressure, size=IMAGE_SIZE, mode="bicubic", align_corners=True)
    outline, skeleton = distance[:, :1], distance[:, 1:]
    reach = torch.where(pen > 0, stroke - skeleton, typeset - outline) + pressure
    return _degrade(torch.sigmoid(4 * reach), strength, g)
