"""Write ``docs/rates.md``: ``python -m benchmarks.rates.page``.

``--check`` says whether the page is current, ``--results`` takes another file of results.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.current import stale
from benchmarks.evidence.store import Store
from benchmarks.rates.networks import LABELS, NETWORKS, STEPS
from benchmarks.rates.run import RECIPE, RESULTS
from benchmarks.rates.tables import auto, cheapest, falling, of_method, single

__all__ = ["main", "page"]

PAGE = Path("docs/rates.md")
ABOUT = Path(__file__).with_name("about.md")


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the page for these results."""
    return "\n".join(_page(lines)) + "\n"


def _page(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    told = "\n".join(f"| `{name}` | {network.told} |" for name, network in NETWORKS.items())
    about = ABOUT.read_text(encoding="utf-8")
    for name, value in {"labels": LABELS, "steps": STEPS, "networks": told}.items():
        about = about.replace(f"{{{name}}}", str(value))
    yield about
    tried = [line for line in lines if line["kind"] == "choose"]
    methods = list(dict.fromkeys(line["method"] for line in tried))
    yield "## One rate for all?"
    yield ""
    yield from cheapest(tried, methods)
    yield ""
    yield from single(tried, methods)
    yield ""
    yield "## What `lr=auto` finds"
    yield ""
    yield from auto([line for line in lines if line["kind"] == "auto"], tried)
    yield ""
    for method in methods:
        yield f"## `{method}`"
        yield ""
        yield from of_method(tried, method)
        yield ""
    yield "## Does the loss fall?"
    yield ""
    yield from falling([line for line in lines if line["kind"] == "falls"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is current")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    written = page(Store(options.results, RECIPE).lines)
    if options.check:
        return stale(PAGE, written, "python -m benchmarks.rates.page")
    PAGE.write_text(written, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
