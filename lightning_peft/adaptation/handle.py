"""``Adaptation``: the handle on one adapted backbone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_peft.adaptation.checks import key_problems
from lightning_peft.adaptation.injection import Injection
from lightning_peft.adaptation.merging import MergeReport, merge_adapters
from lightning_peft.adaptation.modes import hold_in_eval, is_held, release
from lightning_peft.adaptation.precision import AdapterDtype, as_dtype, keep_dtype, let_go
from lightning_peft.adaptation.report import Report, make_report
from lightning_peft.anatomy.fast_path import fast_path_off, fast_path_on
from lightning_peft.anatomy.names import inside, shared_names
from lightning_peft.errors import AdapterFileError, CheckpointError, MethodError, TargetError, near
from lightning_peft.files.peft_format import peft_form
from lightning_peft.files.writing import write_adapter
from lightning_peft.kernels import Acceleration, Memory, accelerate, acceleration_of
from lightning_peft.methods.base import Adapter, Method, Site, Stepper
from lightning_peft.methods.from_peft.inject import SHARED
from lightning_peft.methods.memory import check_memory, refuse_no_fast_layer

__all__ = ["ATTRIBUTE", "Adaptation", "find_adaptation", "find_adaptations"]

ATTRIBUTE = "_lightning_peft"
"""The attribute of a model that holds its adaptation."""


def find_adaptation(model: nn.Module) -> Adaptation | None:
    """Find the adaptation that is attached to a module.

    Args:
        model: The module that was passed to :func:`adapt`, a deep copy of it, or its compiled
            wrapper.

    Returns:
        The adaptation, or ``None``. Submodules are not searched.
    """
    found = getattr(model, "_orig_mod", model).__dict__.get(ATTRIBUTE)
    return found if isinstance(found, Adaptation) else None


class Adaptation:
    """The handle on one adapted backbone: trained parameters, state, merge, disable, report.

    :func:`adapt` returns it. It is stored on the model, so a deep copy of the model has its own.

    Attributes:
        model: The adapted backbone.
        method: How it was adapted.
        sites: The adapted places.
        head: Names of the head's modules; empty if there is none.
        fingerprint: The fingerprint of the frozen backbone.
        merged: Whether the adapter is currently folded into the weights.
        adapter_dtype: The dtype that was asked for; ``None`` is float32 or finer.
        restored_steppers: The steppers' states from a checkpoint, for the run that resumes from it.
    """

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
        self.adapter_dtype: torch.dtype | None = None
        self.merged = False
        self._disabled = False
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

    # --- what is trained --------------------------------------------------------------------------

    def trained_names(self) -> tuple[str, ...]:
        """Return the names of all trained parameters: of the adapter, the head and the backbone."""
        return tuple(n for n, _ in self.model.named_parameters() if n in self._trained)

    def adapter_names(self) -> tuple[str, ...]:
        """Return the names of the parameters that the adapter added, trained or fixed."""
        return tuple(n for n, _ in self.model.named_parameters() if n in self._adapter)

    def head_names(self) -> set[str]:
        """Return the names of the head's parameters."""
        return {n for n, _ in self.model.named_parameters() if inside(n, self.head)}

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
        if self._steppers is None:
            self._steppers = self.method.steppers(self.model)
        return self._steppers

    def freeze(self) -> None:
        """Make exactly the trained parameters require a gradient."""
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(name in self._trained)

    def hold_modes(self) -> None:
        """Keep frozen BatchNorm, and the dropout that was switched off, in evaluation mode."""
        for name, module in self.model.named_modules():
            if name not in self._base_modules or not name or inside(name, self.head):
                continue
            if self.batchnorm == "frozen" and self._is_frozen_batchnorm(name, module):
                hold_in_eval([module])
            elif self.backbone_dropout == "eval" and not isinstance(module, _NormBase):
                hold_in_eval([module], recurse=False)

    def _is_frozen_batchnorm(self, name: str, module: nn.Module) -> bool:
        own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
        trains = bool(own) and self._trained.issuperset(own)
        return isinstance(module, _NormBase) and not trains

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

    # --- its state --------------------------------------------------------------------------------

    def state_names(self) -> frozenset[str]:
        """Return the names in ``model.state_dict()`` that a checkpoint must hold.

        These are the trained parameters, other tensors of the adapter, parameters that were
        unfrozen since, and buffers that training can change (the statistics of a BatchNorm that is
        not kept in evaluation mode). A tensor that several modules share has one name.
        """
        names = self._trained | self._adapter | self._adapter_buffers
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad:
                names.add(name)
        for name, module in self.model.named_modules():
            if isinstance(module, _NormBase) and module.track_running_stats and not is_held(module):
                names |= {f"{name}.{key}" for key, _ in module.named_buffers(recurse=False)}
        return frozenset(names & set(self.model.state_dict()) - set(shared_names(self.model)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save, by the model's own names; they are not copied."""
        self.refuse_if_merged("state_dict()")
        names = self.state_names()
        return {n: t for n, t in self.model.state_dict().items() if n in names}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of :meth:`state_dict`, checked both ways before anything is changed.

        Args:
            state: Tensors by name. It may include frozen entries of the backbone.

        Raises:
            CheckpointError: If a trained entry is missing, an entry is unknown, or a shape differs;
                all of them are listed.
            MethodError: If the adapter is merged.
        """
        self.refuse_if_merged("load_state_dict()")
        own = self.model.state_dict()
        required = self._trained | self._adapter | self._adapter_buffers
        required = required & set(own) - set(shared_names(self.model))
        problems = key_problems(state, own, required)
        if problems:
            raise CheckpointError(
                f"the state does not fit this adaptation ({self.method.name}): "
                + "; ".join(problems)
                + ". Was it made with another method, rank or target?"
            )
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)

    def describe(self) -> dict[str, Any]:
        """Describe the adaptation as plain JSON types, enough to adapt another model like it."""
        return {
            "method": self.method.to_config(),
            "head": list(self.head),
            "also_train": list(self.also_train),
            "batchnorm": self.batchnorm,
            "backbone_dropout": self.backbone_dropout,
            "fingerprint": self.fingerprint,
        }

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the adapter directory: see :func:`lightning_peft.files.writing.write_adapter`.

        Args:
            directory: The directory; created if it does not exist.

        Raises:
            AdapterFileError: If the adapter is merged, or the directory cannot be written.
        """
        if self.merged:
            raise AdapterFileError(
                "expected an adapter to save, got one that is merged into the weights. Call "
                "unmerge() first, or save the merged model itself."
            )
        form = None
        if not self.also_train:  # peft's format cannot hold single parameters of the backbone
            form = peft_form(self.model, self.method, self.head, self.state_names())
        write_adapter(directory, self.describe(), self.state_dict(), form)

    def report(self) -> Report:
        """Count what is trained; the report prints as a table."""
        return make_report(
            self.model,
            self.method.name,
            self.sites,
            trained=set(self.trained_names()),
            adapter=set(self.adapter_names()),
            head=self.head_names(),
        )

    # --- switching it off, folding it in ----------------------------------------------------------

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Switch the adapter off inside the context; the head stays as it is.

        Raises:
            MethodError: If the adapter is merged, or the method trains so much of the backbone in
                place that no copy of the original is kept.
        """
        self.refuse_if_merged("disabled()")
        if self.method.changes_backbone and not self.method.keeps_original:
            raise MethodError(
                f"disabled(): '{self.method.name}' trains the backbone in place and keeps no copy "
                "of the original weights. Load the backbone a second time to compare with it."
            )
        before = [(adapter, adapter.enabled) for adapter in self._adapters]
        outermost = not self._disabled
        try:
            if outermost:
                self._swap_originals()
                self._disabled = True
            for adapter, _ in before:
                adapter.set_enabled(False)
            if outermost:
                fast_path_on(self._fast_path)
            yield
        finally:
            if outermost:
                fast_path_off(self._fast_path)
            for adapter, enabled in before:
                adapter.set_enabled(enabled)
            if outermost:
                self._disabled = False
                self._swap_originals()

    def _swap_originals(self) -> None:
        for name, kept in self._originals.items():
            parameter = self.model.get_parameter(name)
            now = parameter.detach().clone()
            parameter.data.copy_(kept)
            self._originals[name] = now

    def merge(self, example_inputs: Any = None) -> MergeReport:
        """Fold the adapter into the backbone's weights; :meth:`unmerge` reverses it.

        Sums are computed in float32 whatever the weights' dtype, and rounded once.

        Args:
            example_inputs: A batch for the model's forward (a tensor, a tuple of positional or a
                mapping of keyword arguments), to measure how much merging changes the output.

        Returns:
            How exactly it was done.

        Raises:
            MethodError: If the adapter is already merged or is not a linear change of the weights;
                nothing is changed then.
        """
        self.refuse_if_merged("merge()")
        if not self.method.mergeable:
            raise MethodError(
                f"'{self.method.name}' cannot be merged: it is not linear, so no weight can "
                "replace it."
            )
        names = self._adapter | self._adapter_buffers
        state = {name: t for name, t in self.model.state_dict().items() if name in names}
        report = merge_adapters(self.model, self._adapters, self.method.name, state, example_inputs)
        self.merged = True
        return report

    def unmerge(self) -> None:
        """Take a merged adapter out of the weights, up to rounding.

        Raises:
            MethodError: If it is not merged.
        """
        if not self.merged:
            raise MethodError("unmerge(): expected a merged adapter, got one that is not merged.")
        for adapter in self._adapters:
            adapter.unmerge()
        self.merged = False

    def merge_and_unload(self) -> nn.Module:
        """Fold the adapter in and return a plain model with the backbone's own names.

        Returns:
            The same model object, without any trace of the adaptation; this handle is no longer
            usable.

        Raises:
            MethodError: As for :meth:`merge`.
        """
        if not self.merged:
            self.merge()
        return self.unload()

    def unload(self) -> nn.Module:
        """Remove the adapter without merging it.

        Returns:
            The same model object, without any trace of the adaptation; this handle is no longer
            usable. Parameters of the backbone that were trained in place keep their values.
        """
        fast_path_on(self._fast_path)
        let_go(self.model)
        for adapter in self._adapters:
            adapter.unload()
        release(self.model.modules())
        for key in (ATTRIBUTE, "peft_config", SHARED):
            self.model.__dict__.pop(key, None)
        return self.model

    def refuse_if_merged(self, what: str) -> None:
        """Refuse what would read or write the state while the adapter is in the weights.

        Args:
            what: What was called, for the error.

        Raises:
            MethodError: If the adapter is merged.
        """
        if self.merged:
            raise MethodError(
                f"{what}: expected an adapter beside the weights, got one that is merged into "
                "them. Call unmerge() first."
            )


def find_adaptations(pl_module: nn.Module) -> dict[str, Adaptation]:
    """Find every adapted backbone below a module.

    Returns:
        The path of each adapted backbone (``""`` for the module itself) and its adaptation.
    """
    found = ((path, find_adaptation(part)) for path, part in pl_module.named_modules())
    return {path: adaptation for path, adaptation in found if adaptation is not None}
