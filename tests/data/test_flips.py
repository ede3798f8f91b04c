"""Mirroring that turns one class into another is found; other mirroring raises no alarm."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from lightning_peft.data.augment import Augment
from lightning_peft.data.flips import flip_confusions, thumbnails, warning_text
from lightning_peft.errors import DataError
from lightning_peft.lightning.datamodules.folder import ImageFolderDataModule

LEFT, RIGHT, CROSS = 0, 1, 2
GRAY = {"input_size": (1, 24, 24), "mean": (0.0,), "std": (1.0,), "crop_pct": 1.0}


def arrows(n=12, seed=0):
    """Arrows to the left and to the right, and crosses, each with noise."""
    random = torch.Generator().manual_seed(seed)
    left = torch.zeros(24, 24)
    for i in range(12):
        left[12 - i : 12 + i, i : i + 1] = 1.0
    left[10:14, 12:] = 1.0
    cross = torch.eye(24) + torch.eye(24).flip(1)
    shapes = torch.stack([left, left.flip(1), cross])
    labels = torch.arange(3 * n) % 3
    noise = 0.3 * torch.randn(3 * n, 24, 24, generator=random)
    return (shapes[labels] + noise).unsqueeze(1), labels


def test_arrows_are_turned_into_one_another_and_crosses_are_not():
    found = {item.source: item for item in flip_confusions(*arrows())}
    assert set(found) == {LEFT, RIGHT}
    assert found[LEFT].target == RIGHT
    assert found[RIGHT].target == LEFT
    assert found[LEFT].share == 1.0
    assert found[LEFT].images == 12


def test_symmetric_classes_and_classes_that_pixels_do_not_tell_raise_no_alarm():
    images, labels = arrows()
    crosses = images[labels == CROSS]
    two = torch.cat([crosses, crosses[:, :, :12].repeat(1, 1, 2, 1)])
    assert not flip_confusions(two, torch.arange(24) // 12)
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        noise = torch.rand(60, 3, 20, 20, generator=random)
        assert not flip_confusions(noise, torch.arange(60) % 3)


def test_handwritten_digits_are_turned_into_others():
    bunch = load_digits()
    images = torch.tensor(bunch.images[:400]).unsqueeze(1)
    found = flip_confusions(images, torch.tensor(bunch.target[:400]))
    assert found, "a mirrored 2 or 5 is no 2 or 5"
    assert not {item.source for item in found} & {0, 8}


def test_too_few_images_say_nothing():
    assert not flip_confusions(*arrows(n=3))
    assert not flip_confusions(torch.empty(0, 1, 16, 16), torch.empty(0, dtype=torch.long))


@pytest.fixture
def folder(tmp_path):
    images, labels = arrows(10)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = ("left", "right", "cross")[label]
        (tmp_path / name).mkdir(exist_ok=True)
        pixels = (image[0].clamp(0, 1) * 255).numpy().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def module(root, **options):
    return ImageFolderDataModule(root, GRAY, num_workers=0, **options)


def test_a_folder_that_mirrors_arrows_warns(folder):
    message = r"Mirroring seems to turn.*'left' into 'right' \(100 % of 10\).*Set flip=False"
    data = module(folder)
    with pytest.warns(UserWarning, match=message):
        data.prepare_data()
    data.prepare_data()  # once is enough: a second warning is an error in tests


@pytest.mark.parametrize(
    "options",
    [{"flip": False}, {"flip_safe": True}, {"flip_safe": False}, {"augment": "none"}],
    ids=str,
)
def test_it_does_not_where_nothing_is_mirrored_or_it_is_said_to_be_safe(folder, options):
    data = module(folder, **options)
    data.prepare_data()  # a warning is an error in tests
    assert data.augment.flip is ("flip_safe" in options and options["flip_safe"])


def test_data_that_must_not_be_mirrored_refuses_an_augmentation_that_does(folder):
    with pytest.raises(DataError, match=r"without flip for data with flip_safe=False"):
        module(folder, flip_safe=False, augment=Augment(flip=True))


def test_thumbnails_are_few_of_each_class_and_skip_what_cannot_be_read(folder):
    paths = sorted(str(path) for path in (folder / "left").iterdir()) * 10
    broken = folder / "left" / "broken.png"
    broken.write_bytes(b"no image")
    images, labels = thumbnails([*paths, str(broken)], [4] * 100 + [5])
    assert images.shape == (34, 1, 16, 16)
    assert set(labels.tolist()) == {4}
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    images, labels = thumbnails([str(broken)], [0])
    assert len(images) == len(labels) == 0


def test_the_warning_names_three_classes_at_most():
    found = flip_confusions(*arrows()) * 2
    text = warning_text(found, ["left", "right", "cross"])
    assert text.count(" into '") == 3
    assert "and 1 more." in text
