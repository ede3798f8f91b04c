"""A callback that ends a run at a signal as a run should end: after a step, with a checkpoint."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.lightning.hooks import after_hook
from lightning_peft.lightning.namespace import pl, pl_import
from lightning_peft.lightning.random_resume import resume_random_state
from lightning_peft.lightning.signals import GRACE, LISTENER, Stopped, name_of
from lightning_peft.system.randomness import random_state, restore_random_state

__all__ = ["GracefulStop"]

NAME = "GracefulStop"
LAST = "last.ckpt"

OFTEN = 10
"""Several ranks ask each other before every so many batches of a validation."""


class GracefulStop(pl.Callback):
    """Finish the running step at a signal, write a checkpoint, and end with 128 plus the signal.

    The signals are SIGTERM, SIGINT (Ctrl-C), SIGHUP, SIGUSR1 and SIGUSR2. All ranks stop after the
    same step; with several ranks that is one all-reduce of one number for each batch. The
    checkpoint is ``last.ckpt`` in the directory of the trainer's first checkpoint callback that
    keeps more than weights (or in ``checkpoints`` below the trainer's directory), and a run resumes
    from it as if it had not stopped: where gradients are accumulated it is written after the
    optimizer's step, and a validation that was interrupted is repeated from its beginning.

    The process ends when the grace period is over, whatever it is doing, and at once at a second
    signal. Handlers of the user's own are left alone, and so are signals that are ignored
    (``nohup``), and under Slurm the one with which Lightning requeues a job.

    Args:
        grace: Seconds from the signal to the end of the process at the latest.

    Raises:
        ValueError: If ``grace`` is not a positive number.
        Stopped: At the end of the step; it is a ``SystemExit`` with the exit status.

    >>> import lightning_peft as lp
    >>> callbacks = [lp.PEFT("lora"), lp.GracefulStop(grace=60)]
    """

    def __init__(self, grace: float = GRACE) -> None:
        number = isinstance(grace, int | float) and not isinstance(grace, bool)
        if not number or not math.isfinite(grace) or grace <= 0:
            raise ValueError(
                f"{NAME}: expected grace as a positive number of seconds, got {grace!r}. Leave it "
                f"out for {GRACE:g}."
            )
        self.grace = float(grace)
        self._follows: _Before | None = None
        self._repeat: int | None = None
        self._max_steps: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add what happens after a step, and leave Slurm's signal to Lightning."""
        if not LISTENER.commanded:
            LISTENER.reset()
        LISTENER.grace = self.grace
        LISTENER.release(_requeues(trainer))
        if stage == "fit":
            resume_random_state(pl_module)
            after_hook(pl_module, "on_train_batch_end", NAME, _after_batch)
            after_hook(pl_module, "on_train_end", NAME, _after_training)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let Lightning enter a run whose last validation is still to be repeated."""
        loop = trainer.fit_loop.epoch_loop
        if self._repeat is not None and 0 <= loop.max_steps <= self._repeat:
            self._max_steps, loop.max_steps = loop.max_steps, self._repeat + 1
        self._repeat = None

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen; there is nothing to finish yet."""
        self._listen(trainer, waits=False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen, and note signals from here on."""
        self._listen(trainer, waits=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen in a validation of its own."""
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None
        if trainer.state.fn != "fit":
            self._listen(trainer, waits=False)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop a validation within the training."""
        before = self._follows
        if trainer.state.fn != "fit" or trainer.sanity_checking or before is None:
            return
        several = trainer.world_size > 1
        if several and (batch_idx % OFTEN or not before.even(trainer)):
            return
        number = _agreed(trainer)
        if number is not None and before.holds(trainer):
            before.restore()
            with _at_its_start(trainer, running=True):
                self._stop(trainer, number, repeat=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the state before the validation."""
        self._follows = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen."""
        self._listen(trainer, waits=False)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen."""
        self._listen(trainer, waits=False)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Wait for nothing any more; Lightning puts the handlers of before back."""
        LISTENER.waits = False
        self._follows = None

    def state_dict(self) -> dict[str, Any]:
        """Return the step after which a validation has to be repeated, if there is one."""
        return {} if self._repeat is None else {"repeat_validation": self._repeat}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        repeat = state_dict.get("repeat_validation")
        self._repeat = None if repeat is None else int(repeat)

    def _listen(self, trainer: pl.Trainer, waits: bool) -> None:
        # Lightning sets its handlers right before this, and restores all when it is done
        LISTENER.take(leave=_requeues(trainer))
        LISTENER.waits = waits

    def after_batch(self, trainer: pl.Trainer) -> None:
        """Stop here if a signal has come, and if a run can go on from here."""
        loop: Any = trainer.fit_loop.epoch_loop
        follows = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        self._follows = _Before(trainer) if follows else None
        number = _agreed(trainer)
        pl_module = trainer.lightning_module
        if number is None or (pl_module.automatic_optimization and loop._should_accumulate()):
            return
        if follows:
            loop.batch_progress.increment_completed()  # as it is when the validation begins
            with _at_its_start(trainer, running=False):
                self._stop(trainer, number, repeat=True)
        # the end of an epoch is Lightning's: it is left after the first step of the next one
        if not loop._is_training_done:
            self._stop(trainer, number)

    def after_training(self, trainer: pl.Trainer) -> None:
        """Stop here if a signal has come since the last step."""
        number = _agreed(trainer)
        LISTENER.waits = False
        if number is not None:
            raise _stopped(trainer, number, None)

    def _stop(self, trainer: pl.Trainer, number: int, repeat: bool = False) -> None:
        self._repeat = trainer.global_step if repeat else None
        path = _place(trainer)
        told = f"{NAME}: {name_of(number)}, stopped after step {trainer.global_step}."
        if path is not None:
            if trainer.is_global_zero and os.path.islink(path):  # of another checkpoint
                os.unlink(path)
            trainer.save_checkpoint(path)
            told += f" To continue: ckpt_path={path!r}"
        pl_import("utilities.rank_zero").rank_zero_info(told)
        raise _stopped(trainer, number, None if path is None else Path(path))


class _Before:
    """The state before a validation within the training.

    Args:
        trainer: The trainer, at the end of a batch.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.random = random_state()
        self.sums = _sums(trainer.lightning_module)
        self.is_even: bool | None = None

    def holds(self, trainer: pl.Trainer) -> bool:
        """Whether the module has the weights of before: averages are validated in their place."""
        now = _sums(trainer.lightning_module)
        same = all(torch.equal(a, b) for a, b in zip(self.sums, now, strict=True))
        return same if trainer.world_size == 1 else bool(_reduced(trainer, float(same), "min"))

    def restore(self) -> None:
        """Restore the random state; the validation has drawn from it."""
        restore_random_state(self.random)

    def even(self, trainer: pl.Trainer) -> bool:
        """Whether all ranks validate as many batches, so that they can ask each other."""
        if self.is_even is None:
            count = float(sum(trainer.num_val_batches))
            most, least = _reduced(trainer, count, "max"), _reduced(trainer, count, "min")
            self.is_even = most == least < math.inf
        return self.is_even


def _sums(module: nn.Module) -> list[Tensor]:
    """Return the sum of each trained parameter, where it is: nothing is waited for."""
    found = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            local: Tensor = getattr(parameter, "to_local", lambda p=parameter: p)().detach()
            found.append(local.sum() if local.is_complex() else local.sum(dtype=torch.float32))
    return found


@contextmanager
def _at_its_start(trainer: pl.Trainer, *, running: bool) -> Iterator[None]:
    """Let the progress say that the first batch of the validation is under way.

    That is how Lightning knows, when it resumes, that it has to validate first; it then does so
    from this batch on.
    """
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    before = {k: dict(v) if isinstance(v, dict) else v for k, v in progress.state_dict().items()}
    earlier = progress.total.completed - (progress.current.completed if running else 0)
    for part, done in ((progress.total, earlier), (progress.current, 0)):
        part.ready = part.started = done + 1
        part.processed = part.completed = done
    progress.is_last_batch = False
    try:
        yield
    finally:
        progress.load_state_dict(before)


def _after_batch(pl_module: nn.Module, *args: Any) -> None:
    trainer: Any = pl_module.trainer
    for callback in trainer.callbacks:
        if isinstance(callback, GracefulStop):
            callback.after_batch(trainer)


def _after_training(pl_module: nn.Module) -> None:
    trainer: Any = pl_module.trainer
    for callback in trainer.callbacks:
        if isinstance(callback, GracefulStop):
            callback.after_training(trainer)


def _agreed(trainer: pl.Trainer) -> int | None:
    """Return the signal that any rank has noted."""
    number = LISTENER.number or 0
    if trainer.world_size > 1:
        number = int(_reduced(trainer, float(number), "max"))
    return number or None


def _reduced(trainer: pl.Trainer, value: float, by: str) -> float:
    tensor = torch.tensor(value, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(tensor, reduce_op=by))


def _stopped(trainer: pl.Trainer, number: int, path: Path | None) -> Stopped:
    if not LISTENER.commanded:  # what comes now is the user's
        LISTENER.waits = False
        LISTENER.forget_the_time()
    launcher = trainer.strategy.launcher
    started_here = type(launcher).__name__ == "_SubprocessScriptLauncher"
    # Lightning kills the first rank as soon as another ends with an error
    code = 0 if started_here and trainer.local_rank > 0 else None
    return Stopped(number, path, code)


def _place(trainer: Any) -> str | None:
    """Return where the checkpoint goes; ``None`` in a trial run, which leaves nothing."""
    if trainer.fast_dev_run:
        return None
    callbacks: list[Any] = [c for c in trainer.checkpoint_callbacks if getattr(c, "dirpath", None)]
    whole = [c for c in callbacks if not getattr(c, "save_weights_only", False)]
    for callback in (c for c in whole if getattr(c, "save_last", None)):
        return f"{callback.dirpath}/{callback.CHECKPOINT_NAME_LAST}{callback.FILE_EXTENSION}"
    for callback in [*whole, *callbacks]:
        return f"{callback.dirpath}/{LAST}"
    return f"{trainer.default_root_dir}/checkpoints/{LAST}"


def _requeues(trainer: pl.Trainer) -> tuple[int, ...]:
    """Return the signal at which Lightning requeues a job of Slurm."""
    connector: Any = getattr(trainer, "_accelerator_connector", None)
    environment: Any = getattr(connector, "cluster_environment", None)
    signal = getattr(environment, "requeue_signal", None)
    return (int(signal),) if signal is not None and environment.auto_requeue else ()
