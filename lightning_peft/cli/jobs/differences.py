"""Tell in what a run that is resumed differs from the start before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.job_config import as_written
from lightning_peft.cli.jobs.resuming import FACTS
from lightning_peft.cli.runs.checkpoints import best_of, read_checkpoint
from lightning_peft.cli.runs.places import is_within
from lightning_peft.cli.sweeps.earlier import ABSENT, CONFIG, changed, identity

__all__ = ["differences", "told_resumed"]

OF_THE_NAME = ("name", "callbacks.progress.label", "resume")
"""Keys that change nothing of the training."""

OF_THE_OPTIMIZER = (
    *("optimizer.lr", "optimizer.weight_decay", "optimizer.momentum", "optimizer.betas"),
    *("model.head_lr", "model.head_weight_decay", "model.adapter_weight_decay"),
    *("model.layer_decay", "model.lora_plus"),
)
"""Keys of what the optimizer keeps in its state, which is restored."""

RESTORED = " (has no effect: the optimizer goes on with what is in the checkpoint)"


def told_resumed(cfg: Any, now: Mapping[str, Any]) -> list[str]:
    """Return the lines that a resumed run begins with; none if it goes on as it was begun.

    Args:
        cfg: The config of the job, fitted to the task of its data.
        now: The facts about this start that its config does not say.
    """
    path = Path(str(cfg.resume))
    checkpoint = read_checkpoint(path)
    if not checkpoint:
        return []  # an address, or the word "last"
    own = is_within(path, cfg.output_dir)
    found = _found(path, cfg, checkpoint, now)
    lines = [] if found is None else [f"  {line}" for line in found]
    if found is None:
        lines.append(
            f"  what it was made with is not known: there is no {CONFIG} in {path.parent.parent}"
        )
    if not own:
        lines += [
            f"  {text}: the best checkpoint of before stays where it is, this run keeps the best "
            "of what it finds itself"
            for text in best_of(checkpoint, path.parent)
        ]
    if not lines:
        return []
    steps = checkpoint.get("global_step")
    done = f" (after {steps} steps)" if isinstance(steps, int) else ""
    differs = ", with other settings than before" if found else ""
    return [f"lightning-peft: resuming from {path}{done}{differs}:", *lines]


def _found(
    path: Path, cfg: Any, checkpoint: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str] | None:
    """Return what differs; ``None`` if nothing is known about the start before."""
    from omegaconf import OmegaConf

    recorded = path.parent.parent / CONFIG
    facts = checkpoint.get(FACTS)
    try:
        before = OmegaConf.load(recorded)
    except Exception:  # missing, or no YAML: a checkpoint may come from anywhere
        before = None
    if before is None and facts is None:
        return None
    found = [] if before is None else differences(identity(before), identity(as_written(cfg)))
    return found + differences(facts or {}, now if facts else {})


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that differs.

    A value that is interpolated into other places (``lr`` into ``optimizer.lr``, the method into
    ``callbacks.peft``) is told once, under its shortest key.

    Args:
        before: The values by dotted keys.
        now: Those of this start.

    >>> differences({"shots": 4, "data.shots": 4, "seed": 0}, {"shots": 8, "data.shots": 8})
    ['seed 0 -> none', 'shots 4 -> 8']
    """
    shortest: dict[tuple[str, str, str], str] = {}
    restored = set()
    for key, old, new in changed(before, now):
        what = key.rpartition(".")[2], _word(old), _word(new)
        if key in OF_THE_NAME or what[1] == what[2]:
            continue
        if key.startswith(OF_THE_OPTIMIZER):
            restored.add(what)
        if what not in shortest or len(key) < len(shortest[what]):
            shortest[what] = key
    return sorted(
        f"{key} {what[1]} -> {what[2]}{RESTORED if what in restored else ''}"
        for what, key in shortest.items()
    )


def _word(value: Any) -> str:
    return "none" if value is ABSENT or value is None else str(value)
