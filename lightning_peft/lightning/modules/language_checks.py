"""What is wrong about a language model and its data, found before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.forward import in_evaluation_mode
from lightning_peft.backbones.causal_lm import length_limit, vocabulary_of
from lightning_peft.data.chat_rows import IGNORED

__all__ = ["batch_problems", "data_problems", "see_each_other", "target_problems"]

MODULES = {
    "language": "CausalLM",
    "preference": "PreferenceModule",
    "seq2seq": "Seq2SeqLM",
}
"""The module for each task."""
ROUNDING = 64
"""How many units in the last place two outputs of the same kernel may differ by."""


def data_problems(
    model: nn.Module, data: Any, tokenizer: Any, *, wanted: str, module: str
) -> list[str]:
    """Compare a model with a data module.

    Args:
        model: The language model.
        data: The data module; ``None`` if there is none.
        tokenizer: The tokeniser of the data; ``None`` if it is not known.
        wanted: The task that the LightningModule serves.
        module: Its name.

    Returns:
        What was expected and what came instead, for each problem.
    """
    problems = []
    task = getattr(data, "task", None)
    if data is not None and task != wanted and (task in MODULES or hasattr(data, "num_classes")):
        other = MODULES.get(str(task), "a module for it")
        kind = {
            "language": "data to learn from (messages, prompt and completion, or text)",
            "preference": "pairs of answers (prompt, chosen, rejected)",
            "seq2seq": "texts with targets (of a TextDataModule, task='seq2seq')",
        }[wanted]
        problems.append(f"{kind} for {module}, got data of the task '{task}': use {other}")
    rows = vocabulary_of(model)
    tokens = _tokens_of(tokenizer)
    if rows is not None and tokens is not None and tokens > rows:
        problems.append(
            f"a tokeniser that fits the {rows} rows of the model's embedding, got "
            f"{type(tokenizer).__name__} of {tokens} tokens: use the tokeniser of this model, or "
            f"call model.resize_token_embeddings({tokens}) if tokens were added, and train the new "
            "rows"
        )
    limit, length = length_limit(model), getattr(data, "max_length", None)
    if limit is not None and isinstance(length, int) and length > limit:
        problems.append(
            f"sequences of at most the {limit} tokens that {type(model).__name__} reads, got "
            f"max_length={length} of {type(data).__name__}: set max_length={limit}"
        )
    return problems


def _tokens_of(tokenizer: Any) -> int | None:
    """Return one more than the largest token of a tokeniser."""
    vocabulary = getattr(tokenizer, "get_vocab", None)
    if not callable(vocabulary):
        return None
    return max(vocabulary().values(), default=-1) + 1


def batch_problems(model: nn.Module, batch: Any) -> list[str]:
    """Compare a model with a batch.

    Args:
        model: The language model.
        batch: What the data loader gives.

    Returns:
        What was expected and what came instead, for each problem.
    """
    if problems := _missing(batch):
        return problems
    ids, labels = batch["input_ids"], batch["labels"]
    problems = []
    if ids.shape != labels.shape:
        problems.append(
            f"labels of the shape of input_ids, {tuple(ids.shape)}, got {tuple(labels.shape)}: "
            "they are not shifted"
        )
    elif not bool((labels[..., 1:] != IGNORED).any()):
        problems.append(
            f"a token to learn, got labels that are {IGNORED} everywhere (the first token of a "
            "row does not count): check the mask of the answers"
        )
    limit = length_limit(model)
    position = batch.get("position_ids")
    length = ids.shape[-1] if position is None else int(position.max()) + 1
    if limit is not None and length > limit:
        problems.append(
            f"sequences of at most the {limit} tokens that {type(model).__name__} reads, got "
            f"{length}: cut them"
        )
    rows = vocabulary_of(model)
    largest = int(ids.max())
    if rows is not None and largest >= rows:
        problems.append(
            f"tokens below the {rows} rows of the model's embedding, got {largest}: use the "
            "tokeniser of this model"
        )
    if _has_tasks(model) and "task_ids" not in batch:
        problems.append(f"task_ids, for multitask prompts, got {', '.join(map(str, batch))}")
    return problems


def target_problems(model: nn.Module, batch: Any) -> list[str]:
    """Compare a model with an encoder and a decoder with a batch.

    Args:
        model: The model.
        batch: What the data loader gives.

    Returns:
        What was expected and what came instead, for each problem.
    """
    if problems := _missing(batch):
        return problems
    labels = batch["labels"]
    if not bool((labels != IGNORED).any()):
        problems.append(f"a token to learn, got labels that are {IGNORED} everywhere")
    limit, rows = length_limit(model), vocabulary_of(model)
    for name in ("input_ids", "labels"):
        length, largest = batch[name].shape[-1], int(batch[name].max())
        if limit is not None and length > limit:
            problems.append(
                f"{name} of at most the {limit} tokens that {type(model).__name__} reads, got "
                f"{length}: cut them"
            )
        if rows is not None and largest >= rows:
            problems.append(
                f"{name} below the {rows} rows of the model's embedding, got {largest}: use the "
                "tokeniser of this model"
            )
    return problems


def _missing(batch: Any) -> list[str]:
    if not isinstance(batch, Mapping):
        return [f"input_ids and labels by name (a mapping), got {type(batch).__name__}"]
    missing = [name for name in ("input_ids", "labels") if name not in batch]
    if missing:
        return [f"{' and '.join(missing)}, got {', '.join(map(str, batch)) or 'nothing'}"]
    return []


def see_each_other(model: nn.Module, device: torch.device, rows: int = 2) -> str | None:
    """Try whether documents that are packed into a row see each other.

    Two documents of four tokens are run in one row, with positions that begin again, next to
    another first document, and by themselves.

    Args:
        model: The language model; it is run without gradients and in evaluation mode.
        device: Where its inputs are.
        rows: Rows of the batch.

    Returns:
        What was seen; ``None`` if the documents are apart.
    """
    size = min(vocabulary_of(model) or 8, 1000)
    half = torch.arange(4, device=device)
    first, other, second = (half * 3 % size, (half * 5 + 1) % size, (half * 7 + 2) % size)
    positions = half.repeat(2).expand(rows, -1)

    def after(start: Tensor) -> Tensor:
        ids = torch.cat([start, second]).expand(rows, -1)
        found: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        return found[:, 4:].float()

    try:
        with in_evaluation_mode(model), torch.no_grad():
            one, two = after(first), after(other)
            alone = model(input_ids=second.expand(rows, -1), use_cache=False).logits
    except TypeError as error:  # it has no position_ids
        return f"it takes no positions ({error})"
    scale = float(one.abs().max())
    unit = torch.finfo(alone.dtype).eps * ROUNDING * scale
    if float((one - two).abs().max()) > unit:
        return (
            "another first document changed the outputs of the second by "
            f"{float((one - two).abs().max()):.2g} (of {scale:.2g})"
        )
    if float((one - alone.float()).abs().max()) > max(unit, 1e-3 * scale):
        return (
            "the outputs of the second document differ from those of the document alone by "
            f"{float((one - alone.float()).abs().max()):.2g} (of {scale:.2g})"
        )
    return None


def _has_tasks(model: Any) -> bool:
    """Whether prompts of ``peft`` in a model are chosen by the task of each row."""
    config = getattr(model, "active_peft_config", None)
    return getattr(config, "peft_type", None) == "MULTITASK_PROMPT_TUNING"
