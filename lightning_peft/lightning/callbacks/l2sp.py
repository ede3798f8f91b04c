"""A callback that decays weights towards their pretrained values instead of towards zero."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_peft.adaptation.handle import Adaptation, find_adaptation
from lightning_peft.adaptation.starting_point import StartingPoint, in_place, pull
from lightning_peft.anatomy.fingerprint import differences
from lightning_peft.errors import CheckpointError, MethodError
from lightning_peft.lightning.callbacks._regroup import Part, check_schedulers, regroup
from lightning_peft.lightning.callbacks._replaced import schedulers_on
from lightning_peft.lightning.class_names import SHARDING, is_a
from lightning_peft.lightning.hooks import after_configure_model
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.standing import standing_backbone

__all__ = ["L2SP"]

_KEY = "lightning_peft.L2SP"
_ATTRIBUTE = "_lightning_peft_start"


class L2SP(pl.Callback):
    r"""Decay parameters that are trained in place towards their pretrained values (L2-SP).

    Li, Grandvalet and Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks", ICML 2018 (https://arxiv.org/abs/1802.01483) add
    :math:`\frac{\alpha}{2} \lVert w - w^0 \rVert^2` to the loss. Here the term is decoupled from
    the gradient, as weight decay is in AdamW (Loshchilov and Hutter, 2019,
    https://arxiv.org/abs/1711.05101): before each step of the optimizer

    .. math:: w \leftarrow w - \eta\,\alpha\,(w - w^0)

    with the group's learning rate :math:`\eta` of that step. With plain SGD the two are the same;
    with Adam the term in the loss would be divided by the gradient's own scale, and with clipping
    it would use up part of the allowed norm.

    It replaces weight decay for the parameters of the backbone that are trained in place (``full``,
    ``last_blocks``, ``bitfit``, ``norm``, stages of ``BackboneFreeze``): they get groups without
    weight decay. New parameters, an adapter's and the head's, have no pretrained values and decay
    to zero as before.

    The starting point is a copy of the pretrained values, made before a checkpoint is restored. It
    is not stored: a resumed run makes it again from the pretrained weights, and compares its
    fingerprint.

    Args:
        strength: :math:`\alpha`, from 0; 0 does nothing.
        backbone: Attribute path of the backbone in the module; ``None`` finds it.

    Raises:
        MethodError: If the strength is out of range; at the start of fit also if nothing is trained
            in place, or the strategy shards parameters.
        CheckpointError: If a run is resumed from another starting point, or from a run without one.

    >>> import lightning_peft as lp
    >>> callbacks = [lp.PEFT("full"), lp.L2SP(strength=0.01)]
    """

    def __init__(self, strength: float = 0.01, backbone: str | None = None) -> None:
        number = isinstance(strength, int | float) and not isinstance(strength, bool)
        if not number or not 0 <= strength < float("inf"):
            raise MethodError(f"L2SP: expected strength to be a number from 0, got {strength!r}.")
        self.strength = strength
        self.backbone = backbone
        self._start: StartingPoint | None = None
        self._parameters: dict[int, str] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Schedule the copy of the starting point for the end of ``configure_model``."""
        if not self.strength or stage != "fit":
            return
        if is_a(trainer.strategy, *SHARDING):
            raise MethodError(
                f"L2SP: expected a strategy that keeps parameters whole, such as DDP, got "
                f"{type(trainer.strategy).__name__}. Leave L2SP out."
            )
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        later = any(type(c).__name__ == "BackboneFreeze" for c in callbacks)
        after_configure_model(pl_module, _KEY, _Remember(self.backbone, later))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the parameters that are trained in place, and switch their weight decay off."""
        self._start, self._parameters = None, {}
        if not self.strength:
            return
        _, backbone = standing_backbone(pl_module, self.backbone)
        adaptation = find_adaptation(backbone)
        known = {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
        trained = {
            name: parameter
            for name, parameter in in_place(backbone, adaptation).items()
            if id(parameter) in known and _is_trained(name, adaptation)
        }
        if not trained:
            told = "no adaptation" if adaptation is None else f"'{adaptation.method.name}'"
            raise MethodError(
                f"L2SP: expected parameters of the backbone that are trained in place, got none "
                f"with {told}. Adapters decay to zero by weight_decay; use L2SP with full, "
                "last_blocks, bitfit, norm or BackboneFreeze(unfreeze=...), or set strength to 0."
            )
        start: StartingPoint = pl_module.__dict__[_ATTRIBUTE]
        start.keep(set(trained))
        self._start = start
        self._parameters = {id(parameter): name for name, parameter in trained.items()}
        for optimizer in trainer.optimizers:
            _without_decay(optimizer, trained, schedulers_on(trainer, optimizer))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Pull the parameters of this step towards their starting point."""
        if self._start is None:
            return
        for group in optimizer.param_groups:
            found = [
                (p, self._start.of(self._parameters[id(p)], p))
                for p in group["params"]
                if p.grad is not None and id(p) in self._parameters
            ]
            amount = float(group["lr"]) * self.strength if found else 0.0
            pull([p for p, _ in found], [start for _, start in found], amount)

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprint of the starting point."""
        return {} if self._start is None else {"start": self._start.fingerprint()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the checkpoint's fingerprint of its starting point for the comparison."""
        if trainer.state.fn == "fit" and self.strength:
            state = checkpoint["callbacks"].get(self.state_key) or {}
            pl_module.__dict__[f"{_ATTRIBUTE}_expected"] = state.get("start", {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse to resume with another starting point."""
        expected = pl_module.__dict__.pop(f"{_ATTRIBUTE}_expected", None)
        if expected is None or self._start is None:
            return
        found = differences(expected, self._start.fingerprint()) if expected else ["it had none"]
        if found:
            raise CheckpointError(
                "L2SP: expected to resume from the starting point of the first run, got another: "
                + "; ".join(found)
                + ". Build the module with the same pretrained weights, or start a new run."
            )


class _Remember:
    """An action that copies the pretrained values once, right after the module is built."""

    def __init__(self, backbone: str | None, all_of_it: bool) -> None:
        self.backbone = backbone
        self.all_of_it = all_of_it

    def __call__(self, pl_module: nn.Module) -> None:
        if _ATTRIBUTE in pl_module.__dict__:  # a second fit starts from trained weights
            return
        _, backbone = standing_backbone(pl_module, self.backbone)
        adaptation = find_adaptation(backbone)
        wanted = {
            name: parameter
            for name, parameter in in_place(backbone, adaptation).items()
            if self.all_of_it or _is_trained(name, adaptation)
        }
        pl_module.__dict__[_ATTRIBUTE] = StartingPoint(wanted)


def _is_trained(name: str, adaptation: Adaptation | None) -> bool:
    return adaptation is None or name in adaptation.trained_names()


def _without_decay(
    optimizer: Optimizer, trained: dict[str, nn.Parameter], schedulers: list[Any]
) -> None:
    """Move parameters that would decay to zero to groups without weight decay."""
    decaying = {id(p) for g in optimizer.param_groups if g.get("weight_decay") for p in g["params"]}
    moved = {name: p for name, p in trained.items() if id(p) in decaying}
    if not moved:
        return
    check_schedulers(schedulers, "L2SP")
    before = len(optimizer.param_groups)
    regroup(optimizer, [Part("l2sp", moved, None)], schedulers)
    for group in optimizer.param_groups[before:]:
        group["weight_decay"] = 0.0
