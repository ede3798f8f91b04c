"""VTAB-1k as the literature lays it out, and a protocol that cannot peek."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_peft.data.vtab_tasks import GROUPS, TASKS
from lightning_peft.errors import DataError
from lightning_peft.lightning.datamodules.vtab import SOURCE, VTABDataModule

GRAY = {"input_size": (1, 12, 12), "mean": (0.25,), "std": (0.3,)}
SIZES = {"train800": 8, "val200": 4, "train800val200": 12, "test": 6}


@pytest.fixture
def root(tmp_path):
    """The layout that NOAH's get_vtab1k.py writes, of a task with 4 classes."""
    folder = tmp_path / "kitti"
    numbers = np.random.default_rng(0)
    for split, size in SIZES.items():
        (folder / "images" / split).mkdir(parents=True)
        lines = []
        for i in range(size):
            name = f"images/{split}/{i:06d}.jpg"
            pixels = numbers.integers(0, 256, (10, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
            lines.append(f"{name} {i % 4}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return tmp_path


def module(root, **options):
    words = {"backbone": GRAY, "mean": None, "std": None, "batch_size": 4, "num_workers": 0}
    return VTABDataModule(root, "kitti", **(words | options))


def prepared(root, **options):
    data = module(root, **options)
    data.prepare_data()
    data.setup()
    return data


def test_nineteen_tasks_in_three_groups():
    assert len(TASKS) == 19
    counts = {group: sum(task.group == group for task in TASKS.values()) for group in GROUPS}
    assert counts == {"natural": 7, "specialized": 4, "structured": 8}
    assert TASKS["sun397"].num_classes == 397
    assert TASKS["smallnorb_ele"] == ("structured", 9)
    assert TASKS["diabetic_retinopathy"] == ("specialized", 5)
    assert TASKS["svhn"] == ("natural", 10)


def test_to_choose_there_are_800_and_200_and_no_test_set(root):
    data = prepared(root, phase="choose")
    assert (len(data.images("train")), len(data.images("val")), len(data.images("test"))) == (
        8,
        4,
        0,
    )
    assert len(next(iter(data.val_dataloader()))[1]) == 4
    with pytest.raises(DataError, match="phase='final' to test, got 'choose': the test set"):
        data.test_dataloader()
    with pytest.raises(DataError, match="the test set must choose nothing"):
        data.predict_dataloader()


def test_in_the_end_there_are_all_1000_and_nothing_to_choose_with(root):
    data = prepared(root)
    assert (len(data.images("train")), len(data.images("val")), len(data.images("test"))) == (
        12,
        0,
        6,
    )
    assert data.val_dataloader() == []
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (6, 1, 12, 12)
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert data.num_classes == 4
    assert data.class_names == ("0", "1", "2", "3")


def test_images_are_resized_whole_and_normalised_and_nothing_else(root):
    data = prepared(root, backbone={"input_size": (3, 12, 12)}, mean=0.5, std=0.25)
    path = root / "kitti" / "images" / "test" / "000002.jpg"
    with Image.open(path) as image:
        whole = image.convert("RGB").resize((12, 12), Image.Resampling.BICUBIC)
    expected = (torch.from_numpy(np.array(whole)).permute(2, 0, 1) / 255 - 0.5) / 0.25
    torch.testing.assert_close(data.images("test")[2][0], expected)
    train = data.images("train")
    torch.testing.assert_close(train[0][0], train[0][0])
    with Image.open(train.paths[0]) as image:
        assert torch.equal(train[0][0], data.eval_transform()(image.convert("RGB")))


def test_the_normalisation_of_the_papers_is_the_default(root):
    data = VTABDataModule(root, "kitti", backbone="vit_base_patch16_224")
    assert data.config.mean == (0.485, 0.456, 0.406)
    assert data.config.std == (0.229, 0.224, 0.225)
    own = VTABDataModule(root, "kitti", backbone="vit_base_patch16_224", mean=None, std=None)
    assert own.config.mean == own.config.std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [5, 5]), (False, [5, 5, 2])])
def test_what_fills_no_batch_is_left_out_as_the_papers_do(root, drop_last, sizes):
    data = prepared(root, batch_size=5, drop_last=drop_last)
    assert [len(labels) for _, labels in data.train_dataloader()] == sizes


def test_every_problem_is_told_with_where_the_data_comes_from(root):
    folder = root / "kitti"
    (folder / "test.txt").unlink()
    (folder / "train800val200.txt").write_text("images/a.jpg 4\nimages/b.jpg\nimages/c.jpg x\n\n")
    with pytest.raises(DataError, match="The task 'kitti' of VTAB-1k is incomplete") as caught:
        module(root).prepare_data()
    text = str(caught.value)
    assert f"{folder / 'test.txt'}: this list does not exist" in text
    assert "train800val200.txt:1: expected a label below 4, got 4" in text
    assert "train800val200.txt:2: expected a path and a label, got 'images/b.jpg'" in text
    assert "train800val200.txt:3: expected a path and a label, got 'images/c.jpg x'" in text
    assert text.endswith(SOURCE)


def test_missing_images_are_told_and_many_are_counted(root):
    for i in random.Random(0).sample(range(12), 7):
        (root / "kitti" / "images" / "train800val200" / f"{i:06d}.jpg").unlink()
    with pytest.raises(DataError, match="which does not exist") as caught:
        module(root).prepare_data()
    assert str(caught.value).count("which does not exist") == 5
    assert "more missing images: 2" in str(caught.value)


def test_lists_that_do_not_belong_together_are_refused(root):
    lines = (root / "kitti" / "train800val200.txt").read_text().splitlines(keepends=True)
    (root / "kitti" / "train800val200.txt").write_text("".join(lines[:9]))
    with pytest.raises(DataError, match=r"expected the 8 \+ 4 images of train800.txt"):
        module(root).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "kiti"}, "task as one of 19, got 'kiti': Did you mean 'kitti'"),
        ({"phase": "finale"}, "phase as one of 2, got 'finale': Did you mean 'final'"),
        ({"task": "cifar"}, "the folder .*cifar of the task, got none. The lists and images are"),
    ],
    ids=["task", "phase", "folder"],
)
def test_refusals(root, options, message):
    with pytest.raises(DataError, match=message):
        VTABDataModule(root, **({"task": "kitti"} | options)).setup()


def test_an_empty_list_is_refused(root):
    (root / "kitti" / "val200.txt").write_text("\n")
    with pytest.raises(DataError, match="val200.txt: the list is empty"):
        module(root, phase="choose").setup()
