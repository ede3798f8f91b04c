"""The handle on a ``PeftModel`` that is taken as it is."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.checks import key_problems
from lightning_peft.adaptation.handle import ATTRIBUTE, Adaptation
from lightning_peft.adaptation.merging import MergeReport
from lightning_peft.adaptation.modes import release
from lightning_peft.adaptation.precision import let_go
from lightning_peft.anatomy.fast_path import fast_path_off, fast_path_on
from lightning_peft.errors import AdapterFileError, MethodError, some
from lightning_peft.files.writing import write_files
from lightning_peft.methods.from_peft.wrapped import active_configs, saved_copies

__all__ = ["ExistingAdaptation"]

_PROMPTS = "a prompt is a part of the input, and no weight can take its place"
_MIXED = "X-LoRA mixes its adapters anew for every token, and no weight can do so"


class ExistingAdaptation(Adaptation):
    """The handle on a ``PeftModel``: as :class:`Adaptation`, by ``peft``'s own means."""

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the adapter directory as ``save_pretrained`` of ``peft`` writes it.

        The default adapter is in the directory itself, each other one in a directory of its name.

        Args:
            directory: The directory; created if it does not exist.

        Raises:
            AdapterFileError: If the adapter is merged, or in another state in which this is
                refused, something is trained that ``peft``'s files do not hold, or the directory
                cannot be written.
        """
        self.state.ask("save()", AdapterFileError)
        left = sorted(set(self.trained_names()) - self._saved_by_peft())
        if left:
            raise AdapterFileError(
                f"save(): expected trained parameters that peft's files hold, got {some(left, 4)} "
                "too. Name their modules in modules_to_save of the config of peft, or save a "
                "checkpoint."
            )
        model: Any = self.model
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the hub, which is not asked
            for name in _with_files(model):
                model.save_pretrained(folder, selected_adapters=[name], save_embedding_layers=False)
            found = sorted(p for p in Path(folder).rglob("adapter_*") if p.is_file())
            write_files(directory, {p.relative_to(folder): p.read_bytes() for p in found})

    def _saved_by_peft(self) -> set[str]:
        """Return the names of the parameters that are in the files of ``peft``."""
        from peft import get_peft_model_state_dict

        model: Any = self.model
        own = model.state_dict(keep_vars=True)
        by_identity: dict[int, list[str]] = {}
        for name, tensor in own.items():
            by_identity.setdefault(id(tensor), []).append(name)
        held: set[str] = set()
        for name, config in _with_files(model).items():
            if config.is_prompt_learning:  # what is written is computed from them
                held |= {n for n in own if n.startswith(f"prompt_encoder.{name}.")}
            given = get_peft_model_state_dict(
                model, state_dict=own, adapter_name=name, save_embedding_layers=False
            )
            for tensor in given.values():
                held.update(by_identity.get(id(tensor), ()))
        return held

    def load_values(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        """Load the tensors of a file of ``peft`` into the active adapter.

        Args:
            tensors: The tensors, under the file's names.
            config: The file's config.

        Raises:
            AdapterFileError: If the file is of another tuner, or its entries do not fit.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        model: Any = self.model
        name, own = next(iter(active_configs(model).items()))
        kind = getattr(own.peft_type, "value", own.peft_type)
        if config.get("peft_type") != kind:
            raise AdapterFileError(
                f"expected an adapter of the tuner {kind}, as in the PeftModel, got "
                f"{config.get('peft_type')}. Load it into a backbone without an adapter."
            )
        if own.is_prompt_learning:
            _refuse_computed_prompts(model.prompt_encoder[name], kind)
        expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        problems = key_problems(tensors, expected, set(expected))
        if problems:
            raise AdapterFileError("the file does not fit the PeftModel: " + "; ".join(problems))
        set_peft_model_state_dict(model, dict(tensors), adapter_name=name)

    def disabled(self) -> AbstractContextManager[None]:
        """Switch the adapters off inside the context, and the copies of ``modules_to_save`` too.

        Raises:
            MethodError: If the adapter is merged, or in another state in which this is refused.
        """
        self.state.ask("disabled()")
        return self._off()

    @contextmanager
    def _off(self) -> Iterator[None]:
        if self.state.disabled:
            yield
            return
        model: Any = self.model
        flags = [(p, p.requires_grad) for p in model.parameters()]
        fast_path_on(self._fast_path)
        try:
            with _switched_off_by_peft(model):
                self.state.disabled = True
                yield
        finally:
            self.state.disabled = False
            fast_path_off(self._fast_path)
            for parameter, flag in flags:  # peft ties it to being on
                parameter.requires_grad_(flag)

    def merge(
        self, example_inputs: Any = None, *, dequantize: bool | str | torch.dtype = False
    ) -> MergeReport:
        """Fold the adapters into the weights: see :meth:`Adaptation.merge`.

        Raises:
            MethodError: As there; prompts cannot be merged, and ``peft``'s layers stay, so that
                ``dequantize`` cannot put others in their place.
        """
        if dequantize is not False:
            raise MethodError(
                f"'existing': expected dequantize=False, got {dequantize!r}: the layers are those "
                "of peft. Use lp.load_adapter on the plain model, and merge there."
            )
        if any(config.is_prompt_learning for config in active_configs(self.model).values()):
            raise MethodError(f"'existing' cannot be merged: {_PROMPTS}.")
        model: Any = self.model
        if _mixes(model):
            raise MethodError(f"'existing' cannot be merged: {_MIXED}.")
        if not self._adapters:
            kinds = sorted({site.kind for site in self.sites})
            raise MethodError(
                f"'existing' cannot be merged: {', '.join(kinds)} changes no weight of a layer."
            )
        return super().merge(example_inputs)

    def _unload(self) -> nn.Module:
        model: Any = self.model
        prompts = any(config.is_prompt_learning for config in model.peft_config.values())
        if not prompts and not hasattr(type(model.base_model), "unload"):
            raise MethodError(
                f"unload(): expected a tuner that peft can take out of a model, got "
                f"{type(model.base_model).__name__}. Use disabled(), or build the model again."
            )
        fast_path_on(self._fast_path)
        let_go(model)
        release(model.modules())
        base: nn.Module = model.get_base_model()
        if not prompts:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is merged already, which is meant so
                base = model.merge_and_unload() if self.merged else model.unload()
        model.__dict__.pop(ATTRIBUTE, None)
        self.state.leave()
        return base

    def detach_adapters(self) -> None:
        """Refuse: what is around the layers is ``peft``'s, and stays."""
        raise MethodError("a PeftModel cannot be taken apart layer by layer: use disabled().")


def _mixes(model: Any) -> bool:
    """Whether the adapters are those of X-LoRA, which a classifier mixes."""
    return any(config.peft_type == "XLORA" for config in model.peft_config.values())


def _with_files(model: Any) -> dict[str, Any]:
    """Return the configs of the adapters that ``peft`` writes; X-LoRA's own were files before."""
    mixed = _mixes(model)
    return {n: c for n, c in model.peft_config.items() if not mixed or c.peft_type == "XLORA"}


def _refuse_computed_prompts(encoder: nn.Module, kind: str) -> None:
    """Refuse to load prompts into an encoder that computes them, which no file of ``peft`` has."""
    inner = [name for name, _ in encoder.named_parameters() if not name.startswith("embedding.")]
    if inner:
        raise AdapterFileError(
            f"expected a tuner whose file holds what is trained, got {kind}: peft writes the "
            f"prompts and not the encoder that computes them ({some(inner)}). To predict, load it "
            "with peft.PeftModel.from_pretrained; to train on, resume from a checkpoint."
        )


@contextmanager
def _switched_off_by_peft(model: Any) -> Iterator[None]:
    """Switch the adapters off; ``peft`` itself raises for prompts before a model without text."""
    prompts = model.peft_config[model.active_adapter].is_prompt_learning
    if not prompts or hasattr(model, "prepare_inputs_for_generation"):
        with model.disable_adapter():
            yield
        return
    copies = [model.get_submodule(name) for name in saved_copies(model)]
    before = model.__dict__.get("forward")
    model.forward = model.base_model.forward
    for wrapper in copies:
        wrapper.enable_adapters(False)
    try:
        yield
    finally:
        for wrapper in copies:
            wrapper.enable_adapters(True)
        del model.forward
        if before is not None:
            model.forward = before
