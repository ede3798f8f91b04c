"""What the first weights of the head do: cells with timm's, and with those of nn.Linear."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.evidence.tables import Found, name_of, told
from lightning_peft.cli.comparing.significance import contrast, holm

__all__ = ["heads"]

ABOUT = """\
timm draws the new head of an EfficientNet with two classes 25 times as large as `nn.Linear` does,
so that a run begins with losses of up to 7, where guessing has 0.69. The runs below were made
first, with that head. Since their losses were seen `lp.ImageClassifier` draws it as `nn.Linear`
does, and all other figures of this page are with the new head. Each method chose its setting anew.
Balanced accuracy in percent, and the difference paired by seed, with Holm's p over the rows."""


def heads(timm: Found, own: Found) -> Iterator[str]:
    """Return a section that compares both heads, seed by seed.

    Args:
        timm: The cells with the head as timm draws it.
        own: Those with a head as ``nn.Linear`` draws it.
    """
    both = [key for key in timm if key in own and len(timm[key].scores) > 1]
    if not both:
        return
    yield "## The first weights of the head"
    yield ""
    yield from ABOUT.splitlines()
    yield ""
    yield "| solar cells | timm's head | `nn.Linear`'s | difference |"
    yield "|---|---|---|---|"
    tests = holm([contrast(str(key), "timm", own[key].scores, timm[key].scores) for key in both])
    for key, test in zip(both, tests, strict=True):
        _, budget, method = key
        words = told(test).replace(" points", "")
        means = f"{timm[key].mean:.1f} | {own[key].mean:.1f}"
        yield f"| {name_of(method)}, {budget} a class | {means} | {words} |"
    yield ""
