"""``PEFTMixin``, which makes the adaptation part of a LightningModule class."""

from __future__ import annotations

from os import PathLike
from typing import Any, TypeVar

from torch import nn

from lightning_peft.adaptation.checks import as_names
from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.errors import CheckpointError, PEFTError
from lightning_peft.files.checkpoints import check_checkpoint_file
from lightning_peft.kernels import Memory
from lightning_peft.lightning.attachment import Attachment, attach, restore_adaptations
from lightning_peft.lightning.checkpoint import complete_checkpoint
from lightning_peft.lightning.steppers import DriveSteppers
from lightning_peft.lightning.told import Tell
from lightning_peft.methods.union import as_method

__all__ = ["PEFTMixin", "load_from_checkpoint"]

T = TypeVar("T", bound=nn.Module)


class PEFTMixin:
    """Adapt the backbone of a LightningModule; checkpoints hold the trained parameters.

    Put it before ``LightningModule`` among the bases and set the method as a class attribute, or
    return it from :meth:`configure_peft`::

        class Mine(lp.PEFTMixin, L.LightningModule):
            peft = lp.LoRA(rank=8)

    The network may be built in ``__init__``, ``setup`` or ``configure_model``. With the mixin,
    ``Mine.load_from_checkpoint(path)`` works unchanged: the module knows how it is adapted.

    Attributes:
        peft: A method's name, a :class:`Method`, a ``peft.PeftConfig``, a list of these, or a
            mapping with ``method`` and any of the settings of :class:`lightning_peft.PEFT`.
    """

    peft: Any = "lora"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        attach(self, _Deferred())  # type: ignore[arg-type]

    def configure_peft(self) -> Any:
        """Return how to adapt; override it if the method depends on hyperparameters.

        Returns:
            Any value that ``peft`` may have.
        """
        return self.peft

    def configure_callbacks(self) -> Any:
        """Add what acts at each step (AdaLoRA), and the first lines; keep it in an override."""
        return [*super().configure_callbacks(), DriveSteppers(), Tell()]  # type: ignore[misc]


class _Deferred:
    """The attachment of a mixin, which reads the module's settings at the first call."""

    def __call__(self, pl_module: nn.Module) -> None:
        attachment = _attachment(pl_module.configure_peft())  # type: ignore[operator]
        attach(pl_module, attachment)
        attachment(pl_module)


def _attachment(value: Any) -> Attachment:
    if not isinstance(value, dict) or "name" in value:
        return Attachment(as_method(value))
    settings = dict(value)
    method = as_method(settings.pop("method", "lora"))
    also_train = as_names(settings.pop("also_train", ()))
    return Attachment(method, also_train=also_train, **settings)


def load_from_checkpoint(
    module_class: type[T],
    checkpoint_path: str | PathLike[str],
    *,
    memory: Memory | None = None,
    **kwargs: Any,
) -> T:
    """Load a checkpoint of the ``PEFT`` callback into a class without the mixin.

    ``LightningModule.load_from_checkpoint`` runs no callbacks, so the class alone does not know
    that its backbone has to be adapted. The checkpoint does.

    Args:
        module_class: The LightningModule class.
        checkpoint_path: The checkpoint.
        memory: As for :func:`adapt`; it is not in checkpoints. ``None`` is ``"default"``, or the
            setting of a class with the mixin.
        **kwargs: As for ``LightningModule.load_from_checkpoint``. Unlike there, ``weights_only`` is
            ``True`` for any file: no code in it is run.

    Returns:
        The module, adapted, in the state of the checkpoint.

    Raises:
        CheckpointError: If lightning-peft did not make the checkpoint, it is damaged, its keys do
            not fit, or the class cannot be built from the hyperparameters in it.
        BackboneMismatchError: If the class builds another backbone.
        MethodError: If ``memory`` is unknown, or not supported by the checkpoint's method.
    """

    def on_load_checkpoint(self: nn.Module, checkpoint: dict[str, Any]) -> None:
        module_class.on_load_checkpoint(self, checkpoint)  # type: ignore[attr-defined]
        if not find_adaptations(self):
            restore_adaptations(self, checkpoint, memory)
            complete_checkpoint(self, checkpoint)
        elif memory is not None:
            for adaptation in find_adaptations(self).values():
                adaptation.set_memory(memory)

    adapted = type(
        module_class.__name__, (module_class,), {"on_load_checkpoint": on_load_checkpoint}
    )
    load = adapted.load_from_checkpoint  # type: ignore[attr-defined]
    if kwargs.setdefault("weights_only", True):
        check_checkpoint_file(checkpoint_path)
    try:
        module: T = load(checkpoint_path, **kwargs)
    except PEFTError:
        raise
    except Exception as error:  # a hyperparameter of the wrong kind can raise anything
        raise CheckpointError(
            f"{checkpoint_path}: expected a checkpoint that {module_class.__name__} can be built "
            f"and loaded from, got {type(error).__name__}: {error}"
        ) from error
    module.__class__ = module_class
    return module
