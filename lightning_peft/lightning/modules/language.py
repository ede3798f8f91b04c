"""The base class of the ready modules for language: the model, its checks, generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.adaptation.parameter_groups import parameter_groups
from lightning_peft.backbones.causal_lm import load_causal_lm, load_lm_tokenizer
from lightning_peft.errors import DataError
from lightning_peft.lightning.modules.base import monitors_of_test
from lightning_peft.lightning.modules.build import plain
from lightning_peft.lightning.modules.generation import Generator
from lightning_peft.lightning.modules.language_checks import (
    batch_problems,
    data_problems,
    see_each_other,
)
from lightning_peft.lightning.namespace import pl

__all__ = ["LanguageModule"]


class LanguageModule(pl.LightningModule):
    """A language model with its optimizer, for batches of tokens; a causal one by default.

    Attributes:
        noun: For messages.
        kind: The task of the data that it takes.
        backbone: The model, with its head.
        lr: Learning rate.
        weight_decay: Weight decay of the parameters that decay.
        group_settings: More arguments of :func:`parameter_groups`.
        optimizer: Called with the parameter groups; None is AdamW.
    """

    noun: ClassVar[str] = "texts"
    kind: ClassVar[str]
    _load = staticmethod(load_causal_lm)

    def _model(
        self,
        backbone: str | nn.Module,
        *,
        pretrained: bool,
        dtype: str,
        backbone_kwargs: Mapping[str, Any] | None,
        tokenizer: Any,
        lr: float,
        weight_decay: float,
        groups: dict[str, Any],
        optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None,
        wrong: Sequence[str] = (),
    ) -> None:
        """Check and keep the arguments that all modules for language have, and build the model."""
        options = plain(backbone_kwargs or {})
        wrong = [*wrong, *_wrong_backbone(backbone, pretrained, dtype, options)]
        wrong += [
            f"{k} of 0 or more, got {v!r}"
            for k, v in {"lr": lr, "weight_decay": weight_decay}.items()
            if not v >= 0
        ]
        if tokenizer is not None and not (isinstance(tokenizer, str) or hasattr(tokenizer, "pad")):
            wrong.append(f"tokenizer as a name or a tokeniser, got {type(tokenizer).__name__}")
        if wrong:
            raise DataError("Expected " + "; ".join(wrong) + ".")
        self.lr = lr
        self.weight_decay = weight_decay
        self.group_settings = groups
        self.optimizer = optimizer
        self._tokenizer = load_lm_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self._name = backbone if isinstance(backbone, str) else None
        self._checked: set[str] = set()
        if isinstance(backbone, nn.Module):
            self.backbone = backbone
        else:
            self.backbone = self._load(
                backbone, pretrained=pretrained, dtype=dtype, options=options
            )

    @property
    def tokenizer(self) -> Any:
        """The tokeniser: as given, or of the data, or of the model's name.

        Raises:
            DataError: If there is none.
        """
        if self._tokenizer is None:
            if self._name is None:
                raise DataError(
                    f"Expected a tokeniser to read and write texts, got a {type(self).__name__} "
                    "that was built from a model without one. Pass tokenizer=... (also to "
                    "load_from_checkpoint), or set module.tokenizer."
                )
            self._tokenizer = load_lm_tokenizer(self._name)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, value: Any) -> None:
        self._tokenizer = value

    def setup(self, stage: str) -> None:
        """Compare the data module's task, tokeniser and lengths with the model."""
        if stage == "fit" and (wrong := monitors_of_test(self.trainer)):
            raise DataError("Expected nothing to be chosen on the test set: " + "; ".join(wrong))
        self._checked = set()
        data = getattr(self.trainer, "datamodule", None)
        found = getattr(data, "tokenizer", None)
        if self._tokenizer is None and found is not None:
            self._tokenizer = found
        problems = data_problems(
            self.backbone,
            data,
            self._tokenizer if found is None else found,
            wanted=self.kind,
            module=type(self).__name__,
        )
        if problems:
            raise DataError("Expected " + "; ".join(problems) + ".")

    def on_fit_start(self) -> None:
        """Try whether packed examples see each other in this model."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if getattr(data, "packing", False):
            told = see_each_other(self.backbone, self.device, rows=min(2, data.batch_size))
            if told is not None:
                raise DataError(
                    "Expected a model in which packed examples do not see each other, got "
                    f"{type(self.backbone).__name__}: {told}. Set packing=False."
                )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return logits ``(B, T, V)`` for tokens ``(B, T)``, without their labels."""
        given = {name: value for name, value in inputs.items() if name != "labels"}
        return self._logits(given)

    def generate(
        self,
        prompts: Any,
        *,
        max_new_tokens: int = 64,
        batch_size: int = 8,
        **options: Any,
    ) -> Any:
        """Generate texts after prompts, without the prompts; greedily by default.

        Prompts of a batch are padded on the left. The random state is left as it was.

        Args:
            prompts: A text, or a conversation (a list of messages, for the chat template); or a
                list of texts or of conversations.
            max_new_tokens: The most tokens to add to each.
            batch_size: Prompts at once.
            **options: As for the ``generate`` of transformers, such as ``do_sample=True``.

        Returns:
            A text; or a list of texts, for a list.

        Raises:
            DataError: If there is no tokeniser, or a prompt is too long for the model.
        """
        single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], Mapping))
        writer = Generator(self.backbone, self.tokenizer)
        found = writer(
            [prompts] if single else list(prompts),
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            **options,
        )
        return found[0] if single else found

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer over the trained parameters, with weight decay where it belongs."""
        groups = parameter_groups(self, self.lr, self.weight_decay, **self.group_settings)
        return torch.optim.AdamW(groups) if self.optimizer is None else self.optimizer(groups)

    def _called(self, inputs: Mapping[str, Tensor]) -> Any:
        """Call the model without its cache, which packed rows and gradients have no use for."""
        return self.backbone(**inputs, use_cache=False)

    def _logits(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the tokens, without those of prompts that an adapter puts first."""
        logits: Tensor = self._called(inputs).logits
        return logits[:, -inputs["input_ids"].shape[1] :]

    def _check_batch(self, batch: Any, stage: str) -> None:
        """Refuse the first batch of a stage if the model cannot learn from it."""
        if stage not in self._checked:
            problems = batch_problems(self.backbone, batch)
            if problems:
                raise DataError(f"Expected a batch ({stage}) with " + "; ".join(problems) + ".")
            self._checked.add(stage)


def _wrong_backbone(
    backbone: Any, pretrained: bool, dtype: str, options: Mapping[str, Any]
) -> list[str]:
    if isinstance(backbone, str):
        return []
    if not isinstance(backbone, nn.Module):
        return [f"backbone as a model or the name of one, got {type(backbone).__name__}"]
    asked = sorted(options)
    asked += [] if pretrained else ["pretrained"]
    asked += [] if dtype == "float32" else ["dtype"]
    if asked:
        return [
            f"{', '.join(asked)} only with the name of a model, got a model as backbone: set "
            "them where it is built"
        ]
    return []
