"""Parameters that a module itself fixed: a scale, a permutation, a table of positions."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn

from lightning_peft.anatomy.names import inside
from lightning_peft.anatomy.quantised import is_code

__all__ = ["THAWABLE", "asked_for", "fixed_parameters", "fixed_then"]

THAWABLE = "_lightning_peft_thawable"
"""The attribute of a backbone with the names that ``BackboneFreeze`` froze, to train them later."""

_then: ContextVar[tuple[str, ...] | None] = ContextVar("fixed", default=None)


@contextmanager
def fixed_then(names: Iterable[str]) -> Iterator[None]:
    """Take the fixed parameters from a file inside the context, not from the model.

    Whoever loads an adapter may have frozen a model that was not frozen when it was trained.

    Args:
        names: The names; those that the model does not have are ignored.
    """
    token = _then.set(tuple(names))
    try:
        yield
    finally:
        _then.reset(token)


def fixed_parameters(model: nn.Module, head: tuple[str, ...]) -> frozenset[str]:
    """Find the parameters that need no gradient although others around them do.

    The head and the rest are looked at separately. If all of a part is frozen, somebody froze it by
    hand, or a library for inference, and nothing in it is taken for fixed.

    Args:
        model: The backbone, not yet adapted.
        head: Names of the head's modules.

    Returns:
        Their names.
    """
    recorded = _then.get()
    parameters = dict(model.named_parameters())
    if recorded is not None:
        return frozenset(recorded) & frozenset(parameters)
    later = model.__dict__.get(THAWABLE, ())
    found: set[str] = set()
    for in_head in (True, False):
        # codes never require a gradient, and nobody has fixed them
        numbers = {n: p for n, p in parameters.items() if not is_code(p)}
        part = {n: p for n, p in numbers.items() if inside(n, head) == in_head}
        frozen = {n for n, p in part.items() if not p.requires_grad and n not in later}
        if len(frozen) < len(part):
            found |= frozen
    return frozenset(found)


def asked_for(model: nn.Module, patterns: Sequence[str], fixed: frozenset[str]) -> frozenset[str]:
    """Return the fixed parameters that names or globs mean, beyond a module around them.

    Args:
        model: The backbone.
        patterns: As in ``also_train``.
        fixed: The fixed parameters.

    Returns:
        Those whose own name is matched by a pattern's last part (``"*.scale"``), and those of a
        module with nothing else (``"positions"``).
    """
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters()]
    asked: set[str] = set()
    for pattern in patterns:
        last = pattern.rpartition(".")[2]
        if last.strip("*"):
            hits = fnmatch.filter(parameters, pattern)
            asked |= {n for n in hits if fnmatch.fnmatch(n.rpartition(".")[2], last)} & fixed
        for root in fnmatch.filter(modules, pattern):
            below = {name for name in parameters if inside(name, (root,))}
            asked |= below if below <= fixed else set()
    return frozenset(asked)
