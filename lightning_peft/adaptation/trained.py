"""What an adaptation trains, and how: names, gradients, modes, dtypes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_peft.adaptation.injection import Injection
from lightning_peft.adaptation.modes import hold_in_eval, is_frozen_batchnorm
from lightning_peft.adaptation.precision import AdapterDtype, as_dtype, keep_dtype
from lightning_peft.adaptation.state import State
from lightning_peft.anatomy.names import inside, parameters_inside
from lightning_peft.errors import TargetError, near
from lightning_peft.kernels import Acceleration, Memory, accelerate, acceleration_of
from lightning_peft.methods.base import Adapter, Method, Site, Stepper
from lightning_peft.methods.memory import check_memory, refuse_no_fast_layer

__all__ = ["Trained"]


class Trained:
    """The part of :class:`Adaptation` that says what is trained; see there for the attributes."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        injection: Injection,
        also_train: tuple[str, ...],
        batchnorm: str,
        backbone_dropout: str,
    ) -> None:
        self.model = model
        self.method = method
        self.sites: tuple[Site, ...] = injection.sites
        self.head: tuple[str, ...] = injection.head
        self.also_train = also_train
        self.batchnorm = batchnorm
        self.backbone_dropout = backbone_dropout
        self.fingerprint: dict[str, Any] = injection.fingerprint
        self.base_names: dict[str, str] = injection.base_names
        self.fixed: tuple[str, ...] = injection.fixed
        self.held: tuple[str, ...] = injection.held
        self.left_out: tuple[str, ...] = ()
        self.blocks, self.how = injection.blocks, injection.how
        self.doubt = injection.doubt
        self._flags = injection.flags
        self.adapter_dtype: torch.dtype | None = None
        self.state = State(model)
        self._adapter = injection.adapter
        self._adapter_buffers = injection.adapter_buffers
        self._own_dtype = injection.own_dtype
        self._whole = injection.whole
        self._base_modules = injection.base_modules
        self._trained = set(injection.trained)
        self._originals = injection.originals
        self._adapters: list[Adapter] = injection.adapters
        self._fast_path = injection.fast_path
        self._steppers: list[Stepper] | None = None
        self.restored_steppers: list[dict[str, Any]] = []
        self.follows: str | None = None
        self.written: set[str] = set()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled adaptation; one of 0.1 (until 0.3) lacks what came later."""
        since: dict[str, Any] = {"fixed": (), "held": (), "_flags": {}, "adapter_dtype": None}
        since |= {"left_out": (), "blocks": (), "how": "", "doubt": ""}
        since |= {"follows": None, "written": set()}
        self.__dict__.update({**since, "_own_dtype": frozenset(), "_whole": frozenset(), **state})
        if "state" not in state:
            self.state = State(state["model"])
            self.state.merged = self.__dict__.pop("merged")

    def trained_names(self) -> tuple[str, ...]:
        """Return the names of all trained parameters: of the adapter, the head and the backbone."""
        return tuple(n for n, _ in self.model.named_parameters() if n in self._trained)

    def adapter_names(self) -> tuple[str, ...]:
        """Return the names of the parameters that the adapter added, trained or fixed."""
        return tuple(n for n, _ in self.model.named_parameters() if n in self._adapter)

    def added_names(self) -> frozenset[str]:
        """Return the names of all tensors that the adapter added, with their further names."""
        return frozenset(self._adapter | self._adapter_buffers)

    def keeps_originals(self) -> bool:
        """Whether copies are kept of parameters that are trained in place."""
        return bool(self._originals)

    def head_names(self) -> set[str]:
        """Return the names of the head's parameters."""
        return set(parameters_inside(self.model, self.head))

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return all trained parameters, in model order."""
        return [p for n, p in self.model.named_parameters() if n in self._trained]

    def train_also(self, names: Collection[str]) -> None:
        """Train more of the backbone's parameters from now on.

        Args:
            names: Names of parameters of the model. They are saved from now on, even if they are
                frozen again.

        Raises:
            TargetError: If the model has no such parameter.
        """
        known = {n for n, _ in self.model.named_parameters(remove_duplicate=False)}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise TargetError(
                "; ".join(f"no parameter '{name}'. {near(name, known)}" for name in unknown)
            )
        self._trained.update(names)
        self.freeze()

    def steppers(self) -> list[Stepper]:
        """Return the objects that act at each training step; most methods have none.

        The ``PEFT`` callback and the mixin call them. In a loop of your own::

            for stepper in adaptation.steppers():
                stepper.begin(total_steps)
            ...
            loss.backward()
            for name, gradient in stepper.penalty_gradients().items():
                model.get_parameter(name).grad += gradient
            optimizer.step()
            stepper.after_step(step)      # before zero_grad; counted from 1
        """
        if self.follows is not None:
            return []
        if self._steppers is None:
            self._steppers = self.method.steppers(self.model)
        return self._steppers

    def freeze(self) -> None:
        """Make exactly the trained parameters require a gradient."""
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(name in self._trained and self.follows is None)

    def follow(self, student: str) -> None:
        """Train nothing from now on: something else writes what is trained elsewhere into it.

        Args:
            student: The path of the backbone that is trained.
        """
        self.follows = student
        self.freeze()

    def hold_modes(self) -> None:
        """Keep BatchNorm that does not learn, and dropout that is off, in evaluation mode."""
        trained, frozen = self._trained, self.batchnorm == "frozen"
        for name, module in self.model.named_modules():
            if name not in self._base_modules or not name or inside(name, self.head):
                continue
            held = self.batchnorm == "held" and isinstance(module, _NormBase)
            if held or (frozen and is_frozen_batchnorm(name, module, trained)):
                hold_in_eval([module])
            elif self.backbone_dropout == "eval" and not isinstance(module, _NormBase):
                hold_in_eval([module], recurse=False)

    def set_memory(self, memory: Memory) -> None:
        """Change which tensors LoRA layers recompute in the backward pass: see :func:`adapt`.

        Args:
            memory: ``"default"``, ``"low"``, ``"lowest"`` or ``"high"``.

        Raises:
            MethodError: As for :func:`adapt`; nothing is changed then.
        """
        check_memory(self.method, memory)
        if not self.method.accelerated:
            return
        standing = acceleration_of(self.model) or Acceleration((), {})
        refuse_no_fast_layer(self.method, replace(standing, memory=memory))
        accelerate(self.model, memory)

    def set_adapter_dtype(self, dtype: AdapterDtype) -> None:
        """Cast what the method added, and keep it so whatever the backbone is cast to.

        In a backbone in half precision, layers that are trained whole (the head) have it too.

        Args:
            dtype: As ``adapter_dtype`` of :func:`adapt`.

        Raises:
            MethodError: If it is no dtype that can be trained.
        """
        found = as_dtype(dtype)
        keep_dtype(self.model, self._own_dtype, self._whole, found)
        self.adapter_dtype = found
