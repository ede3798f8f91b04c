"""The ``PEFT`` callback, for an existing trainer and module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch.optim import Optimizer

from lightning_peft.adaptation.checks import as_names
from lightning_peft.adaptation.handle import Adaptation, find_adaptations
from lightning_peft.adaptation.precision import AdapterDtype
from lightning_peft.anatomy.names import parameter_at
from lightning_peft.errors import MethodError
from lightning_peft.kernels import Memory
from lightning_peft.lightning.attachment import Attachment, attach, attachment_of
from lightning_peft.lightning.class_names import is_a
from lightning_peft.lightning.gradients import GradientWatch, refuse_frozen
from lightning_peft.lightning.identity import IdentityWatch
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.steppers import DriveSteppers
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
        backbone: Attribute path of the backbone, such as ``"model.encoder"``; the empty string is
            the module itself. ``None`` finds it; two are an error, which names the larger first.
        head: The backbone's own head: ``None`` finds it, names or globs select it, ``False`` means
            that there is none. Layers outside the backbone belong to the module and stay as they
            are.
        also_train: Names or globs of more modules or parameters of the backbone to train in full.
        batchnorm: ``"frozen"`` keeps the statistics of frozen BatchNorm layers; ``"train"`` lets
            them change.
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
        **settings: Settings of the method, if it is given by name.

    Raises:
        MethodError: If the method or a setting is unknown or out of range, ``memory`` is to save
            memory with a method without fast LoRA layers, or ``adapter_dtype`` cannot be trained.
    """

    def __init__(
        self,
        method: Any = "lora",
        *,
        backbone: str | None = None,
        head: str | Sequence[str] | Literal[False] | None = None,
        also_train: str | Sequence[str] = (),
        batchnorm: Literal["frozen", "train"] = "frozen",
        backbone_dropout: Literal["train", "eval"] = "train",
        strict_backbone: bool = True,
        memory: Memory | None = None,
        adapter_dtype: AdapterDtype = None,
        check_gradients: bool = True,
        check_identity: bool = True,
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
        )
        self.check_gradients = check_gradients
        self._drive_steppers = DriveSteppers()
        self.check_identity = check_identity
        self._identity = IdentityWatch()
        self._watch = GradientWatch()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace the module's ``configure_model``, at whose end the adaptation happens."""
        self._refuse_company(trainer, pl_module)
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
        self._watch = GradientWatch()
        in_optimizers = {
            id(parameter)
            for optimizer in trainer.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for path, adaptation in find_adaptations(pl_module).items():
            _refuse_untrained(path, adaptation, in_optimizers)
            if not adaptation.model.training:
                adaptation.model.train()
            adaptation.hold_modes()  # sync_batchnorm replaces the held modules
            tell(trainer, pl_module, path, adaptation)
        self._drive_steppers.on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the method the length of a run that goes on (AdaLoRA)."""
        refuse_frozen(find_adaptations(pl_module))
        self._drive_steppers.on_train_start(trainer, pl_module)
        if self.check_identity:
            self._identity.begin(trainer, pl_module)

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the gradients of the method's loss term (AdaLoRA)."""
        self._drive_steppers.on_after_backward(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Run the method's actions after a step (AdaLoRA)."""
        self._identity.end()
        self._drive_steppers.on_train_batch_end(trainer, pl_module)

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


def _refuse_untrained(path: str, adaptation: Adaptation, in_optimizers: set[int]) -> None:
    lost = [
        name
        for name in adaptation.trained_names()
        # the trained names already include what BackboneFreeze trains later
        if (p := parameter_at(adaptation.model, name)).requires_grad and id(p) not in in_optimizers
    ]
    if lost and in_optimizers:
        more = f" and {len(lost) - 6} more" if len(lost) > 6 else ""
        raise MethodError(
            f"expected every trained parameter of '{path}' in an optimizer, configure_optimizers "
            f"left out {', '.join(lost[:6])}{more}. Give the optimizer self.parameters(), or "
            "lp.parameter_groups(self, lr=...)."
        )
