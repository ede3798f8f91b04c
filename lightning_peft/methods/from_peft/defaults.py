"""What ``peft`` adapts by itself in a model of transformers, where no targets are given."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

__all__ = ["DEFAULT", "NEW_HEADS", "default_targets"]

DEFAULT = "default"
"""The ``targets`` of a config of ``peft`` that names none."""

NEW_HEADS = {
    "QUESTION_ANS": ("qa_outputs",),
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
}
"""What ``peft`` trains whole for a task, in a model that has such a module."""


def default_targets(tuner: str, model: nn.Module) -> dict[str, Any]:
    """Return the targets that ``peft`` has for a tuner and a kind of model.

    Args:
        tuner: The tuner's name.
        model: The backbone.

    Returns:
        ``target_modules`` and, of IA3, ``feedforward_modules``; nothing where ``peft`` asks for
        them.
    """
    import peft.utils
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind is None:
        return {}
    if tuner == "IA3":
        names = peft.utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        inner = peft.utils.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
        if kind not in names or kind not in inner:
            return {}
        # as an expression, since peft compares two lists with each other, and not what they match
        ends = "|".join(re.escape(entry) for entry in inner[kind])
        feedforward = rf"(?:.*\.)?(?:{ends})"
        return {"target_modules": names[kind], "feedforward_modules": feedforward}
    tuners: dict[Any, Any] = {str(getattr(key, "value", key)): value
                              for key, value in PEFT_TYPE_TO_TUNER_MAPPING.items()}  # fmt: skip
    entries = (getattr(tuners[tuner], "target_module_mapping", None) or {}).get(kind)
    return {"target_modules": entries} if entries else {}
