"""The inference fast path of `nn.TransformerEncoderLayer`, which runs past its submodules.

In eval mode and without gradients such a layer hands `linear1.weight` and the others to one fused
kernel and calls none of its submodules. An adapter in the place of a submodule (which is what
`peft` injects) is then left out of the result, in silence. Forward hooks switch the layer's own
fast path off, but `nn.TransformerEncoder` goes on making nested tensors for it out of a padding
mask, which an adapter then has to compute with. Both are switched off here by plain attributes of
the modules, which are copied, pickled and moved with them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from lightning_peft.anatomy.tree import unwrap

__all__ = ["fast_path_layers", "fast_path_off", "fast_path_on"]

# What tells a layer and an encoder that the fast path is not for them, and where the value that
# was there is kept meanwhile.
_SWITCH = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
_KEPT = "_lightning_peft_fast_path"


def fast_path_layers(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Find the modules whose fast path would run past an adapter.

    Args:
        model: The model.
        names: The modules that get an adapter. What only trains parameters that are there already
            (BitFit, norms) needs none of this: the fast path reads them.

    Returns:
        The `nn.TransformerEncoderLayer`s that are or hold one of them, and the
        `nn.TransformerEncoder`s around, in model order.
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
    """Switch the fast path off; doing so twice is as good as once.

    Args:
        layers: What `fast_path_layers` found.
    """
    for layer in layers:
        attribute, off = _switch_of(layer)
        if _KEPT not in layer.__dict__:
            layer.__dict__[_KEPT] = getattr(layer, attribute)
        setattr(layer, attribute, off)


def fast_path_on(layers: Iterable[nn.Module]) -> None:
    """Give back the fast path as it was; layers that were never switched off are left alone.

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
