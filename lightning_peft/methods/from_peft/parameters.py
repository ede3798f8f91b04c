"""Adapting single parameters, such as the fused experts of a mixture: ``peft``'s ``ParamWrapper``.

``peft`` wraps the module that holds the parameter; several parameters of one module are wrapped one
around the other (``experts.base_layer.base_layer``), so a place is a module and a parameter.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.forward import in_evaluation_mode
from lightning_peft.anatomy.quantised import is_code
from lightning_peft.errors import TargetError, near
from lightning_peft.methods.base import Site
from lightning_peft.methods.from_peft.targets import target_spec
from lightning_peft.methods.in_weight.part import Part

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "as_peft_reads_it",
    "is_replaced",
    "is_wrapper",
    "literally",
    "parameter_sites",
    "parameters_of",
    "read_as_written",
    "tuned_places",
    "wrapper_of",
]

Place = tuple[str, str]
"""The name of a module, and of the parameter in it that is adapted (``""``: the module itself)."""


def is_wrapper(module: Any) -> bool:
    """Whether a module is ``peft``'s layer around a module one of whose parameters it adapts."""
    import peft.tuners.lora.layer as layers

    return isinstance(module, getattr(layers, "ParamWrapper", ()))  # peft has it from 0.17 on


def wrapper_of(model: nn.Module, module: str, parameter: str) -> Any:
    """Return the layer that adapts one parameter of a module.

    Args:
        model: The adapted backbone.
        module: The name of the module that holds the parameter.
        parameter: The parameter's name in it.
    """
    layer: Any = model.get_submodule(module)
    while layer.parameter_name != parameter:
        layer = layer.base_layer
    return layer


def tuned_places(model: nn.Module) -> set[Place]:
    """Return the places of all layers that ``peft`` has put into a model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = set()
    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if is_wrapper(module):
            while name.endswith(".base_layer"):
                name = name.removesuffix(".base_layer")
            found.add((name, str(module.parameter_name)))
        elif hasattr(module, "base_layer") and "base_layer" not in name.split("."):
            found.add((name, ""))  # one inside of another layer is that layer's own affair
    return found


def parameters_of(sites: Iterable[Site]) -> list[str]:
    """Return the whole names of the parameters among sites."""
    return [f"{site.module}.{site.parameter}" for site in sites if site.parameter]


def parameter_sites(model: nn.Module, targets: Iterable[str], kind: str) -> tuple[Site, ...]:
    """Find the parameters that ``target_parameters`` match, by ``peft``'s rule: the ends of names.

    Args:
        model: The backbone, not yet adapted.
        targets: The entries.
        kind: The kind of change, for the sites.

    Raises:
        TargetError: If an entry matches no parameter.
    """
    wanted = tuple(targets)
    ends = tuple(f".{entry}" for entry in wanted)
    names = [name for name, _ in model.named_parameters() if name in wanted or name.endswith(ends)]
    lost = [e for e in wanted if not any(n == e or n.endswith(f".{e}") for n in names)]
    if lost:
        known = {name for name, _ in model.named_parameters()}
        known |= {".".join(name.split(".")[-2:]) for name in known}
        raise TargetError(
            "; ".join(f"target_parameters match no parameter '{e}'. {near(e, known)}" for e in lost)
        )
    split = (name.rpartition(".") for name in names)
    return tuple(Site(module, kind, parameter=key) for module, _, key in split)


def as_peft_reads_it(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """Return a config with the targets that ``peft`` replaces itself when it injects.

    transformers 5 has fused the experts of some mixtures; ``peft`` reads ``gate_proj`` of older
    configs as ``target_parameters=["gate_up_proj"]`` there.

    Args:
        config: The config; not changed.
        model: The backbone.

    Raises:
        ValueError: If ``peft`` cannot convert it.
    """
    read = copy.deepcopy(config)
    if not hasattr(getattr(model, "config", None), "model_type"):
        return read
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # another peft or transformers, which converts nothing
        return read
    convert_peft_config_for_transformers(read, model=model, conversions=None)
    return read


def is_replaced(config: PeftConfig, model: nn.Module) -> bool:
    """Whether ``peft`` would inject a config at other places than it names.

    Args:
        config: The config.
        model: The backbone, adapted or not.
    """
    try:
        read: Any = as_peft_reads_it(config, model)
    except ValueError:
        return True
    return any(
        set(getattr(read, key, None) or ()) != set(getattr(config, key, None) or ())
        for key in ("target_modules", "target_parameters")
    )


def read_as_written(config: PeftConfig, model: nn.Module) -> PeftConfig | None:
    """Return a config of the adapted places, at which ``peft`` alone computes the same.

    ``peft`` takes the names of some layers (``gate_proj`` of shared experts) for those of experts
    that transformers 5 has fused, and adds its update to the output of a layer, which is no matrix
    where a router has a forward of its own. The weight of a layer is a parameter like any other:
    named in ``target_parameters``, it gets the same update, under the same names.

    Args:
        config: The config that the model was adapted with; not changed.
        model: The adapted backbone.

    Returns:
        The config, the same one if ``peft`` reads it as it is; ``None`` if there is none, since
        ``peft`` adapts parameters by plain LoRA without dropout only.
    """
    layers = [name for name, key in sorted(tuned_places(model)) if not key]
    replaced = is_replaced(config, model)
    other = {end for end in {_end(name) for name in layers} if replaced and _is_expert(end, model)}
    weights = [n for n in layers if _end(n) in other or _returns_more(model.get_submodule(n))]
    if not replaced and not weights:
        return config
    asked: Any = config
    plain = asked.peft_type == "LORA" and not asked.lora_dropout and asked.bias == "none"
    if not plain or not all(_is_plain(model.get_submodule(name)) for name in weights):
        return None if replaced else config
    written = copy.deepcopy(asked)
    kept = tuple(name for name in layers if name not in weights)
    written.target_modules = target_spec(model, kept) if kept else []
    written.target_parameters = [
        *(asked.target_parameters or ()), *(f"{name}.weight" for name in weights)
    ]  # fmt: skip
    for name in weights:  # peft looks for these entries by the name of the parameter
        layer: Any = model.get_submodule(name)
        (rank,), (scale,) = layer.r.values(), layer.scaling.values()
        if rank != asked.r:
            alpha = scale * (math.sqrt(rank) if asked.use_rslora else rank)
            written.rank_pattern = {**written.rank_pattern, f"{name}.weight": rank}
            written.alpha_pattern = {**written.alpha_pattern, f"{name}.weight": alpha}
    return None if is_replaced(written, model) else written


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _is_expert(end: str, model: nn.Module) -> bool:
    from peft import LoraConfig

    return is_replaced(LoraConfig(target_modules=[end]), model)


@torch.no_grad()
def _returns_more(layer: Any) -> bool:
    """Whether a linear layer has a forward of its own that is not the product with its weight."""
    base = getattr(layer, "base_layer", None)
    weight = getattr(base, "_parameters", {}).get("weight")
    if not isinstance(base, nn.Linear) or isinstance(base, Part) or weight is None:
        return False
    if type(base).forward is nn.Linear.forward or is_code(weight) or weight.is_meta:
        return False
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, base.in_features, generator=random).to(weight)
    with in_evaluation_mode(base):
        try:
            output: Any = type(base).forward(base, x)
        except Exception:  # it asks for more than an input
            return True
    product = nn.functional.linear(x, base.weight, base.bias)
    return not isinstance(output, Tensor) or not (output - product).norm() < 0.01 * product.norm()


def _is_plain(layer: Any) -> bool:
    """Whether ``peft`` computes the same if it adapts the weight of a layer as a parameter."""
    base: Any = layer.base_layer
    return (
        isinstance(base, nn.Linear)
        and not is_code(cast(Tensor, base._parameters["weight"]))
        and not any(getattr(layer, "lora_variant", None) or ())
        and len(layer.r) == 1
    )


@contextmanager
def literally(config: PeftConfig, model: nn.Module) -> Iterator[None]:
    """Let ``peft`` inject a config as it is, where it would replace the targets of older configs.

    Args:
        config: The config, with names of modules that the model has.
        model: The backbone; its ``config`` names no type inside the context, if that is needed.
    """
    if not is_replaced(config, model):
        yield
        return
    own: Any = model.config
    nameless = copy.copy(own)
    nameless.__dict__["model_type"] = ""
    model.__dict__["config"] = nameless
    try:
        yield
    finally:
        model.__dict__["config"] = own
