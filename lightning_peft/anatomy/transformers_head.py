"""The head of a model of Hugging Face transformers."""

from __future__ import annotations

import re

from torch import nn

from lightning_peft.anatomy.family import backbones_in
from lightning_peft.anatomy.tree import Node, has_weights

__all__ = ["transformers_head"]

# The library names its classes by this rule: `BertModel` is a base model, `BertForX` has a head.
_FOR_A_TASK = re.compile(r"For[A-Z]|LMHead|DoubleHeads")

# What a checkpoint of the hub has been pretrained for: the outputs are as pretrained as the rest.
_PRETRAINED = re.compile(
    r"LMHead|DoubleHeads|For(CausalLM|MaskedLM|ConditionalGeneration|PreTraining|Generation"
    r"|MaskedImage\w*|CausalImage\w*|ImageTextTo\w*|TextTo\w*|SpeechTo\w*|NextSentence\w*"
    r"|Retrieval|MaskGeneration|Keypoint\w*|RNNT|TDT|ImageTextRetrieval|MultimodalLM|CausalLM\w*)"
)


def transformers_head(root: Node, usual: re.Pattern[str]) -> list[Node]:
    """Find the head of a model of transformers.

    - A base model (`BertModel`, `SiglipVisionModel`) has none, whatever its children are called:
      a pooling head, a final norm and the projections of CLIP come with the checkpoint. Nor has a
      model for language modelling or pretraining, except a classifier beside it.
    - A model for a task (`BertForSequenceClassification`): all children beside the base model, or
      beside the pretrained models in it.
    - A class of somebody else: the children beside the base model, or those with usual names if
      there is none or it has the output of a language model.

    Args:
        root: The node of the model.
        usual: The usual names of heads.

    Returns:
        The nodes of the head.
    """
    model = root.module
    kind = next(k for k in type(model).__mro__ if k.__module__.startswith("transformers."))
    ours = kind is type(model)
    if ours and not _FOR_A_TASK.search(kind.__name__):
        return []
    output = _embeddings(model, "get_output_embeddings")
    words = _embeddings(model, "get_input_embeddings")
    candidates = [
        child
        for child in root.children
        if has_weights(child.module)
        and child.module is not words  # T5's `shared` stands beside its encoder and decoder
        and (output is None or all(module is not output for module in child.module.modules()))
    ]
    if ours and _PRETRAINED.search(kind.__name__):
        return [child for child in candidates if child.key == "multiple_choice_head"]
    if output is not None:
        # The layers outside the base, such as a transform before the vocabulary, are as pretrained.
        return [child for child in candidates if usual.fullmatch(child.key)]
    prefix = getattr(model, "base_model_prefix", "")
    base = next((child for child in root.children if child.key == prefix), None)
    if base is not None:
        return [child for child in candidates if child is not base]
    whole = [child for child in candidates if backbones_in(child)]
    others = [child for child in candidates if child not in whole]
    if whole and others:
        return others
    return [child for child in candidates if usual.fullmatch(child.key)]


def _embeddings(model: nn.Module, getter: str) -> nn.Module | None:
    get = getattr(model, getter, None)
    try:
        found = get() if get is not None else None
    except NotImplementedError:  # a model of images may have none of words
        return None
    return found if isinstance(found, nn.Module) else None
