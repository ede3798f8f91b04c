"""Detecting classes whose mirrored images belong to another class.

Examples are characters, arrows, road signs and left or right hands. Mirroring them in augmentation
teaches wrong labels without an error: accuracy is lower for no visible reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_peft.data.decode import Decoding, open_image

__all__ = ["FlipConfusion", "flip_confusions", "thumbnails", "warning_text"]

SIDE = 16
MOST_PER_CLASS = 40
MOST_IMAGES = 400
LEAST_IMAGES = 4
RECOGNISED = 0.7
TURNED = 0.5


@dataclasses.dataclass(frozen=True)
class FlipConfusion:
    """A class whose mirrored images look like another one.

    Attributes:
        source: The class.
        target: The class that its mirrored images look like.
        share: The share of the recognised images that look like it when mirrored.
        images: The number of images that are recognised unmirrored.
    """

    source: int
    target: int
    share: float
    images: int


def flip_confusions(images: Tensor, labels: Tensor) -> list[FlipConfusion]:
    """Find classes whose images, when mirrored, are nearer to another class than to their own.

    The nearest other image is found by its pixels, without mean and contrast. A class is judged
    only if pixels distinguish it: for 7 of 10 of its images the nearest one is of the same class.
    So photographs, whose pixels say little, cause no false alarm. A class is reported if half or
    more of its recognised images are, when mirrored, nearest to images of one other class.

    Args:
        images: Shape ``(N, C, H, W)``.
        labels: Shape ``(N,)``.

    Returns:
        The classes that turn into others, the most frequent first.
    """
    if len(images) < 2:
        return []
    upright, mirrored = _normalised(images), _normalised(images.flip(-1))
    labels = torch.as_tensor(labels)
    same = torch.eye(len(images), dtype=torch.bool)
    # an image's own mirror image does not count: symmetric images are nearest to themselves
    nearest = labels[(upright @ upright.T).masked_fill(same, -torch.inf).argmax(1)]
    turned = labels[(mirrored @ upright.T).masked_fill(same, -torch.inf).argmax(1)]
    found = []
    for source in labels.unique().tolist():
        members = labels == source
        known = members & (nearest == source)
        count = int(known.sum())
        if count < LEAST_IMAGES or count < RECOGNISED * int(members.sum()):
            continue
        counts = torch.bincount(turned[known], minlength=int(labels.max()) + 1)
        counts[source] = 0
        target = int(counts.argmax())
        share = float(counts[target]) / count
        if share >= TURNED:
            found.append(FlipConfusion(source, target, share, count))
    return sorted(found, key=lambda item: -item.share)


def thumbnails(
    paths: Sequence[str],
    labels: Sequence[int],
    value_range: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Read small gray images of a few files of each class, spread over them.

    Args:
        paths: Image files; one that cannot be read is left out.
        labels: The class of each file.
        value_range: As for :class:`~lightning_peft.data.decode.Decoding`.

    Returns:
        Images ``(N, 1, 16, 16)`` in [0, 1] and labels ``(N,)``; at most 400, and 40 of a class.
    """
    from torchvision.transforms.v2.functional import pil_to_tensor

    decoding = Decoding("L", value_range)
    members: dict[int, list[str]] = {}
    for path, label in zip(paths, labels, strict=True):
        members.setdefault(label, []).append(path)
    # with very many classes not all of them can be judged
    most = max(LEAST_IMAGES, min(MOST_PER_CLASS, MOST_IMAGES // max(len(members), 1)))
    images, kept = [], []
    for label in sorted(members)[: MOST_IMAGES // most]:
        files = members[label]
        for path in files[:: -(-len(files) // most)]:
            try:
                with open_image(path) as image:
                    image.draft("L", (4 * SIDE, 4 * SIDE))  # JPEG: decodes a fraction of it
                    small: Any = decoding(image).resize((SIDE, SIDE))
            except Exception:  # the check of the files reports the error
                continue
            images.append(pil_to_tensor(small).float() / 255)
            kept.append(label)
    if not images:
        return torch.empty(0, 1, SIDE, SIDE), torch.empty(0, dtype=torch.long)
    return torch.stack(images), torch.tensor(kept)


def warning_text(found: Sequence[FlipConfusion], class_names: Sequence[str]) -> str:
    """Return a warning that lists the classes that turn into others, and the remedy."""
    pairs = [
        f"'{class_names[item.source]}' into '{class_names[item.target]}' "
        f"({100 * item.share:.0f} % of {item.images})"
        for item in found[:3]
    ]
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"Mirroring seems to turn images of one class into another: {', '.join(pairs)}{more}. Such "
        "images are trained with the wrong label. Set flip=False, or flip_safe=True if a "
        "mirrored image keeps its class."
    )


def _normalised(images: Tensor) -> Tensor:
    small = F.interpolate(images.float(), size=(SIDE, SIDE), mode="area").mean(1).flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True), dim=1)
