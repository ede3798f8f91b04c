"""Texts that a model with an encoder and a decoder writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_peft.errors import DataError
from lightning_peft.lightning.modules.generation import undisturbed

__all__ = ["TargetWriter"]


class TargetWriter:
    """Writes a text for each text, batch by batch.

    Args:
        model: A model with ``generate``, as ``AutoModelForSeq2SeqLM`` gives.
        tokenizer: Its tokeniser.

    Raises:
        DataError: If the model cannot generate.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        if not callable(getattr(model, "generate", None)):
            raise DataError(
                "Expected a model with generate(), as AutoModelForSeq2SeqLM gives, got "
                f"{type(model).__name__}."
            )
        self.model: Any = model
        self.tokenizer = tokenizer

    def __call__(
        self,
        texts: Sequence[str],
        *,
        tokenise: Callable[[Sequence[str]], Mapping[str, Tensor]],
        max_new_tokens: int,
        batch_size: int,
        **options: Any,
    ) -> list[str]:
        """Return a text for each text, greedily by default.

        Args:
            texts: The texts.
            tokenise: Maps some of them to tensors ``(B, T)`` for the encoder.
            max_new_tokens: The most tokens of each.
            batch_size: Texts at once.
            **options: As for the ``generate`` of transformers, such as ``num_beams=4``.
        """
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise DataError(f"Expected {name} of 1 or more, got {value}.")
        found: list[str] = []
        for start in range(0, len(texts), batch_size):
            inputs = tokenise(texts[start : start + batch_size])
            found += self.written(inputs, max_new_tokens, options)
        return found

    def written(
        self, inputs: Mapping[str, Tensor], max_new_tokens: int, options: Mapping[str, Any]
    ) -> list[str]:
        """Return a text for each row of ``input_ids`` and ``attention_mask`` ``(B, T)``.

        The random state, and the mode of the model, are left as they were.
        """
        device = next(self.model.parameters()).device
        given = {
            name: inputs[name].to(device)
            for name in ("input_ids", "attention_mask")
            if name in inputs
        }
        with undisturbed(self.model):
            out = self.model.generate(
                **given, max_new_tokens=max_new_tokens, **{"do_sample": False, **options}
            )
        return self.read(out)

    def read(self, tokens: Tensor) -> list[str]:
        """Return the texts of tokens ``(B, T)``; negative ones are left out."""
        rows = [[token for token in row if token >= 0] for row in tokens.tolist()]
        texts: list[str] = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        return [text.strip() for text in texts]
