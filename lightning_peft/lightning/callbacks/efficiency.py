"""A callback that measures the cost of a run, next to the cost of full fine-tuning."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_peft.evaluation.efficiency import FlopCounter, uncompiled
from lightning_peft.lightning.callbacks._figures import Figures, print_table, static_figures
from lightning_peft.lightning.callbacks._steps import StepTimer
from lightning_peft.lightning.callbacks._trainer import trainer_import
from lightning_peft.lightning.class_names import SHARDING, is_a
from lightning_peft.lightning.namespace import pl, pl_import
from lightning_peft.system.atomic import written_whole

__all__ = ["EfficiencyMonitor"]


class EfficiencyMonitor(pl.Callback):
    """Measure the cost of a run next to full fine-tuning: parameters, memory, time, FLOPs.

    The figures go to the trainer's loggers and, as a table, to the terminal when training starts
    and when it ends, and to ``efficiency.json`` in the run's log directory (``default_root_dir``
    without a logger), under the same names without the prefix. Figures that are not available are
    left out of the logs and are ``null`` in the file. A ``fast_dev_run`` writes no file.

    ======================================== ======= ==============================================
    key                                      unit    meaning
    ======================================== ======= ==============================================
    efficiency/trainable_parameters          1       scalars that require a gradient
    efficiency/full_trainable_parameters     1       the same, fine-tuning everything
    efficiency/frozen_parameters             1       all others
    efficiency/total_parameters              1       both
    efficiency/trainable_share               [0, 1]  trainable over total
    efficiency/gradient_bytes                bytes   gradients of the trainable parameters
    efficiency/full_gradient_bytes           bytes   gradients, fine-tuning everything
    efficiency/optimizer_state_bytes         bytes   the optimizer's state: at the start what it
                                                     will be, at the end what it is
    efficiency/full_optimizer_state_bytes    bytes   the same optimizer's state for everything
    efficiency/checkpoint_bytes              bytes   the newest checkpoint file; without one, the
                                                     tensors that would be in it
    efficiency/full_checkpoint_bytes         bytes   the tensors of a checkpoint of everything
    efficiency/step_flops                    FLOP    forward and backward of the first batch
    efficiency/step_seconds                  s       median from one batch's start to the next
    efficiency/samples_per_second            1/s     samples of a batch over that, all devices
    efficiency/peak_cuda_bytes               bytes   on a GPU: peak of allocated memory, training
    efficiency/peak_process_rss_bytes        bytes   otherwise: peak resident memory of the
                                                     process, since it started
    ======================================== ======= ==============================================

    Full fine-tuning means the same model without its adapter, with every parameter trained by the
    same optimizer. Bytes are totals over all devices where parameters are sharded.

    The time of a step is the interval between the starts of two batches, so it includes waiting for
    data and needs no synchronisation with the device; the first steps, validation, checkpoints and
    the change of epochs are left out. A batch counts as a step, even with gradient accumulation.
    FLOPs are counted while the first batch trains (which is not timed), with compiled modules
    running uncompiled for that batch; neither results nor random numbers change. With sharding
    strategies they are not counted.

    Args:
        flops: Whether to count FLOPs.
        verbose: Whether to print the tables.

    Attributes:
        report: The latest figures by name.

    >>> import lightning_peft as lp
    >>> callbacks = [lp.PEFT("lora"), lp.EfficiencyMonitor(flops=False)]
    """

    def __init__(self, *, flops: bool = True, verbose: bool = True) -> None:
        self.flops = flops
        self.verbose = verbose
        self.report: Figures = {}
        self._timer = StepTimer()
        self._sizes: Callable[[Any], Iterator[int | None]] = iter
        self._counting: ExitStack | None = None
        self._counter: FlopCounter | None = None
        self._step_flops: int | None = None

    # --- the run ---------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the figures."""
        self.report = {}
        self._timer = StepTimer()
        self._step_flops = None
        self._sizes = trainer_import(trainer, "utilities.data")._extract_batch_size
        self._counter = FlopCounter() if self._can_count_flops(trainer) else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Publish the figures that are known before the first step."""
        _reset_peak(trainer)
        self._publish(trainer, pl_module, at_start=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Publish the measured figures."""
        self._stop_counting(trainer, pl_module)
        self._publish(trainer, pl_module, at_start=False)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the time, and count the operations of the first batch."""
        self._timer.start(_samples(self._sizes, batch))
        if self._counter is not None and self._counting is None and self._step_flops is None:
            self._counting = ExitStack()
            self._counting.enter_context(uncompiled())
            self._counting.enter_context(self._counter)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop counting; on a CPU the work of a batch is finished at its end."""
        if self._counting is not None:
            self._stop_counting(trainer, pl_module)
        elif trainer.strategy.root_device.type == "cpu":
            self._timer.end()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the change of epochs out of the times."""
        self._stop_counting(trainer, pl_module)  # a skipped batch has no end hook
        self._timer.interrupt()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave validation out of the times."""
        self._timer.interrupt()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave the writing of checkpoints out of the times."""
        self._timer.interrupt()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the counting mode, should the first batch fail."""
        self._stop_counting(trainer, pl_module)

    # --- measuring -------------------------------------------------------------------------------

    def _can_count_flops(self, trainer: pl.Trainer) -> bool:
        return self.flops and trainer.is_global_zero and not is_a(trainer.strategy, *SHARDING)

    def _stop_counting(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._counting is None or self._counter is None:
            return
        self._counting.close()
        self._counting = None
        self._step_flops = self._counter.flops
        if any(_is_compiled(module) for module in pl_module.modules()):
            _reset_peak(trainer)  # that batch ran uncompiled, with another peak

    def _publish(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, at_start: bool
    ) -> None:
        self.report = static_figures(trainer, pl_module, at_start)
        if not at_start:
            seconds, samples = self._timer.median()
            rate = samples / seconds * trainer.world_size if samples and seconds else None
            self.report["step_flops"] = self._step_flops
            self.report["step_seconds"] = seconds
            self.report["samples_per_second"] = rate
            self.report.update(_peak(trainer))
        numbers = {f"efficiency/{key}": v for key, v in self.report.items() if v is not None}
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=step)
        # a broadcast: every process has to call it
        directory = trainer.log_dir or trainer.default_root_dir
        if not trainer.is_global_zero:
            return
        if self.verbose:
            print_table(self.report, "at the start" if at_start else "at the end")
        if not getattr(trainer, "fast_dev_run", False):
            _write(Path(directory) / "efficiency.json", self.report)


def _samples(sizes: Callable[[Any], Iterator[int | None]], batch: Any) -> int | None:
    """Return the size of a batch as Lightning finds it, without the warning of ``self.log``."""
    try:
        return next((size for size in sizes(batch) if size is not None), None)
    except RecursionError:
        return None


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None


def _reset_peak(trainer: pl.Trainer) -> None:
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)


def _peak(trainer: pl.Trainer) -> Figures:
    if trainer.strategy.root_device.type == "cuda":
        return {"peak_cuda_bytes": torch.cuda.max_memory_allocated(trainer.strategy.root_device)}
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return {"peak_process_rss_bytes": None}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_process_rss_bytes": peak if sys.platform == "darwin" else peak * 1024}


def _write(path: Path, report: Figures) -> None:
    try:
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:  # the run is worth more than its figures
        warn = pl_import("utilities.rank_zero").rank_zero_warn
        warn(f"EfficiencyMonitor: no {path.name}, the training goes on. {error}")
