"""Attaching an adaptation to a LightningModule: injection, slim checkpoints, loading.

The callback and the mixin both use this module; they only differ in where the settings are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lightning_peft.adaptation.adapt import adapt
from lightning_peft.adaptation.checks import Checks
from lightning_peft.adaptation.elsewhere import trained_elsewhere, trains_outside
from lightning_peft.adaptation.existing.taking import refuse_existing
from lightning_peft.adaptation.handle import Adaptation, find_adaptation, find_adaptations
from lightning_peft.adaptation.loading import adapt_from_description
from lightning_peft.adaptation.precision import AdapterDtype, as_dtype
from lightning_peft.adaptation.sharding import is_sharded, shard
from lightning_peft.adaptation.state import was_unloaded
from lightning_peft.anatomy.backbone import backbone_of, is_backbone
from lightning_peft.errors import CheckpointError, MethodError
from lightning_peft.kernels import Memory
from lightning_peft.lightning.averaging import keep_averages
from lightning_peft.lightning.checkpoint import (
    CHECKPOINT_KEY,
    recorded_in,
)
from lightning_peft.lightning.checkpoint_io import write_whole_checkpoints
from lightning_peft.lightning.checkpoint_kinds import KINDS, CheckpointKind, refuse_not_mergeable
from lightning_peft.lightning.class_names import SHARDING, is_a
from lightning_peft.lightning.data_start import data_later
from lightning_peft.lightning.half_precision import refuse_replaced_layers
from lightning_peft.lightning.hooks import (
    after_configure_model,
    after_hook,
    before_configure_model,
    before_hook,
)
from lightning_peft.lightning.lending import lend_frozen
from lightning_peft.lightning.module_checkpoints import ATTACHMENT, bytes_of, load, save
from lightning_peft.lightning.quantised_base import (
    allow_ignored_layers,
    plain_layers,
    quantise_first,
)
from lightning_peft.lightning.random_resume import resume_random_state
from lightning_peft.lightning.sharded_checkpoint import TrainedOnlyLoad
from lightning_peft.lightning.standing import (
    existing_backbone,
    note_backbone,
    standing_backbone,
)
from lightning_peft.lightning.teachers import adapt_teachers, teachers_of
from lightning_peft.lightning.written import watch_frozen
from lightning_peft.methods.base import Method
from lightning_peft.methods.existing import Existing
from lightning_peft.methods.from_peft.wrapped import peft_models
from lightning_peft.methods.memory import check_memory

__all__ = ["Attachment", "attach", "attachment_of", "restore_adaptations"]

_KEY = "lightning_peft"

_save, _load = save, load  # the names in a module that 0.1 pickled whole


@dataclass(frozen=True)
class Attachment:
    """The settings of an adaptation; calling it on a LightningModule adapts the backbone, once.

    Attributes:
        method: The method.
        backbone: Attribute path of the backbone; ``None`` finds it.
        head: As for :func:`adapt`.
        also_train: As for :func:`adapt`.
        batchnorm: As for :func:`adapt`.
        backbone_dropout: As for :func:`adapt`.
        strict_backbone: Whether a checkpoint of another backbone is an error.
        memory: As for :func:`adapt`; ``None`` leaves a backbone that is already adapted as it is.
        adapter_dtype: As for :func:`adapt`; ``None`` leaves it as it is, too.
        checkpoints: The form of the module's checkpoints.

    Raises:
        MethodError: If ``memory`` is unknown, or not supported by this method, or
            ``adapter_dtype`` is no dtype that can be trained, or checkpoints are to be merged and
            the method cannot be.
    """

    method: Method
    backbone: str | None = None
    head: str | tuple[str, ...] | Literal[False] | None = None
    also_train: tuple[str, ...] = ()
    batchnorm: Literal["frozen", "held", "train"] = "frozen"
    backbone_dropout: Literal["train", "eval"] = "train"
    strict_backbone: bool = True
    memory: Memory | None = None
    adapter_dtype: AdapterDtype = None
    checkpoints: CheckpointKind = "slim"

    def __post_init__(self) -> None:
        checks = Checks()
        with checks:
            if self.memory is not None:
                check_memory(self.method, self.memory)
        with checks:
            as_dtype(self.adapter_dtype)
        checks.one_of("checkpoints", self.checkpoints, KINDS)
        if self.checkpoints == "merged":
            with checks:
                refuse_not_mergeable(self.method, "checkpoints='merged'")
        checks.done()

    def __call__(self, pl_module: nn.Module) -> None:
        """Adapt the module's backbone, unless it is already adapted in the same way.

        A backbone whose adaptation was unloaded is evaluated as it is, unless from a checkpoint.

        Raises:
            MethodError: If the backbone is adapted in another way, or from :func:`adapt`.
            TargetError: If there is no backbone, or if there are several and ``backbone`` does not
                say which.
        """
        with plain_layers():
            self._attach(pl_module)

    def _attach(self, pl_module: nn.Module) -> None:
        path, backbone = self.find(pl_module)
        standing = find_adaptation(backbone)
        if standing is None:
            # merged into the weights, say: a new adapter would change its outputs
            if not (was_unloaded(backbone) and _only_evaluates(pl_module)):
                self.adapt(pl_module)
            return
        if not _is_same(standing.method, self.method):
            raise MethodError(
                f"the backbone '{path or type(pl_module).__name__}' is adapted with "
                f"{standing.method} already: expected the same method again, got {self.method}. "
                "Build a new module, or pass both methods as one list."
            )
        if self.memory is not None:
            standing.set_memory(self.memory)
        if self.adapter_dtype is not None:
            standing.set_adapter_dtype(self.adapter_dtype)

    def find(self, pl_module: nn.Module) -> tuple[str, nn.Module]:
        """Return the path of the backbone in a module, and the backbone.

        Raises:
            TargetError: As for a call.
        """
        search = existing_backbone if isinstance(self.method, Existing) else standing_backbone
        return search(pl_module, self.backbone)

    def adapt(self, pl_module: nn.Module) -> None:
        """Adapt the module's backbone, which is not adapted.

        Raises:
            MethodError: From :func:`adapt`, or if the backbone is sharded.
            TargetError: As for a call.
        """
        quantise_first(pl_module, _strategy(pl_module))
        path, backbone = self.find(pl_module)
        _refuse_shards(pl_module, path, backbone, self.checkpoints)
        _refuse_wrapped(pl_module, path, self.method)
        taken = isinstance(self.method, Existing)
        teachers = {} if taken else teachers_of(pl_module, path, backbone)
        with (
            data_later(pl_module, backbone, self.method, self.head),
            trained_elsewhere(trains_outside(pl_module, backbone)),
        ):
            made = adapt(
                backbone,
                self.method,
                head=self.head,
                also_train=self.also_train,
                batchnorm=self.batchnorm,
                backbone_dropout=self.backbone_dropout,
                memory=self.memory or "default",
                adapter_dtype=self.adapter_dtype,
            )
        note_backbone(pl_module, path)
        adapt_teachers(teachers, path, made, self.memory or "default")


def attach(pl_module: nn.Module, attachment: Attachment) -> None:
    """Add the adaptation to this module's hooks.

    Args:
        pl_module: The LightningModule.
        attachment: The settings; they replace an earlier attachment.
    """
    pl_module.__dict__[ATTACHMENT] = attachment
    allow_ignored_layers(pl_module, _strategy(pl_module))
    before_configure_model(pl_module, _KEY, _before_sharding)
    before_configure_model(pl_module, f"{_KEY}.files", _write_whole)
    after_configure_model(pl_module, _KEY, attachment)
    after_configure_model(pl_module, f"{_KEY}.shard", _shard)
    after_hook(pl_module, "on_save_checkpoint", _KEY, save)
    before_hook(pl_module, "on_load_checkpoint", _KEY, lend_frozen)
    after_hook(pl_module, "on_load_checkpoint", _KEY, load)
    resume_random_state(pl_module)
    keep_averages(pl_module)
    watch_frozen(pl_module)


def attachment_of(pl_module: nn.Module) -> Attachment | None:
    """Return the attachment of a module, or None."""
    found = pl_module.__dict__.get(ATTACHMENT)
    return found if isinstance(found, Attachment) else None


def restore_adaptations(
    pl_module: nn.Module, checkpoint: dict[str, Any], memory: Memory | None = None
) -> list[Adaptation]:
    """Adapt a fresh module according to a checkpoint, so that its keys can be loaded.

    Args:
        pl_module: A LightningModule whose network is built and not adapted.
        checkpoint: A checkpoint of lightning-peft.
        memory: As for :func:`adapt`.

    Returns:
        The adaptations, without the checkpoint's values.

    Raises:
        CheckpointError: If the checkpoint does not describe an adaptation.
    """
    recorded = recorded_in(checkpoint)
    if recorded is None:
        raise CheckpointError(
            "expected a checkpoint that lightning-peft made, got one without the key "
            f"'{CHECKPOINT_KEY}'. Load it with the module's own load_from_checkpoint."
        )
    made: list[Adaptation] = []
    held = bytes_of(checkpoint.get("state_dict"))
    for path, description in recorded["adaptations"].items():
        _, backbone = backbone_of(pl_module, path) if path else ("", pl_module)
        with trained_elsewhere(trains_outside(pl_module, backbone)):
            made.append(
                adapt_from_description(
                    backbone, description, "the checkpoint", held, memory or "default"
                )
            )
        method = made[-1].method
        if description.get("follows") is not None:
            made[-1].follow(description["follows"])
            continue
        if sum("follows" not in d for d in recorded["adaptations"].values()) == 1:
            note_backbone(pl_module, path)
        attach(
            pl_module,
            Attachment(
                method,
                backbone=path,
                head=made[-1].head or False,
                also_train=made[-1].also_train,
                batchnorm=made[-1].batchnorm,  # type: ignore[arg-type]
                backbone_dropout=made[-1].backbone_dropout,  # type: ignore[arg-type]
                memory=memory,
            ),
        )
    return made


def _is_same(standing: Method, asked: Method) -> bool:
    """Whether a method that is asked for is the one that stands in a model."""
    if isinstance(standing, Existing) and isinstance(asked, Existing) and not asked.configs:
        return True
    return standing.to_config() == asked.to_config()


def _refuse_wrapped(pl_module: nn.Module, path: str, method: Method) -> None:
    """Refuse to search in a ``PeftModel``: it is taken as it is, or is not there."""
    around = [p for p in peft_models(pl_module) if path == p or path.startswith(f"{p}.")]
    if around and not isinstance(method, Existing):
        refuse_existing(pl_module.get_submodule(around[0]))


def _refuse_shards(
    pl_module: nn.Module, path: str, backbone: nn.Module, checkpoints: CheckpointKind
) -> None:
    strategy = _strategy(pl_module)
    if checkpoints != "slim" and is_a(strategy, *SHARDING):
        raise MethodError(
            f"checkpoints={checkpoints!r}: expected a strategy that keeps the whole model on each "
            f"process, got {type(strategy).__name__}. Use checkpoints='slim', and export_model for "
            "the merged weights."
        )
    if is_sharded(backbone):
        raise MethodError(
            f"the backbone '{path}' was sharded before it was adapted, so nothing would reduce the "
            "adapter's gradients: expected it the other way round. Build the network in __init__, "
            "or call lp.adapt(...) before fully_shard(...), or leave the sharding to "
            "lightning-peft."
        )
    if not path and is_a(strategy, "ModelParallelStrategy"):
        raise MethodError(
            f"sharding: {type(pl_module).__name__} is its own backbone, and its steps do not go "
            "through its forward: put the network into an attribute."
        )


def _before_sharding(pl_module: nn.Module) -> None:
    """Refuse what cannot be served, and adapt a network before the module's own code shards it."""
    strategy = _strategy(pl_module)
    refuse_replaced_layers(pl_module, strategy)
    if is_a(strategy, "FSDPStrategy"):
        raise MethodError(
            "expected ModelParallelStrategy (FSDP2), got FSDPStrategy: it cannot resume from a "
            "checkpoint that holds what is trained only. Use "
            "ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1)."
        )
    if is_a(strategy, "ModelParallelStrategy") and any(map(is_backbone, pl_module.children())):
        pl_module.__dict__[ATTACHMENT](pl_module)


def _write_whole(pl_module: nn.Module) -> None:
    """Make the trainer write its checkpoints completely or not at all."""
    write_whole_checkpoints(_strategy(pl_module))


def _shard(pl_module: nn.Module) -> None:
    """Shard the parts that the module did not shard, and enable trained-only checkpoints."""
    strategy = _strategy(pl_module)
    if not is_a(strategy, "ModelParallelStrategy"):
        return
    attachment = attachment_of(pl_module)
    strategy.load_checkpoint = TrainedOnlyLoad(
        strategy, attachment is None or attachment.strict_backbone
    )
    adapted = find_adaptations(pl_module)
    if adapted and not is_sharded(pl_module):
        path = next(iter(adapted))
        shard(pl_module, path, strategy.device_mesh["data_parallel"])


def _strategy(pl_module: nn.Module) -> Any:
    return getattr(pl_module.__dict__.get("_trainer"), "strategy", None)


def _only_evaluates(pl_module: nn.Module) -> bool:
    """Whether a trainer is about to evaluate a module, not to fit it."""
    trainer: Any = pl_module.__dict__.get("_trainer")
    return trainer is not None and trainer.state.fn not in (None, "fit")
