"""The three forms of a Lightning checkpoint: slim, full and merged.

``slim``
    What is trained, and the buffers that training can change. The base comes from the module.
``full``
    The base as well, under the names that it has without the adapter, which is beside it. The file
    alone is enough: it brings its base.
``merged``
    The ``state_dict`` is the one that the module would have without the callback: its own names,
    the adapter in the weights. So that a run can resume, and a callback can test it, what ``slim``
    holds is in the entry of lightning-peft beside it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.dense import make_dense
from lightning_peft.adaptation.handle import Adaptation, find_adaptation, find_adaptations
from lightning_peft.anatomy.names import bare_name, inside
from lightning_peft.anatomy.quantised import quantised_layers, state_beside
from lightning_peft.errors import MethodError
from lightning_peft.lightning.further_names import further_names, join, plain_name
from lightning_peft.methods.base import Method
from lightning_peft.methods.from_peft.start import follow_factors, kept_weights

__all__ = [
    "KINDS",
    "CheckpointKind",
    "brings_its_base",
    "frozen_names",
    "full_state",
    "merged_state",
    "present_state",
    "refuse_not_mergeable",
    "refuse_unmergeable",
]

CheckpointKind = Literal["slim", "full", "merged"]
KINDS: tuple[str, ...] = get_args(CheckpointKind)


def full_state(pl_module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of an adapted module with the base under its own names.

    Args:
        pl_module: The adapted module.
        state: Its state, or that of an average of it.

    Returns:
        The same tensors; a weight that the adapter's initialisation rewrote is the original.
    """
    shared = further_names(pl_module)
    result: dict[str, Tensor] = {}
    within: set[str] = set()
    every_added: set[str] = set()
    for path, adaptation in find_adaptations(pl_module).items():
        rewritten = {join(path, n): t for n, t in kept_weights(adaptation.model).items()}
        own = {join(path, name) for name in adaptation.model.state_dict()}
        now = {join(path, name) for name in adaptation.base_names.values()}
        added = {join(path, name) for name in adaptation.added_names()}
        within |= own
        every_added |= added
        for before, name in adaptation.base_names.items():
            found = join(path, name)
            if found in state:
                result[join(path, before)] = rewritten.get(found, state[found])
        for name in (own & set(state)) - now:
            if name in added:
                if name not in shared:
                    result[name] = state[name]
            else:  # the state of a quantised weight
                result.setdefault(bare_name(name), state[name])
    for name, tensor in state.items():
        if name in within or shared.get(name) in every_added:
            continue
        # the backbone may have another name beside its own
        result[bare_name(name) if name in shared else name] = tensor
    return result


def present_state(pl_module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state of :func:`full_state` under the names that the module has now."""
    own = list(pl_module.state_dict())
    now_of = {plain_name(found): found for found in own}  # peft's layers may lie in each other
    for found in own:
        now_of.setdefault(bare_name(plain_name(found)), found)
    for path, adaptation in find_adaptations(pl_module).items():
        for before, name in adaptation.base_names.items():
            now_of[plain_name(join(path, before))] = join(path, name)
    return {now_of.get(plain_name(name), name): tensor for name, tensor in state.items()}


def brings_its_base(adaptation: Adaptation) -> bool:
    """Whether the base of a full checkpoint can take the place of the one that was adapted.

    It cannot where something was computed or kept of that one: the initial values of PiSSA and the
    like, and the originals of what is trained in place, which ``disabled()`` shows. Nor where the
    base is quantised, whose libraries write the state of their codes and do not read it back.
    """
    kept = quantised_in(adaptation)
    return not (kept or kept_weights(adaptation.model) or adaptation.keeps_originals())


def frozen_names(adaptations: Mapping[str, Adaptation]) -> set[str]:
    """Return the names, in a module, of what a slim checkpoint leaves out.

    Args:
        adaptations: Adaptations of the module, by the paths of their backbones.
    """
    return {
        join(path, name)
        for path, adaptation in adaptations.items()
        for name in set(adaptation.model.state_dict()) - adaptation.state_names()
    }


def merged_state(pl_module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state that a module would have without the adaptation, the adapter merged.

    A copy of each adapted backbone is merged, so that the frozen weights stay as they are, bit for
    bit.

    Args:
        pl_module: The adapted module; it is not changed.
        state: Its state, or that of an average of it.

    Returns:
        Tensors by the names of the module's own class.

    Raises:
        MethodError: If an adapter cannot be merged, or the backbone cannot be copied.
    """
    shared = further_names(pl_module)
    result = full_state(pl_module, state)
    for path, adaptation in find_adaptations(pl_module).items():
        for name in adaptation.added_names():
            result.pop(join(path, name), None)
        for name in state_beside(adaptation.model):
            result.pop(join(path, name).replace(".base_layer.", "."), None)
        result.update(_merged(path, adaptation, state))
        base = {join(path, now): join(path, b) for b, now in adaptation.base_names.items()}
        for name, first in shared.items():  # a tensor of the backbone with a name outside of it
            outside = bare_name(name)
            if outside in result and base.get(first) in result:
                result[outside] = result[base[first]]
    return result


def refuse_not_mergeable(method: Method, who: str) -> None:
    """Refuse a method that is not a linear change of weights.

    Args:
        method: The method.
        who: The setting that asks for merging.

    Raises:
        MethodError: If no weight can take its place.
    """
    if not method.mergeable:
        raise MethodError(
            f"{who}: expected a method that can be merged into the weights, got '{method.name}', "
            "which is not linear. Use checkpoints='full', or a method such as 'lora'."
        )


def refuse_unmergeable(pl_module: nn.Module, who: str) -> None:
    """Refuse, before anything is trained, what cannot be merged at the end.

    Args:
        pl_module: The adapted module; it is not changed.
        who: The setting that asks for it.

    Raises:
        MethodError: With the reason.
    """
    try:
        merged_state(pl_module, pl_module.state_dict())
    except MethodError as error:
        raise MethodError(f"{who}: {error}") from error


def _merged(path: str, adaptation: Adaptation, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.inference_mode(False), torch.no_grad():  # a validation runs in inference mode
        twin = _copied(adaptation)
        own = twin.model.state_dict()
        for name in adaptation.state_names():
            own[name].copy_(state[join(path, name)])
        follow_factors(twin.model)
        if not quantised_in(adaptation):
            plain = twin.merge_and_unload()
        else:  # into codes the sum would be rounded: the file holds the numbers themselves
            sites = [site.module for site in adaptation.sites]
            coded = any(inside(name, tuple(sites)) for name, _, _ in quantised_layers(twin.model))
            plain = twin.merge_and_unload(dequantize=coded)
            make_dense(plain)
    return {join(path, name): tensor for name, tensor in plain.state_dict().items()}


def quantised_in(adaptation: Adaptation) -> bool:
    """Whether a backbone holds weights as codes."""
    return any(True for _ in quantised_layers(adaptation.model))


def _copied(adaptation: Adaptation) -> Adaptation:
    """Copy an adapted backbone without what others have put on it: caches, hooks, watchers."""
    model = adaptation.model
    try:
        twin = copy.deepcopy(model, {id(thing): thing for thing in _of_others(model)})
    except Exception as error:  # a module of somebody else can raise anything
        raise MethodError(
            f"expected a backbone that can be copied, since a copy is merged, got "
            f"{type(error).__name__}: {error}. Use checkpoints='full', or merge in a program of "
            "your own (adaptation.merge_and_unload())."
        ) from error
    found = find_adaptation(twin)
    assert found is not None
    return found


def _of_others(model: nn.Module) -> Iterator[Any]:
    """Yield caches, and bound methods of what is no module: a copy would take the trainer along."""
    for module in model.modules():
        forward = module.__dict__.get("forward")
        if type(forward).__module__.startswith("lightning_peft.caching"):
            yield forward
        for key in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            for hook in module.__dict__[key].values():
                if isinstance(hook, MethodType) and not isinstance(hook.__self__, nn.Module):
                    yield hook
