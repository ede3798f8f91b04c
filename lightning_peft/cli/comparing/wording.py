"""Format the numbers of a comparison."""

from __future__ import annotations

from lightning_peft.cli.comparing.comparison import Row, Spread
from lightning_peft.cli.comparing.significance import FLIPS, Contrast
from lightning_peft.evaluation.metric_names import is_share

__all__ = ["difference", "duration", "interval", "p_value", "score", "size", "told", "verdict"]


def score(value: Spread | None, metric: str) -> str:
    """Return a metric as text, such as ``"93.4 ± 0.6 %"`` or ``"0.412 ± 0.03"``."""
    if value is None:
        return "-"
    if is_share(metric):
        spread = f" ± {100 * value.deviation:.1f}" if value.count > 1 else ""
        return f"{100 * value.mean:.1f}{spread} %"
    spread = f" ± {value.deviation:.2g}" if value.count > 1 else ""
    return f"{value.mean:.4g}{spread}"


def interval(row: Row, metric: str) -> str:
    """Return the interval of a row of one run over its test images, such as ``"[91.2, 95.0]"``."""
    done = [run for run in row.runs if run.completed]
    ends = done[0].intervals.get(metric) if len(done) == 1 else None
    if ends is None:
        return ""
    low, high = (f"{100 * end:.1f}" if is_share(metric) else f"{end:.4g}" for end in ends)
    return f"[{low}, {high}]"


def size(count: float) -> str:
    """Return a number of bytes as text, such as ``"152 kB"``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Return a time as text, such as ``"8.1 ms"``, ``"12 s"`` or ``"3 min 20 s"``."""
    if seconds < 1:
        return f"{1000 * seconds:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


def p_value(p: float) -> str:
    """Return a p-value with its sign, such as ``"p = 0.031"`` or ``"p < 0.0001"``."""
    if p < 0.0001:
        return "p < 0.0001"
    return f"p = {p:.4f}" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def difference(contrast: Contrast, metric: str = "accuracy") -> str:
    """Return a difference, in points if the metric is a fraction, with its interval if any."""
    if contrast.difference is None:
        return "-"

    def one(value: float) -> str:
        return f"{100 * value:+.1f}" if is_share(metric) else f"{value:+.3g}"

    text = one(contrast.difference)
    if contrast.interval is not None:
        low, high = contrast.interval
        text += f" [{one(low)}, {one(high)}]"
    return text


def verdict(contrast: Contrast) -> str:
    """Return the test, its number of seeds and its result; or why there is none."""
    if contrast.p is None:
        return contrast.why_not
    on = "pairs" if contrast.test in (FLIPS, "paired t-test") else "seeds or more in each"
    text = f"{contrast.test}, {contrast.count} {on}: {p_value(contrast.p)}"
    if contrast.p_holm is not None and contrast.p_holm != contrast.p:
        text += f" (corrected {p_value(contrast.p_holm)})"
    if contrast.test == FLIPS:
        text += f"; the smallest that {contrast.count} pairs can give is {2 / 2**contrast.count:g}"
    return text


def told(contrast: Contrast, metric: str = "accuracy") -> str:
    """Return a contrast as a line of text."""
    parts = [f"{contrast.first} - {contrast.other}: "]
    if contrast.difference is not None:
        unit = " points" if is_share(metric) else ""
        parts.append(f"{difference(contrast, metric)}{unit}; ")
    return "".join([*parts, verdict(contrast)])
