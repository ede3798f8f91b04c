"""Documents put together into rows of a length, with as little padding as is simple."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

__all__ = ["packed"]


def packed(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put documents into rows: the longest first, each into the fullest row that has room.

    Args:
        lengths: The length of each document, at most ``capacity``.
        capacity: The length of a row.

    Returns:
        The documents of each row. The same input gives the same rows.

    >>> packed([3, 5, 2, 4], 7)
    [[1, 2], [3, 0]]
    """
    rows: list[list[int]] = []
    room: dict[int, list[int]] = {}  # the rows by what is free in them
    free: list[int] = []  # the keys of `room`, sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        place = bisect_left(free, length)
        if place == len(free):
            row, left = len(rows), capacity
            rows.append([])
        else:
            left = free[place]
            row = room[left].pop()
            if not room[left]:
                del room[left]
                free.pop(place)
        rows[row].append(index)
        left -= length
        if left not in room:
            room[left] = []
            insort(free, left)
        room[left].append(row)
    return rows
