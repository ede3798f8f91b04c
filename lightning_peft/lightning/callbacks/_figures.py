"""The figures of a run that need no timing, and the table that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.anatomy.names import parameter_at
from lightning_peft.evaluation.efficiency import (
    count_parameters,
    gradient_bytes,
    human_bytes,
    numel,
    optimizer_state_bytes,
    predicted_optimizer_state_bytes,
    tensor_bytes,
)
from lightning_peft.lightning.attachment import attachment_of
from lightning_peft.lightning.checkpoint import slim_checkpoint
from lightning_peft.lightning.class_names import SHARDING, is_a

if TYPE_CHECKING:
    import lightning.pytorch as pl

__all__ = ["Figures", "print_table", "static_figures"]


Figures = dict[str, float | int | None]
"""Figures by name; ``None`` for one that is not available."""


def static_figures(trainer: pl.Trainer, pl_module: pl.LightningModule, at_start: bool) -> Figures:
    """Compute the figures that need no timing.

    Args:
        trainer: The trainer, in fit.
        pl_module: The module.
        at_start: Whether the optimizer's state does not exist yet, and has to be predicted.

    Returns:
        The figures by name, without the prefix of the logs.
    """
    counts = count_parameters(pl_module)
    trained = [p for p in pl_module.parameters() if p.requires_grad]
    everything = _without_adapters(pl_module)
    optimizers = [o for o in trainer.optimizers if isinstance(o, Optimizer)]
    full_state = _predicted(optimizers, everything)
    state: int | None
    if at_start:
        state = _predicted(optimizers, trained)
    else:
        state = sum(map(optimizer_state_bytes, optimizers))
    saved, full_saved = _checkpoint_bytes(trainer, pl_module, everything, state, full_state)
    return {
        "trainable_parameters": counts.trainable,
        "full_trainable_parameters": sum(map(numel, everything)),
        "frozen_parameters": counts.frozen,
        "total_parameters": counts.total,
        "trainable_share": counts.share,
        "gradient_bytes": gradient_bytes(trained),
        "full_gradient_bytes": gradient_bytes(everything),
        "optimizer_state_bytes": state,
        "full_optimizer_state_bytes": full_state,
        "checkpoint_bytes": saved,
        "full_checkpoint_bytes": full_saved,
    }


def _without_adapters(pl_module: nn.Module) -> list[nn.Parameter]:
    new = {
        id(parameter_at(adaptation.model, name))
        for adaptation in find_adaptations(pl_module).values()
        for name in adaptation.adapter_names()
    }
    return [p for p in pl_module.parameters() if id(p) not in new]


def _predicted(optimizers: list[Optimizer], parameters: list[nn.Parameter]) -> int | None:
    """Predict the state of all optimizers; a parameter in none of them goes to the first."""
    if not optimizers:
        return None
    owner = {
        id(p): i for i, o in enumerate(optimizers) for g in o.param_groups for p in g["params"]
    }
    sizes = [
        predicted_optimizer_state_bytes(o, [p for p in parameters if owner.get(id(p), 0) == i])
        for i, o in enumerate(optimizers)
    ]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _checkpoint_bytes(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    everything: list[nn.Parameter],
    state: int | None,
    full_state: int | None,
) -> tuple[int | None, int | None]:
    """Return the bytes of a checkpoint of this run, and of full fine-tuning."""
    writers = trainer.checkpoint_callbacks
    if writers and all(getattr(writer, "save_weights_only", False) for writer in writers):
        state = full_state = 0
    buffers = tensor_bytes([dict(m.named_buffers(recurse=False)) for m in pl_module.modules()])
    full = sum(numel(p) * p.element_size() for p in everything) + buffers
    saved = _newest_file(writers)
    if saved is None and state is not None and not is_a(trainer.strategy, *SHARDING):
        checkpoint: dict[str, Any] = {"state_dict": pl_module.state_dict()}
        attachment = attachment_of(pl_module)
        if attachment is not None:  # a merged one has the size of a full one
            slim_checkpoint(
                pl_module, checkpoint, "slim" if attachment.checkpoints == "slim" else "full"
            )
        saved = tensor_bytes(checkpoint["state_dict"]) + state
    return saved, None if full_state is None else full + full_state


def _newest_file(writers: list[Any]) -> int | None:
    found = []
    for writer in writers:
        for attribute in ("last_model_path", "best_model_path"):
            path = Path(getattr(writer, attribute, "") or ".nothing")
            if path.exists():
                parts = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
                found.append((path.stat().st_mtime, sum(part.stat().st_size for part in parts)))
    return max(found)[1] if found else None


def print_table(report: Figures, when: str) -> None:
    """Print the figures, next to those of full fine-tuning.

    Args:
        report: The figures.
        when: A word or two for the title.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Efficiency, {when}", title_justify="left")
    table.add_column("")
    table.add_column("this run", justify="right")
    table.add_column("full fine-tuning", justify="right")
    for key, value in report.items():
        if key.startswith("full_") or key == "frozen_parameters":
            continue
        full = report.get(f"full_{key}")
        shown = "" if full is None else _show(key, full)
        table.add_row(key.replace("_", " "), _show(key, value), shown)
    Console().print(table)


def _show(key: str, value: float | int | None) -> str:
    if value is None:
        return "unknown"
    if key.endswith("_bytes"):
        return human_bytes(value)
    if key.endswith("_share"):
        return f"{value:.2%}"
    if key.endswith("_flops"):
        return f"{value:.3g}"
    if key.endswith("_seconds"):
        return f"{value * 1000:.3g} ms"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
