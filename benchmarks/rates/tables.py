"""The tables of the page of rates."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.evidence.plan import as_loss
from benchmarks.rates.networks import NETWORKS
from lightning_peft.cli.config.auto_rate import start_of

__all__ = ["auto", "behind", "cheapest", "falling", "fell", "of_method", "single"]

Lines = Sequence[Mapping[str, Any]]
SCORE = "balanced_accuracy"


def of_method(lines: Lines, method: str) -> Iterator[str]:
    """Return a table of networks and rates for a method."""
    rates = _rates(lines, method)
    yield "Balanced accuracy in percent, in brackets the loss on the same items; the default of"
    yield f"`conf/method` is {start_of(method):g}:"
    yield ""
    yield f"| network | {' | '.join(f'{rate:g}' for rate in rates)} |"
    yield "|---|" + "---|" * len(rates)
    for network, found in _by_network(lines, method).items():
        best = max(line[SCORE] for line in found.values())
        cells = [
            f"{_bold(100 * found[rate][SCORE], found[rate][SCORE] == best)} ({_loss(found[rate])})"
            if rate in found
            else "-"
            for rate in rates
        ]
        yield f"| `{network}` | {' | '.join(cells)} |"


def behind(lines: Lines, method: str) -> dict[float, list[float]]:
    """Return by how many points each rate is behind the best of its network, for each network.

    Rates that were not tried on all networks of the method are left out.
    """
    lost: dict[float, list[float]] = {}
    networks = _by_network(lines, method)
    for found in networks.values():
        best = max(line[SCORE] for line in found.values())
        for rate, line in found.items():
            lost.setdefault(rate, []).append(100 * (best - line[SCORE]))
    return {rate: found for rate, found in lost.items() if len(found) == len(networks)}


def single(lines: Lines, methods: Sequence[str]) -> Iterator[str]:
    """Return a table of what a single rate for all networks costs."""
    yield "By how many points each rate is behind the best one of its network: the mean over the"
    yield "networks, and in brackets the worst; the default of `conf/method` is in italics."
    yield ""
    rates = sorted({rate for method in methods for rate in _rates(lines, method)})
    yield f"| method | networks | {' | '.join(f'{rate:g}' for rate in rates)} |"
    yield "|---|---|" + "---|" * len(rates)
    for method in methods:
        lost = behind(lines, method)
        count = len(_by_network(lines, method))
        means = {rate: statistics.fmean(found) for rate, found in lost.items()}
        best = min(means.values(), default=None)
        cells = []
        for rate in rates:
            if rate not in means:
                cells.append("-")
                continue
            text = f"{_bold(means[rate], means[rate] == best)} ({max(lost[rate]):.1f})"
            cells.append(f"*{text}*" if rate == start_of(method) else text)
        yield f"| `{method}` | {count} | {' | '.join(cells)} |"


def cheapest(lines: Lines, methods: Sequence[str]) -> Iterator[str]:
    """Say of each method which single rate costs least, and what its default costs."""
    for method in methods:
        lost = behind(lines, method)
        count = len(_by_network(lines, method))
        means = {rate: statistics.fmean(found) for rate, found in lost.items()}
        if not means:
            continue
        best, default = min(means, key=lambda rate: means[rate]), start_of(method)
        text = f"- `{method}`, {count} networks: of single rates {best:g} costs least, "
        text += f"{means[best]:.1f} points in the mean and {max(lost[best]):.1f} at worst"
        if default not in means:
            yield f"{text}."
        elif default == best:
            yield f"{text}; it is the default."
        else:
            yield f"{text}; the default, {default:g}, costs {means[default]:.1f} and"
            yield f"  {max(lost[default]):.1f}."


def auto(lines: Lines, tried: Lines) -> Iterator[str]:
    """Return a table of the rates that searches found, and what they are worth.

    Args:
        lines: The runs with what a search found.
        tried: Those with given rates.
    """
    yield "What `lr=auto` finds from the default on, and the balanced accuracy with it on the other"
    yield "items, next to that with the default and with the best rate of the tables below:"
    yield ""
    yield "| method, network | tried | found | with it | with the default | with the best |"
    yield "|---|---|---|---|---|---|"
    lost: dict[str, list[float]] = {"found": [], "default": []}
    for line in lines:
        method, network = line["method"], line["task"]
        known = _by_network(tried, method).get(network, {})
        default = known.get(start_of(method))
        if default is None:
            continue
        best = max(known, key=lambda rate: known[rate][SCORE])
        scores = {"found": 100 * line[SCORE], "default": 100 * default[SCORE]}
        most = 100 * known[best][SCORE]
        for name, score in scores.items():
            lost[name].append(most - score)
        words = ", ".join(sorted(line["tried"], key=float))
        yield (
            f"| `{method}`, `{network}` | {words} | {line['rate']:g} | {scores['found']:.1f} | "
            f"{scores['default']:.1f} | {most:.1f} ({best:g}) |"
        )
    if lost["found"]:
        means = {name: statistics.fmean(values) for name, values in lost.items()}
        yield ""
        yield (
            f"In the mean the rate found is {means['found']:.1f} points behind the best "
            f"({max(lost['found']):.1f} at worst), the default {means['default']:.1f} "
            f"({max(lost['default']):.1f} at worst)."
        )


def falling(lines: Lines) -> Iterator[str]:
    """Return a table of first and last losses of every method at its default rate."""
    trained = [line for line in lines if line["first_loss"] is not None]
    risen = [line for line in trained if not fell(line)]
    count = f"{len(trained) - len(risen)} of {len(trained)}"
    yield "Every method of `conf/method` with the rate of its file, 30 steps: the mean training"
    yield f"loss of the first and the last five. It falls in {count}"
    words = (f"`{line['method']}` on `{line['task']}` from {_course(line)}" for line in risen)
    yield f"runs{'; not: ' + ', '.join(words) if risen else ''}. Where there is a dash the method"
    yield "does not fit the network, and says so; `hf` and `union` have to be told of what."
    yield ""
    networks = [name for name in NETWORKS if any(line["task"] == name for line in lines)]
    yield f"| method | {' | '.join(f'`{name}`' for name in networks)} |"
    yield "|---|" + "---|" * len(networks)
    found = {(line["method"], line["task"]): line for line in trained}
    for method in sorted({line["method"] for line in lines}):
        row = (found.get((method, network)) for network in networks)
        cells = ["-" if line is None else _course(line) for line in row]
        yield f"| `{method}` | {' | '.join(cells)} |"


def _course(line: Mapping[str, Any]) -> str:
    last = as_loss(line["last_loss"])
    end = "no finite loss" if last == float("inf") else f"{last:.2f}"
    return f"{line['first_loss']:.2f} to {end}"


def fell(line: Mapping[str, Any]) -> bool:
    """Whether the training loss of a run fell."""
    return as_loss(line["last_loss"]) < as_loss(line["first_loss"])


def _by_network(lines: Lines, method: str) -> dict[str, dict[float, Mapping[str, Any]]]:
    found: dict[str, dict[float, Mapping[str, Any]]] = {}
    for network in NETWORKS:
        for line in lines:
            if (line["task"], line["method"]) == (network, method):
                found.setdefault(network, {})[line["rate"]] = line
    return found


def _rates(lines: Lines, method: str) -> list[float]:
    return sorted({line["rate"] for line in lines if line["method"] == method})


def _loss(line: Mapping[str, Any]) -> str:
    value = as_loss(line["plain_loss"])
    return "diverged" if value == float("inf") else f"{value:.2f}"


def _bold(value: float, best: bool) -> str:
    return f"**{value:.1f}**" if best else f"{value:.1f}"
