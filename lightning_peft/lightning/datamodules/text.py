"""Labelled texts from a CSV file or from lists, tokenised once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from lightning_peft.backbones.hugging_face import load_tokenizer
from lightning_peft.data.labelled import counted, divided
from lightning_peft.data.labels_file import LabelsFile, read_labels
from lightning_peft.data.tensors import as_is
from lightning_peft.data.text_lists import listed, without_repeats
from lightning_peft.data.tokens import TokenisedTexts, Tokens
from lightning_peft.errors import DataError, near
from lightning_peft.evaluation.metric_names import Task
from lightning_peft.lightning.datamodules.loaders import SplitLoaders

__all__ = ["TextDataModule"]

SPLITS = ("train", "val", "test")
LONGEST = 512
"""The largest number of tokens of a text, if neither the tokeniser nor the user sets it."""

log = logging.getLogger(__name__)


class TextDataModule(SplitLoaders):
    """Texts and their labels, for the tokeniser of an encoder.

    A CSV file has a header with ``text``, optionally ``split`` (``train``, ``val``, ``test``), and
    labels, which are read as :func:`~lightning_peft.data.labels_file.read_labels` says: one column
    of words is classes, words separated by ``|`` are several labels of a text. Without ``split``, a
    test set is split off that only depends on ``test_fraction``, and a stratified part of the rest
    is used for validation; texts are ranked by their hash, so a new text does not move others
    between splits. A repeated text is used once, since it could otherwise be in both training and
    test.

    A batch is a pair of the tokeniser's output, tensors ``(B, T)`` padded to the longest text of
    the batch, and labels: ``(B,)`` classes, or ``(B, K)`` in float32 for several. The order is
    a function of (seed, epoch): a run that was stopped and resumed sees the same batches.

    Args:
        root: The CSV file.
        backbone: The model whose tokeniser to use: a name on the Hugging Face hub, a local
            directory, or a tokeniser.
        texts: The texts, instead of a file.
        labels: The class of each of ``texts``: its name, or its number from 0.
        splits: The split of each of ``texts``; by default they are split like lines of a file.
        text_column: The column of the texts.
        label_columns: The columns of the labels; all except that of the texts and ``split`` by
            default.
        task: ``"multiclass"``, ``"binary"``, ``"multilabel"`` or ``"regression"``; None infers
            it from the labels. ``"binary"`` is for two classes and a head with one output.
        labels_per_class: Training texts of each class; None takes all.
        val_fraction: Fraction of each class's training texts for validation, without ``val`` lines.
        test_fraction: Fraction of each class for the test, if there is no ``split``.
        seed: Seed of the sample and of the order.
        max_length: The largest number of tokens of a text; longer ones are cut, with a message.
            None is the tokeniser's own limit, at most 512.
        batch_size: Texts a training batch, on each rank.
        eval_batch_size: Texts a batch in validation and test; None is twice ``batch_size``.
        steps_per_epoch: Batches an epoch; None is one pass over the training texts.
        augment: Must be None: augmentation is for images.
        num_workers: Processes that load; the texts are in memory.
        pin_memory: Whether to page-lock batches; None does if there is a CUDA device.

    Raises:
        DataError: If neither or both of a file and lists are given, a value is out of its range, or
            there is no such tokeniser; at :meth:`prepare_data`, listing all problems of the file;
            at :meth:`setup`, if a class has too few texts.
        MissingExtraError: If transformers is not installed.

    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> import lightning_peft as lp
    >>> words = Tokenizer(models.WordLevel({"?": 0, "good": 1, "bad": 2}, unk_token="?"))
    >>> tokeniser = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?", unk_token="?")
    >>> texts = {"texts": ["good", "bad"], "labels": ["+", "-"], "splits": ["train", "train"]}
    >>> data = lp.TextDataModule(backbone=tokeniser, max_length=8, val_fraction=0, **texts)
    >>> data.setup("fit")
    >>> data.class_names
    ('+', '-')
    """

    def __init__(
        self,
        root: str | Path | None = None,
        backbone: Any = None,
        *,
        texts: Sequence[str] | None = None,
        labels: Sequence[str | int] | None = None,
        splits: Sequence[str] | None = None,
        text_column: str = "text",
        label_columns: Sequence[str] | None = None,
        task: Task | None = None,
        labels_per_class: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        max_length: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        augment: None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        _check(
            root, backbone, texts, labels, splits, augment,
            fractions={"val_fraction": val_fraction, "test_fraction": test_fraction},
            counts={"max_length": max_length, "batch_size": batch_size,
                    "eval_batch_size": eval_batch_size, "steps_per_epoch": steps_per_epoch},
        )  # fmt: skip
        self.root = None if root is None else Path(root)
        self.tokenizer = load_tokenizer(backbone) if isinstance(backbone, str) else backbone
        limit = min(int(self.tokenizer.model_max_length), LONGEST)
        self.max_length = limit if max_length is None else max_length
        self.text_column = text_column
        self.label_columns = None if label_columns is None else list(label_columns)
        self.labels_per_class = labels_per_class
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.batch_size = batch_size
        self.eval_batch_size = 2 * batch_size if eval_batch_size is None else eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._task: Task | None = task
        self._lists = None if texts is None else (list(texts), list(labels or ()), splits)
        self._table: LabelsFile | None = None
        self._tokenised: dict[str, TokenisedTexts] = {}
        self.indices: dict[str, list[int]] = {}
        """The indices of the texts of each split, after :meth:`setup`."""

    @property
    def table(self) -> LabelsFile:
        """The texts, each once, and their labels."""
        if self._table is None:
            if self._lists is not None:
                found = listed(*self._lists, task=self._task)
            else:
                assert self.root is not None
                found = read_labels(
                    self._file(), None, task=self._task, columns=self.label_columns,
                    key=self.text_column,
                )  # fmt: skip
            self._table = without_repeats(found)
        return self._table

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; or of the labels."""
        return self.table.names

    @property
    def num_classes(self) -> int:
        """Number of classes or labels."""
        return len(self.class_names)

    @property
    def task(self) -> Task:
        """The task, given or inferred from the labels."""
        return self.table.task

    def class_counts(self, split: str) -> list[int]:
        """Return the number of texts of a split in each class, or with each label."""
        self.setup()
        labels = [self.table.labels[i] for i in self.indices[split]]
        return counted(labels, self.num_classes, self.task)

    def prepare_data(self) -> None:
        """Read the file and check it; Lightning calls this once on each machine."""
        assert self.table

    def setup(self, stage: str | None = None) -> None:
        """Choose the samples; a second call has no effect."""
        if not self.indices:
            self.indices = divided(
                self.table,
                test_fraction=self.test_fraction,
                val_fraction=self.val_fraction,
                seed=self.seed,
                labels_per_class=self.labels_per_class,
            )

    def tokenise(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Tokenise texts as in evaluation, into tensors ``(B, T)`` for the backbone."""
        return self._tokens(texts).padded(range(len(texts)))

    def texts(self, split: str) -> TokenisedTexts:
        """Return the dataset of a split, which is tokenised once."""
        self.setup()
        if split not in self._tokenised:
            chosen = self.indices[split]
            tokens = self._tokens([self.table.files[i] for i in chosen])
            if tokens.cut:
                log.warning(
                    "%d of %d %s texts are longer than %d tokens and are cut: see max_length",
                    tokens.cut, len(chosen), split, self.max_length,
                )  # fmt: skip
            labels = [self.table.labels[i] for i in chosen]
            self._tokenised[split] = TokenisedTexts(tokens, labels, self.task)
        return self._tokenised[split]

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return batches of the validation texts; none if there is no such split."""
        self.setup()
        return self.plain_dataloader("val") if self.indices["val"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test texts."""
        self.setup()
        if not self.indices["test"]:
            raise DataError(
                f"Expected test texts, got none in {self.table.path}: set test_fraction above 0, "
                "or mark some as `test` in the column `split`."
            )
        return self.plain_dataloader("test")

    def _samples(self, split: str, *, training: bool) -> TokenisedTexts:
        return self.texts(split)

    def _tokens(self, texts: Sequence[str]) -> Tokens:
        return Tokens(self.tokenizer, texts, self.max_length)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"collate_fn": as_is}

    def _file(self) -> Path:
        assert self.root is not None
        if not self.root.is_file():
            folder = self.root if self.root.is_dir() else self.root.parent
            beside = [path.name for path in folder.glob("*.csv")]
            raise DataError(
                f"Expected a CSV file of texts and labels, got {self.root}, which is not one. "
                f"{near(self.root.name, beside)}"
            )
        return self.root


def _check(
    root: Any,
    backbone: Any,
    texts: Any,
    labels: Any,
    splits: Any,
    augment: Any,
    *,
    fractions: Mapping[str, float],
    counts: Mapping[str, int | None],
) -> None:
    """Refuse invalid arguments, all at once."""
    wrong = [f"{k} in [0, 1), got {v}" for k, v in fractions.items() if not 0 <= v < 1]
    wrong += [f"{k} of 1 or more, got {v}" for k, v in counts.items() if v is not None and v < 1]
    if (root is None) == (texts is None):
        wrong.append(f"either root or texts, got {'neither' if root is None else 'both'}")
    if texts is not None and labels is None:
        wrong.append("labels beside the texts, got none")
    if texts is None and (labels is not None or splits is not None):
        wrong.append("texts beside labels and splits, got none")
    if backbone is None or not (isinstance(backbone, str) or hasattr(backbone, "pad")):
        wrong.append(
            "backbone as the name of a Hugging Face model, its directory or a tokeniser, got "
            f"{type(backbone).__name__}"
        )
    if augment is not None:
        wrong.append("no augmentation, which is for images, got one (augment=none on the command)")
    if wrong:
        raise DataError("Expected " + "; ".join(wrong) + ".")
