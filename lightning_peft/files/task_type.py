"""The task of a model of transformers, as ``peft`` names it in a file."""

from __future__ import annotations

import re
from collections.abc import Collection

from torch import nn

__all__ = ["task_type_of"]

HEADS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""The tasks whose head ``peft`` takes out of the file."""

LANGUAGE = re.compile(r"For(CausalLM|ConditionalGeneration)$|LMHeadModel$")


def task_type_of(model: nn.Module, saved: Collection[str]) -> str | None:
    """Return the task for which ``peft`` and its ``AutoPeftModelFor...`` open an adapter.

    Args:
        model: The adapted model.
        saved: The modules that the file holds whole.

    Returns:
        One of ``peft``'s task types. None for other models; for one whose new head is not in the
        file, since ``peft`` would look for it there; and for question answering with segments
        (BERT), since ``peft``'s wrapper for it drops ``token_type_ids``, which its plain one keeps.
    """
    config = getattr(model, "config", None)
    for kind in type(model).__mro__:
        if not kind.__module__.startswith("transformers."):
            continue
        name = kind.__name__
        head = next((task for end, task in HEADS.items() if name.endswith(end)), None)
        if head is not None:
            segments = int(getattr(config, "type_vocab_size", None) or 0) > 1
            return None if not saved or (head == "QUESTION_ANS" and segments) else head
        if LANGUAGE.search(name):
            both = bool(getattr(config, "is_encoder_decoder", False))
            if name.endswith("ForConditionalGeneration") and not both:
                return None  # a model of images and texts
            return "SEQ_2_SEQ_LM" if both else "CAUSAL_LM"
    return None
