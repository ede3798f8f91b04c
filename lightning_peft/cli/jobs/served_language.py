"""Load the language model of a run or of an adapter directory, with its tokeniser."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.config.task import LANGUAGE
from lightning_peft.cli.jobs.served import Served, built_again, described_by
from lightning_peft.cli.jobs.serving_facts import FACTS
from lightning_peft.cli.jobs.task import build_module
from lightning_peft.cli.runs.recorded import recorded_config
from lightning_peft.cli.trust.words import Trust
from lightning_peft.evaluation.outputs import Outputs
from lightning_peft.files.plain_file import NotPlainError, read_text

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import nn

__all__ = [
    "ServedLanguage",
    "is_of_language",
    "language_task",
    "load_language_run",
    "load_with_language_model",
    "of_texts",
]


@dataclass
class ServedLanguage:
    """A trained language model, on the CPU, in evaluation mode.

    Attributes:
        backbone: The model, adapted.
        tokenizer: Its tokeniser, with the chat template of the run.
        base: The name or directory of the pretrained model.
        task: The task of the run.
        text_column: The column of the texts, if it writes a text for each.
        tokenise: Texts to the encoder's arguments, if it writes a text for each.
        max_new_tokens: The most tokens that it writes in its evaluation, if it writes a text for
            each.
        generation: More arguments of ``generate``, the same.
        class_names: The names of its outputs, if it has such.
        outputs: How its outputs are read, if it has classes or numbers.
        encoding: The encoding of a CSV file, if the run names one.
    """

    backbone: nn.Module
    tokenizer: Any
    base: str
    task: str = "language"
    text_column: str = "text"
    tokenise: Callable[[Any], Any] | None = None
    max_new_tokens: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    outputs: Outputs | None = None
    encoding: str | None = None


def is_of_language(directory: Path) -> bool:
    """Whether a directory is that of a finished run on language."""
    return language_task(directory) is not None


def language_task(directory: Path) -> str | None:
    """Return the task of a finished run on language; None of any other directory."""
    try:
        found = json.loads(read_text(directory / FACTS))
    except (NotPlainError, OSError, ValueError, RecursionError):
        return None  # what is wrong about it is said where it is loaded
    task = found.get("task") if isinstance(found, dict) else None
    return task if task in LANGUAGE.values() else None


def load_language_run(directory: Path, trust: Trust) -> ServedLanguage:
    """Load the model of a run from its adapter, or from its best checkpoint if it has none.

    Args:
        directory: The directory of the run; its data need not be there any more.
        trust: What the user vouches for in the config of the run.

    Raises:
        ConfigError: If files of the run are missing or broken, or its config asks for what a
            recorded run may not have.
        PEFTError: If the adapter does not fit the model that the config names.
    """
    adapter, checkpoint = directory / "adapter", directory / "checkpoints" / "best.ckpt"
    missing = [] if (directory / "config.yaml").is_file() else ["config.yaml"]
    if not adapter.is_dir() and not checkpoint.is_file():
        missing.append("adapter/ or checkpoints/best.ckpt")
    if missing:
        raise ConfigError(
            [f"expected the directory of a finished run, got {directory} without "
             f"{' and without '.join(missing)}."]
        )  # fmt: skip
    cfg = recorded_config(directory, trust)
    with described_by(directory):
        return _load(directory, cfg)


def _load(directory: Path, cfg: DictConfig) -> ServedLanguage:
    from lightning_peft.lightning.modules.build import plain

    datamodule, backbone = built_again(directory, cfg, None)
    task = LANGUAGE.get(str(cfg.model.get("_target_")), "language")
    written = cfg.model if task == "seq2seq" else {}
    return ServedLanguage(
        backbone.eval(),
        datamodule.tokenizer,
        str(cfg.model.get("backbone")),
        task=task,
        max_new_tokens=written.get("max_new_tokens"),
        generation=plain(written.get("generation") or {}),
        text_column=getattr(datamodule, "text_column", "text"),
        tokenise=getattr(datamodule, "tokenise", None),
        encoding=getattr(datamodule, "encoding", None),
    )


def load_with_language_model(directory: Path, overrides: Sequence[str]) -> ServedLanguage | None:
    """Load an adapter into a language model that is named on the command line.

    Args:
        directory: An adapter directory.
        overrides: Overrides of the config, such as ``model=causal_lm model.backbone=...``.

    Returns:
        The model; ``None`` if the overrides name a model of another kind.

    Raises:
        PEFTError: If the adapter does not fit, or there is no such model.
    """
    from hydra import compose, initialize_config_dir

    from lightning_peft.adaptation.loading import load_adapter
    from lightning_peft.anatomy.backbone import backbone_of

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["name=export", "output_dir=.", *overrides])
    if str(cfg.model.get("_target_")) not in LANGUAGE:
        return None
    module = build_module(cfg.model, None)
    backbone = backbone_of(module)[1]
    load_adapter(backbone, directory)
    task = LANGUAGE[str(cfg.model.get("_target_"))]
    base = str(cfg.model.get("backbone"))
    return ServedLanguage(backbone.eval(), module.tokenizer, base, task=task)


def of_texts(served: Served) -> ServedLanguage:
    """Return the model of a run with labelled texts as what is exported with its tokeniser."""
    from lightning_peft.data.tagged_words import for_words

    tagged = served.words is not None
    return ServedLanguage(
        served.backbone,
        for_words(served.tokenizer) if tagged else served.tokenizer,
        served.base,
        task="token_classification" if tagged else served.outputs.task,
        class_names=served.class_names,
        outputs=served.outputs,
    )
