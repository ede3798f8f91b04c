"""Serve ``lightning-peft soup``: average checkpoints of runs, chosen on validation.

It is a command and not a callback: the members may be seeds or settings of a sweep, which no single
training sees, and averaging checkpoints on the disk does not change how a run trains or resumes.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.commands.command import run_command
from lightning_peft.cli.commands.soup_members import Candidate, candidates_of
from lightning_peft.cli.commands.soup_metric import judge_of
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.objectives import Judge
from lightning_peft.cli.jobs.task import task_of
from lightning_peft.cli.runs.summary import write_json, write_text
from lightning_peft.cli.trust.printable import printable
from lightning_peft.cli.trust.words import add_trust
from lightning_peft.evaluation.metric_names import written

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from lightning_peft.cli.jobs.parts import Parts

__all__ = ["main"]

FILE = "soup.json"

OF_THE_TRAINER = (
    *("_target_", "accelerator", "deterministic", "enable_model_summary", "limit_test_batches"),
    *("limit_val_batches", "log_every_n_steps", "num_sanity_val_steps", "precision"),
)
"""What a validation keeps of the trainer of the run: no other devices, plug-ins or profilers."""


def main(args: Sequence[str]) -> int:
    """Serve ``lightning-peft soup``.

    Args:
        args: The words after the command.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-peft soup",
        description="Average the best checkpoints of one run (trained with callbacks/average=soup) "
        "or of the runs of a sweep that share a backbone, a method and the validation images. "
        "Members are chosen on validation; the test set is used once, at the end.",
    )
    parser.add_argument(
        "directories", metavar="DIR", nargs="+", type=Path, help="runs, or directories above runs"
    )
    parser.add_argument("--out", type=Path, default=Path("soup"), help="output directory [soup]")
    parser.add_argument(
        "--greedy", action="store_true", help="leave out members that worsen the validation metric"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="only the K best on validation")
    parser.add_argument(
        "--metric", metavar="NAME",
        help="the validation metric that chooses [the one that chose the checkpoints]",
    )  # fmt: skip
    parser.add_argument(
        "--updates", action="store_true",
        help="average LoRA's updates B A, reduced to their rank, instead of A and B; for members "
        "that started from different A, such as seeds",
    )  # fmt: skip
    add_trust(parser)
    return run_command(parser, args, _serve)


def _serve(options: argparse.Namespace) -> int:
    from rich.console import Console

    from lightning_peft.cli.config.quiet import quiet

    candidates = candidates_of(options)
    # imported before quiet(): Lightning gives its loggers handlers when it is imported
    importlib.import_module("lightning_peft.lightning.namespace")
    from lightning_peft.cli.jobs.served import described_by

    with quiet(), described_by(candidates[0].path.parents[1]):
        summary = _cook(candidates, options)
    console = Console()
    for line in _told(summary, options.out):
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    return 0


def _cook(candidates: list[Candidate], options: argparse.Namespace) -> dict[str, Any]:
    from lightning_peft.adaptation.serving.soup import average_updates, greedy_soup, soup

    parts = _parts(candidates[0].config, options.out)
    judge = judge_of(
        [(c.path, c.config) for c in candidates], options.metric, task_of(parts.datamodule)
    )
    path, adaptation = _adapted(parts)
    for candidate in candidates:
        candidate.state = _state(candidate, path, parts)
        candidate.score = _score(parts, adaptation, candidate.state, judge, str(candidate.path))
    candidates = sorted(candidates, key=lambda c: -judge.rank(c.score))[: options.top_k]
    states = [candidate.state for candidate in candidates]
    lost = 0.0

    def mixed(members: Sequence[int]) -> dict[str, Tensor]:
        nonlocal lost
        chosen = [states[i] for i in members]
        if not options.updates:
            return soup(chosen)
        state, lost = average_updates(adaptation, chosen)
        return state

    members = list(range(len(states)))
    if options.greedy:
        members, _ = greedy_soup(
            states,
            [judge.rank(candidate.score) for candidate in candidates],
            lambda members: judge.rank(
                _score(parts, adaptation, mixed(members), judge, "the soup")
            ),
        )
    final = mixed(members)
    metrics = {judge.metric: _score(parts, adaptation, final, judge, "the soup")}
    if candidates[0].config.get("calibrate") is not None:  # as the runs did before their test
        calibrated: Any = parts.module
        calibrated.calibrate(parts.trainer, parts.datamodule)
    if candidates[0].config.test:
        (tested,) = parts.trainer.test(parts.module, parts.datamodule, verbose=False)
        metrics |= {name: float(value) for name, value in tested.items()}
    summary = {
        "members": [str(candidates[i].path) for i in members],
        "left_out": [str(c.path) for i, c in enumerate(candidates) if i not in members],
        "metric": judge.metric,
        "lower_is_better": judge.lower,
        "scores": {str(c.path): c.score for c in candidates},
        "average_of": "updates" if options.updates else "parameters",
        "lost_to_the_rank": lost,
        "metrics": metrics,
    }
    _write(options.out, candidates[0].config, parts, adaptation, summary)
    return summary


def _parts(config: DictConfig, out: Path) -> Parts:
    """Build the data, the module and a trainer for validation, which writes no files."""
    from omegaconf import OmegaConf

    from lightning_peft.cli.jobs.parts import build
    from lightning_peft.lightning.namespace import pl

    cfg: Any = OmegaConf.create(OmegaConf.to_container(config))
    if not (cfg.get("callbacks") or {}).get("peft"):
        raise ConfigError(["expected runs with a method, got a run without callbacks.peft."])
    cfg.callbacks = {"peft": cfg.callbacks.peft}
    cfg.logger = {}
    cfg.trainer = {key: value for key, value in cfg.trainer.items() if key in OF_THE_TRAINER} | {
        "default_root_dir": str(out),
        "devices": 1,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
    }
    if isinstance(cfg.data.get("cache"), str):  # a directory that the run wrote to
        cfg.data.cache = True
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    parts = build(cfg)
    if parts.datamodule.val_dataloader() in (None, []):
        raise ConfigError(
            ["expected runs with a validation split, which chooses the members, got none."]
        )
    return parts


def _adapted(parts: Parts) -> tuple[str, Any]:
    """Adapt the module as the run did."""
    from lightning_peft.adaptation.handle import find_adaptations
    from lightning_peft.lightning.callbacks.peft import PEFT

    trainer: Any = parts.trainer
    for callback in trainer.callbacks:
        if isinstance(callback, PEFT):
            callback.attachment(parts.module)
    ((path, adaptation),) = find_adaptations(parts.module).items()
    return path, adaptation


def _state(candidate: Candidate, path: str, parts: Parts) -> dict[str, Tensor]:
    """Read a checkpoint, and refuse it if it has another method or backbone."""
    import torch

    from lightning_peft.adaptation.handle import find_adaptations
    from lightning_peft.errors import PEFTError
    from lightning_peft.files.checkpoints import check_checkpoint_file
    from lightning_peft.lightning.checkpoint import check_recorded, recorded_in, trained_state

    try:
        check_checkpoint_file(candidate.path)
        checkpoint = torch.load(candidate.path, map_location="cpu", weights_only=True)
        recorded = recorded_in(checkpoint)
        if recorded is None:
            raise ConfigError(["expected a checkpoint written by lightning-peft, got another."])
        check_recorded(find_adaptations(parts.module), recorded, strict_backbone=True)
    except PEFTError as error:
        raise ConfigError([f"{candidate.path}: {error}"]) from error
    prefix = f"{path}." if path else ""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in trained_state(parts.module, checkpoint).items()
        if name.startswith(prefix)
    }


def _score(parts: Parts, adaptation: Any, state: dict[str, Tensor], judge: Judge, of: str) -> float:
    adaptation.load_state_dict(state)
    (metrics,) = parts.trainer.validate(parts.module, parts.datamodule, verbose=False)
    return judge.read(metrics, of)


def _write(
    out: Path, config: DictConfig, parts: Parts, adaptation: Any, summary: dict[str, Any]
) -> None:
    """Write the files that make `export` and `predict` accept the directory as a run."""
    from omegaconf import OmegaConf

    from lightning_peft.cli.jobs.serving_facts import write_facts

    adaptation.save(out / "adapter")
    write_facts(out, parts.datamodule, getattr(parts.module, "outputs", None))
    write_text(out / "config.yaml", OmegaConf.to_yaml(config))
    write_json(out / FILE, summary)


def _told(summary: dict[str, Any], out: Path) -> list[str]:
    metric, scores = summary["metric"], summary["scores"]
    bare = metric.partition("/")[2]

    def one(value: float) -> str:
        return f"{written(metric, value):>9}"

    lines = [
        f"{one(score)}  {path}{'' if path in summary['members'] else '  (left out)'}"
        for path, score in scores.items()
    ]
    count = len(summary["members"])
    best = (min if summary["lower_is_better"] else max)(scores.values())
    lines.append(f"{one(summary['metrics'][metric])}  the soup of {count}, on validation (the "
                 f"best: {one(best).strip()})")  # fmt: skip
    if f"test/{bare}" in summary["metrics"]:
        lines.append(f"{one(summary['metrics'][f'test/{bare}'])}  the soup, on test")
    lines.insert(0, f"{metric.replace('/', ' ')}, "
                 f"{'lower' if summary['lower_is_better'] else 'higher'} is better")  # fmt: skip
    if summary["lost_to_the_rank"]:
        lines.append(f"{100 * summary['lost_to_the_rank']:.3g} % of the average update does not "
                     "fit the rank of the adapter")  # fmt: skip
    return [*lines, f"wrote     {out}"]
