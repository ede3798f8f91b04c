"""Texts from files and lists: splits, budgets, tokens, and what is refused."""

from __future__ import annotations

import csv
import logging

import pytest
import torch

import lightning_peft as lp
from tests.support.encoders import tiny_encoder

TEXTS = [f"the {kind} was {'so ' * i}{feel}" for i in range(10) for kind, feel in
         (("film", "good"), ("song", "good"), ("film", "bad"), ("song", "bad"))]  # fmt: skip
LABELS = [text.split()[-1] for text in TEXTS]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def data(encoder):
    def build(**settings):
        return lp.TextDataModule(
            **{"backbone": encoder, "texts": TEXTS, "labels": LABELS, "batch_size": 8} | settings
        )

    return build


def write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_a_file_and_lists_are_the_same_data(data, encoder, tmp_path):
    path = write(tmp_path / "reviews.csv", ("text", "label"), zip(TEXTS, LABELS, strict=True))
    one, other = lp.TextDataModule(path, encoder), data()
    for split in ("train", "val", "test"):
        assert torch.equal(one.texts(split).labels, other.texts(split).labels)
    assert one.indices == other.indices
    assert one.class_names == other.class_names == ("bad", "good")
    assert one.num_classes == 2
    assert one.task == "multiclass"


def test_the_splits_share_no_text_and_the_test_set_moves_with_no_seed(data):
    first = data(labels_per_class=4)
    first.setup()
    parts = [set(part) for part in first.indices.values()]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert first.class_counts("train") == [4, 4]
    other = data(seed=1)
    other.setup()
    assert other.indices["test"] == first.indices["test"]
    assert other.indices["train"] != first.indices["train"]


def test_the_column_split_is_followed(encoder, tmp_path):
    splits = ["train", "val", "test", "train"] * 10
    path = write(
        tmp_path / "a.csv", ("text", "label", "split"), zip(TEXTS, LABELS, splits, strict=True)
    )
    module = lp.TextDataModule(path, encoder)
    module.setup()
    assert module.indices["val"] == [i for i, split in enumerate(splits) if split == "val"]
    assert module.indices["test"] == [i for i, split in enumerate(splits) if split == "test"]


def test_a_batch_is_padded_to_its_longest_text_alone(data):
    module = data()
    loader = module.plain_dataloader("test")
    lengths = []
    for inputs, labels in loader:
        assert set(inputs) >= {"input_ids", "attention_mask"}
        mask = inputs["attention_mask"]
        assert inputs["input_ids"].shape == mask.shape
        assert mask.sum(1).max() == mask.shape[1]
        assert (inputs["input_ids"][mask == 0] == module.tokenizer.pad_token_id).all()
        assert labels.dtype == torch.int64
        lengths.append(mask.sum(1))
    texts = [TEXTS[i] for i in module.indices["test"]]
    expected = [len(module.tokenizer(text)["input_ids"]) for text in texts]
    assert torch.cat(lengths).tolist() == expected


def test_texts_are_tokenised_once(data, monkeypatch):
    module = data()
    module.texts("train")
    monkeypatch.setattr(module, "_made", None)
    for _ in range(2):
        assert len(list(module.train_dataloader())) == -(-len(module.indices["train"]) // 8)


def test_long_texts_are_cut_and_told(data, caplog):
    module = data(max_length=6)
    with caplog.at_level(logging.WARNING):
        inputs, _ = next(iter(module.train_dataloader()))
    assert inputs["input_ids"].shape[1] == 6
    assert "train texts are longer than 6 tokens and are cut" in caplog.text
    assert data().max_length == 24, "the tokeniser's own limit"


def test_several_labels_of_a_text(encoder, tmp_path):
    rows = [(text, ("x", "y", "x|y", "")[i % 4]) for i, text in enumerate(TEXTS)]
    module = lp.TextDataModule(write(tmp_path / "a.csv", ("text", "tags"), rows), encoder)
    assert module.task == "multilabel"
    assert module.class_names == ("x", "y")
    _, labels = next(iter(module.train_dataloader()))
    assert labels.dtype == torch.float32
    assert labels.shape[1] == 2
    module.setup()
    assert sum(sum(module.class_counts(split)) for split in ("train", "val", "test")) == 40


def test_a_text_that_comes_again_is_taken_once(data, caplog):
    with caplog.at_level(logging.WARNING):
        module = data(texts=TEXTS + TEXTS[:3], labels=LABELS + LABELS[:3])
        assert len(module.table.files) == 40
    assert "3 of 43 texts are repeats and are dropped" in caplog.text


def test_numbers_name_classes_from_0(data):
    module = data(labels=[int(label == "good") for label in LABELS], task="binary")
    assert module.class_names == ("0", "1")
    assert module.task == "binary"


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"texts": None, "labels": None}, "either root or texts, got neither"),
        ({"root": "a.csv"}, "either root or texts, got both"),
        ({"labels": None}, "labels beside the texts, got none"),
        ({"val_fraction": 1.5, "batch_size": 0}, r"val_fraction in \[0, 1\), got 1.5; batch_size"),
        ({"backbone": None}, "backbone as the name of a Hugging Face model.*got NoneType"),
        ({"backbone": "resnet18"}, "'resnet18', which is a model of images in timm"),
        ({"backbone": "./nowhere"}, "the directory of a Hugging Face model, got './nowhere'"),
        ({"augment": "light"}, "no augmentation, which is for images"),
    ],
)
def test_arguments_that_cannot_be(data, settings, match):
    with pytest.raises(lp.DataError, match=match):
        data(**settings)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"labels": LABELS[:-1]}, "as many labels as texts, got 39 and 40"),
        ({"texts": [*TEXTS[:-1], " "]}, "text 39: expected a non-empty string, got ' '"),
        ({"labels": [*LABELS[:-1], 1]}, "all names or all numbers"),
        ({"labels": ["good"] * 40}, "2 or more classes"),
        ({"labels": [-1, 1] * 20}, "numbers of classes from 0"),
        ({"splits": ["train", "tets"] * 20}, "split 'tets'. Did you mean 'test'"),
        ({"task": "regression"}, "'good' in column 'label' is not a number"),
        (
            {"texts": TEXTS + TEXTS[:1], "labels": [*LABELS, "bad"]},
            "texts 0 and 40 are the same with other labels",
        ),
        (
            {"texts": TEXTS + TEXTS[:1], "labels": LABELS + LABELS[:1],
             "splits": ["train"] * 40 + ["test"]},
            "texts 0 and 40 are the same, in train and test",
        ),
        ({"labels_per_class": 100}, "100 or more labelled training texts of each class"),
    ],
)  # fmt: skip
def test_lists_that_cannot_serve(data, settings, match):
    module = data(**settings)
    with pytest.raises(lp.DataError, match=match):
        module.setup()


@pytest.mark.parametrize(
    ("header", "rows", "match"),
    [
        (("txt", "label"), [("a", "x"), ("b", "y")], "no column 'text'.*Did you mean|no column"),
        (("text", "label"), [("a", "x"), ("", "y")], "line 3: no text"),
        (("text", "label"), [("a", "x"), ("a", "y")], "line 3: same text as line 2, other label"),
        (("text",), [("a",), ("b",)], "no column of labels"),
    ],
)
def test_files_that_cannot_serve(encoder, tmp_path, header, rows, match):
    module = lp.TextDataModule(write(tmp_path / "a.csv", header, rows), encoder)
    with pytest.raises(lp.DataError, match=match):
        module.prepare_data()


def test_a_file_that_is_not_there_and_a_test_set_that_is_not(data, encoder, tmp_path):
    write(tmp_path / "reviews.csv", ("text", "label"), [])
    with pytest.raises(lp.DataError, match="CSV file of texts.*Did you mean 'reviews.csv'"):
        lp.TextDataModule(tmp_path / "review.csv", encoder).prepare_data()
    with pytest.raises(lp.DataError, match="Expected test texts, got none"):
        data(test_fraction=0.0).test_dataloader()
