"""A callback that stops a run at a non-finite loss, while the weights are still good."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.errors import CheckpointError, PEFTError, some
from lightning_peft.lightning.hooks import after_hook
from lightning_peft.lightning.namespace import pl

__all__ = ["FiniteLoss", "NonFiniteLossError"]


class NonFiniteLossError(PEFTError, RuntimeError):
    """The loss is NaN or infinite.

    >>> import lightning_peft as lp
    >>> issubclass(lp.NonFiniteLossError, RuntimeError)
    True
    """


@dataclasses.dataclass
class _Reading:
    """A loss that is being copied to the CPU, and its place in the run."""

    values: Tensor  # (2,): the loss, and the number of ranks whose loss is not finite
    ready: Any  # the CUDA event after which the values can be read; None if at once
    place: str
    batch: Any


class FiniteLoss(pl.Callback):
    """Stop a fit whose loss is NaN or infinite, before that loss reaches the weights.

    The error states the epoch, batch, step, loss, learning rates and last checkpoint. All
    ranks stop at the same step. It works with any LightningModule, in automatic and (through
    ``manual_backward``) in manual optimization.

    Cost: on the CPU a loss is checked before its backward pass. On CUDA it is copied to the CPU
    without waiting, and read right before the optimizer's step: by then the backward pass is in the
    GPU's queue, so the GPU does not idle; only a second step cannot be queued ahead. With more than
    one rank there is one all-reduce of two numbers for each batch.

    From the fit on, no callback can write a checkpoint of a module whose weights are not finite:
    such a save raises before an existing file is changed. This guards against a finite loss whose
    gradient is not finite; the loss of the next step then stops the run.

    Raises:
        NonFiniteLossError: At the first loss that is not finite.
        CheckpointError: At a save of trained parameters that are not finite, or of buffers (such as
            BatchNorm statistics) with NaN.

    >>> import lightning_peft as lp
    >>> callbacks = [lp.PEFT("lora"), lp.FiniteLoss()]
    """

    def __init__(self) -> None:
        self._batch_idx = 0
        self._batch: Any = None
        self._pending: list[_Reading] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Guard the module's checkpoints, including weights-only ones, which call no callback."""
        self._pending = []
        if stage == "fit":
            after_hook(pl_module, "on_save_checkpoint", "FiniteLoss", _refuse_to_save)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the index of the batch."""
        self._batch_idx, self._batch = batch_idx, batch

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Check the loss, or start copying it to the CPU."""
        place = (
            f"epoch {trainer.current_epoch}, batch {self._batch_idx}, step {trainer.global_step}"
        )
        value = loss.detach().float().reshape(())
        bad = (~torch.isfinite(value)).float()
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce(bad, reduce_op="sum")
        values = torch.stack([value, bad])
        if values.device.type != "cuda":
            self._judge(trainer, pl_module, _Reading(values, None, place, self._batch))
            return
        host = torch.empty(2, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append(_Reading(host, event, place, self._batch))

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Check the losses of this step."""
        self._read(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Release the batch."""
        self._batch = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the losses that no step followed."""
        self._read(trainer, pl_module)

    def _read(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pending, self._pending = self._pending, []
        for reading in pending:
            reading.ready.synchronize()
            self._judge(trainer, pl_module, reading)

    def _judge(self, trainer: pl.Trainer, pl_module: pl.LightningModule, reading: _Reading) -> None:
        loss, bad_ranks = reading.values.tolist()
        if not bad_ranks:
            return
        rates = ", ".join(
            f"{rate:g}"
            for rate in dict.fromkeys(
                group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups
            )
        )
        where = f"{reading.place}, learning rate {rates}"
        if trainer.world_size > 1:
            where += f", on {int(bad_ranks)} of {trainer.world_size} ranks"
        raise NonFiniteLossError(
            f"Expected a finite loss, got {loss} ({where}). Training stopped before the "
            f"optimizer's step. {_why(pl_module, reading.batch)} {_last_checkpoint(trainer)}"
        )


def _why(pl_module: nn.Module, batch: Any) -> str:
    broken = _broken(pl_module)
    if broken:
        return (
            f"{some(broken, 3)} is already not finite: the gradient of an earlier step was "
            "not finite, though its loss was. Lower the learning rate, or clip gradients."
        )
    if any(not bool(torch.isfinite(part).all()) for part in _tensors(batch)):
        return "The weights are finite, but this batch holds NaN or infinity: correct the data."
    return (
        "The weights and this batch are finite. Lower the learning rate, warm up longer, or train "
        "in bf16 or float32 if this was float16."
    )


def _last_checkpoint(trainer: pl.Trainer) -> str:
    paths = [
        path
        for callback in trainer.checkpoint_callbacks
        for path in (
            getattr(callback, "last_model_path", ""),
            getattr(callback, "best_model_path", ""),
        )
        if path
    ]
    if not paths:
        return "No checkpoint has been written yet."
    return f"The last good checkpoint is untouched: resume with ckpt_path={str(paths[0])!r}."


def _tensors(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Tensor):
        if batch.is_floating_point() or batch.is_complex():
            yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from _tensors(part)
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from _tensors(part)


def _broken(module: nn.Module) -> list[str]:
    """Return the names of non-finite tensors; a buffer may hold infinity on purpose, as a mask."""
    checks = {
        name: torch.isfinite(part).all()
        for name, part in module.named_parameters()
        if part.requires_grad
    }
    checks |= {
        name: ~torch.isnan(part).any()
        for name, part in module.named_buffers()
        if part.is_floating_point() or part.is_complex()
    }
    if not checks:
        return []
    devices = {check.device for check in checks.values()}
    fine: dict[str, bool] = {}
    for device in devices:  # one wait for each device, not one for each tensor
        names = [name for name, check in checks.items() if check.device == device]
        fine |= zip(names, torch.stack([checks[name] for name in names]).tolist(), strict=True)
    return [name for name in checks if not fine[name]]


def _refuse_to_save(pl_module: nn.Module, checkpoint: dict[str, Any]) -> None:
    broken = _broken(pl_module)
    if broken:
        raise CheckpointError(
            f"Expected finite weights to save, got NaN or infinity in {len(broken)} tensors: "
            f"{some(broken, 5)}. Nothing was written, and "
            "earlier checkpoints are untouched: resume from one with a lower learning rate."
        )
