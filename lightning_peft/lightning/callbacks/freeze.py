"""A callback that freezes the backbone, and trains parts of it from given epochs on."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_peft.adaptation.outline import frozen_parts, parts_of, some, warning_of
from lightning_peft.anatomy.names import inside
from lightning_peft.errors import CheckpointError, MethodError, ScheduleError
from lightning_peft.lightning.callbacks._regroup import Part, check_schedulers, regroup
from lightning_peft.lightning.callbacks._replaced import schedulers_on
from lightning_peft.lightning.callbacks._stages import Freezing, Plan, Stage, as_stages
from lightning_peft.lightning.callbacks._trainer import warn_on_rank_zero
from lightning_peft.lightning.class_names import SHARDING, is_a
from lightning_peft.lightning.hooks import after_configure_model
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.random_resume import resume_random_state
from lightning_peft.lightning.said import say
from lightning_peft.lightning.told import around

__all__ = ["BackboneFreeze", "Stage", "stage_parts"]


class BackboneFreeze(pl.Callback):
    """Fine-tune without an adapter: freeze the backbone, train the head, unfreeze in stages.

    >>> from lightning_peft import BackboneFreeze, Stage
    >>> callback = BackboneFreeze(
    ...     unfreeze=[Stage(epoch=2, layers="last:1", lr=1e-4), Stage(epoch=5, lr=1e-5)]
    ... )

    The backbone is frozen at the end of ``configure_model``. All layers outside it, and its own
    head, are trained as the module defines. Checkpoints remain complete.

    The groups of all stages are created when fit starts, whatever the epoch: a stage's parameters
    move from the groups of the module's optimizer to new groups with the same other options (so
    weight decay and its exceptions are kept). A stage that is not due has no gradients, so no
    updates and no optimizer state. So the groups are the same when a run is resumed, in any epoch,
    and a resumed run is bit-equal to one that was never stopped. Schedulers of the module, or
    callbacks such as ``WarmupCosine``, apply to the new groups from the start of the run, not of
    the stage. Under DDP the wrapper is rebuilt when a stage begins, on every process.

    On an adapted backbone (``PEFT`` before this callback), the stages train parts of the base in
    addition to the adapter, checkpoints hold them, and the adaptation decides about BatchNorm and
    dropout.

    Args:
        backbone: Attribute path of the backbone in the module. ``None`` finds it; two are
            an error.
        head: The backbone's own head, which is trained: ``None`` finds it, names or globs select
            it, ``False`` means that there is none.
        batchnorm: ``"frozen"`` keeps the statistics of BatchNorm layers until their stage is due,
            ``"held"`` also from then on; ``"train"`` lets them change.
        backbone_dropout: ``"train"`` keeps the dropout of the frozen part on; ``"eval"`` keeps it
            off until its stage is due.
        unfreeze: The stages: :class:`Stage`, or mappings with its fields.

    Raises:
        MethodError: If a setting is unknown; at the start of fit also if nothing is left to train.
        ScheduleError: If a stage has nothing to train; at the start of fit also if the optimizer,
            its scheduler or the strategy cannot take a stage.
    """

    def __init__(
        self,
        backbone: str | None = None,
        *,
        head: str | Sequence[str] | Literal[False] | None = None,
        batchnorm: Literal["frozen", "held", "train"] = "frozen",
        backbone_dropout: Literal["train", "eval"] = "train",
        unfreeze: Iterable[Stage | Mapping[str, Any]] = (),
    ) -> None:
        problems = [
            f"expected {name} to be one of {options}, got {value!r}"
            for name, value, options in (
                ("batchnorm", batchnorm, ("frozen", "held", "train")),
                ("backbone_dropout", backbone_dropout, ("train", "eval")),
            )
            if value not in options
        ]
        if problems:
            raise MethodError("BackboneFreeze: " + "; ".join(problems) + ".")
        if head is not None and head is not False and not isinstance(head, str):
            head = tuple(head)
        self.freezing = Freezing(backbone, head, batchnorm, backbone_dropout, as_stages(unfreeze))

    @property
    def state_key(self) -> str:
        """The key of this callback's state, different for each backbone."""
        return self._generate_state_key(backbone=self.freezing.backbone)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Schedule the freezing for the end of ``configure_model``."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if any(
            type(callback).__name__ == "PEFT" for callback in callbacks[callbacks.index(self) :]
        ):
            raise MethodError(
                "expected PEFT before BackboneFreeze in the list of callbacks, got it after: the "
                "adapter must exist when the rest is frozen."
            )
        if self.freezing.stages and is_a(trainer.strategy, *SHARDING):
            raise ScheduleError(
                f"BackboneFreeze: {type(trainer.strategy).__name__} cannot train more parameters "
                "in the middle of a run. Use DDP or one device, or leave unfreeze out."
            )
        resume_random_state(pl_module)
        key = f"lightning_peft.BackboneFreeze.{self.freezing.backbone}"
        after_configure_model(pl_module, key, self.freezing)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Create the groups of all stages, before the optimizer's state is restored."""
        plan = self.freezing.plan(pl_module)
        if not plan.backbone.training:
            plan.backbone.train()  # from_pretrained returns evaluation mode, and Lightning keeps it
        stages = self.freezing.stages
        if stages:
            optimizer = self._optimizer(trainer, plan)
            schedulers = schedulers_on(trainer, optimizer)
            check_schedulers(schedulers, "BackboneFreeze")
            self._warn_of_late_stages(trainer)
            regroup(optimizer, stage_parts(stages, plan), schedulers)
            if plan.adaptation is not None:  # so that checkpoints hold the stages' parameters
                plan.adaptation.train_also(list(plan.stage_of))
        self.freezing.freeze(plan)
        if plan.adaptation is None:  # otherwise PEFT says it
            _tell(trainer, pl_module, plan)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the stages that are due: a resumed run may be in the middle of them."""
        self._thaw(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the stages of this epoch."""
        self._thaw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the stages, so that a run cannot be resumed with others."""
        return {"unfreeze": [asdict(stage) for stage in self.freezing.stages]}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to resume from a checkpoint whose optimizer has other groups.

        Raises:
            CheckpointError: If it was saved with other stages.
        """
        if trainer.state.fn != "fit":
            return
        now = self.state_dict()["unfreeze"]
        saved = checkpoint["callbacks"].get(self.state_key)
        then = saved["unfreeze"] if saved is not None else []
        if now != then:
            raise CheckpointError(
                f"BackboneFreeze: expected a checkpoint of a run with the stages {now}, got one "
                f"with {then}, whose optimizer has other groups. Resume with its stages, or start "
                "a new run from its weights."
            )

    def _thaw(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.freezing.stages:
            return
        if self.freezing.thaw(self.freezing.plan(pl_module), trainer.current_epoch):
            _wrap_anew(trainer)

    def _optimizer(self, trainer: pl.Trainer, plan: Plan) -> Optimizer:
        """Return the optimizer that trains the backbone."""
        optimizers = trainer.optimizers
        unable = ("_MockOptimizer", "ZeroRedundancyOptimizer", "PostLocalSGDOptimizer")
        strange = [
            type(o).__name__ for o in optimizers if not isinstance(o, Optimizer) or is_a(o, *unable)
        ]
        if strange or not optimizers:
            raise ScheduleError(
                f"BackboneFreeze: expected a torch optimizer to give the stages to, got "
                f"{', '.join(strange) or 'none'} from configure_optimizers."
            )
        wanted = {id(p) for name, p in plan.frozen.items() if name in plan.stage_of}
        holders = [
            o
            for o in optimizers
            if any(id(p) in wanted for group in o.param_groups for p in group["params"])
        ]
        if not holders and len(optimizers) == 1:
            holders = optimizers
        if len(holders) != 1:
            raise ScheduleError(
                f"BackboneFreeze: expected one optimizer that trains the backbone '{plan.path}', "
                f"got {len(holders)} of {len(optimizers)}. Give the backbone's parameters to one "
                "of them."
            )
        return holders[0]

    def _warn_of_late_stages(self, trainer: pl.Trainer) -> None:
        last = trainer.max_epochs
        if getattr(trainer, "fast_dev_run", False) or last is None or last < 0:
            return
        late = [str(stage) for stage in self.freezing.stages if stage.epoch >= last]
        if late:
            warn_on_rank_zero(
                trainer,
                f"BackboneFreeze: the run of {last} epochs (0 to {last - 1}) ends before "
                f"{', '.join(late)}.",
            )


def _tell(trainer: pl.Trainer, pl_module: pl.LightningModule, plan: Plan) -> None:
    """Say what is frozen and what is trained; warn if something frozen looks new."""
    sizes = {name: p.numel() for name, p in plan.backbone.named_parameters()}
    staged = sum(sizes[name] for name in plan.stage_of)
    for_good = set(plan.frozen) - set(plan.stage_of)
    head = list(parts_of(plan.backbone, {n for n in sizes if inside(n, plan.found.head)}))
    how = plan.found.how and f", {plan.found.how}"
    beyond = {name for name in for_good if not inside(name, plan.found.blocks)}
    frozen = frozen_parts(plan.backbone, beyond, plan.found.blocks)
    lines = [
        f"BackboneFreeze: {sum(p.numel() for p in plan.frozen.values()):,} of the "
        f"{sum(sizes.values()):,} parameters of '{plan.path or type(pl_module).__name__}' frozen"
        + (f", {staged:,} of them until their stage" if staged else "")
    ]
    lines += [f"trained in place: the head {some(head)}{how}"] if head else []
    lines += around(pl_module, plan.backbone)
    lines += (
        [f"frozen outside of the blocks: {some(frozen)}; head=... trains one"] if frozen else []
    )
    lines += [f"not certain: {plan.found.doubt}"] if plan.found.doubt else []
    say("\n  ".join(lines))
    new = [part for part in frozen if part.new]
    if new:
        warn_on_rank_zero(trainer, warning_of("BackboneFreeze", new, ("head",)))


def stage_parts(stages: Sequence[Stage], plan: Plan) -> list[Part]:
    """Return the parameters that each stage moves to new groups.

    Args:
        stages: The stages.
        plan: Their plan for a backbone.

    Returns:
        One part for each stage, named ``stage0_epoch2`` and so on.
    """
    return [
        Part(f"stage{i}_epoch{stage.epoch}", plan.parameters_of(i), stage.lr)
        for i, stage in enumerate(stages)
    ]


def _wrap_anew(trainer: pl.Trainer) -> None:
    """Rebuild DDP's wrapper: its reducer only knows the parameters that were trained at first."""
    strategy: Any = trainer.strategy
    if not isinstance(strategy.model, DistributedDataParallel):
        return
    strategy.model = trainer.lightning_module
    gc.collect()  # the hooks of the old reducer go with it
    strategy.model = strategy._setup_model(trainer.lightning_module)
    if hasattr(strategy, "_register_ddp_hooks"):
        strategy._register_ddp_hooks()
    if hasattr(strategy, "_pl_static_graph_delay_done"):
        strategy._pl_static_graph_delay_done = False
