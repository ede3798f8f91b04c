"""Conversations, prompts with answers, and plain texts for language models, tokenised once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lightning_peft.backbones.causal_lm import load_lm_tokenizer
from lightning_peft.data.chat_rows import ChatRows
from lightning_peft.data.chat_splits import ChatCounts, counted, divided, without_repeats
from lightning_peft.data.chat_tokens import Encoder, Tokenised, TrainOn
from lightning_peft.data.conversations import (
    Example,
    listed_examples,
    read_examples,
    refused,
)
from lightning_peft.data.tensors import as_is
from lightning_peft.errors import DataError, near
from lightning_peft.lightning.datamodules.loaders import SplitLoaders

__all__ = ["ChatDataModule"]

LONGEST = 1024
"""The most tokens of a document, if neither the tokeniser nor the user sets it."""

log = logging.getLogger(__name__)


class ChatDataModule(SplitLoaders):
    """Examples for a causal language model, from a JSONL or CSV file or from a list.

    Every line is an example and says by its keys what it is: ``messages`` (a list of
    ``{"role": ..., "content": ...}``), ``prompt`` and ``completion`` (two texts, or two lists of
    messages), ``text``; or, for :class:`~lightning_peft.PreferenceModule`, ``prompt``, ``chosen``
    and ``rejected``. Messages are written with the tokeniser's chat template, and the loss is taken
    on what the assistant says, which the template has to mark with ``{% generation %}``; of
    ``prompt`` and ``completion`` it is taken on the completion, and of ``text`` on all of it.
    Texts end with the tokeniser's end token, and messages as the template says.

    ``split`` (``train``, ``val``, ``test``) on every line decides where it belongs. Otherwise a
    test set is split off that only depends on ``test_fraction``, and a part of the rest, which also
    depends on the seed, is for validation; examples are ranked by their hash, so a new one does not
    move others between splits. A repeated example is used once.

    A batch is a mapping of tensors ``(B, T)``: ``input_ids``, ``labels`` (-100 where nothing is
    learned) and ``attention_mask``, padded on the right to the longest of the batch; packed rows
    have ``position_ids`` instead of a mask; of pairs, the better answers are the first half of the
    rows. The order is a function of (seed, epoch): a run that was stopped and resumed sees the same
    batches.

    Args:
        root: The JSONL or CSV file.
        backbone: The model whose tokeniser to use: a name on the Hugging Face hub, a local
            directory, ``"byte_llama"``, or a tokeniser.
        records: A mapping for each example with the keys of a line, instead of a file.
        train_on: ``"answers"``, or ``"all"`` tokens.
        chat_template: A Jinja template instead of the tokeniser's, or a file of one.
        packing: Put several training examples into a row of ``max_length`` tokens. Their positions
            begin again at 0, by which models of transformers keep them apart; ``CausalLM`` tries
            it before the first step, and refuses a model in which examples see each other.
        val_fraction: Fraction of the training examples for validation, without ``split``.
        test_fraction: Fraction of the examples for the test, without ``split``.
        seed: Seed of the sample and of the order.
        max_length: The most tokens of an example; longer ones are cut at their end, and a message
            counts them. None is the tokeniser's own limit, at most 1024.
        batch_size: Rows a training batch, on each rank.
        eval_batch_size: Rows a batch in validation and test; None is ``batch_size``.
        steps_per_epoch: Batches an epoch; None is one pass over the training examples.
        augment: Must be None: augmentation is for images.
        num_workers: Processes that load; the tokens are in memory.
        pin_memory: Whether to page-lock batches; None does if there is a CUDA device.

    Raises:
        DataError: If neither or both of a file and records are given, a value is out of its range,
            or there is no such tokeniser or template; at :meth:`prepare_data`, listing all problems
            of the file with their lines; at :meth:`setup`, if the template marks no answers, or no
            token of the training examples would be learned.
        MissingExtraError: If transformers is not installed.

    >>> import lightning_peft as lp
    >>> records = [{"prompt": f"{n} + {n}?", "completion": f"{2 * n}"} for n in range(20)]
    >>> data = lp.ChatDataModule(backbone="byte_llama", records=records, max_length=128)
    >>> data.setup("fit")
    >>> sorted(next(iter(data.val_dataloader())))
    ['attention_mask', 'input_ids', 'labels']
    """

    def __init__(
        self,
        root: str | Path | None = None,
        backbone: Any = None,
        *,
        records: Sequence[Mapping[str, Any]] | None = None,
        train_on: TrainOn = "answers",
        chat_template: str | Path | None = None,
        packing: bool = False,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        max_length: int | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        augment: None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        _check(
            root, backbone, records, train_on, augment,
            fractions={"val_fraction": val_fraction, "test_fraction": test_fraction},
            counts={"max_length": max_length, "batch_size": batch_size,
                    "eval_batch_size": eval_batch_size, "steps_per_epoch": steps_per_epoch},
        )  # fmt: skip
        self.root = None if root is None else Path(root)
        tokenizer = load_lm_tokenizer(backbone) if isinstance(backbone, str) else backbone
        if chat_template is not None:
            tokenizer = copy.deepcopy(tokenizer)  # the caller's keeps its own
            tokenizer.chat_template = _template(chat_template)
        self.tokenizer = tokenizer
        limit = min(int(tokenizer.model_max_length), LONGEST)
        self.max_length = limit if max_length is None else max_length
        self.encoder = Encoder(tokenizer, train_on, self.max_length)
        self.train_on = train_on
        self.packing = packing
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._records = None if records is None else list(records)
        self._examples: list[Example] | None = None
        self._rows: dict[str, ChatRows] = {}
        self.counts: dict[str, ChatCounts] = {}
        """The counts of each split that was tokenised."""
        self.indices: dict[str, list[int]] = {}
        """The indices of the examples of each split, after :meth:`setup`."""

    @property
    def examples(self) -> list[Example]:
        """The examples, each once."""
        if self._examples is None:
            if self._records is None:
                assert self.root is not None
                found = read_examples(self.root)
            else:
                found = listed_examples(self._records)
            self._examples = without_repeats(found, str(self.root or "records"))
        return self._examples

    @property
    def task(self) -> str:
        """``"preference"`` for pairs of answers, else ``"language"``."""
        return "preference" if self.examples[0].kind == "preference" else "language"

    def prepare_data(self) -> None:
        """Read the file and check it; Lightning calls this once on each machine."""
        self.encoder.check(self.examples)

    def setup(self, stage: str | None = None) -> None:
        """Choose the samples and tokenise those for training; a second call has no effect."""
        if self.indices:
            return
        self.encoder.check(self.examples)
        if self.packing and self.task == "preference":
            raise DataError(
                "Expected packing=false for pairs of answers, got true: each answer is compared "
                "with the other one of its pair. Leave packing out."
            )
        self.indices = divided(self.examples, self.test_fraction, self.val_fraction, self.seed)
        if stage in (None, "fit"):
            self.texts("train")

    def texts(self, split: str) -> ChatRows:
        """Return the dataset of a split, which is tokenised once.

        Raises:
            DataError: If no token of it would be learned, or examples cannot be written.
        """
        self.setup("")
        if split not in self._rows:
            chosen = [self.examples[i] for i in self.indices[split]]
            documents = self._tokenised(chosen)
            kept = [row for row in documents if all(document.learned for document in row)]
            form: Any = "pairs" if self.task == "preference" else "padded"
            if self.packing and split == "train":
                form = "packed"
            if chosen and not kept:
                raise DataError(self._nothing(split, documents))
            rows = ChatRows(kept, form, capacity=self.max_length, pad=self._pad())
            self.counts[split] = counted(documents, kept, len(rows))
            self._rows[split] = rows
            self._tell(split)
        return self._rows[split]

    def prompts(self, split: str, count: int) -> list[tuple[Any, str]]:
        """Return what a model may be asked, and the answers in the data.

        Args:
            split: ``"train"``, ``"val"`` or ``"test"``.
            count: The most examples; they are spread evenly over the split.

        Returns:
            A text or a list of messages, and a text, of each.
        """
        self.setup("")
        indices = self.indices[split]
        count = min(count, len(indices))
        chosen = [indices[i * len(indices) // count] for i in range(count)]
        return [self.encoder.prompt(self.examples[i]) for i in chosen]

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return batches of the validation examples; none if there is no such split."""
        self.setup("")
        return self.plain_dataloader("val") if self.indices["val"] else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the test examples."""
        self.setup("")
        if not self.indices["test"]:
            raise DataError(
                f"Expected test examples, got none in {self.root or 'the records'}: set "
                "test_fraction above 0, or mark some as `test` by the key `split`."
            )
        return self.plain_dataloader("test")

    def _samples(self, split: str, *, training: bool) -> ChatRows:
        return self.texts(split)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"collate_fn": as_is}

    def _tokenised(self, examples: Sequence[Example]) -> list[list[Tokenised]]:
        found, problems = [], []
        for example in examples:
            try:
                found.append(self.encoder.encode(example))
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise refused(str(self.root or "records"), problems)
        return found

    def _pad(self) -> int:
        """Return the token that pads: any token can, since the mask and the labels leave it out."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return next((int(token) for token in (pad, end) if token is not None), 0)

    def _nothing(self, split: str, documents: Sequence[Sequence[Tokenised]]) -> str:
        cut = sum(any(document.cut for document in row) for row in documents)
        return (
            f"Expected {split} examples with something to learn, got {len(documents)} in which the "
            f"mask leaves no token (train_on='{self.train_on}'), {cut} of them cut at "
            f"max_length={self.max_length}. Check that the answers are not empty and begin before "
            "that length, and that messages have the role 'assistant'."
        )

    def _tell(self, split: str) -> None:
        found = self.counts[split]
        if found.cut:
            log.warning(
                "%d of %d %s examples are longer than %d tokens and are cut, by %d tokens "
                "altogether: see max_length",
                found.cut, found.examples + found.dropped, split, self.max_length,
                found.cut_tokens,
            )  # fmt: skip
        if found.dropped:
            log.warning(
                "%d of %d %s examples have no token to learn and are left out",
                found.dropped, found.examples + found.dropped, split,
            )  # fmt: skip
        if self.packing and split == "train":
            share = found.tokens / max(1, found.rows * self.max_length)
            log.info(
                "%d examples are packed into %d rows of at most %d tokens, full to %.0f %%",
                found.examples, found.rows, self.max_length, 100 * share,
            )  # fmt: skip


def _template(value: str | Path) -> str:
    """Return a chat template that is given as text or as a file."""
    text = str(value)
    if "{" in text:
        return text
    path = Path(text)
    if not path.is_file():
        beside = [f.name for f in path.parent.glob("*.jinja")] if path.parent.is_dir() else []
        raise DataError(
            f"Expected chat_template as a Jinja template or a file of one, got {text!r}, which is "
            f"neither. {near(path.name, beside)}"
        )
    return path.read_text(encoding="utf-8")


def _check(
    root: Any,
    backbone: Any,
    records: Any,
    train_on: Any,
    augment: Any,
    *,
    fractions: Mapping[str, float],
    counts: Mapping[str, int | None],
) -> None:
    """Refuse invalid arguments, all at once."""
    wrong = [f"{k} in [0, 1), got {v}" for k, v in fractions.items() if not 0 <= v < 1]
    wrong += [f"{k} of 1 or more, got {v}" for k, v in counts.items() if v is not None and v < 1]
    if (root is None) == (records is None):
        wrong.append(f"either root or records, got {'neither' if root is None else 'both'}")
    if backbone is None or not (isinstance(backbone, str) or hasattr(backbone, "pad")):
        wrong.append(
            "backbone as the name of a Hugging Face model, its directory or a tokeniser, got "
            f"{type(backbone).__name__}"
        )
    if train_on not in ("answers", "all"):
        wrong.append(f"train_on as 'answers' or 'all', got {train_on!r}")
    if augment is not None:
        wrong.append("no augmentation, which is for images, got one (augment=none on the command)")
    if wrong:
        raise DataError("Expected " + "; ".join(wrong) + ".")
