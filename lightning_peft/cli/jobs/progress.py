"""Show one progress bar for a whole run, however short its epochs are."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.run_length import present_length

__all__ = ["StepProgress"]


class StepProgress(pl.callbacks.ProgressBar):
    """Shows optimizer steps, the loss and the last validation accuracy.

    Lightning's own bars start again with every epoch; with few labels an epoch is a second or less.
    If the output is not a terminal, only the last state is written.

    Args:
        label: The label of the bar.
        monitor: The validation metric to show.
        refresh: Steps between two updates; each reads the loss from the device.
    """

    def __init__(
        self, label: str = "training", monitor: str = "val/accuracy", refresh: int = 5
    ) -> None:
        super().__init__()
        self.label = label
        self.metric = monitor
        self.refresh = refresh
        self._enabled = True
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._figures: dict[str, str] = {}

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def disable(self) -> None:
        """Show nothing, as on every rank but the first."""
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the bar."""
        super().on_train_start(trainer, pl_module)
        if not self._enabled:
            return
        self._figures = {}
        length = present_length(trainer)
        console = Console(stderr=True)
        console.width = min(console.width, 110)
        self._progress = Progress(
            TextColumn("{task.description:<19}"),
            BarColumn(bar_width=None),  # what the others leave
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
        )
        self._task = self._progress.add_task(
            self.label, total=length.total if length.known else None, figures=""
        )
        self._progress.start()
        self._update(trainer)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._progress is None or trainer.global_step % self.refresh:
            return
        self._update(trainer, outputs)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show that it validates, and how far it is."""
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        total = trainer.num_val_batches[dataloader_idx]
        self._show(f"validates {batch_idx + 1}/{total}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what was measured."""
        super().on_validation_end(trainer, pl_module)
        self._update(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop updating the bar and leave its last state on the screen."""
        super().on_train_end(trainer, pl_module)
        self._update(trainer)
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop the bar after an error."""
        super().on_exception(trainer, pl_module, exception)
        self._stop()

    def _update(self, trainer: pl.Trainer, outputs: Any = None) -> None:
        if self._progress is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self._figures["loss"] = f"loss {float(loss):.3f}"
        value = trainer.callback_metrics.get(self.metric)
        if value is not None:
            self._figures["value"] = f"{self.metric.replace('/', ' ')} {float(value):.2f}"
        self._show(" ".join(self._figures.values()), completed=trainer.global_step)

    def _show(self, figures: str, **more: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task, figures=figures, **more)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
