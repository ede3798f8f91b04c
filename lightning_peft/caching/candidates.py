"""The places where the first part of a forward could end, from one recorded run."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lightning_peft.caching.splice import Splice, Tap, Unit
from lightning_peft.caching.trace import Call, hooked

__all__ = ["candidates", "lighter", "path", "whole"]


def path(first: Call) -> list[Call]:
    """Return the calls around the first call that cannot be kept, the outermost first."""
    around = [first]
    while True:
        inner = next((call for call in around[-1].calls if call.why_not is not None), None)
        if inner is None:
            return around
        around.append(inner)


def whole(root: nn.Module) -> tuple[Splice, float, str]:
    """Return the end of a backbone that is frozen as a whole, with its head outside."""
    return Splice(root, (Unit("", root),), (Tap("", root, "out"),)), 1.0, "all of it"


def candidates(root: nn.Module, path: list[Call]) -> Iterator[tuple[Splice, float, str]]:
    """Yield the places where the first part could end, the longest first part first."""
    total = max(path[0].flops_after, 1)
    ends = path[-1]
    before = [*_before(path, ends), *ends.calls]
    own = any(p.requires_grad for p in ends.module.parameters(recurse=False))
    if ends.calls and not own:  # it cannot be kept as a whole, but everything in it can
        yield _after(root, before, total)
    for call in reversed(path[1:]):
        units = _before(path, call)
        if units and call.clean_input and call.hookable:
            earlier = sum(unit.module is call.module for unit in units)
            tap = Tap(call.name, call.module, "in", earlier)
            splice = Splice(root, _units(units), (*_watched_taps(units), tap))
            yield splice, call.flops_before / total, f"up to '{call.name}'"
    units = _before(path, ends)
    if units:
        yield _after(root, units, total)
    while units and next(units[-1].module.parameters(), None) is None:
        units.pop()  # after the last weights: the results may be read in several parts
    if units:
        yield _after(root, units, total)


def lighter(splice: Splice) -> Iterator[Splice]:
    """Yield a splice, and the same splice that still runs modules without weights.

    The tables of a rotary embedding are the same for all samples and come from such a module: they
    cannot be kept by sample, and are quickly computed again.
    """
    yield splice
    weighty = tuple(u for u in splice.units if next(u.module.parameters(), None) is not None)
    skipped = {u.module for u in weighty}
    taps = tuple(t for t in splice.taps[:-1] if t.module in skipped) + splice.taps[-1:]
    if 0 < len(weighty) < len(splice.units) and _stands(taps[-1], skipped):
        yield Splice(splice.root, weighty, taps)


def _stands(tap: Tap, skipped: set[nn.Module]) -> bool:
    return tap.side == "in" or tap.module in skipped


def _after(root: nn.Module, calls: list[Call], total: int) -> tuple[Splice, float, str]:
    """Return a splice that ends after the last call and keeps its output."""
    last = calls[-1]
    taps = _watched_taps(calls)
    number = sum(call.module is last.module for call in calls) - 1
    if not any(t.module is last.module and t.side == "out" and t.call == number for t in taps):
        taps = (*taps, Tap(last.name, last.module, "out", number))
    return Splice(root, _units(calls), taps), last.flops_after / total, f"behind '{last.name}'"


def _before(path: list[Call], end: Call) -> list[Call]:
    """Return the outermost calls that have ended when another begins."""
    around = path[: path.index(end)]
    found = [call for outer in around for call in outer.calls if call.left < end.entered]
    return sorted(found, key=lambda call: call.entered)


def _units(calls: list[Call]) -> tuple[Unit, ...]:
    counts: dict[nn.Module, list[Call]] = {}
    for call in calls:
        counts.setdefault(call.module, []).append(call)
    return tuple(Unit(same[0].name, module, len(same)) for module, same in counts.items())


def _watched_taps(calls: list[Call]) -> tuple[Tap, ...]:
    """Return the taps that the hooks of skipped modules need (a side network reads every block)."""
    taps, numbers = [], dict.fromkeys((call.module for call in calls), 0)
    for call in calls:
        number = numbers[call.module]
        numbers[call.module] += 1
        if not hooked(call.module):
            continue
        if call.module._forward_pre_hooks:
            taps.append(Tap(call.name, call.module, "in", number))
        if call.module._forward_hooks:
            taps.append(Tap(call.name, call.module, "out", number))
    return tuple(taps)
