"""The configurations in peft's own tests, each with a model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.peft_suite.models import build, images
from tests.peft_suite.source import load

__all__ = ["LISTS", "Row", "rows"]


@dataclass(frozen=True)
class Row:
    """One configuration on one model.

    Attributes:
        part: The list it is from.
        name: Its model and its settings, for a person; unique in the part.
        model: Builds the model, always with the same weights.
        inputs: Builds a batch.
        config: Builds the config.
    """

    part: str
    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    config: Callable[[], Any]

    @property
    def key(self) -> str:
        """The part and the name."""
        return f"{self.part}/{self.name}"


def _numbered(found: Iterator[Row]) -> Iterator[Row]:
    """Give rows of one name a number."""
    seen: dict[str, int] = {}
    for row in found:
        seen[row.name] = count = seen.get(row.name, 0) + 1
        yield row if count == 1 else Row(**{**vars(row), "name": f"{row.name} ({count})"})


def _told(config_class: Any, settings: dict[str, Any]) -> str:
    words = {k: v for k, v in settings.items() if k != "task_type" and v is not None}
    text = json.dumps(words, default=str, sort_keys=True) if words else ""
    return f"{config_class.__name__.removesuffix('Config')} {text}".strip()


def _made(config_class: Any, settings: dict[str, Any]) -> Callable[[], Any]:
    return lambda: config_class(**copy.deepcopy(settings))


def _custom() -> Iterator[Row]:
    tests = load("test_custom_models")

    def inputs(model_id: str) -> dict[str, Tensor]:
        given = tests.TestPeftCustomModel.prepare_inputs_for_testing(_CPU)
        # its numbers up to 89 are words of an embedding; to any other layer they are too large for
        # a softmax to have a gradient
        small = {key: torch.randn(value.shape) for key, value in given.items()}
        return given if "Emb" in model_id else small

    for name, model_id, config_class, settings in tests.TEST_CASES:
        yield Row(
            "custom",
            f"{name}: {model_id}, {_told(config_class, settings)}",
            lambda model_id=model_id: tests.MockTransformerWrapper.from_pretrained(model_id).eval(),
            lambda model_id=model_id: inputs(model_id),
            _made(config_class, settings),
        )


_CPU = SimpleNamespace(torch_device="cpu")


def _of_hub(part: str, file: str, models: str, configs: str, tests_class: str) -> Iterator[Row]:
    tests = load(file)
    tester = getattr(tests, tests_class)
    pairs = [(m, *c) for m in getattr(tests, models) for c in getattr(tests, configs)]
    yield from _rows_of(part, tester, pairs)


def _rows_of(part: str, tester: Any, found: list[tuple[str, Any, Any]]) -> Iterator[Row]:
    for model_id, config_class, settings in found:
        yield Row(
            part,
            f"{model_id.rpartition('/')[2]}: {_told(config_class, settings)}",
            lambda model_id=model_id: build(model_id, tester.transformers_class),
            lambda: tester.prepare_inputs_for_testing(_CPU),
            _made(config_class, settings),
        )


def _experts() -> Iterator[Row]:
    import transformers

    tests = load("test_target_parameters")
    tester = tests.TestDecoderModelsTargetParameters
    plain = SimpleNamespace(
        transformers_class=transformers.AutoModelForCausalLM,
        prepare_inputs_for_testing=tester.prepare_inputs_for_testing,
    )
    yield from _rows_of("experts", plain, tests.ALL_CONFIGS)


def _vision() -> Iterator[Row]:
    import transformers

    tests = load("test_vision_models")
    for name, config in tests.CONFIGS.items():
        yield Row(
            "vision",
            f"{tests.TestResnet.model_id.rpartition('/')[2]}: {name}",
            lambda: build(tests.TestResnet.model_id, transformers.AutoModelForImageClassification),
            images,
            lambda config=config: copy.deepcopy(config),
        )


LISTS: dict[str, tuple[str, Callable[[], Iterator[Row]]]] = {
    "custom": ("layers by themselves (`test_custom_models.py`)", _custom),
    "decoder": (
        "causal language models (`test_decoder_models.py`)",
        lambda: _of_hub(
            "decoder",
            "test_decoder_models",
            "PEFT_DECODER_MODELS_TO_TEST",
            "ALL_CONFIGS",
            "TestDecoderModels",
        ),
    ),
    "encoder-decoder": (
        "encoders with decoders (`test_encoder_decoder_models.py`)",
        lambda: _of_hub(
            "encoder-decoder",
            "test_encoder_decoder_models",
            "PEFT_ENCODER_DECODER_MODELS_TO_TEST",
            "ALL_CONFIGS",
            "TestEncoderDecoderModels",
        ),
    ),
    "features": (
        "models without a head (`test_feature_extraction_models.py`)",
        lambda: _of_hub(
            "features",
            "test_feature_extraction_models",
            "PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST",
            "ALL_CONFIGS",
            "TestPeftFeatureExtractionModel",
        ),
    ),
    "sequences": (
        "classifiers of sequences (`test_seq_classifier.py`)",
        lambda: _of_hub(
            "sequences",
            "test_seq_classifier",
            "PEFT_SEQ_CLS_MODELS_TO_TEST",
            "ALL_CONFIGS",
            "TestSequenceClassificationModels",
        ),
    ),
    "tokens": (
        "classifiers of tokens (`test_token_classification_qa.py`)",
        lambda: _of_hub(
            "tokens",
            "test_token_classification_qa",
            "PEFT_TOKEN_CLS_MODELS_TO_TEST",
            "TOKEN_CLS_CONFIGS",
            "TestTokenClassificationModels",
        ),
    ),
    "answers": (
        "answers to questions (`test_token_classification_qa.py`)",
        lambda: _of_hub(
            "answers",
            "test_token_classification_qa",
            "PEFT_QA_MODELS_TO_TEST",
            "QA_CONFIGS",
            "TestQuestionAnsweringModels",
        ),
    ),
    "experts": ("parameters of experts (`test_target_parameters.py`)", _experts),
    "vision": ("images (`test_vision_models.py`)", _vision),
}


def rows(part: str) -> list[Row]:
    """Return the rows of a list."""
    return list(_numbered(LISTS[part][1]()))
