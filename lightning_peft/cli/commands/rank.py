"""Serve ``lightning-peft rank``: measure on frozen features which model suits the data."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.commands.command import run_command
from lightning_peft.cli.commands.ranking_table import as_json, print_ranking, write_ranking
from lightning_peft.cli.config.auto_rate import begun
from lightning_peft.cli.config.before import check_before
from lightning_peft.cli.config.devices import device_of
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.help import experiment_settings
from lightning_peft.cli.config.paths import conf_dir, no_directory
from lightning_peft.cli.jobs.task import task_of
from lightning_peft.cli.runs.summary import finite
from lightning_peft.errors import DataError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lightning_peft.cli.comparing.agreement import Agreement
    from lightning_peft.ranking import Candidate, Ranking
    from lightning_peft.ranking.sources import Noun

__all__ = ["main", "parse_count", "split_names"]

TEXTS = "data=text"
WITHOUT_CLASSES = {
    "data=chat": "val/perplexity (of one tokeniser; else by samples)",
    "data=tokens": "val/f1",
    "data=seq2seq": "val/rougeL",
}
"""Data that have no class for each text, and the metric that compares models trained on them."""
OWN = ("models", "max_parameters", "max_ms")
UNITS = {"k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}
EPILOG = """\
models         timm models; NAME:random for random weights; NAME:FILE for your own weights;
               patterns such as 'vit_tiny*' for all pretrained models with matching names.
               With data=text: Hugging Face encoders, by name or directory, or NAME:random
max_parameters leave out backbones larger than this, such as 30M; without models=, all
               pretrained timm models are candidates
max_ms         leave out backbones whose forward pass takes longer than this per image or text
               on this machine

  lightning-peft rank models=[glyph_vit,glyph_vit:random] data.labels_per_class=10
  lightning-peft rank models='vit_tiny*,resnet18*' max_parameters=30M data=folder data.root=images
  lightning-peft rank models=bert-base-uncased,roberta-base data=text data.root=reviews.csv
"""


def _trained_instead(data: str, metric: str) -> str:
    return (
        f"{data}: expected data with classes, by which rank measures the features of a model. "
        f"Train models to compare them, such as lightning-peft -m {data} data.root=... "
        f"model.backbone=A,B, which ranks them by {metric}."
    )


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft rank``.

    Args:
        args: The words after the command.

    Returns:
        The exit status: 1 if no candidate could be measured.
    """
    return run_command(_parser(), args, _serve)


def _serve(options: argparse.Namespace) -> int:
    ranking, agreements = _rank(options)
    if options.out is not None:
        write_ranking(ranking, agreements, options.out)
    if options.json:
        print(json.dumps(finite(as_json(ranking, agreements)), indent=2, allow_nan=False))
    else:
        print_ranking(ranking, agreements, options.out)
    return 0 if ranking.rows else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-peft rank",
        usage="lightning-peft rank models=NAME,... [max_parameters=N] [max_ms=T] "
        "[data=... KEY=VALUE ...] [flags]",
        description="Measure how well the frozen features of pretrained models suit your data, "
        "before anything is fine-tuned: a linear probe, nearest neighbours, LogME, H-score, NLEEP.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help=argparse.SUPPRESS)
    parser.add_argument("--by", default="probe", help="probe (default), knn, logme, h_score, nleep")
    parser.add_argument("--folds", type=int, default=5, help="folds of the cross-validation")
    parser.add_argument("--limit", type=int, default=20, help="refuse more candidates than this")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write ranking.json, ranking.csv")
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="runs that fine-tuned the same models: print "
        "the rank correlation of each score with their accuracy",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def parse_count(key: str, text: str) -> float:
    """Return a positive number written as ``30M``, ``500k`` or ``2.5``.

    Raises:
        ConfigError: If the text is not a positive number.

    >>> parse_count("max_parameters", "1.5M")
    1500000.0
    """
    unit = UNITS.get(text[-1:])
    try:
        number = float(text[:-1] if unit else text) * (unit or 1.0)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ConfigError([f"{key}: expected a number above 0, such as 30M, got '{text}'."])
    return number


def split_names(text: str) -> list[str]:
    """Split ``[a,b]`` or ``a,b`` into names.

    >>> split_names("[glyph_vit, 'resnet*']")
    ['glyph_vit', 'resnet*']
    """
    text = text.strip()
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    names = (name.strip().strip("'\"") for name in inner.split(","))
    return [name for name in names if name]


def _rank(options: argparse.Namespace) -> tuple[Ranking, list[Agreement]]:
    from omegaconf import OmegaConf

    own, overrides = _split(options.words)
    for choice, metric in WITHOUT_CLASSES.items():
        if choice in overrides:
            raise ConfigError([_trained_instead(choice, metric)])
    budgets = {key: parse_count(key, own[key]) for key in OWN[1:] if key in own}
    noun: Noun = "texts" if TEXTS in overrides else "images"
    every = ["*"] if budgets and noun == "images" else []  # of Hugging Face there is no list
    names = split_names(own["models"]) if "models" in own else every
    if not names and noun == "texts":
        raise ConfigError(["expected models=NAME,... with data=text: name Hugging Face encoders."])
    if not names:
        raise ConfigError(
            ["expected models=NAME,... or a budget such as max_parameters=30M. See: "
             "lightning-peft rank --help"]
        )  # fmt: skip
    cfg = _compose(overrides)
    if not OmegaConf.is_missing(cfg.data, "root"):  # before torch is imported
        data = OmegaConf.to_container(cfg.data, resolve=True)
        check_before({"data": data})
    device = _check_flags(options)

    from lightning_peft.cli.config.quiet import quiet
    from lightning_peft.ranking import find_candidates, find_encoders, rank_candidates

    candidates = find_encoders(names) if noun == "texts" else find_candidates(names)
    _refuse_too_many(candidates, noun, budgets.get("max_parameters"), options.limit)
    with quiet():
        ranking = rank_candidates(
            candidates,
            _batches_for(cfg),
            by=options.by,
            max_parameters=budgets.get("max_parameters"),
            max_milliseconds=budgets.get("max_ms"),
            folds=options.folds,
            seed=cfg.seed,
            device=device,
            told=_tell,
            noun=noun,
        )
    if options.against is None:
        return ranking, []
    from lightning_peft.cli.comparing.agreement import agreements

    return ranking, agreements(ranking, options.against)


def _check_flags(options: argparse.Namespace) -> str:
    """Check the flags before a model is fetched, and return the device."""
    import torch

    from lightning_peft.ranking.rank import BY

    problems = []
    if options.against is not None and not options.against.is_dir():
        problems.append(f"--against: expected a directory of runs, got {options.against}.")
    if options.by not in BY:
        problems.append(f"--by: there is no score '{options.by}'. Known: {', '.join(BY)}.")
    if options.out is not None and (wrong := no_directory(options.out)):
        problems.append(f"--out: {wrong}")
    auto = "cuda" if torch.cuda.is_available() else "cpu"  # some scores are of float64
    device = auto if options.device == "auto" else options.device
    try:
        device_of(device)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return str(device)


def _split(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the words of the command itself, and the overrides."""
    own: dict[str, str] = {}
    overrides: list[str] = []
    for word in words:
        key, sign, value = word.partition("=")
        if sign and key in OWN:
            own[key] = value
        elif key == "model" or key.startswith("model."):
            raise ConfigError([f"'{word}': rank compares models; name them in models=..."])
        else:
            overrides.append(word)
    return own, overrides


def _compose(overrides: Sequence[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir

    # the data needs a backbone; each candidate takes its place in turn
    some = ["model.backbone=any"] if TEXTS in overrides else ["model=timm", "model.backbone=any"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", ["name=rank", "output_dir=.", *some, *overrides])


def _refuse_too_many(
    candidates: Sequence[Candidate], noun: Noun, max_parameters: float | None, limit: int
) -> None:
    from lightning_peft.ranking.sources import BACKBONES_OF

    if len(candidates) <= limit:
        return
    left = len(candidates)
    if max_parameters is not None:
        _tell(f"counting the parameters of {left} models ...")
        count = BACKBONES_OF[noun].count
        left = sum(count(item.name) <= max_parameters for item in candidates)
    if left > limit:
        raise DataError(
            f"Expected at most {limit} candidates, got {left}, all of which would be downloaded. "
            "Narrow the pattern or the budget, or raise --limit."
        )


def _batches_for(cfg: DictConfig) -> Callable[[Candidate], Iterable[Any]]:
    """Return a function that yields the training images as a candidate expects them."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from lightning_peft.cli.config.check import check_targets, check_values

    begun(cfg)
    own = frozenset(setting.key for _, setting in experiment_settings(conf_dir()))
    needed = ("data", "model", "augment", "seed", "optimizer", "lr", *own)
    check_values(OmegaConf.create({key: cfg[key] for key in needed if key in cfg}), own)
    check_targets({"data": OmegaConf.to_container(cfg.data, resolve=True)})

    if cfg.data.get("flip_safe", False) is None:
        cfg.data.flip_safe = True  # nothing is trained, so nothing is mirrored that has to be safe

    def batches(candidate: Candidate) -> Iterable[Any]:
        cfg.model.backbone = candidate.name
        datamodule = instantiate(cfg.data, _convert_="all")
        datamodule.prepare_data()
        datamodule.setup("fit")
        if (task := task_of(datamodule)) not in ("multiclass", "binary"):
            raise DataError(
                f"Expected a task in which each sample has one class, got '{task}': the scores "
                "that rank backbones are defined for classes."
            )
        if not hasattr(datamodule, "plain_dataloader"):
            raise DataError(
                "Expected a data module with plain_dataloader(split), which returns a split "
                f"without augmentation, got {type(datamodule).__name__}."
            )
        loader: Iterable[Any] = datamodule.plain_dataloader("train")
        return loader

    return batches


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
