"""Texts that a causal language model generates, and their way into a log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_peft.adaptation.sharding import is_sharded
from lightning_peft.anatomy.forward import in_evaluation_mode
from lightning_peft.backbones.causal_lm import length_limit
from lightning_peft.data.chat_tokens import Encoder
from lightning_peft.errors import DataError

__all__ = ["FILE", "Generator", "Sample", "log_samples", "undisturbed"]

FILE = "samples.jsonl"
"""Where samples go if the logger has no place for texts, in its directory."""


@dataclass(frozen=True)
class Sample:
    """A text that was generated.

    Attributes:
        prompt: A text, or a list of messages.
        generated: What the model wrote.
        reference: The answer in the data; empty if there is none.
    """

    prompt: Any
    generated: str
    reference: str = ""


class Generator:
    """Generates texts with a model, batch by batch.

    Args:
        model: A model with ``generate``, as those of transformers.
        tokenizer: Its tokeniser.

    Raises:
        DataError: If the model cannot generate.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        if not callable(getattr(model, "generate", None)):
            raise DataError(
                f"Expected a model with generate(), as transformers' causal language models have, "
                f"got {type(model).__name__}."
            )
        self.model: Any = model
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer, "all", 1)

    def __call__(
        self, prompts: Sequence[Any], *, max_new_tokens: int, batch_size: int, **options: Any
    ) -> list[str]:
        """Return a text for each prompt, without the prompt."""
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise DataError(f"Expected {name} of 1 or more, got {value}.")
        ids = [self.encoder.prompt_ids(prompt) for prompt in prompts]
        limit = length_limit(self.model)
        longest = max((len(row) for row in ids), default=0)
        if limit is not None and longest + max_new_tokens > limit:
            raise DataError(
                f"Expected prompts of at most {max(limit - max_new_tokens, 0)} tokens, since "
                f"{type(self.model).__name__} reads {limit} and max_new_tokens={max_new_tokens}, "
                f"got one of {longest}. Shorten it, or generate less."
            )
        if any(not row for row in ids):
            raise DataError("Expected prompts of one token or more, got an empty one.")
        found: list[str] = []
        with undisturbed(self.model):
            for start in range(0, len(ids), batch_size):
                found += self._batch(ids[start : start + batch_size], max_new_tokens, options)
        return found

    def _batch(
        self, rows: Sequence[list[int]], max_new_tokens: int, options: Mapping[str, Any]
    ) -> list[str]:
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        pad = next((token for token in (pad, end) if token is not None), 0)
        width = max(map(len, rows))
        # on the left, so that what is generated follows the prompt
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        known = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        chosen = {"do_sample": False, "pad_token_id": pad}
        if is_sharded(self.model):  # each process goes on as long as any other does
            chosen["synced_gpus"] = True
        if known is None and end is not None:
            chosen["eos_token_id"] = end
        device = next(self.model.parameters()).device
        out = self.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            **{**chosen, **options},
        )
        texts: list[str] = self.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
        return texts


@contextmanager
def undisturbed(model: nn.Module) -> Any:
    """Run a block in evaluation mode without gradients, and leave no trace in the model."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    # not inference mode: what a model keeps (rotary tables) may be needed by a backward pass
    with in_evaluation_mode(model), torch.random.fork_rng(devices=devices), torch.no_grad():
        yield


def log_samples(loggers: Sequence[Any], samples: Sequence[Sample], step: int) -> None:
    """Write samples where each logger has a place for texts, else in a file of its directory.

    Args:
        loggers: Loggers of Lightning.
        samples: The samples.
        step: The optimizer step.
    """
    for logger in loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if callable(getattr(logger, "log_text", None)):  # Weights & Biases
            columns = ["prompt", "generated", "reference"]
            rows = [[_written(s.prompt), s.generated, s.reference] for s in samples]
            logger.log_text("val/samples", columns=columns, data=rows, step=step)
        elif callable(getattr(experiment, "add_text", None)):  # TensorBoard
            experiment.add_text("val/samples", "\n\n".join(map(_markdown, samples)), step)
        elif getattr(logger, "log_dir", None):
            path = Path(logger.log_dir) / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                for sample in samples:
                    line = {"step": step, **asdict(sample)}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _markdown(sample: Sample) -> str:
    parts = {"prompt": _written(sample.prompt), "generated": sample.generated}
    parts |= {"reference": sample.reference} if sample.reference else {}
    return "\n".join(f"- {name}: `{text}`" for name, text in parts.items())


def _written(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
