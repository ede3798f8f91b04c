"""Where the update of a tuner of ``peft`` has to be in the weight, and whether it can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_peft.errors import some
from lightning_peft.methods.base import Site
from lightning_peft.methods.from_peft.updated import ADDITIVE
from lightning_peft.methods.in_weight.part import Part, add_part, layer_at
from lightning_peft.methods.in_weight.places import is_computed_by_hook, never_called, own_forward
from lightning_peft.methods.in_weight.reading import read_with_updates
from lightning_peft.methods.in_weight.values import own_value, write

__all__ = ["in_weight_problems", "ready_for_peft", "weights_to_change"]

_OF_PEFT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_NOT_LINEAR = {"LILY": "its update depends on the input"}
_MOST = 4


def weights_to_change(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the layers whose update has to be in the weight, with the reason.

    Args:
        model: The backbone.
        names: Names of layers and parts to adapt.
    """
    names = tuple(names)
    found = never_called(model, names)
    for name in names:
        reason = own_forward(layer_at(model, name))
        if name not in found and reason is not None:
            found[name] = reason
    return found


def in_weight_problems(
    tuner: str, options: Mapping[str, Any], model: nn.Module, in_weight: Mapping[str, str]
) -> Iterable[str]:
    """Yield why a tuner cannot change the weights of some layers.

    Args:
        tuner: The tuner's name.
        options: Its settings, by ``peft``'s names.
        model: The backbone.
        in_weight: The result of :func:`weights_to_change`.
    """
    hooked = [n for n in in_weight if is_computed_by_hook(layer_at(model, n))]
    if hooked:
        yield (
            f"expected weights that are parameters, got some that a hook computes in "
            f"{_listed(hooked)}. Use torch.nn.utils.parametrizations in place of the old "
            "weight_norm and spectral_norm"
        )
    if not in_weight:
        return
    told = some([f"{name} ({reason})" for name, reason in in_weight.items()], _MOST, "; ")
    dropped = "lora_dropout" if tuner in ("LORA", "ADALORA") and not _of_variant(options) else ""
    for key, value in options.items():
        if not key.endswith("dropout") or not value or key == dropped:
            continue
        yield (
            f"expected no dropout where the update is in the weight, which has no input to drop, "
            f"got {key}={value} for {told}. Set it to 0, or exclude these layers"
        )
    if tuner in _NOT_LINEAR:
        yield f"expected layers that the forward calls, since {_NOT_LINEAR[tuner]}, got {told}"
    if tuner == "BEFT":
        bare = [n for n in in_weight if own_value(layer_at(model, n), "bias") is None]
        if bare:
            yield (
                f"expected layers with a bias to train where a layer is read and not called, got "
                f"{_listed(bare)}. Exclude these layers"
            )
    own = [n for n in in_weight if own_forward(layer_at(model, n)) is not None]
    if own and tuner not in ADDITIVE:
        told = some([f"{name} ({in_weight[name]})" for name in own], _MOST, "; ")
        yield (
            f"expected layers whose output is the product with their weight, got {told}. Exclude "
            f"these layers, or use one of {', '.join(map(str.lower, ADDITIVE))}, whose update is "
            "added to the weight"
        )


@contextmanager
def ready_for_peft(model: nn.Module, sites: Iterable[Site]) -> Iterator[None]:
    """Show ``peft`` plain layers at the sites, inside the context.

    The parts among the sites are added to their holders, and stay there. A layer of a class of its
    own has torch's class inside the context, from which ``peft`` makes its matrices.

    Args:
        model: The backbone.
        sites: The sites.
    """
    shown: list[tuple[nn.Module, type[nn.Module]]] = []
    parts: list[tuple[str, Part]] = []
    for site in sites:
        if not site.in_weight:
            continue
        if add_part(model, site.module):
            part = model.get_submodule(site.module)
            assert isinstance(part, Part)
            names = [name for name in part.names.values() if name is not None]
            read_with_updates(part.holder, names)
            parts.append((site.module, part))
            _replace(model, site.module, _as_linear(part))
            continue
        layer = model.get_submodule(site.module)
        kind = type(layer)
        plain = next((cls for cls in _OF_PEFT if isinstance(layer, cls)), None)
        if plain is not None and kind is not plain and not is_parametrized(layer):
            shown.append((layer, kind))
            layer.__class__ = plain
    try:
        yield
    finally:
        for layer, kind in shown:
            layer.__class__ = kind
        for name, part in parts:
            found: Any = model.get_submodule(name)
            if "base_layer" not in found._modules:
                _replace(model, name, part)
                continue
            weight, own = found.base_layer.weight.data, part.own("weight")
            found.base_layer = part
            if own is not None and weight.data_ptr() != own.data_ptr():
                write(part, "weight", weight)  # some tuners start from another


def _as_linear(part: Part) -> nn.Linear:
    """Return a plain layer over the same memory: some tuners take no other class."""
    weight, bias = part.own("weight"), part.own("bias")
    assert weight is not None
    layer = nn.Linear(part.in_features, part.out_features, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.train(part.training)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    holder, _, key = name.rpartition(".")
    model.get_submodule(holder)._modules[key] = module


def _of_variant(options: Mapping[str, Any]) -> bool:
    return bool(options.get("use_dora"))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
