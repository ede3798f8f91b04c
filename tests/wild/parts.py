"""Which parts of a module a run trained, beside a run of the same module without the callback.

Names of the module without an adapter are matched with those of the adapted one by their numbers:
what was in the module before the run has to be in it after injection, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tests.wild.record import Record, plain_name

__all__ = ["changed_although_frozen", "different", "misplaced"]


def _matched(plain: Record, run: Record) -> tuple[dict[str, list[str]], list[str]]:
    """Return the adapted module's names by the plain ones, and the names of what was added."""
    matched: dict[str, list[str]] = {name: [] for name in plain.before}
    added = []
    for name in run.before:
        original = plain_name(name)
        (matched.get(original, added)).append(name)
    return matched, added


def changed_although_frozen(plain: Record, run: Record) -> Iterator[str]:
    """Say which weights differ from the fresh module's at the start, or moved without gradient."""
    matched, _ = _matched(plain, run)
    for name, names in matched.items():
        if not any(torch.equal(plain.before[name], run.before[own]) for own in names):
            yield f"{name} is not the fresh module's at the start"
        own_update = not plain.trains[name] and plain.changed(name)  # a teacher's
        for own in names:
            if run.changed(own) and not run.trains[own] and not own_update:
                yield f"{own} is frozen and changed"


def misplaced(
    plain: Record, run: Record, backbone: Sequence[str], new: Sequence[str]
) -> Iterator[str]:
    """Say what is new and was not trained, and whether the backbone has no adapter."""
    matched, added = _matched(plain, run)
    lost = [
        name
        for name, names in matched.items()
        if _below(name, new) and plain.changed(name) and not any(run.trains[own] for own in names)
    ]
    if lost:
        size = sum(plain.before[name].numel() for name in lost)
        yield f"new, but not trained: {len(lost)} parameters ({size:,} numbers), such as {lost[0]}"
    for name in run.trains:
        alone = run.before[name].numel() == 1  # one number may rest behind a ReLU
        if (
            run.trains[name]
            and not run.changed(name)
            and plain.changed(plain_name(name))
            and not alone
        ):
            yield f"{name} is said to be trained and did not move"
    if not any(_below(name, backbone) for name in added):
        whole = [n for n, v in matched.items() if any(map(run.changed, v))]
        yield (
            f"no adapter in {', '.join(map(repr, backbone))}: {len(added)} parameters were added "
            f"({', '.join(added[:1])}), {len(whole)} of {len(matched)} are trained in place"
        )
    for prefix in new:
        if not any(_below(name, [prefix]) for name in matched):
            yield f"the suite names a part '{prefix}' that the module does not have"


def different(one: Record, other: Record) -> list[str]:
    """Return the names of parameters that two runs left in different states, with how much."""
    return [
        f"{name} by {(one.after[name] - other.after[name]).abs().max():.2g}"
        if name in other.after
        else f"{name} is missing"
        for name in one.after
        if name not in other.after or not torch.equal(one.after[name], other.after[name])
    ]


def _below(name: str, prefixes: Sequence[str]) -> bool:
    return any(not prefix or f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)
