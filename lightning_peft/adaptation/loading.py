"""Loading a stored adapter into a backbone, with checks first and a rollback after an error."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.adapt import adapt
from lightning_peft.adaptation.checks import key_problems, value_problems
from lightning_peft.adaptation.existing.handle import ExistingAdaptation
from lightning_peft.adaptation.fixed import fixed_then
from lightning_peft.adaptation.handle import Adaptation, find_adaptation
from lightning_peft.adaptation.snapshot import restored_after_error
from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.fingerprint import differences
from lightning_peft.anatomy.names import inside
from lightning_peft.errors import AdapterFileError, BackboneMismatchError, PEFTError, shown, some
from lightning_peft.files.bounded import AllocationLimit
from lightning_peft.files.description import check_description, check_format
from lightning_peft.files.patterns import slow_patterns, strings_in
from lightning_peft.files.rank_format import note_ranks
from lightning_peft.files.reading import StoredAdapter, read_adapter, read_files
from lightning_peft.files.writing import WEIGHTS_FILE
from lightning_peft.kernels import Memory
from lightning_peft.methods.from_peft.method import PeftMethod
from lightning_peft.methods.from_peft.start import Loading, follow_factors, loading
from lightning_peft.methods.registry import method_from_config

__all__ = [
    "adapt_from_description",
    "adapted_as",
    "fitting_state",
    "load_adapter",
    "named_state",
]


def load_adapter(
    model: nn.Module,
    directory: str | PathLike[str],
    *,
    strict_backbone: bool = True,
    memory: Memory | None = None,
) -> nn.Module:
    """Load an adapter, of this package or of ``peft``, into a fresh backbone.

    Args:
        model: The backbone that the adapter was trained on, not yet adapted; changed in place. If
            it is already adapted with the same method, only the values are loaded.
        directory: An adapter directory. Nothing in it is executed or unpickled, and no other file
            is read, whatever it names.
        strict_backbone: Whether another backbone is an error (``True``) or a warning.
        memory: As for :func:`adapt`; ``None`` leaves a backbone that is already adapted as it is.

    Returns:
        The same model, adapted. :func:`find_adaptation` returns the handle.

    Raises:
        AdapterFileError: If a file is missing, truncated, tampered with, of a newer format, or its
            entries do not fit the method that it names.
        BackboneMismatchError: If the adapter was trained on another backbone; the error
            lists the differences.
        MethodError: If the method cannot be applied to this model, or not with this ``memory``, or
            its adapter is merged.
        TargetError: If a selection in the config does not fit this model.

    After any error, the model is as it was before.

    >>> import copy, tempfile
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> fresh = copy.deepcopy(net)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     lp.adapt(net, "lora", rank=2).save(directory)
    ...     fresh = lp.load_adapter(fresh, directory)
    ...
    >>> lp.find_adaptation(fresh).method.rank
    2
    """
    standing = find_adaptation(model)
    if isinstance(standing, ExistingAdaptation):
        standing.state.ask("load_adapter()")
        standing.load_values(*read_files(directory))
        return model
    stored = read_adapter(directory)
    if standing is not None:
        standing.state.ask("load_adapter()")
    with restored_after_error(model):
        adaptation = standing or adapted_as(model, stored, memory or "default")
        state = fitting_state(adaptation, stored, strict_backbone=strict_backbone)
        if standing is not None and memory is not None:
            standing.set_memory(memory)
    own = adaptation.model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    follow_factors(model)
    note_ranks(adaptation.model, stored.ranks)
    return model


def adapted_as(model: nn.Module, stored: StoredAdapter, memory: Memory = "default") -> Adaptation:
    """Adapt a backbone like a stored adapter, without loading its values.

    Args:
        model: The backbone; changed in place.
        stored: The stored adapter.
        memory: As for :func:`adapt`.

    Raises:
        AdapterFileError: If the description asks for more than the file holds.
        MethodError: If the method cannot be applied to this model.
    """
    held = sum(tensor.numel() for tensor in stored.tensors.values())
    about = stored.about
    if "fingerprint" not in about:  # written by peft
        about = {**about, "head": _head_in(about, model)}
    return adapt_from_description(model, about, str(stored.path), held, memory)


def _head_in(about: Mapping[str, Any], model: nn.Module) -> list[str]:
    """Return the modules that a file of ``peft`` holds whole and that belong to the task."""
    method = method_from_config(about["method"])
    saved = method.saved_modules(model) if isinstance(method, PeftMethod) else ()
    outer = [name for name in saved if not any(name.startswith(f"{o}.") for o in saved)]
    head = anatomy(model).head if outer else ()
    return [name for name in outer if any(inside(h, (name,)) for h in head)]


def fitting_state(
    adaptation: Adaptation, stored: StoredAdapter, *, strict_backbone: bool = True
) -> dict[str, Tensor]:
    """Check a stored adapter against an adapted model; neither is changed.

    Args:
        adaptation: The adaptation to load the values into.
        stored: The stored adapter.
        strict_backbone: Whether another backbone is an error (``True``) or a warning.

    Returns:
        The tensors under the model's names.

    Raises:
        AdapterFileError: If it was made with another method or the entries do not fit.
        BackboneMismatchError: If the adapter was trained on another backbone.
    """
    path, about = stored.path, stored.about
    if adaptation.method.to_config() != about["method"]:
        raise AdapterFileError(
            f"{path} holds {about['method']}, the model is adapted with "
            f"{adaptation.method.to_config()}. Load it into a backbone that is not adapted."
        )
    _check_backbone(adaptation, about.get("fingerprint"), path, strict_backbone)
    own = adaptation.model.state_dict()
    state = named_state(adaptation, stored)
    problems = key_problems(state, own, _saved(adaptation))
    problems += value_problems(state, own)
    problems += _not_finite(state, own)
    if problems:
        raise AdapterFileError(
            f"{path / WEIGHTS_FILE} does not fit its own config "
            f"({adaptation.method.name}): " + "; ".join(problems)
        )
    return state


def named_state(adaptation: Adaptation, stored: StoredAdapter) -> dict[str, Tensor]:
    """Return the tensors of a stored adapter under the names of an adapted model, unchecked."""
    return stored.state_for(
        adaptation.model, adaptation.method, adaptation.head, adaptation.state_names()
    )


def _saved(adaptation: Adaptation) -> set[str]:
    """Return the names that a file must hold: all state except the backbone's own buffers."""
    trained, backbone = set(adaptation.trained_names()), set(adaptation.base_names.values())
    return {name for name in adaptation.state_names() if name in trained or name not in backbone}


def _not_finite(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterable[str]:
    """Yield the tensors that are not finite, or not in the dtype that they are loaded into."""
    for name, tensor in state.items():
        pair = (tensor, own[name]) if name in own else ()
        floats = pair and all(part.is_floating_point() or part.is_complex() for part in pair)
        if floats and not torch.isfinite(tensor.to(own[name].dtype)).all():
            yield f"not finite: {name}"


def _check_backbone(
    adaptation: Adaptation, expected: object, path: Path, strict_backbone: bool
) -> None:
    if not isinstance(expected, Mapping):
        return  # written by peft, which keeps no fingerprint
    found = differences(expected, adaptation.fingerprint)
    if not found:
        return
    message = (
        f"the adapter in {path} was trained on another backbone: " + "; ".join(found) + ". "
        "Load the backbone with the same pretrained weights, or pass strict_backbone=False."
    )
    if strict_backbone:
        raise BackboneMismatchError(message)
    warnings.warn(message, stacklevel=4)


def adapt_from_description(
    model: nn.Module,
    about: Mapping[str, Any],
    where: str,
    held: int | None = None,
    memory: Memory = "default",
) -> Adaptation:
    """Adapt a backbone according to a description from :meth:`Adaptation.describe`.

    Args:
        model: The backbone; changed in place.
        about: The description, from an adapter's header or a checkpoint.
        where: The file's name, for the error.
        held: The number of elements in the file, which limits the allocations.
        memory: As for :func:`adapt`; it is not part of a file.

    Returns:
        The adaptation.

    Raises:
        AdapterFileError: If the description is of a newer format, is not one, or cannot be carried
            out.
        MethodError: If the method cannot be applied to this model.
        TargetError: If a selection does not fit this model.
    """
    check_format(about, where)
    check_description(about, where)
    head = about.get("head")
    try:
        method = method_from_config(about["method"])
        _refuse_slow(about, model, where)
        what: Loading = "factors" if about.get("start") == "factors" else "values"
        fixed = fixed_then(about.get("fixed", ()))
        with loading(what), fixed, AllocationLimit(model, held or 0, where):
            return adapt(
                model,
                method,
                head=None if head is None else (tuple(head) or False),
                also_train=tuple(about.get("also_train", ())),
                batchnorm=about.get("batchnorm", "frozen"),
                backbone_dropout=about.get("backbone_dropout", "train"),
                memory=memory,
            )
    except PEFTError:
        raise
    except Exception as error:  # a setting of the wrong kind can raise anything, anywhere
        raise AdapterFileError(
            f"{where}: expected a config that can be carried out on this "
            f"{type(model).__name__}, got {type(error).__name__}: {error}"
        ) from error


def _refuse_slow(about: Mapping[str, Any], model: nn.Module, where: str) -> None:
    names = [name for name, _ in model.named_modules()]
    # our "re:" entries; peft reads some options, and keys of mappings, as expressions too
    patterns = {text.removeprefix("re:") for text in strings_in(about["method"])}
    longest = max(map(len, names), default=0) + len(".weight")
    slow = slow_patterns(sorted(patterns), len(names), longest)
    if slow:
        raise AdapterFileError(
            f"{where}: expected regular expressions that are matched in a bounded time, got "
            f"{some([shown(text) for text in slow], 4)}. Name the modules instead."
        )
