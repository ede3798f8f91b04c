"""The names that people give to splits, in folders and in columns."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["SPLITS", "known_splits", "split_of"]

SPLITS = ("train", "val", "test")

_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}

_SPLIT_OF = {name: split for split, names in _NAMES.items() for name in names}


def split_of(name: str) -> str | None:
    """Return the split that a name means, in any case; ``None`` if it means none.

    >>> split_of("Validation"), split_of("cats")
    ('val', None)
    """
    return _SPLIT_OF.get(name.strip().lower())


def known_splits() -> list[str]:
    """Return all names that mean a split."""
    return list(_SPLIT_OF)
