"""Check the command line that ``sweep.json`` records, before Hydra sees it.

Hydra builds its callbacks, launcher and sweeper, sets environment variables, opens log files and
makes directories before any code of this package runs. So the words are parsed and checked here:
of Hydra's own part only what a sweep needs is taken, of the job's part what may stand in the config
of a recorded run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_peft.cli.trust.allowed import refusal
from lightning_peft.cli.trust.recorded import REACHES_OUT
from lightning_peft.cli.trust.words import Trust

__all__ = ["problems_of_sweep"]

MOST_JOBS = 10_000
MOST_LETTERS = 20_000

PLAIN = re.compile(r"(?!.*\.\.)[\w][\w.+:%/-]*", flags=re.ASCII)
"""A choice, a name or a number."""

WITHOUT_RESOLVER = re.compile(r"\$\{(?:hydra:)?[\w.]+\}", flags=re.ASCII)

SUBDIR = re.compile(
    r"(?!.*\.\.)(?!.*(?:override_dirname|root|labels|backbone|resume))"
    r"(?:[\w=,.+-]|\$\{hydra[:.](?:job\.num|runtime\.choices\.\w+)\}|\$\{seed\})"
    r"(?:[\w=,.+/-]|\$\{(?:hydra:)?[\w.]+\})*",
    flags=re.ASCII,
)
"""A directory below that of the sweep: no slash in front, and no values that are paths."""

PLACES = ("data.root", "data.labels", "data.backbone", "model.backbone", "resume")
"""Keys whose value may be a path anywhere: it is read, as data."""

WRITES = frozenset(
    {
        *("artifact_location", "cache", "cache_dir", "default_root_dir", "directory", "dirpath"),
        *("host", "log_dir", "output_dir", "root_dir", "save_dir", "tracking_uri", "url"),
    }
)
"""The last part of keys whose value is a place that is written or connected to."""

OF_HYDRA = (
    "hydra.job.chdir", "hydra.job.id", "hydra.job.name", "hydra.job.num", "hydra.output_subdir",
    "hydra.verbose",
)  # fmt: skip
"""Keys of Hydra with a plain value."""

GROUPS_OF_HYDRA = (
    "hydra/hydra_logging", "hydra/job_logging", "hydra/launcher", "hydra/sweeper",
    "hydra/sweeper/pruner", "hydra/sweeper/sampler",
)  # fmt: skip

OF_LAUNCHERS = frozenset(
    {
        *("account", "array_parallelism", "backend", "batch_size", "constraint", "cpus_per_gpu"),
        *("cpus_per_task", "gpus_per_node", "gpus_per_task", "gres", "max_num_timeout", "mem_gb"),
        *("mem_per_cpu", "mem_per_gpu", "n_jobs", "nodes", "partition", "pre_dispatch", "prefer"),
        *("qos", "require", "signal_delay_s", "tasks_per_node", "timeout", "timeout_min"),
        *("verbose",),
    }
)
"""Settings of launchers that say how many and where; others are commands for a shell."""


def problems_of_sweep(record: Mapping[str, Any], trust: Trust) -> Iterator[str]:
    """Yield everything in the record of a sweep that needs the user's word.

    Args:
        record: The content of ``sweep.json``: lists of texts under ``flags``, ``overrides`` and
            ``hydra``.
        trust: What the user vouches for.
    """
    yield from _flags(record["flags"], trust)
    jobs = 1
    for word in record["overrides"]:
        found, count = _task(word, trust)
        jobs *= count
        yield from found
    for word in record["hydra"]:
        found, count = _hydra(word, trust)
        jobs *= count
        yield from found
    if jobs > MOST_JOBS:
        yield f"overrides: expected at most {MOST_JOBS:,} jobs, got {jobs:,}"


def _flags(flags: Sequence[str], trust: Trust) -> Iterator[str]:
    given = {path.resolve() for path in trust.config_dirs}
    pairs = list(zip(flags[::2], flags[1::2], strict=False))
    if 2 * len(pairs) != len(flags):
        yield f"flags: expected a value for each flag, got {' '.join(flags)!r:.200}"
    for flag, value in pairs:
        if flag == "--config-name":
            if not PLAIN.fullmatch(value):
                yield f"flags: expected the name of a config, got {value!r:.100}"
        elif flag != "--config-dir":
            yield f"flags: expected --config-dir or --config-name, got {flag!r:.100}"
        elif Path(value).resolve() not in given:
            yield (
                f"flags: expected the configs of this package, got --config-dir {value!r:.200}, "
                "which you have not given"
            )


def _task(word: str, trust: Trust) -> tuple[list[str], int]:
    """Return the problems of an override of the job, and how many values it has."""
    parsed = _parsed(word)
    if isinstance(parsed, str):
        return [f"overrides: {parsed}"], 1
    key = _key(parsed)
    parts = re.split(r"[./@:]", key)
    if "hydra" in parts:
        return [f"{key}: expected an override of the job, got {word!r:.200}"], 1
    return _values(key, parsed, trust)


def _values(key: str, override: Any, trust: Trust) -> tuple[list[str], int]:
    """Check the values that an override gives to a key of the job."""
    if override.is_delete():
        return [], 1
    found: list[str] = []
    values = _each(override)
    if key.endswith("_target_"):
        whys = [refusal(_plain(value), trust.own) for value in values]
        found += [f"{key}: expected a class that a recorded run may build, {why}" for why in whys
                  if why is not None]  # fmt: skip
        return found, max(len(values), 1)
    for value in values:
        found += _inside(key, _plain(value), trust)
    return found, _count(override, values)


def _inside(key: str, value: Any, trust: Trust) -> Iterator[str]:
    """Yield what is wrong with a value, and with what is in it."""
    last = key.rpartition(".")[2]
    if last == "_target_":
        why = refusal(value, trust.own)
        if why is not None:
            yield f"{key}: expected a class that a recorded run may build, {why}"
        return
    if value not in (None, False, {}, []):
        outside = next((part for part in key.split(".") if part in REACHES_OUT), None)
        if outside is not None:
            yield f"{key}: expected no such setting in a recorded sweep: it {REACHES_OUT[outside]}"
            return
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _inside(f"{key}.{name}", item, trust)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _inside(f"{key}[{number}]", item, trust)
    elif isinstance(value, str):
        yield from _text(key, last, value)


def _text(key: str, last: str, value: str) -> Iterator[str]:
    if "${" in WITHOUT_RESOLVER.sub("", value):
        yield f"{key}: expected a value without a resolver, got {value!r:.100}"
    elif last.partition("[")[0] in WRITES:
        yield f"{key}: expected a sweep that writes in its own directory, got {value!r:.100}"
    elif key == "seed" and not re.fullmatch(r"\$\{[\w.]+\}|-?\d+", value):
        yield f"{key}: expected a whole number, got {value!r:.100}"
    elif key not in PLACES and _leads_out(value):
        yield f"{key}: expected no path or address outside of the sweep, got {value!r:.100}"
    elif "\0" in value:
        yield f"{key}: expected a text without NUL"


def _leads_out(value: str) -> bool:
    return value.startswith(("/", "~")) or "://" in value or ".." in re.split(r"[/\\]", value)


def _hydra(word: str, trust: Trust) -> tuple[list[str], int]:
    """Return the problems of an override of Hydra's own part, and how many jobs it makes."""
    parsed = _parsed(word)
    if isinstance(parsed, str):
        return [f"hydra: {parsed}"], 1
    key = _key(parsed)
    values = [_plain(value) for value in _each(parsed)]
    if key == "hydra.searchpath":
        given = {str(path.resolve()) for path in trust.config_dirs}
        paths = [
            item for value in values for item in (value if isinstance(value, list) else [value])
        ]
        wrong = [item for item in paths if str(Path(str(item).removeprefix("file://")).resolve())
                 not in given]  # fmt: skip
        told = "expected the configs of this package, got"
        return [f"{key}: {told} {item!r:.200}, which you have not given" for item in wrong], 1
    if key.startswith("hydra.sweeper.params"):
        return _params(key.removeprefix("hydra.sweeper.params").lstrip("."), parsed, values, trust)
    # a range has no values here, and what is deleted may be what watches the sweep
    if values and not parsed.is_delete() and all(_fits(key, value) for value in values):
        return [], 1
    return [f"{key}: expected a setting that a recorded sweep may make, got {word!r:.200}"], 1


def _fits(key: str, value: Any) -> bool:
    name = key.rpartition(".")[2]
    if key == "hydra.sweep.subdir":
        return isinstance(value, str) and SUBDIR.fullmatch(value) is not None
    if key == "hydra.sweeper.storage":
        beside = str(value).removeprefix("sqlite:///").removeprefix("${hydra.sweep.dir}/")
        return value is None or (PLAIN.fullmatch(beside) is not None and "://" not in beside)
    if key.startswith("hydra.launcher."):
        return name in OF_LAUNCHERS and key.count(".") == 2 and _is_plain(value)
    if key.startswith("hydra.sweeper."):
        return not name.startswith("_") and _is_plain(value)
    return key in (*OF_HYDRA, *GROUPS_OF_HYDRA) and _is_plain(value)


def _is_plain(value: Any) -> bool:
    """Whether a value is a number, a name, or a list or mapping of such without a class."""
    if isinstance(value, Mapping):
        return all(PLAIN.fullmatch(str(k)) and _is_plain(v) for k, v in value.items()
                   if not str(k).startswith("_")) and "_target_" not in value  # fmt: skip
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return not isinstance(value, str) or value == "" or PLAIN.fullmatch(value) is not None


def _params(rest: str, override: Any, values: list[Any], trust: Trust) -> tuple[list[str], int]:
    """Check what the config of a sweeper sweeps over: keys and values are overrides again."""
    found: list[str] = []
    jobs = 1
    for value in values:
        pairs = {rest: value} if rest else value if isinstance(value, Mapping) else {"": value}
        for key, item in pairs.items():
            word = f"{key}={item}"
            if (
                isinstance(item, Mapping | list) or "${" in word
            ):  # what stands for it would be parsed
                found.append(f"hydra.sweeper.params.{key}: expected a text, got {item!r:.100}")
                continue
            problems, count = _task(word, trust)
            found += problems
            jobs *= count
    return found, jobs


def _parsed(word: str) -> Any:
    """Return an override, or what is wrong with it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if len(word) > MOST_LETTERS:
        return f"expected an override, got {len(word):,} letters"
    if word.startswith("-"):
        return f"expected an override, got the flag {word!r:.100}"
    try:
        return OverridesParser.create().parse_override(word)
    except Exception as error:  # of the grammar, and of numbers that Python does not read
        return f"expected an override, got {word!r:.100} ({type(error).__name__})"


def _key(override: Any) -> str:
    package = f"@{override.package}" if override.package is not None else ""
    return f"{override.key_or_group}{package}"


def _each(override: Any) -> list[Any]:
    """Return every value that an override gives in turn."""
    from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, RangeSweep

    value = override._value
    if isinstance(value, ChoiceSweep):
        return list(value.list)
    if isinstance(value, RangeSweep | IntervalSweep):
        return []
    if isinstance(value, Glob):
        return [*value.include, *value.exclude]
    return [value]


def _count(override: Any, values: Sequence[Any]) -> int:
    from hydra.core.override_parser.types import RangeSweep

    value = override._value
    if not isinstance(value, RangeSweep):
        return max(len(values), 1)
    if value.start is None or value.stop is None or not value.step:
        return MOST_JOBS + 1
    count = (float(value.stop) - float(value.start)) / float(value.step)
    return max(math.ceil(count), 1) if math.isfinite(count) else MOST_JOBS + 1


def _plain(value: Any) -> Any:
    """Return a value of Hydra's grammar as plain types."""
    from hydra.core.override_parser.types import Glob, QuotedString

    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, Glob):
        return [*value.include, *value.exclude]
    if isinstance(value, Mapping):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
