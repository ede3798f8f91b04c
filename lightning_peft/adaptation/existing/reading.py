"""What an injection would have, read from a ``PeftModel``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from lightning_peft.adaptation.injection import Injection
from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.fast_path import fast_path_layers
from lightning_peft.anatomy.fingerprint import backbone_fingerprint
from lightning_peft.anatomy.names import every_name, inside, parameters_inside
from lightning_peft.methods.base import Adapter, Site
from lightning_peft.methods.from_peft.layer import ParameterLayer, PeftLayer
from lightning_peft.methods.from_peft.parameters import tuned_places
from lightning_peft.methods.from_peft.token_rows import TOKEN_ROWS, TokenRows, is_token_layer
from lightning_peft.methods.from_peft.wrapped import (
    active_configs,
    base_modules,
    base_tensors,
    saved_copies,
)

__all__ = ["as_injection", "behind_copies", "head_of"]


def as_injection(model: Any, also_train: Collection[str]) -> Injection:
    """Return what an injection would have, read from a ``PeftModel``."""
    base = list(base_tensors(model))
    base_ids = {id(tensor) for _, _, tensor in base}
    path, inner = _inner(model)
    found = anatomy(inner, head=None)
    copies = saved_copies(model)
    head = head_of(model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    new = {name for name, tensor in every_name(model) if id(tensor) not in base_ids}
    in_head = set(parameters_inside(model, head))
    trained = {n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    trained |= set(also_train)
    frozen = [name for _, name, _ in base if name in parameters - trained]
    sites, adapters = _places(model, copies)
    behind = behind_copies(model)
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
        fixed=tuple(before for before, now, _ in base if now in behind),
        held=(),
        flags={},
        blocks=tuple(f"{path}.{name}" for name in found.blocks),
        how="",
        doubt="",
    )


def behind_copies(model: Any) -> frozenset[str]:
    """Return the parameters in whose place the copies of ``modules_to_save`` are used."""
    paths = tuple(f"{name}.original_module" for name in saved_copies(model))
    named = list(model.named_parameters(remove_duplicate=False))
    used = {id(p) for name, p in named if not inside(name, paths)}  # a tied weight, say
    return frozenset(name for name, p in named if id(p) not in used)


def _inner(model: Any) -> tuple[str, nn.Module]:
    """Return the model inside of a ``PeftModel``, and its path."""
    inner = model.get_base_model()
    return next(name for name, module in model.named_modules() if module is inner), inner


def head_of(model: Any) -> tuple[str, ...]:
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
