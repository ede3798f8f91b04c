"""Translation between the names in an adapted model and those in a file of ``peft``."""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_peft.errors import AdapterFileError, MethodError, some
from lightning_peft.files.derived import derived_entries, is_derived
from lightning_peft.files.rank_format import (
    divisors,
    pruned_for_peft,
    with_all_ranks,
    without_ranks,
)
from lightning_peft.files.start_format import (
    converted_config,
    converted_state,
    factor_names,
    is_convertible,
    split_state,
)
from lightning_peft.files.task_type import task_type_of
from lightning_peft.methods.base import Method
from lightning_peft.methods.from_peft.in_weight import is_in_weight
from lightning_peft.methods.from_peft.inject import ADAPTER_NAME, shared_entries
from lightning_peft.methods.from_peft.layer import FURTHER_NAMES
from lightning_peft.methods.from_peft.method import PeftMethod
from lightning_peft.methods.from_peft.parameters import read_as_written
from lightning_peft.methods.from_peft.start import starts_of
from lightning_peft.methods.from_peft.tuners import config_class, refusal
from lightning_peft.methods.hf import HF
from lightning_peft.methods.in_weight.part import Part

__all__ = ["described_by_peft", "from_peft_keys", "peft_form", "to_peft_keys"]

_TUNER = "base_model."
_PREFIX = f"{_TUNER}model."


def peft_form(
    model: nn.Module, method: Method, head: Sequence[str], wanted: Collection[str]
) -> tuple[dict[str, Any], dict[str, Tensor]] | str:
    """Return the config and tensors that ``peft`` would write for an adapted model.

    Args:
        model: The adapted model.
        method: How it was adapted.
        head: Names of the head's modules.
        wanted: The entries of its state dict to keep.

    Returns:
        The content of ``adapter_config.json`` and the trained tensors under the names that ``peft``
        uses (a shared tensor as often as ``peft`` does), or why ``peft``'s format cannot express
        what is trained, for a person.
    """
    if not isinstance(method, PeftMethod):
        return f"peft has no method '{method.name}'"
    twofold = _with_further_names(model)
    if twofold:
        return f"peft adapts a module under one name only ({some(twofold)} have several)"
    unknown = _unknown_to_peft(model)
    if unknown:
        return f"peft adapts layers whose weight is a parameter, not {some(unknown)}"
    standing: Any = model
    read = read_as_written(standing.peft_config[ADAPTER_NAME], model)
    if read is None:
        return (
            "peft takes the names of some adapted layers for those of fused experts, and adapts "
            "their weights as parameters by plain LoRA only, without dropout and beside numbers"
        )
    own = model.state_dict()
    saved = (*head, *method.saved_modules(model))
    names = _names_by_peft(model, saved, own, wanted)
    left = set(wanted) - factor_names(model) - set(divisors(model)) - set(names.values())
    if left:
        return f"peft has no name for {some(sorted(left))}"
    config = _written_config(model, read, saved)
    state = _written_state(model, own, names)
    if not starts_of(model):
        return pruned_for_peft(model, config, state, names)
    if not is_convertible(model):
        return "peft cannot read an initialisation that rewrote these weights as plain LoRA"
    return converted_config(config), converted_state(model, state, names)


def _written_config(model: nn.Module, read: Any, saved: Sequence[str]) -> dict[str, Any]:
    config = copy.deepcopy(read)
    config.inference_mode = True
    if config.task_type is None:
        config.task_type = task_type_of(model, saved)
    # peft cannot read its own file if one lies in another
    outer = {name for name in saved if not any(name.startswith(f"{other}.") for other in saved)}
    config.modules_to_save = sorted(outer) or None
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)  # peft's own writer: sets, enums and its version
        written: dict[str, Any] = json.loads(Path(directory, "adapter_config.json").read_text())
    return written


def _written_state(
    model: nn.Module, own: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, Tensor]:
    return {**{key: own[name] for key, name in names.items()}, **derived_entries(model)}


def to_peft_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the prefix of a ``peft`` file to all names except those of the tuner itself."""
    return {
        name if name.startswith(_TUNER) else f"{_PREFIX}{name}": tensor
        for name, tensor in state.items()
    }


def from_peft_keys(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    method: Method,
    head: Sequence[str],
    wanted: Collection[str],
    factors: bool = False,
    ranks: object = None,
) -> dict[str, Tensor]:
    """Return the tensors of a ``peft`` file under the names of the adapted model.

    An entry that the model does not have keeps its name from the file.

    Args:
        tensors: The tensors of the file.
        model: The adapted model.
        method: How it was adapted.
        head: Names of the head's modules.
        wanted: The entries of its state dict that a file must hold.
        factors: Whether it holds what an initialisation took out of the weights.
        ranks: Which ranks of AdaLoRA it holds: ``rank_pattern`` of its config.

    Raises:
        AdapterFileError: If two different entries have the same name in the model, or the ranks do
            not fit it.
    """
    twofold = _with_further_names(model)
    if twofold:
        raise AdapterFileError(
            "expected modules with one name each for an adapter that peft wrote, got "
            f"{some(twofold)} with further names: peft adapts a module under its first "
            "name only, which is another function. Give each name a module of its own."
        )
    names = _names_by_peft(model, (*head, *_saved(method, model)), model.state_dict(), wanted)
    known = derived_entries(model)
    state: dict[str, Tensor] = {}
    twice = []
    for written, tensor in tensors.items():
        key = written.removeprefix(_PREFIX)
        if is_derived(key, tensor, known):
            continue
        name = names.get(key, key)
        if name in state and not torch.equal(state[name], tensor):  # RandLora writes both
            twice.append(name)
        state[name] = tensor
    state = with_all_ranks(model, split_state(model, state, factors), ranks)
    if twice:
        raise AdapterFileError(f"expected each entry once, got {some(twice)} again.")
    return state


def described_by_peft(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the description of an adapter that ``peft`` wrote.

    Args:
        config: The content of its ``adapter_config.json``. Entries that name other files, models or
            code (``base_model_name_or_path``, ``auto_mapping``, ``revision``) are not used.
        path: The file, for the error.

    Returns:
        As :meth:`Adaptation.describe`, without a fingerprint, which ``peft`` does not keep, and
        without a head: a model says which of the modules in it belong to the task.

    Raises:
        AdapterFileError: If it is not a config of ``peft``, or has settings that the installed
            ``peft`` does not know.
    """
    kind = config.get("peft_type")
    if not isinstance(kind, str):
        raise AdapterFileError(
            f"{path}: expected 'peft_type' or 'lightning_peft', got "
            f"{some(sorted(config), 12) or 'none'}. Is this an adapter directory?"
        )
    reason = refusal(kind)
    if reason is not None:
        raise AdapterFileError(f"{path}: {reason}.")
    cls = config_class(kind)
    fields = {field.name for field in dataclasses.fields(cls)}
    beyond = [key for key, value in config.items() if key not in fields and value]
    if beyond:
        raise AdapterFileError(
            f"{path}: expected settings that peft {version('peft')} knows for {kind}, got "
            f"{some(sorted(beyond))} (written by peft "
            f"{config.get('peft_version', 'of an unknown version')!s:.40}). Update peft to read it."
        )
    if kind == "ADALORA":  # which ranks are left is part of the state, not a setting
        config = {**config, "rank_pattern": None}
    # read by an initialisation, which is over; a converted file still has them
    config = {**config, "corda_config": None, "lora_ga_config": None, "eva_config": None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about training, which is over
            made = cls(**{key: value for key, value in config.items() if key in fields})
            method = HF.from_peft(made).to_config()
    except MethodError as error:
        raise AdapterFileError(f"{path}: {error}") from error
    except Exception as error:  # a value of the wrong kind can raise anything
        raise AdapterFileError(f"{path}: peft cannot read it: {error}") from error
    saved = config.get("modules_to_save") or ()
    if not isinstance(saved, list | tuple):
        raise AdapterFileError(f"{path}: expected 'modules_to_save' to be a list, got {saved!r}.")
    return {"method": method, "head": None}


def _with_further_names(model: nn.Module) -> list[str]:
    """Return the adapted layers that the model has under several names, which ``peft`` has not."""
    return [name for name, module in model.named_modules() if FURTHER_NAMES in module.__dict__]


def _unknown_to_peft(model: nn.Module) -> list[str]:
    """Return the adapted layers whose weight ``peft`` alone does not find or cannot write.

    Parts are no modules of the backbone, and a parametrization computes its weight. A weight that
    is a parameter is one to ``peft`` too, whoever reads it: merged by ``peft``, it is ours.
    """
    return [
        name
        for name, layer in model.named_modules()
        if is_in_weight(layer)
        and (isinstance(layer.base_layer, Part) or is_parametrized(layer.base_layer))
    ]


def _names_by_peft(
    model: nn.Module, saved: Sequence[str], own: dict[str, Tensor], wanted: Collection[str]
) -> dict[str, str]:
    """Return the model's name for each name that ``peft`` uses.

    Args:
        model: The adapted model.
        saved: Names of modules that are saved whole.
        own: The model's state dict.
        wanted: The names in it to keep.
    """
    from peft.functional import get_peft_model_state_dict

    # peft returns the tensors that it is given, so each can be recognised by identity
    by_identity = {id(tensor): name for name, tensor in own.items()}
    shared = shared_entries(model, list(own))
    with without_ranks(model):
        given = get_peft_model_state_dict(
            model,
            state_dict={**own, **{alias: own[name] for alias, name in shared.items()}},
            adapter_name=ADAPTER_NAME,
            save_embedding_layers=False,
        )
    names = {key: by_identity[id(t)] for key, t in given.items() if id(t) in by_identity}
    for alias, name in shared.items():  # if peft writes both, it reads either
        names[alias.replace(f".{ADAPTER_NAME}", "")] = name
    roots = tuple(f"{name}." for name in saved)
    names.update({name: name for name in own if name.startswith(roots) and name in wanted})
    return names


def _saved(method: Method, model: nn.Module) -> tuple[str, ...]:
    return method.saved_modules(model) if isinstance(method, PeftMethod) else ()
