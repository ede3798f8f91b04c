"""Taking a ``PeftModel`` as it is: its adapters become an adaptation, nothing is put into it."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.checks import Checks, as_names, key_problems, parameters_named
from lightning_peft.adaptation.handle import ATTRIBUTE, Adaptation
from lightning_peft.adaptation.injection import Injection
from lightning_peft.adaptation.merging import MergeReport
from lightning_peft.adaptation.modes import release
from lightning_peft.adaptation.precision import AdapterDtype, let_go
from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.fast_path import fast_path_layers, fast_path_off, fast_path_on
from lightning_peft.anatomy.fingerprint import backbone_fingerprint
from lightning_peft.anatomy.names import every_name, inside, parameters_inside
from lightning_peft.errors import AdapterFileError, MethodError, some
from lightning_peft.files.writing import write_files
from lightning_peft.methods.base import Adapter, Site
from lightning_peft.methods.existing import Existing, configs_of
from lightning_peft.methods.from_peft.layer import ParameterLayer, PeftLayer
from lightning_peft.methods.from_peft.parameters import tuned_places
from lightning_peft.methods.from_peft.token_rows import TOKEN_ROWS, TokenRows, is_token_layer
from lightning_peft.methods.from_peft.wrapped import (
    WRAPPED_IN_VAIN,
    active_configs,
    base_modules,
    base_tensors,
    holds_peft,
    is_peft_model,
    saved_copies,
)

__all__ = ["EXISTING", "ExistingAdaptation", "refuse_existing", "take_existing"]

EXISTING = "lp.PEFT('existing')"

_PROMPTS = "a prompt is a part of the input, and no weight can take its place"


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
            for name in model.peft_config:
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
        for name, config in model.peft_config.items():
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
        if any(c.is_prompt_learning for c in active_configs(self.model).values()):
            raise MethodError(f"'existing' cannot be merged: {_PROMPTS}.")
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


def take_existing(
    model: nn.Module,
    method: Existing,
    *,
    head: str | Sequence[str] | Literal[False] | None = None,
    also_train: str | Sequence[str] = (),
    batchnorm: str = "frozen",
    backbone_dropout: str = "train",
    adapter_dtype: AdapterDtype = None,
) -> ExistingAdaptation:
    """Make an adaptation of a ``PeftModel``; see :func:`adapt` for the arguments.

    Raises:
        MethodError: If it is none, trains nothing, or has a tuner that its wrapper does not train.
        TargetError: If ``also_train`` matches nothing.
    """
    checks = Checks()
    with checks:
        _refuse_what_does_not_work(model, method, head)
    more: tuple[str, ...] = ()
    with checks:
        more = parameters_named(model, also_train)
    checks.done()
    injection = _as_injection(model, more)
    adaptation = ExistingAdaptation(
        model=model,
        method=dataclasses.replace(method, configs=configs_of(model)),
        injection=injection,
        also_train=as_names(also_train),
        batchnorm=batchnorm,
        backbone_dropout=backbone_dropout,
    )
    fast_path_off(injection.fast_path)
    model.__dict__[ATTRIBUTE] = adaptation
    adaptation.set_adapter_dtype(adapter_dtype)
    adaptation.freeze()
    adaptation.hold_modes()
    return adaptation


def refuse_existing(model: nn.Module) -> None:
    """Refuse a model that has adapters of ``peft`` already, for any method but ``"existing"``.

    Args:
        model: The backbone.

    Raises:
        MethodError: With the two ways that work.
    """
    path = holds_peft(model)
    if path is None:
        return
    where = f"in '{path}' " if path else ""
    if is_peft_model(model.get_submodule(path)):
        way = f"Take it as it is with {EXISTING}, or build the backbone without get_peft_model"
    else:
        way = "Build the backbone without them (no add_adapter, no inject_adapter_in_model)"
    raise MethodError(
        f"expected a backbone without an adapter, got one that has adapters of peft {where}already."
        f" {way}, and give the callback the method."
    )


def _refuse_what_does_not_work(model: Any, method: Existing, head: Any) -> None:
    if not is_peft_model(model):
        raise MethodError(
            f"existing: expected a PeftModel (from peft.get_peft_model or "
            f"peft.PeftModel.from_pretrained), got {type(model).__name__}. Wrap the model with "
            "peft, or give the callback a method."
        )
    checks = Checks()
    with checks:
        method.refuse_others(configs_of(model))
    with checks:
        for config in active_configs(model).values():
            kind = getattr(config.peft_type, "value", str(config.peft_type))
            if kind in WRAPPED_IN_VAIN:
                raise MethodError(f"existing: {kind} {WRAPPED_IN_VAIN[kind]}.")
    with checks:
        if head and as_names(head) != _head_of(model):  # which a checkpoint has noted
            raise MethodError(
                f"existing: expected no head, got {head!r}: the PeftModel says what it trains. "
                "Name the module in modules_to_save of the config of peft, or in also_train."
            )
    with checks:
        if not any(p.requires_grad for p in model.parameters()):
            raise MethodError(
                "existing: expected a PeftModel that trains something, got one that is frozen. "
                "Load it with PeftModel.from_pretrained(..., is_trainable=True)."
            )
    checks.done()


def _as_injection(model: Any, also_train: Collection[str]) -> Injection:
    """Return what an injection would have, read from a ``PeftModel``."""
    base = list(base_tensors(model))
    base_ids = {id(tensor) for _, _, tensor in base}
    path, inner = _inner(model)
    found = anatomy(inner, head=None)
    copies = saved_copies(model)
    head = _head_of(model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    new = {name for name, tensor in every_name(model) if id(tensor) not in base_ids}
    in_head = set(parameters_inside(model, head))
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    trained |= set(also_train)
    frozen = [name for _, name, _ in base if name in parameters - trained]
    sites, adapters = _places(model, copies)
    # a module that is trained whole has the dtype of the layers around it
    whole = tuple(copies.values())
    return Injection(
        sites=sites,
        head=head,
        fingerprint=backbone_fingerprint(model, frozen, found.architecture),
        base_names={before: now for before, now, _ in base},
        base_modules=frozenset(now for _, now, _ in base_modules(model)),
        adapter=frozenset(new & parameters - in_head),
        adapter_buffers=frozenset((new - parameters) & set(model.state_dict())),
        own_dtype=frozenset(name for name in new if not inside(name, whole)),
        whole=frozenset(in_head),
        trained=frozenset(trained),
        originals={},
        adapters=adapters,
        fast_path=fast_path_layers(model, [site.module for site in sites]),
        fixed=(),
        held=(),
        flags={},
        blocks=tuple(f"{path}.{name}" for name in found.blocks),
        how="",
        doubt="",
    )


def _inner(model: Any) -> tuple[str, nn.Module]:
    """Return the model inside of a ``PeftModel``, and its path."""
    inner = model.get_base_model()
    return next(name for name, module in model.named_modules() if module is inner), inner


def _head_of(model: Any) -> tuple[str, ...]:
    """Return the copies that ``peft`` trains of the layers that belong to the task."""
    copies = saved_copies(model)
    if not copies:
        return ()
    path, inner = _inner(model)
    named = {f"{path}.{name}" for name in anatomy(inner, head=None).head}
    return tuple(copy for name, copy in copies.items() if name in named)


def _places(model: Any, copies: Mapping[str, str]) -> tuple[tuple[Site, ...], list[Adapter]]:
    """Return the places of the adapters, and the handles on those that can be merged."""
    configs = active_configs(model).values()
    kinds = {str(getattr(c.peft_type, "value", c.peft_type)).lower() for c in configs}
    kind = ", ".join(sorted(kinds))
    sites: list[Site] = []
    adapters: list[Adapter] = []
    for module, parameter in sorted(tuned_places(model)):
        if is_token_layer(model, module):
            name = module.removesuffix(".token_adapter")
            sites.append(Site(name, TOKEN_ROWS))
            adapters.append(TokenRows(model, name))
            continue
        sites.append(Site(module, kind, parameter=parameter))
        adapters.append(
            ParameterLayer(model, module, parameter) if parameter else PeftLayer(model, module)
        )
    sites += [Site(name, "saved whole") for name in copies]
    if not adapters and "prompt_encoder" in model._modules:
        sites += [Site(f"prompt_encoder.{name}", kind) for name in model.prompt_encoder]
    elif not adapters:
        sites += [
            Site(name, kind)
            for name, module in model.named_modules()
            if name
            and any(p.requires_grad for p in module.parameters(recurse=False))
            and not inside(name, tuple(copies))
        ]
    return tuple(sites), adapters
