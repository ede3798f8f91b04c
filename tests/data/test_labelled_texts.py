"""Texts, pairs, tags and targets in every kind of file, and what is refused with its line."""

import csv
import json
import logging
import sys

import pytest

from lightning_peft.data.labelled_texts import read_texts
from lightning_peft.data.text_lists import from_lists, without_repeats
from lightning_peft.data.text_tables import read_table
from lightning_peft.data.unlabelled import read_columns, read_words
from lightning_peft.errors import DataError, MissingExtraError

ROWS = [
    {"text": "a film", "other": "a song", "label": "good", "split": "train"},
    {"text": "a play", "other": "a song", "label": "bad", "split": "train"},
    {"text": "a song", "other": "a film", "label": "good", "split": "val"},
    {"text": "a show", "other": "a film", "label": "bad", "split": "test"},
]
WORDS = [
    {"tokens": ["Ada", "Lovelace", "wrote"], "tags": ["B-PER", "I-PER", "O"]},
    {"tokens": ["Rome", "is", "old"], "tags": ["B-LOC", "O", "O"]},
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def saved(path, rows):
    """Write a directory as people have it: a split each, and classes as numbers."""
    datasets = pytest.importorskip("datasets", reason="extra: datasets")
    datasets.disable_progress_bars()
    names = datasets.ClassLabel(names=["good", "bad"])
    parts = {}
    for split, ours in (("train", "train"), ("validation", "val"), ("test", "test")):
        kept = [{k: v for k, v in r.items() if k != "split"} for r in rows if r["split"] == ours]
        parts[split] = datasets.Dataset.from_list(kept).cast_column("label", names)
    datasets.DatasetDict(parts).save_to_disk(str(path))
    return path


def test_every_kind_of_file_holds_the_same_pairs(tmp_path):
    files = (
        table(tmp_path / "a.csv", ROWS), jsonl(tmp_path / "a.jsonl", ROWS),
        saved(tmp_path / "a", ROWS),
    )  # fmt: skip
    for path in files:
        found = read_texts(path, columns=["label"], pair="other")
        assert found.task == "multiclass"
        assert found.names == ("bad", "good")
        assert found.files == tuple(row["text"] for row in ROWS)
        assert found.pairs == tuple(row["other"] for row in ROWS)
        assert [found.names[k] for k in found.labels] == [row["label"] for row in ROWS]
        assert found.splits == ("train", "train", "val", "test")
        assert read_columns(path, "text", "other") == [[r["text"], r["other"]] for r in ROWS]


def test_splits_are_called_what_people_call_them_and_a_table_may_be_in_another_encoding(tmp_path):
    names = ("Train", "training", "Valid", "dev")
    rows = [row | {"split": name, "label": "Bär"[: 3 - i % 2]} for i, (row, name) in
            enumerate(zip(ROWS, names, strict=True))]  # fmt: skip
    path = table(tmp_path / "a.csv", rows)
    path.write_bytes(path.read_text().encode("cp1252"))
    found = read_texts(path, columns=["label"], pair="other", encoding="cp1252")
    assert found.names == ("Bä", "Bär")
    assert found.splits == ("train", "train", "val", "val")
    texts, labels = [row["text"] for row in ROWS], [row["label"] for row in ROWS]
    assert from_lists(texts, labels, names, task=None).splits == found.splits
    assert read_columns(path, "label", encoding="cp1252") == [row["label"] for row in rows]
    with pytest.raises(DataError, match=r"in UTF-8, got .*data.encoding=.*such as cp1252"):
        read_texts(path, columns=["label"], pair="other")


def test_tagged_words_of_every_kind_of_file_are_the_same(tmp_path):
    spaced = [{k: " ".join(v) for k, v in row.items()} for row in WORDS]
    (tmp_path / "a.conll").write_text(
        "-DOCSTART- -X- O\n\nAda NNP B-PER\nLovelace NNP I-PER\nwrote VBD O\n\n\n"
        "Rome NNP B-LOC\nis VBZ O\nold JJ O\n"
    )
    files = (
        jsonl(tmp_path / "a.jsonl", WORDS), table(tmp_path / "a.csv", spaced), tmp_path / "a.conll",
    )  # fmt: skip
    for path in files:
        found = read_texts(path, task="token_classification", key="tokens", columns=["tags"])
        assert found.names == ("B-LOC", "B-PER", "I-PER", "O")
        assert found.words == tuple(tuple(row["tokens"]) for row in WORDS)
        assert [[found.names[k] for k in row] for row in found.labels] == [
            row["tags"] for row in WORDS
        ]
        assert read_words(path, "tokens") == [row["tokens"] for row in WORDS]


@pytest.mark.parametrize(
    ("labels", "task", "names", "wanted"),
    [
        ([1.5, 2], "regression", ("label",), (1.5, 2.0)),
        ([["a", "b"], []], "multilabel", ("a", "b"), ((1.0, 1.0), (0.0, 0.0))),
        ([True, False], None, ("0", "1"), (1, 0)),
    ],
)
def test_labels_of_json_are_read_as_those_of_a_table(tmp_path, labels, task, names, wanted):
    rows = [{"text": f"a {i}", "label": v, "id": i} for i, v in enumerate(labels)]
    asked = "multiclass" if task is None else None
    found = read_texts(jsonl(tmp_path / "a.jsonl", rows), task=asked)
    assert (found.task, found.names, found.labels) == (task or "multiclass", names, wanted)


def test_lists_are_what_a_file_would_be():
    numbers = from_lists([("a", "b"), ("c", "d")], [0.5, 2.0], None, task=None)
    assert (numbers.task, numbers.labels, numbers.pairs) == ("regression", (0.5, 2.0), ("b", "d"))
    words = from_lists([["a", "b"], ["c", "d"]], [["O", "B-X"], ["O", "O"]], None, task=None)
    assert words.task == "token_classification"
    assert words.labels == ((1, 0), (1, 1))
    targets = from_lists(["a", "b"], ["c", "d"], None, task="seq2seq")
    assert targets.labels == ("c", "d")


def test_a_text_with_several_targets_stays_in_one_split(caplog):
    texts, targets = ["a", "b", "a"], ["c", "d", "e"]
    with caplog.at_level(logging.WARNING):
        found = without_repeats(from_lists(texts, targets, None, task="seq2seq"))
    assert found.files == ("a", "b")
    assert "1 of 3 texts are repeats" in caplog.text
    with caplog.at_level(logging.WARNING):
        splits = ["train", "train", "test"]
        found = without_repeats(from_lists(texts, targets, splits, task="seq2seq"))
    assert found.labels == ("c", "d", "e")  # a published data set is taken as it is
    assert "1 of 1 texts for validation and test are training texts, too" in caplog.text


@pytest.mark.parametrize(
    ("lines", "settings", "match"),
    [
        ('{"text": "a", "label": "b"}\n\n{"text": }\n', {},
         r"(?s)2 reason.*line 2: expected a JSON object, got an empty line.*line 3: .*broken JSON"),
        ('["a"]\n', {}, "got the beginning of a list"),
        ("3\n", {}, "line 1: expected a JSON object, got int"),
        ('{"texts": "a", "label": "b"}\n', {}, "no column 'text'. Did you mean 'texts'?"),
        ('{"text": "a", "label": "b"}\n', {"pair": "othr"}, "no column 'othr'"),
        ('{"text": "a", "label": "b"}\n', {"columns": ["labels"]}, "Did you mean 'label'?"),
        ('{"text": "a", "label": "b"}\n{"text": "c", "lable": "d"}\n', {},
         "line 2: no label. Did you mean 'lable'?"),
        ('{"text": "a", "label": "b"}\n{"text": 3, "label": "d"}\n', {},
         "line 2: expected a text as text, got 3"),
        ('{"text": "a", "label": "b"}\n{"text": " ", "label": "d"}\n', {}, "line 2: no text"),
        ('{"text": "a", "label": {"b": 1}}\n', {}, "line 1: expected a label as label, got {'b'"),
        ('{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n', {}, "set task='multiclass' or"),
        ('{"text": "a", "label": 1.5}\n{"text": "b", "label": "x"}\n', {"task": "regression"},
         "line 2: 'x' in column 'label' is not a number"),
        ('{"text": "a", "label": "x"}\n{"text": "a", "label": "y"}\n', {},
         "line 2: same text as line 1, other label"),
        ('{"text": "a", "label": "x", "split": "tets"}\n', {}, "split 'tets'. Did you mean 'test'"),
        ('{"text": "a", "label": "x", "split": "test"}\n{"text": "b", "label": "y"}\n', {},
         "line 2: split ''"),
        ('{"text": "a", "label": ""}\n', {"task": "seq2seq"}, "line 1: no label"),
        ('{"text": "a", "x": "b", "y": "c"}\n', {"task": "seq2seq"}, "column of targets, found"),
        ('{"text": ["a", "b"], "label": ["O"]}\n', {}, "a tag for each of the 2 words, got 1"),
        ('{"text": ["a", ""], "label": ["O", "O"]}\n', {}, "line 1: expected a list of words as"),
        ('{"text": ["a"], "label": [1.5]}\n', {}, "line 1: expected a list of tags as label"),
        ('{"text": ["a"], "label": ["O"]}\n', {}, "2 or more tags, found O"),
        ('{"text": "a", "label": "O"}\n', {"task": "tokens"}, "a task out of .*got 'tokens'"),
    ],
)  # fmt: skip
def test_what_cannot_serve_is_named_with_its_line(tmp_path, lines, settings, match):
    path = tmp_path / "a.jsonl"
    path.write_text(lines)
    with pytest.raises(DataError, match=match):
        read_texts(path, **settings)


def test_other_files_that_cannot_serve(tmp_path, monkeypatch):
    (tmp_path / "a.conll").write_text("Ada B-PER\nLovelace\n")
    with pytest.raises(DataError, match="line 2: expected a word and its tag, got 'Lovelace'"):
        read_table(tmp_path / "a.conll")
    with pytest.raises(DataError, match="a directory of `datasets`, got .*Did you mean 'a.conll'"):
        read_table(tmp_path / "a.conl")
    with pytest.raises(DataError, match="text 1"):
        from_lists([("a", "b"), "c"], ["x", "y"], None, task=None)
    with pytest.raises(DataError, match="the same length, got 2 of text, 1 of label"):
        from_lists(["a", "b"], [1.5], None, task=None)
    with pytest.raises(DataError, match="line 1: no text"):
        read_columns(jsonl(tmp_path / "b.jsonl", [{"text": ""}]), "text")
    with pytest.raises(DataError, match="Did you mean 'text'"):
        read_columns(tmp_path / "b.jsonl", "texts")
    with pytest.raises(DataError, match="line 1: expected a list of words as text"):
        read_words(tmp_path / "b.jsonl", "text")
    (tmp_path / "state.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "datasets", None)
        with pytest.raises(MissingExtraError, match=r"lightning-peft\[datasets\]"):
            read_table(tmp_path)
    pytest.importorskip("datasets", reason="extra: datasets")
    with pytest.raises(DataError, match="that save_to_disk of `datasets` wrote, got"):
        read_table(tmp_path)
