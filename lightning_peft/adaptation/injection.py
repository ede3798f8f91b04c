"""Carrying out a plan on a model, completely or, after an error, not at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_peft.adaptation.elsewhere import is_trained_elsewhere
from lightning_peft.adaptation.parted import part, parted_tensors
from lightning_peft.adaptation.precision import full_default_dtype
from lightning_peft.adaptation.snapshot import restored_after_error
from lightning_peft.anatomy import Anatomy
from lightning_peft.anatomy.bypass import bypassed
from lightning_peft.anatomy.fast_path import fast_path_layers, fast_path_off
from lightning_peft.anatomy.fingerprint import backbone_fingerprint
from lightning_peft.anatomy.names import bare_name, every_name, inside, parameters_inside
from lightning_peft.errors import MethodError, some
from lightning_peft.kernels import Memory, accelerate, holds_lora
from lightning_peft.methods.base import Adapter, Method, Plan, Site
from lightning_peft.methods.from_peft.dtypes import copies_of_layers
from lightning_peft.methods.from_peft.layer import further_names, put_under
from lightning_peft.methods.memory import refuse_no_fast_layer

__all__ = ["Injection", "inject"]


@dataclass(frozen=True)
class Injection:
    """The result of an injection, by the names that the model has now.

    The adapter is every tensor that did not exist before. This is decided here, once, by identity;
    everything else (freezing, checkpoints, counts, reports) reads it from here.

    Attributes:
        sites: The places where something was added or is trained in place.
        head: Names of the head's modules.
        fingerprint: The fingerprint of the frozen backbone.
        base_names: The name before and the name now of each parameter and buffer of the backbone.
        base_modules: The names now of the modules that the backbone had before.
        adapter: Names of new parameters.
        adapter_buffers: Names of new persistent buffers.
        own_dtype: Names of all tensors of a dtype of their own: of what is new, including further
            names and buffers that are not persistent, except copies of whole layers.
        whole: Names of trained parameters of the backbone whose layers, if they are trained whole,
            are few enough for a dtype of their own: not those of a method that trains the bulk.
        trained: Names of all trained parameters.
        originals: Copies of backbone parameters that are trained in place, if they are kept.
        adapters: Handles on the adapters.
        fast_path: Layers whose inference fast path would bypass an adapter; it is off.
        fixed: Names before of the parameters that the module itself fixed.
        held: Those of them that would be trained otherwise.
        flags: Which parameters required a gradient before, by their names then.
        blocks: The repeated blocks, by their names before.
        how: How the head was found; empty if it was named, or there is none.
        doubt: What may be wrong about that; empty if nothing.
    """

    sites: tuple[Site, ...]
    head: tuple[str, ...]
    fingerprint: dict[str, Any]
    base_names: dict[str, str]
    base_modules: frozenset[str]
    adapter: frozenset[str]
    adapter_buffers: frozenset[str]
    own_dtype: frozenset[str]
    whole: frozenset[str]
    trained: frozenset[str]
    originals: dict[str, Tensor]
    adapters: list[Adapter]
    fast_path: list[nn.Module]
    fixed: tuple[str, ...]
    held: tuple[str, ...]
    flags: dict[str, bool]
    blocks: tuple[str, ...]
    how: str
    doubt: str


def inject(
    model: nn.Module,
    method: Method,
    plan: Plan,
    found: Anatomy,
    also_train: tuple[str, ...],
    memory: Memory = "default",
    fixed: Collection[str] = (),
) -> Injection:
    """Carry out a plan.

    Args:
        model: The backbone; changed in place.
        method: The method that made the plan.
        plan: The plan.
        found: The backbone's anatomy.
        also_train: Names of parameters to train in addition to the method's.
        memory: Which tensors fast LoRA layers may recompute in the backward pass.
        fixed: Names of parameters that are not trained, whoever selects them.

    Returns:
        The result.

    Raises:
        MethodError: If a library refuses the injection, nothing would be trained (but see
            :func:`trained_elsewhere`) or no layer is fast where memory is to be saved; the model
            is as it was before.
    """
    in_head = set(parameters_inside(model, found.head, without=plan.parted))
    adapted = {site.module for site in plan.sites if inside(site.module, found.head)}
    in_head -= {name for name in in_head if inside(name, tuple(adapted))}
    selected = {*plan.train, *in_head, *also_train}
    chosen = selected - set(fixed)
    before = dict(every_name(model))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    fixed_ids = {id(before[name]): name for name in fixed}
    modules = {id(module) for module in model.modules()}
    frozen = [n for n, _ in model.named_parameters() if n not in chosen]
    fingerprint = backbone_fingerprint(model, frozen, found.architecture)

    with restored_after_error(model):
        wanted = {id(before[name]) for name in chosen if name in before}
        parted = part(model, plan.parted)
        asked = _inject_steps(model, plan) | {id(parameter) for parameter in parted}
        for parameter in parted:
            parameter.requires_grad_(True)
        held = selected & set(fixed) | {fixed_ids[i] for i in asked & fixed_ids.keys()}
        asked -= fixed_ids.keys()
        fresh = [module for module in model.modules() if id(module) not in modules]
        for module in fresh:  # a new module is in training mode, whatever the model's mode
            module.training = model.training
        # the layers decide, not the method: a method of another package may add LoRA unannounced
        if method.accelerated or holds_lora(fresh):
            refuse_no_fast_layer(method, accelerate(model, memory))
        now = dict(every_name(model))
        old = {id(tensor) for tensor in before.values()}
        trained = {
            name
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if id(parameter) in wanted or id(parameter) in asked
        }
        if not trained and held:
            raise MethodError(
                f"{method.name}: expected something to train, got only parameters that the module "
                f"fixed (requires_grad=False): {some(sorted(held))}. Name those to train "
                "in also_train."
            )
        if not trained and not is_trained_elsewhere():
            raise MethodError(
                f"{method.name}: expected something to train, got nothing: no head was found in "
                f"this {type(model).__name__} and the method adds none. Name the head "
                "(head='...'), or choose a method that adapts the backbone, such as 'lora'."
            )
    fast_path = fast_path_layers(model, _injected(plan))
    fast_path_off(fast_path)
    names: dict[int, list[str]] = {}
    for name, tensor in now.items():
        names.setdefault(id(tensor), []).append(name)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    new = {name for name, tensor in now.items() if id(tensor) not in old}
    copied = {id(t) for layer, _ in copies_of_layers(model) for _, t in every_name(layer)}
    copied |= {id(now[name]) for name in plan.parted}
    own_dtype = frozenset(name for name in new if id(now[name]) not in copied)
    in_head_now = {name for name in plan.parted if inside(name, found.head)}
    on_request = {id(before[name]) for name in also_train}
    in_place = {
        name
        for name in trained - new
        if not inside(name, found.head) and id(now[name]) not in on_request
    }
    return Injection(
        sites=plan.sites,
        head=found.head,
        fingerprint=fingerprint,
        base_names={
            n: _now(n, names[id(t)])
            for n, t in before.items()
            if id(t) in names and n not in plan.parted
        },
        base_modules=frozenset(n for n, m in model.named_modules() if id(m) in modules),
        adapter=frozenset(new & parameters),
        adapter_buffers=frozenset((new - parameters) & set(model.state_dict())),
        own_dtype=own_dtype,
        whole=frozenset(trained - own_dtype - (set() if method.keeps_original else in_place)),
        trained=frozenset(trained),
        originals=_copies(now, in_place) if method.keeps_original else {},
        adapters=[
            *(a for method, sites in plan.steps for a in method.adapters(model, sites)),
            *parted_tensors(model, before, plan.parted, in_head_now),
        ],
        fast_path=fast_path,
        fixed=tuple(name for name in flags if name in fixed),
        held=tuple(name for name in flags if name in held),
        flags=flags,
        blocks=found.blocks,
        how=found.how,
        doubt=found.doubt,
    )


def refuse_bypassed(model: nn.Module, plan: Plan) -> None:
    """Refuse a plan that puts an adapter on a module that the forward never calls.

    Args:
        model: The backbone, not yet adapted.
        plan: The method's plan.

    Raises:
        MethodError: If code around a module reads its weight instead of calling it.
    """
    found = bypassed(model, [s.module for _, sites in plan.steps for s in sites if not s.in_weight])
    if found:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in list(found.items())[:4])
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        ends = sorted({name.rpartition(".")[2] for name in found})
        raise MethodError(
            f"expected modules that the forward calls, got some that it never calls, so that an "
            f"adapter there would do nothing: {reasons}{more}. Leave them out, for example with "
            f"exclude={ends}."
        )


def _copies(now: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return copies of tensors, each under the first of its names."""
    once = {id(now[name]): name for name in sorted(names, reverse=True)}
    return {name: now[name].detach().clone() for name in once.values()}


def _now(name: str, names: list[str]) -> str:
    """Choose one of the names that a tensor has now (a shared one has several)."""
    return next((n for n in names if bare_name(n) == name), names[0])


def _injected(plan: Plan) -> list[str]:
    return [site.module for _, sites in plan.steps for site in sites]


def _inject_steps(model: nn.Module, plan: Plan) -> set[int]:
    """Inject, and return the identities of the parameters that the methods train."""
    model.requires_grad_(False)
    asked: set[int] = set()
    with full_default_dtype():
        for method, sites in plan.steps:
            further = further_names(model, [site.module for site in sites])
            method.inject(model, sites)
            for name, others in further.items():
                put_under(model, name, others)
            asked |= {id(p) for p in model.parameters() if p.requires_grad}
    return asked
