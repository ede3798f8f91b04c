"""Serve ``lightning-peft show``: draw the data, its augmentation and the schedule."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.commands.command import run_command
from lightning_peft.cli.commands.example_tables import print_examples
from lightning_peft.cli.commands.label_tables import print_labels
from lightning_peft.cli.commands.text_tables import TABLES, print_texts
from lightning_peft.cli.config.auto_rate import begun
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.known import experiment_in, known_keys
from lightning_peft.cli.config.paths import conf_dir, no_directory
from lightning_peft.cli.config.task import LANGUAGE, fit_to_task
from lightning_peft.cli.jobs.length import planned_steps
from lightning_peft.cli.jobs.task import build_module, task_of
from lightning_peft.errors import MissingExtraError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

__all__ = ["main", "samples_of"]


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft show``.

    Args:
        args: The words after the command.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-peft show",
        description="Look at the data before training: print how many labelled images each class "
        "has, and draw augmented images (samples.png) and the learning rate (schedule.png).",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="GROUP=CHOICE | KEY=VALUE",
        help="as for training, such as: data=digits augment=strong schedule=wsd "
        "'schedule.warmup=2 epochs'",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("preview"), help="output directory [preview]"
    )
    parser.add_argument("--variants", type=int, default=7, help="augmented versions per image")
    parser.add_argument("--classes", type=int, default=12, help="the most classes in the picture")
    return run_command(parser, args, _serve)


def _serve(options: argparse.Namespace) -> int:
    problems = []
    if options.variants < 1 or options.classes < 1:
        problems.append("expected --variants and --classes of at least 1")
    if wrong := no_directory(options.out):
        problems.append(f"--out: {wrong}")
    if problems:
        raise ConfigError(problems)
    _show(options)
    return 0


def _show(options: argparse.Namespace) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from rich.console import Console

    from lightning_peft.cli.config.before import check_before
    from lightning_peft.cli.config.check import check_targets, check_values
    from lightning_peft.cli.config.quiet import quiet

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["name=show", f"output_dir={options.out}", *options.overrides])
    rate = begun(cfg, options.overrides)
    plain = check_values(cfg, known_keys(experiment_in(options.overrides)))
    check_before({key: plain[key] for key in ("data", "model")})
    check_targets({key: plain[key] for key in ("data", "model", "method", "schedule", "trainer")})
    schedule = None if cfg.schedule is None else instantiate(cfg.schedule, _convert_="all")
    datamodule = instantiate(cfg.data, _convert_="all")
    with quiet():
        datamodule.prepare_data()
        datamodule.setup("fit")
        datamodule.setup("test")
    fit_to_task(cfg, task_of(datamodule))
    console = Console()
    console.print(_backbone(cfg, datamodule), markup=False, highlight=False, soft_wrap=True)
    if task_of(datamodule) in TABLES:
        print_texts(datamodule, console)
    elif task_of(datamodule) in LANGUAGE.values():
        print_examples(datamodule, console)
    else:
        print_labels(cfg, datamodule, console)
    lines = _pictures(cfg, datamodule, schedule, options)
    for line in [*lines, *([rate] if rate else [])]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _backbone(cfg: DictConfig, datamodule: Any) -> str:
    """Return the name of the backbone, its size and what it reads; no weights are loaded."""
    import torch

    from lightning_peft.cli.config.quiet import quiet
    from lightning_peft.cli.jobs.backbone_facts import backbone_facts, input_of, told

    try:
        with quiet(), torch.device("meta"):
            classes = getattr(datamodule, "num_classes", None)
            module = build_module(cfg.model, classes, pretrained=False)
        facts = backbone_facts(cfg, module, datamodule)
    except Exception:  # a model of the user's own may not be built like this
        facts = {"name": str(cfg.model.get("backbone")), "input": input_of(datamodule)}
    return f"backbone: {facts['name']}" + (f" ({known})" if (known := told(facts)) else "")


def _pictures(
    cfg: DictConfig, datamodule: Any, schedule: Any, options: argparse.Namespace
) -> list[str]:
    """Draw both pictures, and return a line for each."""
    from lightning_peft.cli.jobs import previews
    from lightning_peft.cli.jobs.rates import rates_of
    from lightning_peft.lightning.schedules import Multiplier

    try:
        lines = []
        if not hasattr(datamodule, "texts"):  # texts have no pictures
            before, after, names = samples_of(datamodule, options.classes, options.variants)
            title = "augmented as in training, differently each time"
            path = previews.samples(before, after, names, options.out / "samples.png", title=title)
            lines = [f"picture    {path}"]
        found = rates_of(cfg, getattr(datamodule, "num_classes", None))
        if schedule is None and not found.stages:
            return [*lines, f"the learning rate is {cfg.optimizer.lr:g} at every step"]
        if schedule is not None and not hasattr(schedule, "multiplier"):
            return [
                *lines,
                f"no picture of {type(schedule).__name__}: it is not a schedule of lightning_peft",
            ]
        length = planned_steps(cfg, datamodule, schedule)
        if schedule is None:
            multiplier, name = Multiplier(length.total or 1, 0, "constant"), "no schedule"
        else:
            multiplier = schedule.multiplier(length.total, length.epoch)
            name = type(schedule).__name__
        steps = multiplier.total_steps
        begins = found.begins(length.epoch)
        late = [label for label, step in begins.items() if step >= steps]
        rates = {label: rate for label, rate in found.rates.items() if label not in late}
        lines += [
            f"{label}: never begins, since the run ends after {steps:,} steps" for label in late
        ]
        if not rates:
            return [*lines, "no picture of the learning rate: no step of the run trains anything"]
        lr = max(rates.values())
        last = lr * multiplier(steps - 1)
        title = f"{name}: {steps:,} steps, from {lr:g} to {last:.2g} at the last step"
        path = previews.learning_rate(
            multiplier, rates, options.out / "schedule.png", title=title, begins=begins
        )
    except MissingExtraError as error:
        return [f"no picture: {error}"]
    return [*lines, f"picture    {path}"]


def samples_of(datamodule: Any, classes: int, variants: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return the first image of each class, plain and augmented, with values in [0, 1]."""
    import torch

    from lightning_peft.data.sampling import Draw

    plain, train = datamodule.plain_dataloader("train").dataset, datamodule.images("train")
    chosen, names = _chosen(datamodule, list(train.labels), classes)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (datamodule.config.mean,
                                                          datamodule.config.std))  # fmt: skip
    before = torch.stack([plain[index][0] for index in chosen]) * std + mean
    after = [
        torch.stack([train[Draw(index, epoch, position)][0] for epoch in range(variants)])
        for position, index in enumerate(chosen)
    ]
    return before, torch.stack(after) * std + mean, names


def _chosen(datamodule: Any, labels: Sequence[Any], most: int) -> tuple[list[int], list[str]]:
    """Return the images to show, one of each class or a few, and the label next to each."""
    names = list(datamodule.class_names)
    task = task_of(datamodule)
    if task in ("multiclass", "binary"):
        first: dict[int, int] = {}
        for index, label in enumerate(int(label) for label in labels):
            first.setdefault(label, index)
        chosen = [first[label] for label in sorted(first)][:most]
        return chosen, [str(names[int(labels[index])]) for index in chosen]
    count = min(most, len(labels))
    chosen = sorted({round(i * (len(labels) - 1) / max(count - 1, 1)) for i in range(count)})
    if task == "multilabel":
        told = ["|".join(n for n, yes in zip(names, labels[i], strict=True) if yes) for i in chosen]
        return chosen, [text or "none" for text in told]
    rows = [label if isinstance(label, tuple) else (label,) for label in labels]
    return chosen, [" ".join(f"{number:.4g}" for number in rows[i]) for i in chosen]
