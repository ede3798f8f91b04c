"""Find the learning rates of a run before it runs, also of groups that are unfrozen later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.jobs.task import build_module

if TYPE_CHECKING:
    from omegaconf import DictConfig

__all__ = ["Rates", "rates_of"]

FREEZE = "BackboneFreeze"


@dataclass(frozen=True)
class Rates:
    """The learning rates to draw.

    Attributes:
        rates: The peak rate of each line, by its name; groups with the same rate share a line.
        stages: The epoch in which a line begins, if it belongs to a stage.
    """

    rates: Mapping[str, float]
    stages: Mapping[str, int] = field(default_factory=dict)

    def begins(self, epoch_steps: int) -> dict[str, int]:
        """Return the optimizer step at which each stage begins.

        Args:
            epoch_steps: Optimizer steps of an epoch.
        """
        return {name: epoch * epoch_steps for name, epoch in self.stages.items()}


def rates_of(cfg: DictConfig, num_classes: int | None) -> Rates:
    """Return the peak rate of each parameter group, by building the groups as the run will.

    Args:
        cfg: The composed config, fitted to its task.
        num_classes: Number of classes, labels or numbers, if the data has any.

    Returns:
        The rates.
    """
    import torch
    from hydra.utils import instantiate

    from lightning_peft.cli.config.quiet import quiet

    if "pretrained" not in cfg.model:  # a user's own module, which may fetch weights
        return Rates({"all": float(cfg.optimizer.lr)})
    with quiet(), torch.random.fork_rng():
        # the rates do not depend on the weights: none are fetched
        module = build_module(cfg.model, num_classes, pretrained=False)
        peft = cfg.callbacks.get("peft")
        if peft is not None:
            instantiate(peft, _convert_="all").attachment(module)
        freezes = [
            instantiate(node, _convert_="all")
            for node in cfg.callbacks.values()
            if node is not None and str(node.get("_target_")).endswith(f".{FREEZE}")
        ]
        for freeze in freezes:
            freeze.freezing(module)
        optimizer = module.configure_optimizers()
        stages = _make_stages(freezes, module, optimizer)
    return _named(optimizer.param_groups, stages)


def _make_stages(freezes: list[Any], module: Any, optimizer: Any) -> dict[str, int]:
    """Build the groups of the stages, and return the epoch of each by the prefix of its groups."""
    from lightning_peft.lightning.callbacks._regroup import regroup
    from lightning_peft.lightning.callbacks.freeze import stage_parts

    found = {}
    for freeze in freezes:
        stages = freeze.freezing.stages
        parts = stage_parts(stages, freeze.freezing.plan(module))
        regroup(optimizer, parts, [])
        found.update({p.label: stage.epoch for p, stage in zip(parts, stages, strict=True)})
    return found


def _named(groups: list[dict[str, Any]], stages: Mapping[str, int]) -> Rates:
    names: dict[tuple[float, int | None], list[str]] = {}
    for group in groups:
        if not group["params"]:  # all of them are a stage's
            continue
        name = str(group.get("name", "all"))
        of_stage = next((s for s in stages if name == s or name.startswith(f"{s}_")), None)
        label = name.removesuffix("no_decay").removesuffix("decay").strip("_") or "all"
        epoch = None
        if of_stage is not None:
            epoch = stages[of_stage]
            label = f"from epoch {epoch}{label.removeprefix(of_stage).replace('_', ' ')}"
        names.setdefault((float(group["lr"]), epoch), []).append(label)
    joined = {key: ", ".join(dict.fromkeys(found)) for key, found in names.items()}
    return Rates(
        {label: rate for (rate, _), label in joined.items()},
        {label: epoch for (_, epoch), label in joined.items() if epoch is not None},
    )
