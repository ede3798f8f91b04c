"""Whether an initialisation of LoRA has what it needs, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from torch import nn

from lightning_peft.methods.from_peft.start import loading_what, rewrites
from lightning_peft.methods.in_weight.part import layer_at

__all__ = ["data_given", "measured_by", "start_problems"]

_BY_THE_CALLBACK = "The callback lp.PEFT(config) does so with the train dataloader of a fit"

_given: ContextVar[bool] = ContextVar("given", default=False)


@contextmanager
def data_given() -> Iterator[None]:
    """Tell the injection inside the context that what was measured on data will be put in."""
    token = _given.set(True)
    try:
        yield
    finally:
        _given.reset(token)


def measured_by(method: Any) -> str | None:
    """Return the initialisation of a method that reads data (``"eva"``); ``None`` without one.

    Args:
        method: Any method.
    """
    options = getattr(method, "options", None)
    if getattr(method, "tuner", None) != "LORA" or not isinstance(options, Mapping):
        return None
    start = str(options.get("init_lora_weights", "")).lower()
    return start if start in ("eva", *_NEEDED) else None


def start_problems(
    tuner: str, options: Mapping[str, Any], model: nn.Module, names: Sequence[str]
) -> Iterable[str]:
    """Yield the reasons why an initialisation cannot do what its name says.

    Args:
        tuner: The tuner.
        options: The settings of its config.
        model: The backbone, not yet adapted.
        names: The modules to adapt.
    """
    if tuner != "LORA":
        return
    config = SimpleNamespace(peft_type=tuner, **options)
    start = options.get("init_lora_weights")
    start = start.lower() if isinstance(start, str) else ""
    if start == "eva" and loading_what() is None and not _given.get():
        yield (
            "init_lora_weights='eva' reads activations of your data, which an injection has not: A "
            f"would stay random. {_BY_THE_CALLBACK}; or run peft.get_peft_model and "
            "peft.initialize_lora_eva_weights on the backbone, save_pretrained, and load that with "
            "lp.load_adapter"
        )
    needed = _NEEDED.get(start)
    if needed is not None and loading_what() != "factors" and not _given.get():
        attribute, prepare = needed
        bare = [name for name in names if not hasattr(layer_at(model, name), attribute)]
        if bare and loading_what() is not None:
            yield (
                f"the file was written by peft after init_lora_weights='{start}', and the weights "
                "that belong to it are in no file: save it again in peft with "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )
        elif bare:
            yield (
                f"init_lora_weights='{start}' reads what {prepare} measured on your data, expected "
                f"it on every target, {_few(bare)} have none. Call it on this backbone, with the "
                f"same targets, before adapting it. {_BY_THE_CALLBACK}"
            )
    if "_niter_" in start and loading_what() == "values":
        yield (
            f"the file was written by peft after init_lora_weights='{start}', which draws at "
            "random what it takes out of the weights, and does not hold it: save it again in peft "
            "with save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if options.get("kasa_config") is not None and start:
        yield (
            f"kasa_config and init_lora_weights='{start}' both decide what A and B start from: "
            "expected one of them"
        )
    if rewrites(config):
        weights = {name: getattr(layer_at(model, name), "weight", None) for name in names}
        odd = [name for name, weight in weights.items() if not _is_matrix(weight)]
        if odd:
            yield (
                f"this initialisation rewrites the weights, expected matrices of floating-point "
                f"numbers, got {_few(odd)}. Exclude these modules, or use init_lora_weights=True"
            )


_NEEDED = {
    "corda": ("eigens", "peft.tuners.lora.corda.preprocess_corda"),
    "lora_ga": ("_peft_loraga_grad", "peft.tuners.lora.loraga.preprocess_loraga"),
}


def _is_matrix(weight: Any) -> bool:
    plain = isinstance(weight, nn.Parameter) and weight.is_floating_point()
    return plain and weight.ndim == 2


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
