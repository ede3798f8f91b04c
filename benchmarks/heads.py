"""Survey what is taken for head and backbone in the model classes of transformers, on meta.

    python benchmarks/heads.py                      # all of them
    python benchmarks/heads.py --only "^(bert|vit)$"

For each entry of the library's own tables (``MODEL_MAPPING_NAMES`` and its like) the class is built
from its default config, with at most two layers of each kind. What a person would say is taken from
elsewhere than this package:

- a base model and a language model have no head: they come from the hub as a whole;
- the head of a model for a task is what ``from_pretrained`` would initialise anew if it were given
  the base model's weights: the parameters whose names the base model of the same config has not.

A class that answers otherwise is an exception and is printed, with both answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import re
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.names import parameters_inside

GROUPS: dict[str, tuple[str, ...]] = {
    "base": ("MODEL", "MODEL_FOR_IMAGE", "MODEL_FOR_TEXT_ENCODING", "MODEL_FOR_BACKBONE"),
    "language model": (
        "MODEL_FOR_CAUSAL_LM",
        "MODEL_FOR_MASKED_LM",
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM",
        "MODEL_FOR_SPEECH_SEQ_2_SEQ",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT",
        "MODEL_FOR_PRETRAINING",
    ),
    "classification": (
        "MODEL_FOR_SEQUENCE_CLASSIFICATION",
        "MODEL_FOR_TOKEN_CLASSIFICATION",
        "MODEL_FOR_QUESTION_ANSWERING",
        "MODEL_FOR_MULTIPLE_CHOICE",
        "MODEL_FOR_AUDIO_CLASSIFICATION",
        "MODEL_FOR_AUDIO_FRAME_CLASSIFICATION",
        "MODEL_FOR_VIDEO_CLASSIFICATION",
        "MODEL_FOR_IMAGE_CLASSIFICATION",
    ),
    "vision": (
        "MODEL_FOR_SEMANTIC_SEGMENTATION",
        "MODEL_FOR_INSTANCE_SEGMENTATION",
        "MODEL_FOR_OBJECT_DETECTION",
        "MODEL_FOR_DEPTH_ESTIMATION",
        "MODEL_FOR_MASKED_IMAGE_MODELING",
    ),
}
_COUNT = re.compile(r"(num_(hidden_)?layers|n_layers?|(en|de)coder_layers|num_hidden_layers_\w+)")


@dataclass
class Finding:
    """What was found in one class.

    Attributes:
        group: The group of the class.
        kind: The class.
        blocks: How many repeated blocks were found.
        head: The head that was found.
        expected: What a person would say, by the largest modules; ``None`` if it is not known.
        agrees: Whether the two hold the same parameters; ``None`` if nothing is known.
        why_not: Why the class was not built; empty if it was.
    """

    group: str
    kind: str
    blocks: int = 0
    head: tuple[str, ...] = ()
    expected: tuple[str, ...] | None = None
    agrees: bool | None = None
    why_not: str = ""


def classes(only: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the group, the model type and the class of each entry, every class once.

    Args:
        only: A pattern that the model type has to match.
    """
    seen: set[str] = set()
    for group, tables in GROUPS.items():
        for table in tables:
            for model_type, names in getattr(modeling_auto, f"{table}_MAPPING_NAMES").items():
                for name in (names,) if isinstance(names, str) else names:
                    if name not in seen and re.search(only, model_type):
                        seen.add(name)
                        yield group, model_type, name


def build(kind: str, model_type: str, base: str = "") -> nn.Module:
    """Build a class on the meta device, with two layers of each kind where its config lets it.

    Args:
        kind: The class.
        model_type: The name of its config.
        base: A class whose model is built from the same config instead.
    """
    wanted = getattr(transformers, kind)
    chosen = getattr(transformers, base) if base else wanted
    of_type = CONFIG_MAPPING[model_type]
    config_class = getattr(wanted, "config_class", None) or of_type
    errors: list[Exception] = []
    for small in (True, False):
        for make in (of_type, config_class):
            try:
                config = make()
                if small:
                    shrink(config)
                with torch.device("meta"):
                    return chosen(config)
            except _TooLongError:
                raise
            except Exception as error:  # any: the configs of a library of hundreds of models
                errors.append(error)
    raise errors[-1]


def shrink(config: Any) -> None:
    """Set the numbers of layers of a config, and of those in it, to two."""
    for key, value in list(vars(config).items()):
        if _COUNT.fullmatch(key) and isinstance(value, int) and value > 2:
            with contextlib.suppress(Exception):  # some are computed from others
                setattr(config, key, 2)
        elif isinstance(value, transformers.PretrainedConfig):
            shrink(value)


def newly_made(model: nn.Module, base: nn.Module) -> set[str]:
    """Return the parameters of a model that the weights of its base model do not hold.

    Args:
        model: The model.
        base: The base model, of the same config.
    """
    held = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    prefix = getattr(model, "base_model_prefix", "")
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if prefix and any(name.startswith(f"{prefix}.") for name in names):
        return {name for name in names if name.removeprefix(f"{prefix}.") not in held}
    return {name for name in names if name not in held}


def look(group: str, model_type: str, kind: str) -> Finding:
    """Look at one class.

    Args:
        group: Its group.
        model_type: The name of its config.
        kind: The class.
    """
    found = Finding(group, kind)
    try:
        model = build(kind, model_type)
        seen = anatomy(model)
        found.blocks, found.head = len(seen.blocks), seen.head
        expected = _expected(group, model_type, kind, model)
    except _TooLongError:
        raise
    except Exception as error:
        found.why_not = (
            f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
            if str(error)
            else type(error).__name__
        )
        return found
    if expected is not None:
        mine = set(parameters_inside(model, seen.head))
        first = set(dict(model.named_parameters()))
        found.agrees = mine == expected & first
        found.expected = tuple(sorted({top(name, model) for name in expected & first}))
    return found


def _expected(group: str, model_type: str, kind: str, model: nn.Module) -> set[str] | None:
    if group in ("base", "language model"):
        return set()
    names = modeling_auto.MODEL_MAPPING_NAMES.get(model_type)
    if not isinstance(names, str) or names == kind:
        return None
    new = newly_made(model, build(kind, model_type, names))
    whole = {name for name, _ in model.named_parameters()}
    return None if new >= whole else new  # their names have nothing in common


def top(name: str, model: nn.Module) -> str:
    """Return the child of a model, or the parameter, in which a parameter is."""
    return name.partition(".")[0] if name.partition(".")[0] in model._modules else name


class _TooLongError(Exception):
    pass


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise inside the context after a time."""

    def stop(*_: Any) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def survey(only: str = "", seconds: int = 120, told: bool = False, every: int = 1) -> list[Finding]:
    """Look at the classes.

    Args:
        only: A pattern that the model type has to match.
        every: Look at each class of this number only, of those in the order of the tables.
        seconds: The time for one class.
        told: Whether to print the progress.
    """
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    findings = []
    for group, model_type, kind in list(classes(only))[::every]:
        try:
            with at_most(seconds), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                findings.append(look(group, model_type, kind))
        except _TooLongError:
            findings.append(Finding(group, kind, why_not=f"more than {seconds} seconds"))
        if told:
            print(len(findings), asdict(findings[-1]), file=sys.stderr, flush=True)
    logging.disable(logging.NOTSET)
    return findings


def table(findings: list[Finding]) -> str:
    """Return the figures of each group, and the exceptions, as Markdown."""
    titles = ("classes", "looked at", "as expected", "otherwise", "not known", "no blocks")
    rows = [f"| {' | '.join((*titles, 'not built'))} |", "|---" * 7 + "|"]
    for group in GROUPS:
        mine = [f for f in findings if f.group == group]
        built = [f for f in mine if not f.why_not]
        counts = Counter(f.agrees for f in built)
        bare = sum(not f.blocks for f in built)
        rows.append(
            f"| {group} | {len(built)} | {counts[True]} | {counts[False]} | {counts[None]} | "
            f"{bare} | {len(mine) - len(built)} |"
        )
    rows += ["", "| exception | head that is found | new beside the base model |", "|---|---|---|"]
    for found in findings:
        if found.agrees is False:
            shown = [", ".join(f"`{n}`" for n in names[:4]) + (" ..." if len(names) > 4 else "")
                     for names in (found.head, found.expected or ())]  # fmt: skip
            rows.append(f"| {found.kind} | {shown[0] or 'none'} | {shown[1] or 'none'} |")
    return "\n".join(rows)


def main() -> None:
    """Print the survey."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a pattern of model types")
    parser.add_argument("--every", type=int, default=1, help="look at one class of so many")
    parser.add_argument("--seconds", type=int, default=120, help="the time for one class")
    parser.add_argument("--json", help="also write all findings to this file")
    options = parser.parse_args()
    findings = survey(options.only, options.seconds, told=True, every=options.every)
    if options.json:
        with open(options.json, "w") as file:
            json.dump([asdict(f) for f in findings], file, indent=1)
    print(table(findings))


if __name__ == "__main__":
    main()
