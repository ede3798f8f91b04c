"""Initialisations of LoRA that rewrite the weights of the backbone.

PiSSA, OLoRA, CorDA and LoRA-GA choose ``A0`` and ``B0`` and take their product out of the weight:
``W0 = W - s B0 A0``. LoftQ rounds the weight, KaSA drops its smallest singular values. Here

- the original tensor ``W`` is kept beside the layer, on the device where it was when the layer was
  adapted (in a Lightning run: the host). This costs one more copy of each adapted weight, and is
  what makes :meth:`Adaptation.disabled` and :meth:`Adaptation.unload` exact: ``W0 + s B0 A0``
  differs from ``W`` by rounding;
- ``A0`` and ``B0`` are buffers of the layer, so that each checkpoint and file holds them. What was
  drawn at random, measured on data or computed by another LAPACK is the same after loading, under
  any seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lightning_peft.errors import MethodError, some
from lightning_peft.methods.from_peft.inject import ADAPTER_NAME

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "START",
    "Loading",
    "Start",
    "follow_factors",
    "keep_weights",
    "kept_weight",
    "kept_weights",
    "loading",
    "loading_what",
    "note_start",
    "rewrites",
    "starts_of",
    "weight_problems",
    "without_start",
]

START = "initial_factors"
"""The name, in a layer of ``peft``, of the module that holds ``A0`` and ``B0``."""

_KEPT = "_lightning_peft_weight"
_LEAVES_THE_WEIGHT = ("gaussian", "eva", "orthogonal", "mica")
_TAKES_OUT = ("pissa", "olora", "corda", "lora_ga")

Loading = Literal["values", "factors"]
_loading: ContextVar[Loading | None] = ContextVar("loading", default=None)


@contextmanager
def loading(what: Loading) -> Iterator[None]:
    """Tell the injection inside the context that an adapter's values will be loaded.

    Args:
        what: ``"values"`` if the file holds ``A`` and ``B``, so that the initialisation has to be
            run again for the weight; ``"factors"`` if it holds ``A0`` and ``B0`` too, so that
            neither the initialisation nor its data is needed.
    """
    token = _loading.set(what)
    try:
        yield
    finally:
        _loading.reset(token)


def loading_what() -> Loading | None:
    """Return what will be loaded, as :func:`loading` says; ``None`` for a new adapter."""
    return _loading.get()


def rewrites(config: Any) -> bool:
    """Whether a config's initialisation changes the weights; a name that is unknown here may."""
    start = getattr(config, "init_lora_weights", None)
    named = isinstance(start, str) and start.lower() not in _LEAVES_THE_WEIGHT
    kind = getattr(config.peft_type, "value", config.peft_type)
    return kind == "LORA" and (named or getattr(config, "kasa_config", None) is not None)


def takes_out(config: Any) -> bool:
    """Whether a config's initialisation takes ``s B0 A0`` out of the weights."""
    start = getattr(config, "init_lora_weights", None)
    return rewrites(config) and isinstance(start, str) and start.lower().startswith(_TAKES_OUT)


def without_start(config: PeftConfig) -> PeftConfig:
    """Return a config without its initialisation, if ``A0`` and ``B0`` will be loaded."""
    if _loading.get() == "factors" and takes_out(config):
        config = copy.copy(config)
        setattr(config, "init_lora_weights", True)  # noqa: B010  (of LoRA's config)
    return config


class Start(nn.Module):
    """The factors ``A0`` and ``B0`` that were taken out of the weight of a layer.

    Attributes:
        A: ``(rank, in)``.
        B: ``(out, rank)``.
        computed: Whether the initialisation computed them here, and nothing was loaded since.
    """

    A: Tensor
    B: Tensor

    def __init__(self, first: Tensor, second: Tensor, computed: bool) -> None:
        super().__init__()
        self.computed = computed
        self.register_buffer("A", first.detach().clone())
        self.register_buffer("B", second.detach().clone())
        self.used: tuple[Tensor, Tensor] | None = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Start:
        # rounding them to a lower precision would change what is taken out when they are loaded
        for key in ("A", "B"):
            before, after = getattr(self, key), fn(getattr(self, key))
            self._buffers[key] = after if before.is_meta else before.to(after.device)
        return self


class KeptWeight:
    """The weight of a layer as it was before an initialisation rewrote it.

    Deep copies share the tensor, which never changes.

    Attributes:
        tensor: The weight.
        aside: The rewritten weight, while the original is in its place.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.aside: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> KeptWeight:
        twin = KeptWeight(self.tensor)
        twin.aside = None if self.aside is None else self.aside.clone()
        return twin

    def like(self, parameter: Tensor) -> Tensor:
        """Return the weight on the device and in the dtype of the layer's present one."""
        _refuse_shards(parameter)
        return self.tensor.to(device=parameter.device, dtype=parameter.dtype)

    def put(self, base: Any, shown: bool) -> None:
        """Put the original weight into the layer, or the rewritten one back."""
        if shown and self.aside is None:
            original = self.like(base.weight)
            self.aside, base.weight.data = base.weight.data, original
        elif not shown and self.aside is not None:
            base.weight.data, self.aside = self.aside, None


def kept_weight(layer: nn.Module) -> KeptWeight | None:
    """Return the original weight of a layer of ``peft``, if an initialisation rewrote it."""
    found = layer.__dict__.get(_KEPT)
    return found if isinstance(found, KeptWeight) else None


def keep_weights(config: PeftConfig, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the weights that an initialisation will rewrite, and give the layers copies of them.

    The copies are what is rewritten: the original tensors stay as they are, after an error too.

    Args:
        config: The config, before :func:`without_start`.
        model: The backbone; the values of its weights are unchanged.
        names: The modules to adapt.
    """
    kept: dict[str, Tensor] = {}
    for name in names if rewrites(config) else ():
        weight: Any = model.get_submodule(name).weight
        kept[name] = weight.data
        weight.data = weight.data.clone()
    return kept


def note_start(config: PeftConfig, model: nn.Module, kept: dict[str, Tensor]) -> None:
    """Note in each layer what its initialisation took out of the weight.

    Args:
        config: The config, before :func:`without_start`.
        model: The adapted backbone; changed in place.
        kept: The original weights, from :func:`keep_weights`.
    """
    for name, weight in kept.items():
        layer: Any = model.get_submodule(name)
        layer.__dict__[_KEPT] = KeptWeight(weight)
        layer.register_load_state_dict_post_hook(_after_loading)
        if takes_out(config):
            first, second = (side[ADAPTER_NAME].weight for side in (layer.lora_A, layer.lora_B))
            layer.add_module(START, Start(first, second, _loading.get() != "factors"))
            _take_out(layer)


def starts_of(model: nn.Module) -> dict[str, Start]:
    """Return the factors that were taken out of the weights, by the names of the layers."""
    found = {name: layer._modules.get(START) for name, layer in model.named_modules()}
    return {name: start for name, start in found.items() if isinstance(start, Start)}


def kept_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the original weights, by the names of the rewritten ones."""
    return {
        f"{name}.base_layer.weight": kept.tensor
        for name, layer in model.named_modules()
        if (kept := kept_weight(layer)) is not None
    }


def follow_factors(model: nn.Module) -> None:
    """Make the weights those that belong to the factors, after these may have been loaded.

    Args:
        model: The adapted backbone; changed in place.
    """
    for name in starts_of(model):
        _after_loading(model.get_submodule(name), None)


def _after_loading(layer: Any, keys: Any) -> None:
    start = layer._modules.get(START)
    if start is None or layer.merged:
        return
    now, used = (start.A, start.B), start.used
    if used is None or not all(torch.equal(n.cpu(), u) for n, u in zip(now, used, strict=True)):
        _take_out(layer)
        start.computed = False


@torch.no_grad()
def _take_out(layer: Any) -> None:
    """Set the weight to ``W - s B0 A0``, by the same operations each time."""
    kept, start, base = kept_weight(layer), layer._modules[START], layer.get_base_layer()
    assert kept is not None
    _refuse_shards(base.weight)
    value = _left(layer, kept, start.A, start.B).to(base.weight.dtype)
    if kept.aside is None:
        base.weight.data = value
    else:
        kept.aside = value
    if not start.A.is_meta:
        start.used = (start.A.cpu().clone(), start.B.cpu().clone())


def _left(layer: Any, kept: KeptWeight, first: Tensor, second: Tensor) -> Tensor:
    """Return ``W - s B0 A0``."""
    weight = kept.tensor.to(layer.get_base_layer().weight.device)
    exact = torch.promote_types(weight.dtype, torch.float32)
    first, second = first.to(weight.device, exact), second.to(weight.device, exact)
    change = layer.scaling[ADAPTER_NAME] * second @ first
    return weight.to(exact) - (change.T if getattr(layer, "fan_in_fan_out", False) else change)


@torch.no_grad()
def weight_problems(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Find the weights of a state that do not belong to the original weights that are kept.

    Args:
        model: The adapted backbone.
        state: The state to be loaded; rewritten weights may be in it.

    Returns:
        A phrase; empty if they belong together.
    """
    odd = []
    for name, layer in model.named_modules():
        kept, key = kept_weight(layer), f"{name}.base_layer.weight"
        if kept is None or key not in state:
            continue
        adapted: Any = layer
        base = adapted.get_base_layer()
        expected = base.weight if kept.aside is None else kept.aside
        first, second = (state.get(f"{name}.{START}.{side}") for side in ("A", "B"))
        if torch.equal(state[key].to(expected), expected):
            continue
        if first is not None and second is not None:
            expected = _left(layer, kept, first, second)
        given = state[key].to(expected)
        if (given - expected).abs().max() > 0.01 * expected.abs().max():
            odd.append(key)
    return [f"{len(odd)} of another backbone: {some(odd)}"] if odd else []


def _refuse_shards(weight: Tensor) -> None:
    if hasattr(weight, "device_mesh"):
        raise MethodError(
            "expected whole weights, got sharded ones: the initialisation rewrote them, and the "
            "originals cannot be put back into shards. Do this before sharding, or on one process."
        )
