"""Texts with labels, tags or targets, from a file or from lists, tokenised once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from lightning_peft.backbones.hugging_face import load_tokenizer
from lightning_peft.data.labelled import counted, divided, mean_and_deviation
from lightning_peft.data.labelled_texts import read_texts
from lightning_peft.data.labels_file import LabelsFile
from lightning_peft.data.tagged_words import TaggedWords, WordTokens, for_words
from lightning_peft.data.target_tokens import TargetTexts
from lightning_peft.data.tensors import as_is
from lightning_peft.data.text_lists import from_lists, parted, without_repeats
from lightning_peft.data.tokens import TokenisedTexts, Tokens
from lightning_peft.errors import DataError
from lightning_peft.lightning.datamodules.loaders import SplitLoaders
from lightning_peft.lightning.datamodules.text_checks import check_arguments

__all__ = ["TextDataModule"]

SPLITS = ("train", "val", "test")
LONGEST = 512
"""The largest number of tokens of a text, if neither the tokeniser nor the user sets it."""

log = logging.getLogger(__name__)


class TextDataModule(SplitLoaders):
    """Texts and their labels, tags or targets, for the tokeniser of a model.

    A file is CSV with a header, JSONL, CoNLL, or a directory of `datasets`
    (:func:`~lightning_peft.data.text_tables.read_table`), with ``text``, optionally ``split``
    (``train``, ``val``, ``test``, and what else these are called), and labels. One column of words is classes, words separated by
    ``|`` or a list are several labels of a text, numbers with a fraction are for a regression.

    | task | texts | labels | for |
    | --- | --- | --- | --- |
    | ``multiclass``, ``binary``, ``multilabel`` | one or a pair | a class, or several labels | :class:`~lightning_peft.TextClassifier` |
    | ``regression`` | one or a pair | a number, or several | :class:`~lightning_peft.TextRegressor` |
    | ``token_classification`` | a list of words | a tag for each word | :class:`~lightning_peft.TokenClassifier` |
    | ``seq2seq`` | a text | the text to write | :class:`~lightning_peft.Seq2SeqLM` |

    Without ``split``, a test set is split off that only depends on ``test_fraction``, and a
    stratified part of the rest is used for validation; texts are ranked by their hash, so a new
    text does not move others between splits. A repeated text is used once, since it could otherwise
    be in both training and test.

    A batch is a pair of the tokeniser's output, tensors ``(B, T)`` padded to the longest text of
    the batch, and labels: ``(B,)`` classes or numbers, ``(B, K)`` in float32 for several, ``(B, T)``
    tags (-100 except at the first token of a word). For ``seq2seq`` it is a mapping of
    ``input_ids``, ``attention_mask`` and ``labels`` (-100 where a target is padded). The order is
    a function of (seed, epoch): a run that was stopped and resumed sees the same batches.

    Args:
        root: The file, or the directory of `datasets`.
        backbone: The model whose tokeniser to use: a name on the Hugging Face hub, a local
            directory, or a tokeniser.
        texts: The texts, instead of a file: strings, pairs of strings, or lists of words.
        labels: The label of each of ``texts``: the name of its class, or its number from 0; its
            number, for ``"regression"``; its tags; its target.
        splits: The split of each of ``texts``; by default they are split like lines of a file.
        text_column: The column of the texts, or of the words.
        pair_column: The column of the second texts, such as the hypothesis of a premise.
        label_columns: The columns of the labels; by default ``label`` of a JSONL file or a
            directory that has it, or all except those of texts and ``split``.
        encoding: The encoding of a CSV file; None is UTF-8, or UTF-16 if it says so.
        task: One of the table; None infers it, except for ``"seq2seq"``. ``"binary"`` is for two
            classes and a head with one output.
        labels_per_class: Training texts of each class; None takes all.
        val_fraction: Fraction of each class's training texts for validation, without ``val`` lines.
        test_fraction: Fraction of each class for the test, if there is no ``split``.
        seed: Seed of the sample and of the order.
        max_length: The largest number of tokens of a text, or of a pair; longer ones are cut, with
            a message. None is the tokeniser's own limit, at most 512.
        max_target_length: The same for the targets of ``"seq2seq"``.
        prefix: What a model wants before every text of ``"seq2seq"``, such as ``"summarize: "``.
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
        MissingExtraError: If transformers is not installed, or `datasets` for its directory.

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
    """  # noqa: E501

    def __init__(
        self,
        root: str | Path | None = None,
        backbone: Any = None,
        *,
        texts: Sequence[Any] | None = None,
        labels: Sequence[Any] | None = None,
        splits: Sequence[str] | None = None,
        text_column: str = "text",
        pair_column: str | None = None,
        label_columns: Sequence[str] | None = None,
        encoding: str | None = None,
        task: str | None = None,
        labels_per_class: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        max_length: int | None = None,
        max_target_length: int = 128,
        prefix: str = "",
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        augment: None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        check_arguments(
            root, backbone, texts, labels, splits, augment, task,
            fractions={"val_fraction": val_fraction, "test_fraction": test_fraction},
            counts={"max_length": max_length, "max_target_length": max_target_length,
                    "batch_size": batch_size, "eval_batch_size": eval_batch_size,
                    "steps_per_epoch": steps_per_epoch},
        )  # fmt: skip
        self.root = None if root is None else Path(root)
        self.tokenizer = load_tokenizer(backbone) if isinstance(backbone, str) else backbone
        limit = min(int(self.tokenizer.model_max_length), LONGEST)
        self.max_length = limit if max_length is None else max_length
        self.max_target_length = max_target_length
        self.prefix = prefix
        self.text_column = text_column
        self.pair_column = pair_column
        self.label_columns = None if label_columns is None else list(label_columns)
        self.encoding = encoding
        self.labels_per_class = labels_per_class
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.batch_size = batch_size
        self.eval_batch_size = 2 * batch_size if eval_batch_size is None else eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._task = task
        self._lists = None if texts is None else (list(texts), list(labels or ()), splits)
        self._table: LabelsFile | None = None
        self._tokenised: dict[str, TokenisedTexts | TaggedWords | TargetTexts] = {}
        self.indices: dict[str, list[int]] = {}
        """The indices of the texts of each split, after :meth:`setup`."""

    @property
    def table(self) -> LabelsFile:
        """The texts, each once, and their labels."""
        if self._table is None:
            if self._lists is not None:
                found = from_lists(*self._lists, task=self._task)
            else:
                assert self.root is not None
                found = read_texts(
                    self.root, task=self._task, columns=self.label_columns, key=self.text_column,
                    pair=self.pair_column, encoding=self.encoding,
                )  # fmt: skip
            self._table = without_repeats(found)
        return self._table

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers; or of the labels or tags."""
        return self.table.names

    @property
    def num_classes(self) -> int | None:
        """Number of classes, labels, numbers or tags; None for ``"seq2seq"``."""
        return None if self.task == "seq2seq" else len(self.class_names)

    @property
    def task(self) -> str:
        """The task, given or inferred from the labels."""
        return self.table.task

    def target_statistics(self) -> tuple[list[float], list[float]]:
        """Return the mean and the deviation of each number over the training texts."""
        self.setup()
        return mean_and_deviation([self.table.labels[i] for i in self.indices["train"]])

    def class_counts(self, split: str) -> list[int]:
        """Return the number of texts of a split in each class, or with each label."""
        self.setup()
        labels = [self.table.labels[i] for i in self.indices[split]]
        return counted(labels, len(self.class_names), self.task)

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

    def tokenise(self, texts: Sequence[Any]) -> dict[str, Tensor]:
        """Tokenise texts or pairs as in evaluation, into tensors ``(B, T)`` for the backbone."""
        firsts, seconds = parted(texts)
        firsts = [self.prefix + text for text in firsts]
        tokens = Tokens(self.tokenizer, firsts, self.max_length, seconds)
        return tokens.padded(range(len(texts)))

    def tokenise_words(self, words: Sequence[Sequence[str]]) -> WordTokens:
        """Tokenise texts that are lists of words as in evaluation."""
        return WordTokens(for_words(self.tokenizer), words, self.max_length)

    def texts(self, split: str) -> TokenisedTexts | TaggedWords | TargetTexts:
        """Return the dataset of a split, which is tokenised once."""
        self.setup()
        if split not in self._tokenised:
            self._tokenised[split] = self._made(split)
        return self._tokenised[split]

    def _made(self, split: str) -> TokenisedTexts | TaggedWords | TargetTexts:
        table = self.table.chosen(self.indices[split])
        if table.task == "seq2seq":
            texts = [self.prefix + text for text in table.files]
            lengths = (self.max_length, self.max_target_length)
            found = TargetTexts(self.tokenizer, texts, table.labels, *lengths)
            self._tell_cut(found.cut, len(found), split, "texts", self.max_length)
            self._tell_cut(
                found.targets_cut, len(found), split, "targets", self.max_target_length,
                "max_target_length",
            )  # fmt: skip
            return found
        if table.task == "token_classification":
            words = self.tokenise_words(table.words)
            self._tell_cut(words.cut, len(table.words), split, "texts", self.max_length)
            return TaggedWords(words, table.labels)
        tokens = Tokens(self.tokenizer, table.files, self.max_length, table.pairs)
        self._tell_cut(tokens.cut, len(table.files), split, "texts", self.max_length)
        return TokenisedTexts(tokens, table.labels, table.task)

    def _tell_cut(
        self, cut: int, count: int, split: str, what: str, length: int, key: str = "max_length"
    ) -> None:
        if cut:
            log.warning(
                "%d of %d %s %s are longer than %d tokens and are cut: see %s",
                cut, count, split, what, length, key,
            )  # fmt: skip

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

    def _samples(self, split: str, *, training: bool) -> Any:
        return self.texts(split)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"collate_fn": as_is}
