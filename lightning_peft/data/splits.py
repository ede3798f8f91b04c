"""Stratified samples, chosen by hash: the same on every machine and in every library version.

Within a class, images are ranked by a hash of the seed and the image's name. So a larger sample
contains the smaller ones of the same seed, and a new image does not move others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from lightning_peft.errors import DataError

__all__ = ["divide", "few_labels", "part_of", "ranked_by_class"]


def ranked_by_class(labels: Sequence[int], keys: Sequence[str], salt: str) -> dict[int, list[int]]:
    """Rank the images of each class in a random but fixed order.

    Args:
        labels: Class of each image.
        keys: A name of each image, unique within its class.
        salt: A string that also decides the order.

    Returns:
        Class to the indices of its images, in order.
    """
    ranks = [
        hashlib.sha256(f"{salt}\0{key}".encode("utf-8", "surrogatepass")).digest() for key in keys
    ]
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
    noun: str = "images",
    test: Mapping[int, int] | None = None,
) -> tuple[list[int], list[int]]:
    """Select the validation images and then the labelled training images of each class.

    Args:
        ranked: Indices of each class, in the order in which they are taken.
        validation: Number of validation images of each class.
        labels_per_class: Number of training images of each class; None takes all that are left.
        class_names: Name of each class.
        noun: What the items are, for the message.
        test: How many items of each class the test has already, for the message.

    Returns:
        The training and the validation indices, sorted and disjoint.

    Raises:
        DataError: If a class has too few images; all such classes are named.
    """
    if labels_per_class is not None and labels_per_class < 1:
        raise DataError(f"Expected labels_per_class of 1 or more, or None, got {labels_per_class}.")
    wanted = 1 if labels_per_class is None else labels_per_class
    left = {label: len(found) - validation[label] for label, found in ranked.items()}
    short = {label: count for label, count in left.items() if count < wanted}
    if short:
        tested = {label: 0 if test is None else test[label] for label in ranked}
        counts = ", ".join(
            f"'{class_names[label]}' has {max(count, 0)} (of {len(ranked[label]) + tested[label]}, "
            + (f"{tested[label]} of them for the test and " if tested[label] else "")
            + f"{validation[label]} {'' if tested[label] else 'of them '}for validation)"
            for label, count in short.items()
        )
        most = min(left.values())
        advice = (
            f"Use at most labels_per_class={most}, or less validation."
            if most > 0
            else f"Add {noun} to these classes, or keep none of them for validation "
            "(val_fraction=0, on the command line data.val_fraction=0) or for the test "
            "(test_fraction=0, data.test_fraction=0)."
        )
        raise DataError(
            f"Expected {wanted} or more labelled training {noun} of each class, but {counts}. "
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


def divide(
    labels: Sequence[int],
    keys: Sequence[str],
    *,
    test_fraction: float,
    val_fraction: float,
    seed: int,
    labels_per_class: int | None,
    class_names: Sequence[str],
    noun: str = "images",
    val_per_class: int | None = None,
) -> dict[str, list[int]]:
    """Divide images into training, validation and test, class by class.

    The test images depend on ``test_fraction`` alone, so that no seed and no number of labels moves
    one of them into training.

    Args:
        labels: Class of each image.
        keys: A name of each image, unique within its class.
        test_fraction: Fraction of each class for the test.
        val_fraction: Fraction of the rest for validation.
        seed: Seed of the choice of validation and training images.
        labels_per_class: Training images of each class; None takes all that are left.
        class_names: Name of each class.
        noun: What the items are, for the message.
        val_per_class: Validation images of each class, instead of a fraction.

    Returns:
        The indices of each split, sorted.

    Raises:
        DataError: If a class has too few images.
    """
    fixed = ranked_by_class(labels, keys, "lightning-peft folder test")
    cut = {label: part_of(test_fraction, found) for label, found in fixed.items()}
    test = sorted(index for label, found in fixed.items() for index in found[: cut[label]])
    pool = [index for label, found in fixed.items() for index in found[cut[label] :]]
    ranked = ranked_by_class([labels[i] for i in pool], [keys[i] for i in pool], str(seed))
    train, val = few_labels(
        {label: [pool[i] for i in ranked.get(label, ())] for label in fixed},
        validation={
            label: part_of(val_fraction, ranked.get(label, ()))
            if val_per_class is None
            else val_per_class
            for label in fixed
        },
        labels_per_class=labels_per_class,
        class_names=class_names,
        noun=noun,
        test=cut,
    )
    return {"train": train, "val": val, "test": test}


def part_of(fraction: float, found: Sequence[int]) -> int:
    """Return how many images a fraction of a class is: at least one, so no split lacks a class."""
    return max(1, round(fraction * len(found))) if fraction else 0
