"""Loading encoders and tokenisers of Hugging Face, by name or directory, without messages."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from lightning_peft.errors import DataError, near, require

__all__ = [
    "checked_name",
    "finding",
    "load_config",
    "load_encoder",
    "load_sequence_classifier",
    "load_token_classifier",
    "load_tokenizer",
    "quietly",
]

EXTRA = "text"
DROPOUTS = ("classifier_dropout", "seq_classif_dropout", "summary_last_dropout")
"""The names of the dropout before the head in the configs of encoders."""

log = logging.getLogger(__name__)


def load_tokenizer(name: str) -> Any:
    """Load the tokeniser that a model was trained with.

    Args:
        name: A name on the Hugging Face hub, or a local directory.

    Raises:
        DataError: If there is no such model, or it has no tokeniser or no padding token.
        MissingExtraError: If transformers is not installed.
    """
    transformers = require("transformers", EXTRA)
    name = checked_name(name)
    with quietly(transformers), finding(name, "a tokeniser"):
        found = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if found.pad_token is None:
        raise DataError(
            f"Expected a tokeniser with a padding token, got that of '{name}', which has none: the "
            "texts of a batch could not be of one length. Choose an encoder, such as "
            "'bert-base-uncased'."
        )
    return found


def load_config(name: str, num_outputs: int | None, options: Mapping[str, Any]) -> Any:
    """Load the config of a model.

    Args:
        name: A name on the Hugging Face hub, or a local directory.
        num_outputs: Outputs of a new head; ``None`` if the head is the model's own.
        options: Values of the config to change.

    Raises:
        DataError: If there is no such model, or its config lacks one of the values; all are named.
        MissingExtraError: If transformers is not installed.
    """
    transformers = require("transformers", EXTRA)
    name = checked_name(name)
    with quietly(transformers), finding(name, "a model"):
        config, unused = transformers.AutoConfig.from_pretrained(
            name,
            return_unused_kwargs=True,
            **({} if num_outputs is None else {"num_labels": num_outputs}),
            **{"trust_remote_code": False, **options},  # by default transformers asks
        )
    if unused:
        known = [key for key in config.to_dict() if not key.startswith("_")]
        told = "; ".join(f"{key}: {near(key, known)}" for key in sorted(unused))
        raise DataError(f"Expected values that the config of '{name}' has, got {told}")
    return config


def load_sequence_classifier(
    name: str,
    num_outputs: int,
    *,
    pretrained: bool = True,
    head_dropout: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load an encoder with a new head, in float32 and in training mode.

    Args:
        name: A name on the Hugging Face hub, or a local directory.
        num_outputs: Outputs of the head.
        pretrained: Load the weights of the encoder; otherwise they are random.
        head_dropout: Probability of dropping a feature before the head; None keeps the model's own.
        options: Values of the config to change.

    Returns:
        A model from ``AutoModelForSequenceClassification``.

    Raises:
        DataError: If there is no such model, it lacks one of the values, the dropout or a sequence
            classifier, or most of the encoder's weights are missing in its file.
        MissingExtraError: If transformers is not installed.
    """
    auto = require("transformers", EXTRA).AutoModelForSequenceClassification
    found = (auto, "a sequence classifier", name, num_outputs, pretrained, head_dropout, options)
    return _with_new_head(*found)


def load_token_classifier(
    name: str,
    num_outputs: int,
    *,
    pretrained: bool = True,
    head_dropout: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Load an encoder with a new head for each token, in float32 and in training mode.

    See :func:`load_sequence_classifier` for the arguments and errors.

    Returns:
        A model from ``AutoModelForTokenClassification``.
    """
    auto = require("transformers", EXTRA).AutoModelForTokenClassification
    found = (auto, "a token classifier", name, num_outputs, pretrained, head_dropout, options)
    return _with_new_head(*found)


def _with_new_head(
    auto: Any,
    what: str,
    name: str,
    num_outputs: int,
    pretrained: bool,
    head_dropout: float | None,
    options: Mapping[str, Any] | None,
) -> nn.Module:
    name = checked_name(name)
    config = load_config(name, num_outputs, options or {})
    if head_dropout is not None:
        _set_dropout(config, head_dropout, name)
    return _load(auto, name, config, what, pretrained).train()


def load_encoder(name: str, *, pretrained: bool = True) -> nn.Module:
    """Load an encoder without a head, in float32 and in evaluation mode.

    Args:
        name: A name on the Hugging Face hub, or a local directory.
        pretrained: Load its weights; otherwise they are random.

    Returns:
        A model from ``AutoModel``.

    Raises:
        DataError: If there is no such model, or most of its weights are missing in its file.
        MissingExtraError: If transformers is not installed.
    """
    transformers = require("transformers", EXTRA)
    name = checked_name(name)
    config = load_config(name, 1, {})
    return _load(transformers.AutoModel, name, config, "an encoder", pretrained).eval()


def _load(auto: Any, name: str, config: Any, what: str, pretrained: bool) -> nn.Module:
    """Load a model of a class of ``transformers`` in float32, whatever the dtype of its file.

    Raises:
        DataError: If there is no such model, or most of the encoder's weights are missing.
    """
    import torch

    transformers = require("transformers", EXTRA)
    with quietly(transformers), finding(name, what):
        if not pretrained:
            made: nn.Module = auto.from_config(config, dtype=torch.float32)
            return made
        # by default a model comes in the dtype of its file
        model, about = auto.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head of another size is replaced, the rest reported
            output_loading_info=True,
        )
    _check_loaded(model, about, name)
    loaded: nn.Module = model
    return loaded


def _check_loaded(model: Any, about: Mapping[str, Any], name: str) -> None:
    """Refuse an encoder without pretrained weights; warn of single layers without."""
    # in a model with a head, the encoder is a part
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    absent = {key if isinstance(key, str) else key[0] for key in about["missing_keys"]}
    absent |= {key if isinstance(key, str) else key[0] for key in about["mismatched_keys"]}
    encoder = {key for key, _ in model.named_parameters() if key.startswith(prefix)}
    random = sorted(encoder & absent)
    if len(random) > len(encoder) / 2:
        raise DataError(
            f"Expected the weights of {type(model).__name__} in '{name}', got a file that has "
            f"{len(encoder) - len(random)} of the {len(encoder)} tensors of its encoder: it is of "
            "another architecture. Build it with pretrained=false, or name the model that "
            "the weights belong to."
        )
    if random:
        log.warning(
            "'%s' has no weights that fit these layers of the encoder, which are random: %s",
            name,
            ", ".join(random),
        )


def _set_dropout(config: Any, value: float, name: str) -> None:
    found = [key for key in DROPOUTS if hasattr(config, key)]
    if not found:
        raise DataError(f"'{name}' has no dropout before its head: leave head_dropout out.")
    setattr(config, found[0], value)


def checked_name(name: str) -> str:
    """Refuse names that cannot be on the hub; return the others."""
    import timm

    place = Path(name).expanduser()
    if place.is_dir():
        return str(place)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        beside = [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []
        raise DataError(
            f"Expected the directory of a Hugging Face model, got '{name}', which is not one. "
            f"{near(place.name, beside)}"
        )
    if timm.is_model(name):
        raise DataError(
            f"Expected a Hugging Face model of texts, got '{name}', which is a model of images in "
            "timm. Name an encoder, such as 'bert-base-uncased', or a local directory (on the "
            "command line: model=text model.backbone=...)."
        )
    return name


@contextmanager
def finding(name: str, what: str, example: str = "bert-base-uncased") -> Iterator[None]:
    """Turn what transformers raises about a name into one error.

    Args:
        name: The name or the directory.
        what: What was asked for, such as ``"a tokeniser"``.
        example: A name that exists on the hub.
    """
    try:
        yield
    except (OSError, ValueError, KeyError) as error:  # what transformers raises here
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"Expected {what} under the name or in the directory '{name}', got none: {reason} Name "
            f"a model of the Hugging Face hub, such as '{example}', or, without a network, "
            "a directory with its files."
        ) from error


@contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Silence the progress bar and the loading report, whose important parts are checked."""
    told = transformers.utils.logging
    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()
