"""``Adaptation``: the handle on one adapted backbone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_peft.adaptation.checks import key_problems
from lightning_peft.adaptation.dense import dense_dtype
from lightning_peft.adaptation.merging import MergeReport, merge_adapters, unload_adapters
from lightning_peft.adaptation.modes import is_held
from lightning_peft.adaptation.precision import let_go
from lightning_peft.adaptation.report import Report, make_report
from lightning_peft.adaptation.switching_off import switched_off
from lightning_peft.adaptation.trained import Trained
from lightning_peft.anatomy.names import shared_names
from lightning_peft.errors import AdapterFileError, CheckpointError, MethodError
from lightning_peft.files.peft_format import peft_form
from lightning_peft.files.writing import write_adapter
from lightning_peft.methods.from_peft.inject import SHARED
from lightning_peft.methods.from_peft.method import PeftMethod
from lightning_peft.methods.from_peft.start import follow_factors, starts_of, weight_problems

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

    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> lp.find_adaptation(net) is None
    True
    >>> adaptation = lp.adapt(net, "bitfit")
    >>> lp.find_adaptation(net) is adaptation
    True
    """
    # a PeftModel hands on what it has not to the model inside, which may be compiled
    found = (model._modules.get("_orig_mod") or model).__dict__.get(ATTRIBUTE)
    return found if isinstance(found, Adaptation) else None


class Adaptation(Trained):
    """The handle on one adapted backbone: trained parameters, state, merge, disable, report.

    :func:`adapt` returns it. It is stored on the model, so a deep copy of the model has its own.

    Attributes:
        model: The adapted backbone.
        method: How it was adapted.
        sites: The adapted places.
        head: Names of the head's modules; empty if there is none.
        blocks: Names of the repeated blocks, as they were found before; an adapter that is added
            may look like blocks to another search.
        fingerprint: The fingerprint of the frozen backbone.
        fixed: Names, before the adaptation, of the parameters that the module itself fixed
            (``requires_grad=False`` in a model that is not frozen as a whole). They stay so;
            ``also_train`` trains them by name.
        held: Those of them that would be trained otherwise.
        left_out: What has no adapter although one would be expected, with the word that adapts it:
            fused experts, recurrent layers.
        how: How the head was found, for a person; empty if it was named, or there is none.
        doubt: What may be wrong about that guess; empty if nothing.
        state: Whether it is merged, disabled, averaged, sharded or unloaded.
        adapter_dtype: The dtype that was asked for; ``None`` is float32 or finer.
        restored_steppers: The steppers' states from a checkpoint, for the run that resumes from it.
        follows: For a teacher, the path in its module of the student that is trained.
        written: Names of frozen tensors that a run has changed nevertheless, which are saved too.

    >>> import torch
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x, before = torch.ones(1, 4), net(torch.ones(1, 4))
    >>> adaptation = lp.adapt(net, "lora", rank=2, targets="2")
    >>> sorted(adaptation.state_dict())
    ['2.lora_A.default.weight', '2.lora_B.default.weight']
    >>> with adaptation.disabled():
    ...     torch.equal(net(x), before)
    ...
    True
    >>> net = adaptation.merge_and_unload()
    >>> sorted(net.state_dict())
    ['0.bias', '0.weight', '2.bias', '2.weight']
    """

    def state_names(self) -> frozenset[str]:
        """Return the names in ``model.state_dict()`` that a checkpoint must hold.

        These are the trained parameters, other tensors of the adapter, parameters that were
        unfrozen since, and buffers that training can change (the statistics of a BatchNorm that is
        not kept in evaluation mode). A tensor that several modules share has one name.
        """
        names = self._trained | self._adapter | self._adapter_buffers | self.written
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad:
                names.add(name)
        for name, module in self.model.named_modules():
            if isinstance(module, _NormBase) and module.track_running_stats and not is_held(module):
                names |= {f"{name}.{key}" for key, _ in module.named_buffers(recurse=False)}
        return frozenset(names & set(self.model.state_dict()) - set(shared_names(self.model)))

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save, by the model's own names; they are not copied.

        Raises:
            MethodError: In a state in which they are something else: see ``docs/states.md``.
        """
        self.state.ask("state_dict()")
        names = self.state_names()
        return {n: t for n, t in self.model.state_dict().items() if n in names}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the result of :meth:`state_dict`, checked both ways before anything is changed.

        Args:
            state: Tensors by name. It may include frozen entries of the backbone.

        Raises:
            CheckpointError: If a trained entry is missing, an entry is unknown, or a shape differs;
                all of them are listed.
            MethodError: If the adapter is merged, or in another state in which this is refused.
        """
        self.state.ask("load_state_dict()")
        own = self.model.state_dict()
        required = self._trained | self._adapter | self._adapter_buffers
        required = required & set(own) - set(shared_names(self.model))
        problems = key_problems(state, own, required) or weight_problems(self.model, state)
        if problems:
            raise CheckpointError(
                f"the state does not fit this adaptation ({self.method.name}): "
                + "; ".join(problems)
                + ". Was it made with another method, rank or target?"
            )
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)
        follow_factors(self.model)

    def describe(self) -> dict[str, Any]:
        """Describe the adaptation as plain JSON types, enough to adapt another model like it."""
        start = {"start": "factors"} if starts_of(self.model) else {}
        follows = {} if self.follows is None else {"follows": self.follows}
        return {
            **start,
            **follows,
            "method": self.method.to_config(),
            "head": list(self.head),
            "also_train": list(self.also_train),
            "fixed": list(self.fixed),
            "batchnorm": self.batchnorm,
            "backbone_dropout": self.backbone_dropout,
            "fingerprint": self.fingerprint,
        }

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the adapter directory: see :func:`lightning_peft.files.writing.write_adapter`.

        Args:
            directory: The directory; created if it does not exist.

        Raises:
            AdapterFileError: If the adapter is merged, or in another state in which this is
                refused, nothing of the backbone is trained, or the directory cannot be written.
        """
        self.state.ask("save()", AdapterFileError)
        if not self.trained_names():
            raise AdapterFileError(
                "save(): expected an adaptation that trains something in the backbone, got "
                f"{self.method.name}, whose head is outside of it. Save a checkpoint of the module."
            )
        form: Any = ""
        if not self.also_train:  # peft's format cannot hold single parameters of the backbone
            form = peft_form(self.model, self.method, self.head, self.state_names())
        as_peft = None if isinstance(form, str) else form
        write_adapter(directory, self.describe(), self.state_dict(), as_peft)
        if isinstance(form, str) and form and isinstance(self.method, PeftMethod):
            warnings.warn(
                f"PEFT: {directory} is in the format of lightning-peft, which lp.load_adapter "
                f"reads and peft alone does not: {form}.",
                stacklevel=2,
            )

    def report(self) -> Report:
        """Count what is trained; the report prints as a table."""
        return make_report(
            self.model,
            self.method.name,
            self.sites,
            trained=set(self.trained_names()),
            adapter=set(self.adapter_names()),
            head=self.head_names(),
            left_out=self.left_out,
        )

    # --- switching it off, folding it in ----------------------------------------------------------

    @property
    def merged(self) -> bool:
        """Whether the adapter is currently folded into the weights."""
        return self.state.merged

    def disabled(self) -> AbstractContextManager[None]:
        """Switch the adapter off inside the context; the head stays as it is.

        Raises:
            MethodError: If the adapter is merged, or in another state in which this is refused, or
                the method trains so much of the backbone in place that no copy of the original is
                kept.
        """
        self.state.ask("disabled(), trained in place" if self._originals else "disabled()")
        if self.method.changes_backbone and not self.method.keeps_original:
            raise MethodError(
                f"disabled(): '{self.method.name}' trains the backbone in place and keeps no copy "
                "of the original weights. Load the backbone a second time to compare with it."
            )
        return switched_off(self.state, self._adapters, self._originals, self._fast_path)

    def merge(
        self, example_inputs: Any = None, *, dequantize: bool | str | torch.dtype = False
    ) -> MergeReport:
        """Fold the adapter into the backbone's weights; :meth:`unmerge` reverses it.

        Sums are computed in float32 whatever the weights' dtype, and rounded once. Into a quantised
        weight they go through its library's own quantiser, which is refused where that would lose
        more than the adapter changes.

        Args:
            example_inputs: A batch for the model's forward (a tensor, a tuple of positional or a
                mapping of keyword arguments), to measure how much merging changes the output.
            dequantize: Whether dense layers take the place of the quantised ones that are adapted,
                or their dtype; ``True`` takes that of the model's other weights.

        Returns:
            How exactly it was done.

        Raises:
            MethodError: If the adapter is already merged or is not a linear change of the weights,
                or ``dequantize`` has nothing to act on; nothing is changed then.
        """
        self.state.ask("merge()")
        dense = dense_dtype(self.model, [site.module for site in self.sites], dequantize)
        if not self.method.mergeable:
            raise MethodError(
                f"'{self.method.name}' cannot be merged: it is not linear, so no weight can "
                "replace it."
            )
        names = self._adapter | self._adapter_buffers
        state = {name: t for name, t in self.model.state_dict().items() if name in names}
        report = merge_adapters(
            self.model, self._adapters, self.method.name, state, example_inputs, dense
        )
        self.state.merged = True
        return report

    def unmerge(self) -> None:
        """Take a merged adapter out of the weights, up to rounding.

        Raises:
            MethodError: If it is not merged.
        """
        self.state.ask("unmerge()")
        for adapter in reversed(self._adapters):  # two may have written into one weight
            adapter.unmerge()
        self.state.merged = False

    def merge_and_unload(self, *, dequantize: bool | str | torch.dtype = False) -> nn.Module:
        """Fold the adapter in and return a plain model with the backbone's own names.

        Args:
            dequantize: As for :meth:`merge`.

        Returns:
            The same model object, without any trace of the adaptation; this handle is no longer
            usable.

        Raises:
            MethodError: As for :meth:`merge`.
        """
        self.state.ask("merge_and_unload()")
        if not self.merged:
            self.merge(dequantize=dequantize)
        return self._unload()

    def unload(self) -> nn.Module:
        """Remove the adapter without merging it.

        Returns:
            The same model object, without any trace of the adaptation; this handle is no longer
            usable. Parameters of the backbone that were trained in place keep their values; those
            that required a gradient before require it again.

        Raises:
            MethodError: If the adapter is merged, or in another state in which this is refused.
        """
        self.state.ask("unload()")
        return self._unload()

    def _unload(self) -> nn.Module:
        unload_adapters(self.model, self._adapters, self._fast_path)
        for key in (ATTRIBUTE, "peft_config", SHARED):
            self.model.__dict__.pop(key, None)
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(self._flags.get(name, parameter.requires_grad))
        self.state.leave()
        return self.model

    def detach_adapters(self) -> None:
        """Put the backbone's own modules back, without any other trace; :meth:`unload` is whole."""
        let_go(self.model)
        for adapter in self._adapters:
            adapter.unload()


def find_adaptations(pl_module: nn.Module) -> dict[str, Adaptation]:
    """Find every adapted backbone below a module.

    Returns:
        The path of each adapted backbone (``""`` for the module itself) and its adaptation.
    """
    found = ((path, find_adaptation(part)) for path, part in pl_module.named_modules())
    return {path: adaptation for path, adaptation in found if adaptation is not None}
