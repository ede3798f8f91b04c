"""The inference fast path of `nn.TransformerEncoderLayer`, which runs past its submodules.

In eval mode and without gradients such a layer hands `linear1.weight` and the others to one fused
kernel and calls none of its submodules. An adapter that replaces a submodule (as `peft`'s
do) then has no effect, without an error. Forward hooks switch the layer's own fast path off, but
`nn.TransformerEncoder` still makes nested tensors out of a padding mask, which an adapter cannot
always compute with. Both are switched off here by plain attributes of the modules, which are
copied, pickled and moved with them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_peft.anatomy.tree import unwrap

__all__ = ["fast_path_layers", "fast_path_off", "fast_path_on"]

# The attributes that switch the fast path of a layer and of an encoder off, and those that keep the
# former values.
_SWITCH = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
_KEPT = "_lightning_peft_fast_path"


def fast_path_layers(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Find the modules whose fast path would bypass an adapter.

    Args:
        model: The model.
        names: The modules that get an adapter. Methods that only train existing parameters (BitFit,
            norms) are not affected: the fast path reads those.

    Returns:
        The `nn.TransformerEncoderLayer`s that are or hold one of them, and the
        `nn.TransformerEncoder`s around them, in model order.
    """
    wanted = set(names)
    modules = dict(model.named_modules())
    around = {
        id(modules[above])
        for name in wanted & set(modules)
        for above in _and_above(name)
        if isinstance(modules[above], tuple(_SWITCH))
    }
    return [module for module in modules.values() if id(module) in around]


def fast_path_off(layers: Iterable[nn.Module]) -> None:
    """Switch the fast path off; calling it again has no effect.

    Args:
        layers: What `fast_path_layers` found.
    """
    for layer in layers:
        attribute, off = _switch_of(layer)
        if _KEPT not in layer.__dict__:
            layer.__dict__[_KEPT] = getattr(layer, attribute)
        setattr(layer, attribute, off)


def fast_path_on(layers: Iterable[nn.Module]) -> None:
    """Restore the fast path of layers that :func:`fast_path_off` changed; skip all others.

    Args:
        layers: What `fast_path_layers` found.
    """
    for layer in layers:
        attribute, _ = _switch_of(layer)
        if _KEPT in layer.__dict__:
            setattr(layer, attribute, layer.__dict__.pop(_KEPT))


def _switch_of(layer: nn.Module) -> tuple[str, object]:
    layer = unwrap(layer)
    for kind, switch in _SWITCH.items():
        if isinstance(layer, kind):
            return switch
    raise TypeError(
        "Expected modules that `fast_path_layers` found (nn.TransformerEncoderLayer or "
        f"nn.TransformerEncoder), got {type(layer).__name__}."
    )


def _and_above(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]
