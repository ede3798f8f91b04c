"""The stages of a frozen backbone: its parts, and the epochs from which they are trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_peft.adaptation.fixed import THAWABLE
from lightning_peft.adaptation.handle import Adaptation, find_adaptation
from lightning_peft.adaptation.layer_depths import Depths
from lightning_peft.adaptation.modes import hold_in_eval, is_held, release
from lightning_peft.adaptation.standing_anatomy import standing_anatomy
from lightning_peft.anatomy import Anatomy
from lightning_peft.anatomy.names import inside
from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import MethodError, ScheduleError
from lightning_peft.lightning.standing import standing_backbone

__all__ = ["Freezing", "Plan", "Stage", "as_stages"]


@dataclass(frozen=True)
class Stage:
    """A part of a frozen backbone that is trained from some epoch on.

    Attributes:
        epoch: The first epoch, from 0, that trains it.
        layers: Its blocks, as for a method: ``"last:2"``, ``"2-5"``, an index or several. The last
            block includes the layers after it (a final norm). ``"all"`` is everything, including
            the stem. Parameters of an earlier stage are not part of a later one.
        lr: The full learning rate of its parameters; ``None`` keeps the rate of their group. A
            schedule applies to it as to any other.

    Raises:
        ScheduleError: If the epoch or the rate is out of range.

    >>> import lightning_peft as lp
    >>> callback = lp.BackboneFreeze(unfreeze=[lp.Stage(2, "last:2", lr=1e-4), lp.Stage(5)])
    """

    epoch: int
    layers: str | int | tuple[int, ...] = "all"
    lr: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layers, str | int):
            object.__setattr__(self, "layers", tuple(self.layers))
        problems = []
        if isinstance(self.epoch, bool) or not isinstance(self.epoch, int) or self.epoch < 0:
            problems.append(f"expected epoch to be a whole number from 0, got {self.epoch!r}")
        number = isinstance(self.lr, int | float) and not isinstance(self.lr, bool)
        if self.lr is not None and not (number and 0 < self.lr < float("inf")):
            problems.append(f"expected lr to be a number above 0, got {self.lr!r}")
        if problems:
            raise ScheduleError("Stage: " + "; ".join(problems) + ".")


def as_stages(given: Iterable[Stage | Mapping[str, Any]]) -> tuple[Stage, ...]:
    """Return stages in the order of their epochs.

    Args:
        given: Stages, or mappings with their fields (as in a config file).

    Raises:
        ScheduleError: If one of them is neither, or has an unknown field.
    """
    stages = []
    for item in given:
        if isinstance(item, Stage):
            stages.append(item)
            continue
        fields = dict(item) if hasattr(item, "keys") else None
        if fields is None or "epoch" not in fields or not {"epoch", "layers", "lr"} >= set(fields):
            raise ScheduleError(
                "BackboneFreeze: expected each entry of unfreeze to be a Stage, or a mapping with "
                f"epoch, layers and lr, got {item!r}."
            )
        stages.append(Stage(**fields))
    return tuple(sorted(stages, key=lambda stage: stage.epoch))


@dataclass(frozen=True)
class Plan:
    """The plan of a freezing for one backbone.

    Attributes:
        path: The backbone's attribute path in the LightningModule.
        backbone: The backbone.
        adaptation: Its adaptation, if it is adapted too.
        frozen: The parameters that are frozen at the start, by name in the backbone.
        stage_of: The number of the stage that trains a frozen parameter, by name; a parameter
            without a stage stays frozen.
        norms: BatchNorm-like modules of the frozen part, by name, and their stage.
        others: Its other modules, by name, and their stage.
        found: The anatomy of the backbone.
    """

    path: str
    backbone: nn.Module
    adaptation: Adaptation | None
    frozen: dict[str, nn.Parameter]
    stage_of: dict[str, int]
    norms: dict[str, int | None]
    others: dict[str, int | None]
    found: Anatomy

    def parameters_of(self, stage: int) -> dict[str, nn.Parameter]:
        """Return the parameters that a stage trains, by name in the backbone."""
        return {n: p for n, p in self.frozen.items() if self.stage_of.get(n) == stage}


@dataclass(frozen=True)
class Freezing:
    """The settings of a freezing; calling it on a LightningModule freezes the backbone.

    Calling it again has no effect.

    Attributes:
        backbone: Attribute path of the backbone; ``None`` finds it.
        head: The backbone's own head; ``None`` finds it.
        batchnorm: As for :class:`BackboneFreeze`.
        backbone_dropout: As for :class:`BackboneFreeze`.
        stages: The stages, in the order of their epochs.
    """

    backbone: str | None = None
    head: str | tuple[str, ...] | Literal[False] | None = None
    batchnorm: str = "frozen"
    backbone_dropout: str = "train"
    stages: tuple[Stage, ...] = ()

    def __call__(self, pl_module: nn.Module) -> None:
        """Freeze the backbone.

        Raises:
            TargetError: If the backbone, its head or a stage's layers are not found.
            MethodError: If nothing is left to train, or an adaptation conflicts with it.
            ScheduleError: If a stage has nothing to train.
        """
        plan = self.plan(pl_module)
        going_on = {id(p) for p in plan.frozen.values()}
        at_once = any(stage.epoch == 0 for stage in self.stages)
        if not at_once and not any(
            p.requires_grad and id(p) not in going_on for p in pl_module.parameters()
        ):
            raise MethodError(
                f"BackboneFreeze: expected something beside the backbone '{plan.path}' to train, "
                "got nothing: the module has no head outside it, and none was found in it. "
                "Name the head (head='...'), or unfreeze a stage at epoch 0."
            )
        self.freeze(plan)

    def freeze(self, plan: Plan) -> None:
        """Freeze the parameters of the plan, and hold the modes of its modules."""
        plan.backbone.__dict__[THAWABLE] = frozenset(plan.frozen)
        for parameter in plan.frozen.values():
            parameter.requires_grad_(False)
            parameter.grad = None  # an optimizer would step on a leftover gradient
        self.hold(plan)

    def hold(self, plan: Plan, due: Iterable[int] = ()) -> None:
        """Hold the modes of frozen modules, and release those whose stage is due."""
        if plan.adaptation is not None:
            modes = plan.adaptation.batchnorm, "train"  # the adaptation decides about its dropout
        else:
            modes = self.batchnorm, self.backbone_dropout
        now = set(due)
        norms = plan.norms, modes[0] != "train", now if modes[0] == "frozen" else set()
        for names, held, released in (norms, (plan.others, modes[1] == "eval", now)):
            for name, stage in names.items():
                module = plan.backbone.get_submodule(name)
                if stage in released and held and is_held(module):
                    release([module])
                    module.training = plan.backbone.training
                elif held and stage not in released and not is_held(module):
                    hold_in_eval([module], recurse=False)

    def thaw(self, plan: Plan, epoch: int) -> bool:
        """Train the stages that are due.

        Args:
            plan: The plan.
            epoch: The epoch that begins.

        Returns:
            Whether anything changed.
        """
        due = [number for number, stage in enumerate(self.stages) if stage.epoch <= epoch]
        new = [p for i in due for p in plan.parameters_of(i).values() if not p.requires_grad]
        for parameter in new:
            parameter.requires_grad_(True)
        self.hold(plan, due)
        return bool(new)

    def plan(self, pl_module: nn.Module) -> Plan:
        """Plan the freezing of a module, without changing it.

        Raises:
            TargetError: If the backbone, its head or a stage's layers are not found.
            MethodError: If an adaptation of the backbone conflicts with it.
            ScheduleError: If a stage has nothing to train.
        """
        path, backbone = standing_backbone(pl_module, self.backbone)
        adaptation = find_adaptation(backbone)
        if adaptation is not None:
            self._refuse_conflict(path, adaptation)
        found = standing_anatomy(backbone, None if adaptation is not None else self.head)
        depths = Depths.of(backbone, found)
        stages = self._stage_of_depths(backbone, found, depths.last)
        thawable = _thawable(backbone, adaptation, found.head)
        frozen = {n: p for n, p in backbone.named_parameters() if n in thawable}
        stage_of = {n: stages[d] for n in frozen if (d := depths.parameters[n]) in stages}
        empty = [s for i, s in enumerate(self.stages) if i not in stage_of.values()]
        if empty:
            raise ScheduleError(
                "BackboneFreeze: expected every stage to train something that no earlier one does, "
                f"got nothing for {', '.join(map(str, empty))}."
            )
        norms: dict[str, int | None] = {}
        others: dict[str, int | None] = {}
        for name, module in backbone.named_modules():
            if name and not inside(name, found.head):
                which = norms if isinstance(module, _NormBase) else others
                which[name] = stages.get(depths.modules[name])
        return Plan(path, backbone, adaptation, frozen, stage_of, norms, others, found)

    def _stage_of_depths(self, backbone: nn.Module, found: Anatomy, last: int) -> dict[int, int]:
        """Return the first stage that trains each depth of the backbone."""
        first: dict[int, int] = {}
        for number, stage in enumerate(self.stages):
            if stage.layers == "all":
                depths = set(range(last + 1))
            else:
                if not found.blocks:
                    raise MethodError(
                        "BackboneFreeze: expected a backbone with repeated blocks for "
                        f"{stage}, found none in {type(backbone).__name__}. Use layers='all'."
                    )
                chosen = set(resolve(found, backbone, "blocks", layers=stage.layers))
                depths = {i + 1 for i, name in enumerate(found.blocks) if name in chosen}
            for depth in depths:
                first.setdefault(depth, number)
        return first

    def _refuse_conflict(self, path: str, adaptation: Adaptation) -> None:
        problems = []
        if not self.stages:
            problems.append("it already freezes that backbone: remove BackboneFreeze")
        for name, mine, theirs in (
            ("batchnorm", self.batchnorm, adaptation.batchnorm),
            ("backbone_dropout", self.backbone_dropout, adaptation.backbone_dropout),
        ):
            if mine != theirs:
                problems.append(f"{name} is {theirs!r} there and {mine!r} here: set it there only")
        if self.head is not None and self.head != adaptation.head:
            problems.append("set the head there only")
        if problems:
            raise MethodError(
                f"BackboneFreeze: the backbone '{path}' is adapted with {adaptation.method.name}, "
                "and " + "; ".join(problems) + "."
            )


def _thawable(
    backbone: nn.Module, adaptation: Adaptation | None, head: tuple[str, ...]
) -> frozenset[str]:
    """Return the names of the parameters that are frozen at the start and may be trained later.

    Parameters that the user froze on purpose (a fixed position embedding) are not among them, nor
    those that an adaptation trains. After freezing, these cannot be distinguished, so the result is
    kept on the backbone.
    """
    kept = backbone.__dict__.get(THAWABLE)
    if kept is not None:
        return frozenset(kept)
    if adaptation is not None:
        fixed = (adaptation.base_names.get(name, name) for name in adaptation.fixed)
        others = {*adaptation.trained_names(), *adaptation.adapter_names(), *fixed}
        names = {n for n, p in backbone.named_parameters() if p.is_floating_point()} - others
    else:
        names = {n for n, p in backbone.named_parameters() if p.requires_grad}
    return frozenset(name for name in names if not inside(name, head))
