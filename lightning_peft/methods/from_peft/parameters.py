"""Adapting single parameters, such as the fused experts of a mixture: ``peft``'s ``ParamWrapper``.

``peft`` wraps the module that holds the parameter; several parameters of one module are wrapped one
around the other (``experts.base_layer.base_layer``), so a place is a module and a parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_peft.errors import TargetError, near
from lightning_peft.methods.base import Site

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = [
    "as_peft_reads_it",
    "is_replaced",
    "is_wrapper",
    "literally",
    "parameter_sites",
    "parameters_of",
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
