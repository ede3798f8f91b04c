"""Folders and labels files as people have them: names, junk, copies, delimiters, encodings."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_peft.errors import DataError
from lightning_peft.lightning.datamodules.folder import ImageFolderDataModule

GRAY = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}


@pytest.fixture
def write(tmp_path):
    """Write an image that no other is the same as."""
    made = iter(range(100, 10_000))

    def one(*names, value=None):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8), 1, np.uint32) * (next(made) if value is None else value)
            Image.fromarray(pixels.view(np.uint8).reshape(8, 8, 4)[..., :3]).save(path)

    return one


def module(root, **options):
    options = {"backbone": GRAY, "num_workers": 0, "flip_safe": True} | options
    return ImageFolderDataModule(root, **options)


def sizes(data):
    data.prepare_data()
    data.setup()
    return {split: len(paths) for split, (paths, _) in data.files.items()}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Val", "Test"),
        ("TRAINING", "valid", "testing"),
        ("training", "Validation", "Testing"),
        ("train", "dev", None),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, write, train, val, test):
    for split, count in ((train, 4), (val, 2), (test, 1)):
        if split:
            write(*(f"{split}/{name}/{i}.png" for name in "ab" for i in range(count)))
    (tmp_path / "__MACOSX").mkdir()
    assert sizes(module(tmp_path)) == {"train": 8, "val": 4, "test": 2 * (test is not None)}


def test_a_split_is_there_once_and_not_without_training(tmp_path, write):
    write("val/a/1.png", "val/b/1.png", "Test/a/1.png", "Test/b/1.png")
    with pytest.raises(DataError, match=r"a folder `train` beside val, Test in .*, got none"):
        module(tmp_path).setup()
    write("cats/1.png")  # a folder of another class changes nothing
    with pytest.raises(DataError, match=r"Put the class folders of the training images into `tra"):
        module(tmp_path).setup()
    write("train/a/1.png", "train/b/1.png", "valid/a/1.png", "valid/b/1.png")
    with pytest.raises(DataError, match=r"one folder of each split in .*, got val and valid. Join"):
        module(tmp_path).setup()


def test_classes_may_be_called_like_splits(tmp_path, write):
    write(*(f"{name}/{i}.png" for name in ("valid", "invalid", "dev") for i in range(5)))
    assert module(tmp_path).class_names == ("dev", "invalid", "valid")


def test_what_systems_leave_behind_is_passed_over(tmp_path, write, caplog):
    write(*(f"{name}/{i}.png" for name in "ab" for i in range(5)))
    for name in ("a/._0.png", "a/.DS_Store", "b/Thumbs.db", "__MACOSX/a/._1.png", "b/desktop.ini"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"nothing to see")
    data = module(tmp_path)
    assert sum(sizes(data).values()) == 10
    assert data.class_names == ("a", "b")
    assert caplog.messages == []


def test_what_is_not_read_is_said_by_suffix_and_count(tmp_path, write, caplog):
    write(*(f"train/{name}/{i}.png" for name in "ab" for i in range(5)))
    for name in ("train/a/1.psx", "train/a/2.psx", "train/b/x.heic", "train/b/notes.TXT"):
        (tmp_path / name).touch()
    write("train/loose.png", "extra/a/1.png")
    with caplog.at_level(logging.WARNING):
        data = module(tmp_path)
        sizes(data)
        data.prepare_data()
    assert caplog.messages == [
        "4 files not read: .psx 2, .heic 1, .txt 1 (pip install pillow-heif reads .heic)",
        f"images directly in {tmp_path / 'train'} not read, in no class: 1",
        "folders beside the splits not read: extra",
    ]


def test_a_class_of_unread_files_says_which(tmp_path, write):
    write(*(f"a/{i}.png" for i in range(3)))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.heic").touch()
    with pytest.raises(
        DataError, match=r"no image in the class folders 'b' \(1 file not read: .he"
    ):
        module(tmp_path).prepare_data()


def test_the_same_image_in_two_classes_or_splits_is_refused(tmp_path, write):
    write(*(f"train/{name}/{i}.png" for name in "ab" for i in range(3)))
    write("train/a/copy.png", "train/b/twin.png", value=7)
    write("test/a/1.png", "test/b/1.png")
    write("train/a/x.png", "test/a/x.png", value=9)
    with pytest.raises(DataError) as info:
        module(tmp_path).prepare_data()
    told = str(info.value)
    assert "for 2 reason(s)" in told
    assert (
        f"{tmp_path}/train/b/twin.png: the same image as {tmp_path}/train/a/copy.png, as 'a' and "
        "as 'b'" in told
    )
    assert f"{tmp_path}/test/a/x.png: the same image as {tmp_path}/train/a/x.png, in train" in told
    module(tmp_path, verify="none").prepare_data()


def test_copies_within_a_class_do_not_come_into_two_splits(tmp_path, write, caplog):
    write(*(f"{name}/{i}.png" for name in "ab" for i in range(8)))
    for i in range(4):
        (tmp_path / "a" / f"copy_{i}.png").write_bytes((tmp_path / "a" / f"{i}.png").read_bytes())
    data = module(tmp_path, val_fraction=0.3, test_fraction=0.3)
    assert sum(sizes(data).values()) == 16
    assert caplog.messages == ["4 of 20 images are repeats and are dropped"]
    contents = [Path(p).read_bytes() for paths, _ in data.files.values() for p in paths]
    assert len(set(contents)) == 16


def test_copies_in_a_labels_file(tmp_path, write):
    write("1.png", "2.png", value=3)
    write("3.png", "4.png", value=4)
    write("5.png", "6.png")
    rows = ["1,x|y", "2,x", "3,x", "4,x", "5,y", "6,x"]
    text = "\n".join(f"{row[0]}.png{row[1:]}" for row in rows)
    (tmp_path / "labels.csv").write_text(f"file,tags\n{text}")
    with pytest.raises(DataError, match=r"2.png: the same image as .*1.png, as 'x\|y' and as 'x'"):
        module(tmp_path, labels="labels.csv").prepare_data()
    (tmp_path / "labels.csv").write_text(
        "file,split,v\n1.png,train,1.5\n2.png,Validation,1.5\n5.png,TRAIN,1\n6.png,test,2\n"
    )
    with pytest.raises(DataError, match=r"2.png: the same image as .*1.png, in train and in val"):
        module(tmp_path, labels="labels.csv").prepare_data()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_delimiters_and_encodings(tmp_path, write, delimiter, encoding):
    write(*(f"{i}.png" for i in range(6)))
    rows = [("file", "was es ist"), *((f"{i}.png", ["Bär", "Löwe, alt"][i % 2]) for i in range(6))]
    if delimiter == ",":
        rows = [(file, label.partition(",")[0]) for file, label in rows]
    text = "".join(f"{delimiter.join(row)}\r\n" for row in rows)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    options = {"labels": "labels.csv", "encoding": "cp1252" if encoding == "cp1252" else None}
    data = module(tmp_path, **options)
    assert data.class_names == (("Bär", "Löwe") if delimiter == "," else ("Bär", "Löwe, alt"))


def test_another_encoding_is_named(tmp_path, write):
    write("0.png", "1.png")
    (tmp_path / "labels.csv").write_bytes("file,label\n0.png,a\n1.png,Bär\n".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"in UTF-8, got .*: line 3 has bytes .*\(e4\).*data.encoding=.*cp1252"
    ):
        module(tmp_path, labels="labels.csv").setup()
    with pytest.raises(
        DataError, match=r"name of an encoding, got encoding='cp125': such as utf-8"
    ):
        module(tmp_path, labels="labels.csv", encoding="cp125").setup()


def test_another_column_of_files(tmp_path, write):
    write("in/1.png", "in/2.png")
    (tmp_path / "labels.csv").write_text("title,Bild,label\nfile,in/1.png,a\nfile,in/2.png,b\n")
    with pytest.raises(
        DataError, match=r"no column 'file' in .* 'Bild' seems to hold files: file_column=Bild"
    ):
        module(tmp_path, labels="labels.csv", label_columns=["label"]).setup()
    options = {"label_columns": ["label"], "val_fraction": 0, "test_fraction": 0}
    data = module(tmp_path, labels="labels.csv", file_column="Bild", **options)
    assert sizes(data)["train"] == 2
    (tmp_path / "labels.csv").write_text("image_path,label\nx.png,a\ny.png,b\n")
    with pytest.raises(DataError, match=r"'image_path' seems to hold files"):
        module(tmp_path, labels="labels.csv").setup()
    with pytest.raises(DataError, match=r"a labels file for file_column and encoding"):
        module(tmp_path, file_column="x", encoding="utf-8")


def test_a_missing_file_is_likened_to_those_there_are(tmp_path, write):
    write("in/Cat_1.png", "in/dog.png")
    names = ["Cat_1", "cat_1.PNG", "out\\dog.png", "emu"]
    (tmp_path / "labels.csv").write_text(
        "file,label\n" + "".join(f"{name},{'ab'[k % 2]}\n" for k, name in enumerate(names))
    )
    with pytest.raises(DataError) as info:
        module(tmp_path, labels="labels.csv").setup()
    told = [line.partition("missing file ")[2] for line in str(info.value).splitlines()[1:]]
    assert told == [
        f"{tmp_path / 'Cat_1'} (there is in/Cat_1.png)",
        f"{tmp_path / 'cat_1.PNG'} (there is in/Cat_1.png)",
        f"{tmp_path}/out\\dog.png (there is in/dog.png)",
        f"{tmp_path / 'emu'}",
    ]


def test_a_range_is_two_numbers(tmp_path):
    with pytest.raises(DataError, match=r"value_range as two different numbers, got \[0\]"):
        module(tmp_path, value_range=[0])
    with pytest.raises(DataError, match=r"a folder of images at .*nowhere, got none"):
        module(tmp_path / "nowhere", labels="x.csv").setup()
