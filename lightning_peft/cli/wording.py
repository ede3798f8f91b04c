"""How a comparison writes its numbers."""

from __future__ import annotations

from lightning_peft.cli.comparison import Spread
from lightning_peft.cli.significance import FLIPS, Contrast

__all__ = ["difference", "duration", "p_value", "percent", "size", "told", "verdict"]


def percent(value: Spread | None) -> str:
    """Write an accuracy, such as ``"93.4 ± 0.6 %"``."""
    if value is None:
        return "-"
    spread = f" ± {100 * value.deviation:.1f}" if value.count > 1 else ""
    return f"{100 * value.mean:.1f}{spread} %"


def size(count: float) -> str:
    """Write a number of bytes, such as ``"152 kB"``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Write a time, such as ``"8.1 ms"``, ``"12 s"`` or ``"3 min 20 s"``."""
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def p_value(p: float) -> str:
    """Write a p-value with its sign, such as ``"p = 0.031"`` or ``"p < 0.0001"``."""
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.4f}" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def difference(contrast: Contrast) -> str:
    """Write a difference in points of a percent, with its interval where there is one."""
    if contrast.difference is None:
        return "-"
    text = f"{100 * contrast.difference:+.1f}"
    if contrast.interval is not None:
        low, high = (100 * end for end in contrast.interval)
        text += f" [{low:+.1f}, {high:+.1f}]"
    return text


def verdict(contrast: Contrast) -> str:
    """Write the test, on how many seeds, and what came of it; or why there is none."""
    if contrast.p is None:
        return contrast.why_not
    on = "pairs" if contrast.test in (FLIPS, "paired t-test") else "seeds or more in each"
    text = f"{contrast.test}, {contrast.count} {on}: {p_value(contrast.p)}"
    if contrast.p_holm is not None and contrast.p_holm != contrast.p:
        text += f" (corrected {p_value(contrast.p_holm)})"
    if contrast.test == FLIPS:
        text += f"; the smallest that {contrast.count} pairs can give is {2 / 2**contrast.count:g}"
    return text


def told(contrast: Contrast) -> str:
    """Write a contrast as a line."""
    parts = [f"{contrast.first} - {contrast.other}: "]
    if contrast.difference is not None:
        parts.append(f"{difference(contrast)} points; ")
    return "".join([*parts, verdict(contrast)])
