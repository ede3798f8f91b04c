"""The ``PEFT`` callback, for an existing trainer and module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch.optim import Optimizer

from lightning_peft.adaptation.checks import as_names
from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.adaptation.precision import AdapterDtype
from lightning_peft.errors import MethodError
from lightning_peft.kernels import Memory
from lightning_peft.lightning.attachment import Attachment, attach, attachment_of
from lightning_peft.lightning.callbacks._optimizers import (
    AddToOptimizer,
    check_rate,
    give_to_optimizers,
)
from lightning_peft.lightning.checkpoint_kinds import (
    CheckpointKind,
    refuse_not_mergeable,
    refuse_unmergeable,
)
from lightning_peft.lightning.class_names import SHARDING, is_a
from lightning_peft.lightning.data_start import measure_on_data
from lightning_peft.lightning.gradients import GradientWatch, refuse_frozen
from lightning_peft.lightning.identity import IdentityWatch
from lightning_peft.lightning.letting_go import let_go, merge_after_the_fit
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.said import say
from lightning_peft.lightning.steppers import DriveSteppers
from lightning_peft.lightning.teachers import keep_teachers
from lightning_peft.lightning.told import tell
from lightning_peft.methods.union import as_method

__all__ = ["PEFT"]


class PEFT(pl.Callback):
    """Fine-tune the backbone of an existing LightningModule with few trained parameters.

    >>> from lightning_peft import PEFT
    >>> callback = PEFT("lora", rank=8)

    The backbone is adapted at the end of ``configure_model``: after the module has built its
    network, and before a checkpoint is restored, an optimizer is made or a strategy wraps the
    model. Nothing else in the module changes; checkpoints hold the adapter, the head and all other
    trained parameters. ``fit``, ``validate``, ``test``, ``predict``, resuming and a second ``fit``
    work as before. The first lines of a run say what is adapted, what is trained as it is, and what
    is frozen outside of the blocks. To load a checkpoint without a trainer, use
    :func:`lightning_peft.load_from_checkpoint`.

    Args:
        method: A method's name, a :class:`Method`, a ``peft.PeftConfig``, or a list of these.
            ``"existing"`` takes a ``PeftModel`` that the module holds as it is.
        backbone: Attribute path of the backbone, such as ``"model.encoder"``; the empty string is
            the module itself. ``None`` finds it; two are an error, which names the larger first.
        head: The backbone's own head: ``None`` finds it, names or globs select it, ``False`` means
            that there is none. Layers outside the backbone belong to the module and stay as they
            are.
        also_train: Names or globs of more modules or parameters of the backbone to train in full.
        batchnorm: ``"frozen"`` keeps the statistics of frozen BatchNorm layers, ``"held"`` those
            of all, trained ones too, which a few labels cannot estimate; ``"train"`` lets all
            change.
        backbone_dropout: ``"train"`` puts the backbone into training mode for ``fit``, so that its
            dropout is on (models from ``from_pretrained`` are in evaluation mode and Lightning
            keeps it); ``"eval"`` keeps the backbone's own dropout off.
        strict_backbone: Whether a checkpoint of another backbone is an error (``True``) or a
            warning.
        memory: Which tensors LoRA layers recompute in the backward pass instead of keeping them:
            ``"default"`` the output of an activation function, ``"low"`` that of a layer norm and
            in a quarter of the layers the first product of an MLP as well, ``"lowest"`` all of
            these products, ``"high"`` nothing. It belongs to the run and is in no checkpoint.
            ``None`` is ``"default"``, and leaves a backbone that is already adapted as it is.
        adapter_dtype: The dtype of what the method adds, whatever the trainer's ``precision`` casts
            the module to. ``None`` is float32, or that of a backbone in float64: with
            ``precision="bf16-true"`` only the backbone, and what is trained in place, is bfloat16.
        check_gradients: Whether to stop in the first steps if an adapter gets no gradient, or zeros
            only although parameters have moved already: the model never calls the adapted module,
            or what the module computes is not used.
        check_identity: Whether to compare the adapted backbone with the backbone itself on the
            first batch of a new run, in two forwards, and to warn if a method that starts without
            an effect has one: the forward takes another branch for adapted layers. A run that
            resumes, a backbone that was adapted or loaded before the run, compiled modules and
            sharding strategies are not looked at.
        add_to_optimizer: What to do with trained parameters that ``configure_optimizers`` leaves
            out (it lists the layers that it knows). ``False`` is an error that names them; ``True``
            adds them as a group of their own at the rate of the group that is most like them, a
            number at that rate. A line states the rate. Of several optimizers it is the one that
            trains something else of the backbone.
        checkpoints: ``"slim"`` ones hold what is trained, ``"full"`` ones also the base, under its
            own names, with the adapter beside it. In ``"merged"`` ones ``state_dict`` is what the
            module would have saved without the callback, with the adapter in the weights, so that
            ``net.load_state_dict(torch.load(path)["state_dict"])`` works on a module without an
            adapter. A run resumes from each of them, and is tested and loaded from each.
        merge_at_end: Whether to merge the adapter after a ``fit`` and to let go of the module: it
            is then one of its own classes and names, without hooks of this package, that any code
            can save, pickle or export.
        **settings: Settings of the method, if it is given by name.

    Raises:
        MethodError: If the method or a setting is unknown or out of range, ``memory`` is to save
            memory with a method without fast LoRA layers, ``adapter_dtype`` cannot be trained, or
            a method is to be merged that cannot be.
    """

    def __init__(
        self,
        method: Any = "lora",
        *,
        backbone: str | None = None,
        head: str | Sequence[str] | Literal[False] | None = None,
        also_train: str | Sequence[str] = (),
        batchnorm: Literal["frozen", "held", "train"] = "frozen",
        backbone_dropout: Literal["train", "eval"] = "train",
        strict_backbone: bool = True,
        memory: Memory | None = None,
        adapter_dtype: AdapterDtype = None,
        check_gradients: bool = True,
        check_identity: bool = True,
        add_to_optimizer: AddToOptimizer = False,
        checkpoints: CheckpointKind = "slim",
        merge_at_end: bool = False,
        **settings: Any,
    ) -> None:
        self.attachment = Attachment(
            as_method(method, **settings),
            backbone=backbone,
            head=head if head is None or head is False else as_names(head),
            also_train=as_names(also_train),
            batchnorm=batchnorm,
            backbone_dropout=backbone_dropout,
            strict_backbone=strict_backbone,
            memory=memory,
            adapter_dtype=adapter_dtype,
            checkpoints=checkpoints,
        )
        check_rate(add_to_optimizer)
        if merge_at_end:
            refuse_not_mergeable(self.attachment.method, "merge_at_end=True")
        self.add_to_optimizer = add_to_optimizer
        self.merge_at_end = merge_at_end
        self.check_gradients = check_gradients
        self._drive_steppers = DriveSteppers()
        self.check_identity = check_identity
        self._identity = IdentityWatch()
        self._watch = GradientWatch()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace the module's ``configure_model``, at whose end the adaptation happens."""
        self._refuse_company(trainer, pl_module)
        if self.merge_at_end and is_a(trainer.strategy, *SHARDING):
            raise MethodError(
                "merge_at_end=True: expected a strategy that keeps the whole model on each "
                f"process, got {type(trainer.strategy).__name__}. Export the merged weights from a "
                "checkpoint instead (lp.export_model)."
            )
        self._identity.before(pl_module)
        attach(pl_module, self.attachment)

    def _refuse_company(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        if sum(type(callback).__name__ == "PEFT" for callback in callbacks) > 1:
            raise MethodError(
                "expected one PEFT callback, got several. To combine methods, give them as a list: "
                "PEFT(['lora', 'bitfit'])."
            )
        standing = attachment_of(pl_module)
        if hasattr(pl_module, "configure_peft") and standing is not self.attachment:
            raise MethodError(
                f"{type(pl_module).__name__} adapts itself (PEFTMixin): expected the mixin or the "
                "PEFT callback, got both. Remove one of them."
            )
        for callback in callbacks[: callbacks.index(self)]:
            # it copies the model in its setup, and the copy would have no adapter
            if is_a(callback, "WeightAveraging"):
                raise MethodError(
                    f"expected PEFT before {type(callback).__name__} in the list of callbacks, got "
                    "it after: the averaged copy would be a model without the adapter."
                )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the adapter will be trained, and put the backbone into training mode."""
        measure_on_data(trainer, pl_module)
        adaptations = find_adaptations(pl_module)
        for asked, word in (
            (self.merge_at_end, "merge_at_end=True"),
            (self.attachment.checkpoints == "merged", "checkpoints='merged'"),
        ):
            if asked:  # before hours of training, not behind them
                refuse_unmergeable(pl_module, word)
        give_to_optimizers(trainer, pl_module, adaptations, self.add_to_optimizer)
        for path, adaptation in adaptations.items():
            if adaptation.follows is not None:
                say(
                    f"PEFT: '{path}' is a teacher of '{adaptation.follows}': it has the same "
                    "adapter, which is not trained, and its frozen weights stay the student's"
                )
                adaptation.hold_modes()
                continue
            if not adaptation.model.training:
                adaptation.model.train()
            adaptation.hold_modes()  # sync_batchnorm replaces the held modules
            tell(trainer, pl_module, path, adaptation)
        self._drive_steppers.on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the method the length of a run that goes on (AdaLoRA)."""
        refuse_frozen(find_adaptations(pl_module))
        self._watch = GradientWatch(goes_on=trainer.global_step > 0)
        self._drive_steppers.on_train_start(trainer, pl_module)
        if self.check_identity:
            self._identity.begin(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Take the rounding of averages out of the frozen weights of teachers."""
        keep_teachers(pl_module)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the gradients of the method's loss term (AdaLoRA)."""
        self._drive_steppers.on_after_backward(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Run the method's actions after a step (AdaLoRA)."""
        self._identity.end()
        self._drive_steppers.on_train_batch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the rounding of averages out of the frozen weights of teachers."""
        keep_teachers(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Merge the adapter, if that is asked for, behind what other callbacks do at the end."""
        if self.merge_at_end:
            merge_after_the_fit(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave a module that was merged without hooks, after an evaluation of it too."""
        if self.merge_at_end and not find_adaptations(pl_module):
            let_go(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave no hook, should the first batch fail."""
        self._identity.end()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Find an adapter that the model's forward bypasses."""
        if self.check_gradients:
            self._watch.look(find_adaptations(pl_module), optimizer, len(trainer.optimizers))
