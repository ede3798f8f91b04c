"""Checking that a regular expression from a file is matched in a bounded time.

Python's engine tries the ways to match one by one, and ``(a+)+$`` has exponentially many. Their
number is bounded here from the parsed expression, before it is ever matched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

__all__ = ["slow_patterns", "strings_in"]

MOST_STEPS = 10**8
"""Steps that take a few seconds, for all names of a model together."""


def slow_patterns(patterns: Iterable[str], names: int, length: int) -> list[str]:
    """Find the regular expressions that may take too long.

    Args:
        patterns: The expressions; invalid ones are skipped.
        names: How many names each would be matched with.
        length: The length of the longest name.

    Returns:
        Those whose number of ways, times the names, is beyond :data:`MOST_STEPS`.

    >>> slow_patterns(["(a+)+$", r".*[.]attn[.](q|v)", "blocks[.][0-9]+[.]fc1"], 100, 40)
    ['(a+)+$']
    """
    most = MOST_STEPS // max(names, 1)
    return [text for text in patterns if _ways_of(text, length, most) > most]


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string in plain data, including the keys of mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from strings_in(item)


def _ways_of(text: str, length: int, most: int) -> int:
    if not any(sign in text for sign in "*+{?"):
        return 1  # without a repetition there are no more ways than the text is long
    try:
        return _ways(_parser.parse(text), length + 1, most)
    except (re.error, OverflowError):
        return 1  # not an expression: the error comes when it is compiled
    except RecursionError:
        return most + 1


def _ways(parsed: Any, length: int, most: int) -> int:
    """Return a bound on the number of ways to match a sequence, not far above ``most``."""
    ways = 1
    for code, value in parsed:
        ways *= _ways_of_one(code, value, length, most)
        if ways > most:
            return most + 1
    return ways


def _ways_of_one(code: Any, value: Any, length: int, most: int) -> int:
    if code is codes.BRANCH:
        return sum(_ways(branch, length, most) for branch in value[1])
    if code in (codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT):
        least, top, body = value
        inside = _ways(body, length, most)
        top = min(int(top), max(length, int(least)))
        if inside == 1:
            return top - int(least) + 1
        return most + 1 if top * (inside.bit_length() - 1) > 64 else 2 * inside**top
    if code is codes.SUBPATTERN:
        return _ways(value[3], length, most)
    if code in (codes.ASSERT, codes.ASSERT_NOT):
        return _ways(value[1], length, most)
    if code is codes.ATOMIC_GROUP:
        return _ways(value, length, most)
    if code is codes.GROUPREF_EXISTS:
        return sum(_ways(branch, length, most) for branch in value[1:] if branch is not None)
    return 1
