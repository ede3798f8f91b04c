"""Load the model of a run or of an adapter directory, with the facts about its data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_peft.cli.config.errors import ConfigError, explain
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.jobs.serving_facts import FACTS, outputs_of, read_facts
from lightning_peft.cli.jobs.task import build_module
from lightning_peft.cli.runs.recorded import recorded_config
from lightning_peft.cli.trust.words import NOBODY, Trust
from lightning_peft.evaluation.outputs import Outputs
from lightning_peft.files.plain_file import check_plain
from lightning_peft.files.writing import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lightning_peft.backbones.data_config import DataConfig
    from lightning_peft.data.decode import Decoding

__all__ = ["Served", "built_again", "described_by", "load_run", "load_with_backbone"]

FILE = "file"
"""The column of images in a CSV file, unless the run names another."""


@dataclass
class Served:
    """A trained model, on the CPU, in evaluation mode.

    Attributes:
        backbone: The adapted backbone; images to logits.
        preprocessing: How its images are prepared; ``None`` if it reads texts.
        transform: A PIL image as ``decoding`` makes it to a tensor ``(C, H, W)``; where it
            reads texts, a list of them to the backbone's keyword arguments.
        class_names: The name of each class, label or number, if known.
        outputs: How the backbone's outputs are read.
        text_column: The column of texts in a file, if it reads texts.
        num_classes: The number of classes, labels or numbers, if known.
        pair_column: The column of the second texts, if it reads pairs.
        words: Lists of words to their tokens, if it tags words.
        tokenizer: The tokeniser, if it reads texts.
        base: The name or directory of the pretrained model, if it reads texts.
        decoding: How image files are read; ``None`` if it reads texts.
        file_column: The column of images in a CSV file.
        image_root: The folder of the images that it was trained on, if known.
        encoding: The encoding of a CSV file, if the run names one.
    """

    backbone: nn.Module
    preprocessing: DataConfig | None
    transform: Callable[[Any], Any]
    class_names: tuple[str, ...] | None
    outputs: Outputs = field(default_factory=Outputs)
    text_column: str | None = None
    num_classes: int | None = None
    pair_column: str | None = None
    words: Callable[[Any], Any] | None = None
    tokenizer: Any = None
    base: str = ""
    decoding: Decoding | None = None
    file_column: str = FILE
    image_root: Path | None = None
    encoding: str | None = None


def load_run(directory: Path, *, calibrated: bool | None = None, trust: Trust = NOBODY) -> Served:
    """Load the model of a run from its adapter, or from its best checkpoint if it has none.

    Args:
        directory: The run's directory.
        calibrated: Whether logits are divided by the temperature of the run; by default as in
            its test.
        trust: What the user vouches for in the config of the run.

    Returns:
        The model.

    Raises:
        ConfigError: If files of a run are missing or broken, its config asks for what a recorded
            run may not have, or it has no temperature and ``calibrated`` is true.
        PEFTError: If the adapter does not fit the backbone that the config names.
    """
    adapter, checkpoint = directory / "adapter", directory / "checkpoints" / "best.ckpt"
    missing = [name for name in ("config.yaml", FACTS) if not (directory / name).is_file()]
    if not adapter.is_dir() and not checkpoint.is_file():
        missing.append("adapter/ or checkpoints/best.ckpt")
    if missing:
        raise ConfigError(
            [
                f"expected the directory of a finished run, got {directory} without "
                f"{' and without '.join(missing)}.{_unfinished(directory)}"
            ]
        )
    facts = read_facts(directory / FACTS)
    cfg = recorded_config(directory, trust)
    outputs = outputs_of(facts.get("outputs"), cfg, directory, calibrated)
    if told := _unfinished(directory):  # of a run that had ended, and was resumed for longer
        print(f"lightning-peft:{told} This is the model of its earlier end.", file=sys.stderr)
    with described_by(directory):
        return _load(directory, cfg, facts, outputs)


@contextmanager
def described_by(directory: Path) -> Iterator[None]:
    """Turn an error of building what a directory describes into one line.

    Args:
        directory: The directory of a run.

    Raises:
        ConfigError: For an error that says nothing about the directory by itself.
    """
    try:
        yield
    except Exception as error:
        # the values of a config and of the facts may be anything, and so may the errors
        if explain(error) is not None:
            raise
        told = " ".join(str(error).split())
        raise ConfigError(
            [
                f"{directory}: expected a run whose model can be built, but what it records leads "
                f"to {type(error).__name__}: {told:.300}. Restore its files, or train the run "
                "again."
            ]
        ) from error


def built_again(directory: Path, cfg: Any, num_classes: int | None) -> tuple[Any, Any]:
    """Build the data module and the backbone of a finished run, with what was trained.

    Args:
        directory: The directory of the run.
        cfg: Its config, checked.
        num_classes: As for :func:`build_module`.

    Raises:
        NotPlainError: If a file of the run is a link out of it, or no file.
        CheckpointError: If its checkpoint is not a whole one of plain data.
    """
    import torch
    from hydra.utils import instantiate

    from lightning_peft.adaptation.loading import load_adapter
    from lightning_peft.anatomy.backbone import backbone_of
    from lightning_peft.files.checkpoints import check_checkpoint_file

    adapter, checkpoint = directory / "adapter", directory / "checkpoints" / "best.ckpt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)  # a random backbone gets the same weights
        datamodule = instantiate(cfg.data, _convert_="all")
        module = build_module(cfg.model, num_classes)
    peft = (cfg.get("callbacks") or {}).get("peft") or {}
    backbone = backbone_of(module, peft.get("backbone"))[1]
    if adapter.is_dir():
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if (adapter / name).exists():  # what is missing the reader says
                check_plain(adapter / name, directory)
        load_adapter(backbone, adapter)
    else:
        check_plain(checkpoint, directory)
        check_checkpoint_file(checkpoint)
        module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    return datamodule, backbone


def _load(directory: Path, cfg: Any, facts: Mapping[str, Any], outputs: Outputs) -> Served:
    datamodule, backbone = built_again(directory, cfg, facts["num_classes"])
    preprocessing, transform = _prepared(datamodule, backbone, facts["preprocessing"])
    tagged = facts.get("task") == "token_classification"
    return Served(
        backbone=backbone.eval(),
        preprocessing=preprocessing,
        transform=transform,
        class_names=_names(facts["class_names"]),
        outputs=outputs,
        text_column=getattr(datamodule, "text_column", None),
        num_classes=facts["num_classes"],
        pair_column=getattr(datamodule, "pair_column", None),
        words=datamodule.tokenise_words if tagged else None,
        tokenizer=getattr(datamodule, "tokenizer", None),
        base=str(cfg.model.get("backbone")),
        decoding=_decoding(datamodule, preprocessing),
        file_column=getattr(datamodule, "file_column", None) or FILE,
        image_root=getattr(datamodule, "root", None),
        encoding=getattr(datamodule, "encoding", None),
    )


def _decoding(datamodule: Any, preprocessing: DataConfig | None) -> Decoding | None:
    """Return how the run reads image files, in the mode that its backbone takes."""
    from lightning_peft.data.decode import Decoding

    if preprocessing is None:
        return None
    own = getattr(datamodule, "decoding", None)
    value_range = own.value_range if isinstance(own, Decoding) else None
    return Decoding(preprocessing.pil_mode, value_range)


def _unfinished(directory: Path) -> str:
    """Return a sentence about a run that is not finished; ``""`` if it is, or has no summary."""
    from lightning_peft.cli.comparing.runs import run_of
    from lightning_peft.cli.runs.summary import read_summary

    run = run_of(read_summary(directory), directory)
    if run is None or run.completed:
        return ""
    return (
        f" The run in {directory} is not finished ({run.status}): lightning-peft continue resumes "
        "a sweep, resume=DIR/checkpoints/last.ckpt a single run."
    )


def _prepared(
    datamodule: Any, backbone: nn.Module, config: Any
) -> tuple[DataConfig | None, Callable[[Any], Any]]:
    """Return how images or texts are prepared in evaluation."""
    from lightning_peft.backbones.data_config import data_config

    if hasattr(datamodule, "tokenise"):
        return None, datamodule.tokenise
    preprocessing = data_config(backbone if config is None else config)
    own = getattr(datamodule, "eval_transform", None)
    return preprocessing, preprocessing.eval_transform() if own is None else own()


def load_with_backbone(
    directory: Path, overrides: Sequence[str], classes: int | None = None
) -> Served:
    """Load an adapter into a backbone named on the command line.

    Args:
        directory: An adapter directory.
        overrides: Overrides of the config, such as ``model.backbone=...``.
        classes: Classes of the head; by default those of the head in the adapter.

    Returns:
        The model; the names of its classes are not known.

    Raises:
        ConfigError: If the number of classes cannot be determined.
        PEFTError: If the adapter does not fit.
    """
    from hydra import compose, initialize_config_dir

    from lightning_peft.adaptation.loading import load_adapter
    from lightning_peft.anatomy.backbone import backbone_of
    from lightning_peft.backbones.data_config import data_config
    from lightning_peft.files.reading import read_adapter

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["name=export", "output_dir=.", *overrides])
    stored = read_adapter(directory)
    found = classes or _classes(stored.tensors, stored.about.get("head") or ())
    if found is None:
        raise ConfigError([f"{directory} holds no head: add --classes N."])
    module = build_module(cfg.model, found)
    backbone = backbone_of(module)[1]
    load_adapter(backbone, directory)
    preprocessing = data_config(backbone)
    return Served(
        backbone.eval(),
        preprocessing,
        preprocessing.eval_transform(),
        None,
        decoding=_decoding(None, preprocessing),
    )


def _classes(tensors: Mapping[str, Tensor], head: Sequence[str]) -> int | None:
    """Return the number of classes according to the weight of the head in an adapter."""
    for name, tensor in tensors.items():
        if name.endswith(tuple(f"{path}.weight" for path in head)) and tensor.ndim >= 2:
            return int(tensor.shape[0])
    return None


def _names(found: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if found is None else tuple(found)
