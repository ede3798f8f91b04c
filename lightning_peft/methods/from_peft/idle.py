"""Settings of ``peft``'s configs that cannot act when a tuner's layers are injected.

Some act through the forward, the hooks or the training loop of ``peft``'s own wrapper; some are
read by no code, or only beside another setting. A run with one of them would train something else
than it says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_peft.errors import some
from lightning_peft.methods.from_peft.tuners import WITH_ITS_WRAPPER, config_class
from lightning_peft.methods.in_weight.part import layer_at

__all__ = ["default_of", "idle_problems", "pattern_for", "wrapper_problems"]

_IN_TOKENS = "is found in input_ids by the forward of peft's own wrapper"
_TIED = (
    f"is kept up by peft's own wrapper alone: {WITH_ITS_WRAPPER}, or train the one weight for both "
    "with head='lm_head'"
)
_NEEDS_WRAPPER: dict[tuple[str, str], str] = {
    ("ADAMSS", "use_asa"): (
        "needs AdamssModel.update_and_allocate after every step, which an injection leaves out: "
        "expected False"
    ),
    ("ADALORA", "ensure_weight_tying"): _TIED,
    ("LORA", "ensure_weight_tying"): _TIED,
    ("LORA", "alora_invocation_tokens"): f"{_IN_TOKENS}: {WITH_ITS_WRAPPER}",
    ("LORA", "arrow_config"): "routes between adapters: use peft.tuners.lora.create_arrow_model",
    ("LORA", "layer_replication"): (
        "copies layers of the backbone for good: call "
        "peft.tuners.tuners_utils.replicate_layers(backbone, ...) before adapting it"
    ),
    ("LORA", "runtime_config"): "is no part of an adapter: leave it out",
    ("VBLORA", "save_only_topk_weights"): (
        "is carried out by save_pretrained of peft's own wrapper: expected False"
    ),
}

# each is read only by an initialisation
_OF_A_START = {
    "corda_config": "corda",
    "eva_config": "eva",
    "loftq_config": "loftq",
    "lora_ga_config": "lora_ga",
}
_ASA = "acts with use_asa=True only, which needs peft's own wrapper"
_NOT_IN_ADALORA = "is read by LoRA and not by AdaLoRA"
_IDLE: dict[tuple[str, str], str] = {
    **{
        ("ADALORA", key): _NOT_IN_ADALORA
        for key in (
            *("alora_invocation_tokens", "alpha_pattern", "arrow_config", "corda_config"),
            *("eva_config", "kasa_config", "lora_bias", "lora_ga_config", "monteclora_config"),
            *("qalora_group_size", "use_bdlora", "use_qalora", "use_rslora", "velora_config"),
        )
    },
    ("ADALORA", "r"): "is not read: the rank is init_r, and target_r at the end",
    ("ADALORA", "rank_pattern"): "is the outcome of a training, which only a file has",
    **{
        ("ADAMSS", key): _ASA
        for key in (
            *("asa_importance_beta", "asa_schedule_exponent", "asa_target_subspaces"),
            *("asa_uncertainty_beta", "final_warmup", "init_warmup", "mask_interval"),
        )
    },
    ("OSF", "target_svd_config"): "is not read: the rank is effective_rank",
}
_IN_A_LOSS = {
    "kasa_config": ("beta", "gamma"),
    "monteclora_config": ("kl_loss_weight", "use_entropy"),
}


def wrapper_problems(tuner: str, options: Mapping[str, Any]) -> Iterable[str]:
    """Yield the settings that need ``peft``'s own wrapper, in any adapter and any file.

    Args:
        tuner: The tuner.
        options: The settings of its config.
    """
    for key, value in options.items():
        reason = _NEEDS_WRAPPER.get((tuner, key))
        if reason is not None and value:
            yield f"{tuner}: {key} {reason}"


def idle_problems(
    tuner: str, options: Mapping[str, Any], model: nn.Module, names: Sequence[str]
) -> Iterable[str]:
    """Yield the settings that no code would read.

    Args:
        tuner: The tuner.
        options: The settings of its config.
        model: The backbone, not yet adapted.
        names: The modules to adapt.
    """
    given = [key for key in options if _is_set(tuner, key, options)]
    for key in given:
        reason = _IDLE.get((tuner, key))
        if reason is not None:
            yield f"{key} {reason}: leave it out"
    start = options.get("init_lora_weights", True)
    if tuner == "ADALORA" and not isinstance(start, bool):
        yield f"init_lora_weights={start!r} {_NOT_IN_ADALORA}: leave it out"
    if tuner == "ADALORA":
        first, last = (options.get(key, default_of(tuner, key)) for key in ("init_r", "target_r"))
        if isinstance(first, int) and isinstance(last, int) and first <= last:
            yield f"expected init_r to be more than target_r ({last}), got {first}: none is pruned"
    if tuner == "LORA":
        yield from _idle_in_lora(given, options, start, model, names)
    if tuner != "ADALORA":  # whose ranks by name are a result of its training
        yield from _unmatched(given, options, names)


def _idle_in_lora(
    given: Sequence[str],
    options: Mapping[str, Any],
    start: Any,
    model: nn.Module,
    names: Sequence[str],
) -> Iterable[str]:
    for key, needed in _OF_A_START.items():
        if key in given and start != needed:
            yield f"{key} acts with init_lora_weights='{needed}' only, got {start!r}"
    quantised = any("Quant" in type(layer_at(model, name)).__name__ for name in names)
    if "use_qalora" in given and not quantised:
        yield "use_qalora acts on layers of GPTQ only, got none: leave it out"
    elif "qalora_group_size" in given and "use_qalora" not in given:
        yield "qalora_group_size acts with use_qalora=True only: leave it out"
    for key, entries in _IN_A_LOSS.items():
        value = options.get(key)
        usual = _usual(key)
        changed = [e for e in entries if value and e in value and value[e] != usual[e]]
        if changed:
            yield (
                f"{key}: {', '.join(changed)} weigh a loss term of peft's own wrapper, which an "
                "injection has not: leave them out, and add the term to your loss"
            )


def _unmatched(
    given: Sequence[str], options: Mapping[str, Any], names: Sequence[str]
) -> Iterable[str]:
    for key in given:
        patterns = options[key]
        if not (key.endswith("_pattern") and isinstance(patterns, Mapping)):
            continue
        used = {pattern_for([pattern], name) for pattern in patterns for name in names}
        lost = [pattern for pattern in patterns if pattern not in used]
        if lost:
            names = some([repr(name) for name in lost])
            yield f"{key}: expected names of targets, {names} match none"


def pattern_for(patterns: Iterable[str], name: str) -> str | None:
    """Return the first of ``peft``'s patterns that means a layer, or ``None``.

    Args:
        patterns: The keys of ``rank_pattern`` or ``alpha_pattern``.
        name: The layer's name.
    """
    from peft.utils.other import get_pattern_key

    keys = tuple(patterns)
    found: str = get_pattern_key(keys, name)  # the name itself if none of them means it
    return found if found in keys else None


def _is_set(tuner: str, key: str, options: Mapping[str, Any]) -> bool:
    """Whether a setting has another value than ``peft`` would give it."""
    if key not in options or options[key] is None:
        return False
    default = default_of(tuner, key)
    return bool(options[key] if default is dataclasses.MISSING else options[key] != default)


def default_of(tuner: str, key: str) -> Any:
    """Return the default of a setting of a tuner; ``dataclasses.MISSING`` if it has none."""
    defaults = {field.name: field.default for field in dataclasses.fields(config_class(tuner))}
    return defaults.get(key, dataclasses.MISSING)


def _usual(key: str) -> dict[str, Any]:
    from peft.tuners.lora import config

    names = {"kasa_config": "KasaConfig", "monteclora_config": "MontecloraConfig"}
    kind = getattr(config, names[key], None)  # peft 0.20 has no KaSA
    return {} if kind is None else {field.name: field.default for field in dataclasses.fields(kind)}
