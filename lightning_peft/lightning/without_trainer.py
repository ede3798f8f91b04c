"""Loading a checkpoint without a trainer, into a class that knows nothing of the adapter."""

from __future__ import annotations

import inspect
from os import PathLike
from typing import Any, TypeVar

from torch import nn

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.errors import CheckpointError, PEFTError
from lightning_peft.files.checkpoints import check_checkpoint_file
from lightning_peft.kernels import Memory
from lightning_peft.lightning.attachment import restore_adaptations
from lightning_peft.lightning.checkpoint import complete_checkpoint
from lightning_peft.lightning.lending import lend_frozen, take_back

__all__ = ["load_from_checkpoint"]

T = TypeVar("T", bound=nn.Module)


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

    >>> import tempfile
    >>> import lightning as L
    >>> import torch
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> class Mine(L.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         torch.manual_seed(0)  # for what would be pretrained weights
    ...         self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    ...     def training_step(self, batch, batch_idx):
    ...         return self.net(batch).square().mean()
    ...     def configure_optimizers(self):
    ...         return torch.optim.AdamW(self.parameters())
    ...
    >>> quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    >>> trainer = L.Trainer(
    ...     max_steps=1, accelerator="cpu", callbacks=[lp.PEFT("lora")], enable_checkpointing=False,
    ...     **quiet,
    ... )
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     trainer.fit(Mine(), torch.utils.data.DataLoader(torch.ones(2, 4)))
    ...     trainer.save_checkpoint(f"{directory}/last.ckpt")
    ...     module = lp.load_from_checkpoint(Mine, f"{directory}/last.ckpt")
    ...
    >>> lp.find_adaptation(module.net).method.name
    'lora'
    """

    def on_load_checkpoint(self: nn.Module, checkpoint: dict[str, Any]) -> None:
        lend_frozen(self, checkpoint)
        module_class.on_load_checkpoint(self, checkpoint)  # type: ignore[attr-defined]
        if not find_adaptations(self):
            restore_adaptations(self, checkpoint, memory)
            take_back(self, checkpoint)
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
    if not _takes_weights_only(module_class):  # the file has passed the check, or is trusted
        del kwargs["weights_only"]
    try:
        module: T = load(checkpoint_path, **kwargs)
    except PEFTError:
        raise
    except Exception as error:  # a hyperparameter of the wrong kind can raise anything
        raise CheckpointError(
            f"{checkpoint_path}: expected a checkpoint that {module_class.__name__} can be built "
            f"and loaded from, got {type(error).__name__}: {error}{_advice(error)}"
        ) from error
    module.__class__ = module_class
    return module


def _takes_weights_only(module_class: type) -> bool:
    """Whether a class loads as Lightning does, or names ``weights_only`` in a loader of its own.

    A loader of its own that passes ``**kwargs`` on may give that argument itself.
    """
    owner = next(c for c in module_class.__mro__ if "load_from_checkpoint" in c.__dict__)
    if owner.__module__.startswith(("lightning.", "pytorch_lightning.")):
        return True
    return "weights_only" in inspect.signature(owner.load_from_checkpoint).parameters  # type: ignore[attr-defined]


def _advice(error: Exception) -> str:
    if not isinstance(error, KeyError) or "." not in str(error):
        return ""
    return (
        ". If that is an entry of its state that the class reads itself, a slim checkpoint leaves "
        "it out: train with PEFT(..., checkpoints='full')"
    )
