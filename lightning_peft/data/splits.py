"""Stratified samples, chosen by hash: the same on every machine and in every library version.

Within a class, images are ranked by a hash of the seed and of what names the image. So a larger
sample contains the smaller ones of the same seed, and a new image moves no other from its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from lightning_peft.errors import DataError

__all__ = ["few_labels", "ranked_by_class"]


def ranked_by_class(labels: Sequence[int], keys: Sequence[str], salt: str) -> dict[int, list[int]]:
    """Rank the images of each class in a random but fixed order.

    Args:
        labels: Class of each image.
        keys: A name of each image, unique within its class.
        salt: What the order depends on besides.

    Returns:
        Class to the indices of its images, in order.
    """
    ranks = [hashlib.sha256(f"{salt}\0{key}".encode()).digest() for key in keys]
    found: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
    for index in sorted(range(len(labels)), key=ranks.__getitem__):
        found[labels[index]].append(index)
    return found


def few_labels(
    ranked: Mapping[int, Sequence[int]],
    *,
    validation: Mapping[int, int],
    labels_per_class: int | None,
    class_names: Sequence[str],
) -> tuple[list[int], list[int]]:
    """Take the validation images and then the labelled training images of each class.

    Args:
        ranked: Indices of each class, in the order in which they are taken.
        validation: Number of validation images of each class.
        labels_per_class: Number of training images of each class; None takes all that are left.
        class_names: Name of each class.

    Returns:
        The training and the validation indices, sorted; they share none.

    Raises:
        DataError: If a class has fewer images than are asked for; all such classes are named.
    """
    if labels_per_class is not None and labels_per_class < 1:
        raise DataError(f"Expected labels_per_class of 1 or more, or None, got {labels_per_class}.")
    wanted = 1 if labels_per_class is None else labels_per_class
    left = {label: len(found) - validation[label] for label, found in ranked.items()}
    short = {label: count for label, count in left.items() if count < wanted}
    if short:
        counts = ", ".join(
            f"'{class_names[label]}' has {max(count, 0)} (of {len(ranked[label])}, "
            f"{validation[label]} of them for validation)"
            for label, count in short.items()
        )
        most = min(left.values())
        advice = (
            f"Ask for at most labels_per_class={most}, or for less validation."
            if most > 0
            else "Give these classes more images, or ask for less validation."
        )
        raise DataError(
            f"Expected {wanted} or more labelled training images of each class, but {counts}. "
            f"{advice}"
        )
    train: list[int] = []
    val: list[int] = []
    for label, found in ranked.items():
        first = validation[label]
        last = len(found) if labels_per_class is None else first + labels_per_class
        val += found[:first]
        train += found[first:last]
    return sorted(train), sorted(val)
