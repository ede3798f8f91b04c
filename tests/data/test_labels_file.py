"""Labels in a file: what they are found to be, how they are divided, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_peft.data.labels_file import find_labels, read_labels
from lightning_peft.errors import DataError
from lightning_peft.lightning.datamodules.folder import ImageFolderDataModule

GRAY = {"input_size": (1, 12, 12), "mean": (0.25,), "std": (0.3,), "crop_pct": 1.0}
N = 20


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for i in range(N):
        pixels = random.integers(0, 256, (15, 15), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a" / f"{i}.png")
    return tmp_path


def write(folder, header, label, name="labels.csv", n=N):
    """Write a labels file; ``label`` gives the cells of a line."""
    lines = [header, *(f"a/{i}.png,{label(i)}" for i in range(n))]
    (folder / name).write_text("\n".join(lines))
    return folder / name


def module(root, labels="labels.csv", **options):
    options = {"backbone": GRAY, "num_workers": 0, "augment": "none"} | options
    return ImageFolderDataModule(root, labels=labels, **options)


KINDS = {
    "classes": ("file,label", lambda i: ["cat", "dog"][i % 2], "multiclass", ("cat", "dog")),
    "list": ("file,tags", lambda i: "x|y" if i % 2 else "", "multilabel", ("x", "y")),
    "columns": ("file,x,y", lambda i: f"{i % 2},1", "multilabel", ("x", "y")),
    "number": ("file,age", lambda i: f"{i}.5", "regression", ("age",)),
    "numbers": ("file,h,w", lambda i: f"{i},{2 * i}", "regression", ("h", "w")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_labels_are_is_found(folder, kind):
    header, label, task, names = KINDS[kind]
    write(folder, header, label)
    data = module(folder)
    data.prepare_data()
    data.setup()
    assert (data.task, data.class_names) == (task, names)
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (4, 1, 12, 12)
    assert labels.dtype == (torch.int64 if task == "multiclass" else torch.float32)
    assert labels.shape == ((4,) if kind in ("classes", "number") else (4, 2))
    for path, found in zip(*data.files["train"], strict=True):
        i = int(path.rsplit("/", 1)[1].removesuffix(".png"))
        expected = {
            "classes": i % 2,
            "list": (1.0, 1.0) if i % 2 else (0.0, 0.0),
            "columns": (float(i % 2), 1.0),
            "number": i + 0.5,
            "numbers": (float(i), 2.0 * i),
        }[kind]
        assert found == expected


def test_classes_are_divided_evenly_and_stay_where_they_are(folder):
    write(folder, "file,label", lambda i: ["cat", "dog"][i % 2], "fewer.csv", n=N - 2)
    write(folder, "file,label", lambda i: ["cat", "dog"][i % 2])
    whole, fewer = module(folder), module(folder, "fewer.csv")
    for data in (whole, fewer):
        data.setup()
    assert whole.class_counts("test") == [2, 2]
    assert whole.class_counts("val") == [1, 1]
    assert whole.class_counts("train") == [7, 7]
    paths = [path for found, _ in whole.files.values() for path in found]
    assert len(paths) == len(set(paths)) == N
    moved = set(fewer.files["test"][0]) & set(whole.files["train"][0])
    assert len(moved) <= 2, "no more than there are new images"


def test_a_column_of_splits(folder):
    write(folder, "file,split,v", lambda i: f"{['train', 'train', 'val', 'test'][i % 4]},{i}.5")
    data = module(folder)
    data.setup()
    numbers = {split: sorted(labels) for split, (_, labels) in data.files.items()}
    assert numbers["test"] == [i + 0.5 for i in range(N) if i % 4 == 3]
    assert numbers["val"] == [i + 0.5 for i in range(N) if i % 4 == 2]
    mean, std = data.target_statistics()
    assert mean == [pytest.approx(np.mean(numbers["train"]))]
    assert std == [pytest.approx(np.std(numbers["train"]))]
    assert data.class_counts("train") == []


def test_counts_of_labels(folder):
    write(folder, "file,x,y", lambda i: f"{int(i < 5)},1")
    data = module(folder, test_fraction=0, val_fraction=0)
    assert data.class_counts("train") == [5, N]


def test_whole_numbers_have_to_be_told(folder):
    path = write(folder, "file,n", lambda i: i % 12)
    with pytest.raises(DataError, match=r"whole numbers in 'n'.*task='multiclass' or task='regr"):
        read_labels(path, folder)
    assert read_labels(path, folder, task="regression").labels[13] == 1.0
    found = read_labels(path, folder, task="multiclass")
    assert found.names == tuple(map(str, range(12))), "2 comes before 10"
    assert found.labels[13] == 1


def test_two_classes_with_one_output(folder):
    write(folder, "file,label", lambda i: i % 2)
    assert module(folder, task="binary").task == "binary"
    write(folder, "file,label", lambda i: i % 3)
    with pytest.raises(DataError, match=r"expected 2 classes, found 0, 1, 2"):
        module(folder, task="binary").setup()


def test_columns_are_chosen(folder):
    path = write(folder, "file,who,age", lambda i: f"p{i},{i}.5")
    assert read_labels(path, folder, columns=["age"]).task == "regression"
    with pytest.raises(DataError, match=r"no column 'agee'. Did you mean 'age'"):
        read_labels(path, folder, columns=["agee"])


def test_all_problems_at_once(folder):
    (folder / "labels.csv").write_text(
        "file,split,v\na/0.png,train,1.5\na/0.png,trian,two\na/none.png,val,nan\n,test,3\n"
    )
    with pytest.raises(
        DataError,
        match=r"(?s)6 reason.*line 3: 'a/0.png' is already in line 2.*line 3: split 'trian'. Did "
        r"you mean 'train'.*line 4: missing file .*none.png.*line 5: no file.*'two' in column 'v' "
        r"is not a number.*line 4: 'nan'",
    ):
        read_labels(folder / "labels.csv", folder, task="regression")


def test_many_problems_are_cut(folder):
    write(folder, "file,v", lambda i: "x")
    with pytest.raises(DataError, match=r"(?s)40 reason.*and 20 more"):
        read_labels(folder / "labels.csv", folder / "a", task="regression")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"no column 'file'.*no column of labels"),
        ("fille,label\na/0.png,x", r"no column 'file' in its first line. Did you mean 'fille'"),
        ("file,split\na/0.png,train", r"no column of labels: add one"),
        ("file,x,x\na/0.png,1,1", r"column 'x' appears 2 times"),
        ("file,label\n", r"no line after the header"),
        ("file,label\na/0.png,\na/1.png,b", r"line 2: no class.*2 or more classes, found b"),
        ("file,tags\na/0.png,x|\na/1.png,", r"2 or more labels, found \['x'\]"),
    ],
)
def test_refused_files(folder, text, match):
    (folder / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=f"(?s){match}"):
        read_labels(folder / "labels.csv", folder)


def test_neither_zero_nor_one(folder):
    path = write(folder, "file,x,y", lambda i: f"{i},1")
    with pytest.raises(DataError, match=r"line 4: '2' in column 'x' is neither 0 nor 1"):
        read_labels(path, folder, task="multilabel")
    with pytest.raises(DataError, match=r"one column of classes, found \['x', 'y'\]: choose one"):
        read_labels(path, folder, task="multiclass")


def test_a_file_that_is_not_there(folder):
    write(folder, "file,v", lambda i: f"{i}.5")
    with pytest.raises(DataError, match=r"at labelss.csv or .*Did you mean 'labels.csv'"):
        find_labels("labelss.csv", folder)
    (folder / "bad.csv").write_bytes(b"file,v\n\xff\xfe,1")
    with pytest.raises(DataError, match=r"CSV file of labels or texts in UTF-8"):
        read_labels(folder / "bad.csv", folder)


def test_refused_arguments(folder):
    write(folder, "file,v", lambda i: f"{i}.5")
    with pytest.raises(DataError, match=r"a labels file for task='regression'.*label_columns"):
        ImageFolderDataModule(folder, task="regression", label_columns=["v"])
    with pytest.raises(DataError, match=r"no labels_per_class for regression, got 3"):
        module(folder, labels_per_class=3).setup()
    write(folder, "file,split,label", lambda i: f"{'test' if i % 2 else 'train'},{'ab'[i % 2]}")
    with pytest.raises(DataError, match=r"training images of every class, got none of 'b'"):
        module(folder).setup()
    write(folder, "file,split,label", lambda i: f"test,{'ab'[i % 2]}")
    with pytest.raises(DataError, match=r"none with split 'train'"):
        module(folder).setup()


def test_folders_with_one_output(folder):
    for name in "bc":
        (folder / name).mkdir()
        (folder / "a" / f"{'01'['bc'.index(name)]}.png").rename(folder / name / "x.png")
    data = ImageFolderDataModule(folder, backbone=GRAY, task="binary")
    with pytest.raises(DataError, match=r"two class folders for task='binary', got 3"):
        data.setup()


def test_a_file_elsewhere_is_no_image_of_the_folder(folder, tmp_path):
    (tmp_path.parent / "secret.png").touch()
    path = folder / "labels.csv"
    names = [
        "../secret.png",
        "../../secret.png",
        "/etc/passwd",
        "a/../../secret.png",
        "a/../a/0.png",
    ]
    path.write_text("file,label\n" + "".join(f"{name},x\n" for name in [*names, "a/1.png"]))
    with pytest.raises(
        DataError, match=r"line 2: expected a file below .*, got \.\./secret.png"
    ) as info:
        read_labels(path, folder)
    assert str(info.value).count("expected a file below") == 4
    (folder / "own.png").symlink_to(folder / "a" / "0.png")
    path.write_text(f"file,label\n{folder / 'a' / '1.png'},x\nown.png,y\n")
    assert read_labels(path, folder).names == ("x", "y")
