"""Decoded images: the same batches, decoded once, and nothing lost where they cannot be kept."""

import copy
import gc
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_peft.data import image_cache
from lightning_peft.data.augment import Augment
from lightning_peft.data.decoded import DecodedImages
from lightning_peft.data.image_files import ImageFiles
from lightning_peft.lightning.datamodules.folder import ImageFolderDataModule

BACKBONE = {"input_size": (3, 12, 12), "crop_pct": 0.9}
AUGMENTED = {"fitted": Augment(rotation=20, noise=0.1), "cropped": Augment(crop=0.5, flip=False)}


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            pixels = random.integers(0, 256, (15 + i, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def read(monkeypatch):
    """The images that are decoded in this process."""
    found = []
    own = ImageFiles._read
    monkeypatch.setattr(
        ImageFiles, "_read", lambda self, index: found.append(index) or own(self, index)
    )
    return found


def module(root, cache, *, augment="fitted", num_workers=0):
    data = ImageFolderDataModule(
        root, BACKBONE, augment=AUGMENTED[augment], flip_safe=True, batch_size=4,
        cache=cache, num_workers=num_workers,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    return data


def epochs(data, count=2):
    found = []
    for epoch in range(count):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        found += [*loader, *data.val_dataloader()]
    return [tensor for batch in found for tensor in batch]


@pytest.mark.parametrize(
    ("num_workers", "kept", "augment"),
    [
        (0, "temporary", "fitted"),
        (0, "directory", "fitted"),
        (0, "directory", "cropped"),
        (2, "directory", "fitted"),
        pytest.param(0, "temporary", "cropped", marks=pytest.mark.slow),
        pytest.param(2, "directory", "cropped", marks=pytest.mark.slow),
    ],
)
def test_the_batches_are_the_same_and_images_are_decoded_once(
    root, tmp_path, read, augment, num_workers, kept
):
    options = {"augment": augment, "num_workers": num_workers}
    expected = epochs(module(root, False, **options))
    read.clear()
    data = module(root, True if kept == "temporary" else tmp_path / "pixels", **options)
    for got, right in zip(epochs(data), expected, strict=True):
        assert torch.equal(got, right)
    assert len(read) == (0 if num_workers else len(data.images("train")) + len(data.images("val")))
    assert len(data.images("train").decoded) == len(data.images("train"))
    assert len(data.images("val").decoded) == len(data.images("val"))


def test_evaluation_is_that_of_timm(root, tmp_path):
    data = module(root, tmp_path / "pixels")
    images = data.images("test")
    for index in (0, 0):  # decoded, and from the file
        with Image.open(images.paths[index]) as image:
            assert torch.equal(images[index][0], data.eval_transform()(image.convert("RGB")))


def test_a_later_run_decodes_nothing_and_a_changed_image_is_another(root, tmp_path, read):
    expected = epochs(module(root, tmp_path / "pixels"))
    read.clear()
    again = module(root, tmp_path / "pixels")
    for got, right in zip(epochs(again), expected, strict=True):
        assert torch.equal(got, right)
    assert read == []
    path = again.images("train").decoded.path
    Image.new("RGB", (20, 20), "white").save(again.files["train"][0][0])
    changed = module(root, tmp_path / "pixels").images("train")
    assert len(changed.decoded) == 0
    assert changed.decoded.path != path


def test_what_was_not_finished_is_decoded_again(tmp_path):
    shapes = [(1, 2, 3), (3, 4, 4), (1, 1, 1)]
    pixels = torch.arange(48, dtype=torch.uint8).view(3, 4, 4)
    first = DecodedImages(tmp_path / "it.pixels", shapes)
    first.put(1, pixels)
    there = DecodedImages(tmp_path / "it.pixels", shapes)
    assert torch.equal(there.get(1), pixels)
    assert there.get(0) is None
    assert there.get(-1) is None
    with pytest.raises(IndexError, match="out of range"):
        there.get(3)
    assert (tmp_path / "it.pixels").stat().st_size == there.nbytes == 3 + 6 + 48 + 1
    (tmp_path / "it.pixels").write_bytes(b"half")
    assert len(DecodedImages(tmp_path / "it.pixels", shapes)) == 0
    assert os.listdir(tmp_path) == ["it.pixels"]


def test_a_file_goes_to_another_process_by_its_name(tmp_path):
    images = DecodedImages(tmp_path / "it.pixels", [(1, 2, 2)])
    images.put(0, torch.ones(1, 2, 2, dtype=torch.uint8))
    assert len(pickle.dumps(images)) < 1000
    assert torch.equal(pickle.loads(pickle.dumps(images)).get(0), images.get(0))


def test_where_there_is_no_room_images_are_decoded_each_time(root, tmp_path, monkeypatch, read):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    data = module(root, tmp_path / "pixels")
    with pytest.warns(UserWarning, match=r"14 decoded images take 6.05 kB, which cannot be kept: "
                      r"at most half of the 1 kB that are free"):  # fmt: skip
        images = data.images("train")
    assert images.decoded is None
    assert len([images[i] for i in range(len(images))]) == len(read) == 14


def test_a_directory_that_cannot_be_made_is_told(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be kept: .*file"):
        assert module(root, tmp_path / "file" / "pixels").images("val").decoded is None


@pytest.mark.slow
def test_temporary_files_go_with_their_owner_and_hold_no_test_images(root, monkeypatch, tmp_path):
    monkeypatch.setattr(image_cache.tempfile, "tempdir", str(tmp_path))
    data = module(root, True)
    assert data.images("test").decoded is None
    images = data.images("train")
    path = images.decoded.path
    assert path.is_relative_to(tmp_path)
    del data
    gc.collect()
    assert images[0][0].shape == images[0][0].shape == (3, 12, 12)
    del images
    gc.collect()
    assert not path.exists()


def test_a_data_module_is_copied_and_pickled(root, tmp_path):
    data = module(root, tmp_path / "pixels")
    expected = data.images("val")[0][0]
    for other in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert torch.equal(other.images("val")[0][0], expected)


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_file_that_another_run_removed_ends_the_keeping_and_not_the_run(tmp_path, how):
    images = DecodedImages(tmp_path / "a.pixels", [(1, 2, 2)] * 2)
    other = pickle.loads(pickle.dumps(images))  # as a loading process has it
    images.path.unlink()
    if how == "cut":
        images.path.write_bytes(b"12")
    with pytest.warns(UserWarning, match=r"a\.pixels: the decoded images cannot be kept there"):
        assert other.get(0) is None
    other.put(0, torch.ones(1, 2, 2, dtype=torch.uint8))
    assert other.get(0) is None
    assert len(other) == 0
    assert list(tmp_path.iterdir()) == ([images.path] if how == "cut" else [])
