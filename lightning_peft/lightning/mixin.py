"""``PEFTMixin``, which makes the adaptation part of a LightningModule class."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from lightning_peft.adaptation.checks import as_names
from lightning_peft.lightning.attachment import Attachment, attach
from lightning_peft.lightning.data_start import FirstValues
from lightning_peft.lightning.steppers import DriveSteppers
from lightning_peft.lightning.told import Tell
from lightning_peft.methods.union import as_method

__all__ = ["PEFTMixin"]

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

    >>> import lightning as L
    >>> import lightning_peft as lp
    >>> class Mine(lp.PEFTMixin, L.LightningModule):
    ...     peft = lp.LoRA(rank=8)
    ...
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
        return [*super().configure_callbacks(), FirstValues(), DriveSteppers(), Tell()]  # type: ignore[misc]


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
