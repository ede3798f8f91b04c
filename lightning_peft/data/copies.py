"""Files with the same content: leaks between splits, and labels that contradict each other."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

__all__ = ["contradictions", "find_copies", "repeats_in"]

_END = 4096
_BLOCK = 1 << 20


def find_copies(paths: Sequence[str]) -> list[list[int]]:
    """Find the files whose content is the same, byte for byte.

    Only files of equal size are opened, and only those with equal ends are read whole.

    Args:
        paths: The files; one that cannot be read is left out.

    Returns:
        The indices of each group of two or more, in order.
    """
    groups: Iterable[list[int]] = [list(range(len(paths)))]
    for key in (os.path.getsize, _ends, _whole):
        groups = [part for group in groups for part in _parted(group, paths, key)]
    return sorted(groups)


def contradictions(
    copies: Sequence[Sequence[int]],
    paths: Sequence[str],
    labels: Sequence[str],
    splits: Sequence[str],
) -> list[str]:
    """Find the copies that have different labels or are in different splits.

    Args:
        copies: Groups of indices of :func:`find_copies`.
        paths: The files.
        labels: The label of each, in words.
        splits: The split of each; ``""`` where it is not decided yet.

    Returns:
        A line for each copy that contradicts the first of its group.
    """
    found = []
    for first, *others in copies:
        for other in others:
            if labels[first] != labels[other]:
                apart = f"as {labels[first]} and as {labels[other]}"
            elif splits[first] != splits[other]:
                apart = f"in {splits[first]} and in {splits[other]}"
            else:
                continue
            found.append(f"{paths[other]}: the same image as {paths[first]}, {apart}")
    return found


def repeats_in(copies: Sequence[Sequence[int]], kinds: Sequence[Hashable]) -> list[int]:
    """Return all but the first of the copies of each kind.

    Args:
        copies: Groups of indices of :func:`find_copies`.
        kinds: What copies of each other have to share, such as a label.

    >>> repeats_in([[0, 1, 2]], ["cat", "dog", "cat"])
    [2]
    """
    found = []
    for group in copies:
        seen: set[Hashable] = set()
        for index in group:
            if kinds[index] in seen:
                found.append(index)
            seen.add(kinds[index])
    return found


def _parted(
    group: Sequence[int], paths: Sequence[str], key: Callable[[str], Hashable]
) -> list[list[int]]:
    found: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index in group:
        try:
            found[key(paths[index])].append(index)
        except OSError:  # the check of the files reports it
            continue
    return [part for part in found.values() if len(part) > 1]


def _ends(path: str) -> tuple[bytes, bytes]:
    with open(path, "rb") as file:
        first = file.read(_END)
        file.seek(-min(_END, os.path.getsize(path)), os.SEEK_END)
        return first, file.read(_END)


def _whole(path: str) -> bytes:
    found = hashlib.blake2b()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.digest()
