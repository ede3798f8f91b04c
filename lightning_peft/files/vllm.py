"""What vLLM refuses about an adapter directory of ``peft``, or would compute wrongly.

The rules are those of ``vllm/lora/peft_helper.py`` (the config), ``vllm/lora/utils.py`` (the names
of the tensors) and ``vllm/config/lora.py`` (the ranks), read in 2026; vLLM itself is not needed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lightning_peft.errors import some

__all__ = ["RANKS", "vllm_problems", "vllm_rank"]

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values of ``--max-lora-rank``; 16 without it."""

_ENDS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")


def vllm_problems(config: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """Return why vLLM would not serve an adapter as ``peft`` does; empty if it would.

    Args:
        config: The content of ``adapter_config.json``.
        names: The names of the tensors in ``adapter_model.safetensors``.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        return [f"it serves LoRA only, not {kind}"]
    found = []
    if config.get("use_dora"):
        found.append("it has no DoRA")
    if config.get("modules_to_save"):
        found.append("it has no modules that are trained whole (modules_to_save)")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        found.append("it has no biases in adapters")
    patterns = [key for key in ("rank_pattern", "alpha_pattern") if config.get(key)]
    if patterns:
        found.append(f"it reads past {' and '.join(patterns)}, and scales all by lora_alpha / r")
    if config.get("target_parameters"):
        found.append("it reads experts by other names than those of target_parameters")
    if config.get("alora_invocation_tokens"):
        found.append("it does not read alora_invocation_tokens")
    if int(config.get("r", 0)) > RANKS[-1]:
        found.append(f"its ranks end at {RANKS[-1]}, this one is {config['r']}")
    strange = sorted(name for name in names if not name.endswith(_ENDS))
    if strange and not found:
        found.append(f"it knows no tensors such as {some(strange, 2)}")
    return found


def vllm_rank(config: Mapping[str, Any]) -> int | None:
    """Return the value that ``--max-lora-rank`` needs; ``None`` if the default serves."""
    rank = int(config.get("r", 0))
    return None if rank <= 16 else next((r for r in RANKS if r >= rank), None)
