"""The bytes of tensors that may be views of the same memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["distinct_bytes"]


def distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the elements of tensors; a byte that several of them show counts once.

    Args:
        tensors: Tensors on any device, ``meta`` included. Those of other classes, such as
            ``DTensor``, count whole, each object once.
    """
    whole: dict[int, int] = {}
    views: dict[tuple[int, str], dict[_Place, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        if type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided:
            storage = (tensor.untyped_storage()._cdata, str(tensor.device))
            views[storage].setdefault(_place(tensor), tensor)
        else:
            whole[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(whole.values()) + sum(_of_one_storage(places) for places in views.values())


_Place = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""The first byte, the bytes of an element, the shape and the strides."""


def _place(tensor: Tensor) -> _Place:
    size = tensor.element_size()
    return int(tensor.storage_offset()) * size, size, tuple(tensor.shape), tensor.stride()


def _of_one_storage(places: Iterable[_Place]) -> int:
    """Return the bytes of views of one storage, in groups whose ranges overlap."""
    total, end, group = 0, 0, list[_Place]()
    for place in sorted(place for place in places if 0 not in place[2]):
        if group and place[0] >= end:
            total, group = total + _of_group(group), []
        group.append(place)
        end = max(end, _end(place))
    return total + _of_group(group)


def _of_group(group: list[_Place]) -> int:
    if len(group) == 1 and _dense(group[0]):
        return _elements(group[0])
    start, end = min(p[0] for p in group), max(map(_end, group))
    if all(map(_dense, group)):  # one range, without a hole
        return end - start
    shown = torch.zeros(end - start, dtype=torch.bool)
    for first, size, shape, strides in group:
        steps = (*(size * stride for stride in strides), 1)
        shown.as_strided((*shape, size), steps, first - start).fill_(True)
    return int(shown.sum())


def _end(place: _Place) -> int:
    first, size, shape, strides = place
    return first + size * (1 + sum((n - 1) * by for n, by in zip(shape, strides, strict=True)))


def _elements(place: _Place) -> int:
    return place[1] * int(torch.Size(place[2]).numel())


def _dense(place: _Place) -> bool:
    """Whether the elements fill their range, each once."""
    repeated = any(by == 0 and n > 1 for n, by in zip(place[2], place[3], strict=True))
    return not repeated and _end(place) - place[0] == _elements(place)
