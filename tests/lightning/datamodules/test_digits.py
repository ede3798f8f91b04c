import numpy as np
import pytest
import torch
from sklearn import datasets, linear_model, neighbors
from torch.nn import functional as F

from lightning_peft.data.augment import Augment
from lightning_peft.data.baselines import logistic_regression, nearest_neighbour
from lightning_peft.errors import DataError, MissingExtraError
from lightning_peft.lightning.datamodules.digits import DigitsDataModule


def test_images_are_scaled_up_and_normalised():
    data = DigitsDataModule(backbone=None, image_size=16, channels=1, mean=0.25, std=(0.5,))
    images, labels = next(iter(data.test_dataloader()))
    bunch = datasets.load_digits()
    chosen = data.indices["test"][: len(images)]
    raw = torch.tensor(bunch.images[chosen], dtype=torch.float32)[:, None] / 16
    large = F.interpolate(raw, size=16, mode="bicubic").clamp(0, 1)
    torch.testing.assert_close(images, (large - 0.25) / 0.5)
    assert labels.tolist() == bunch.target[chosen].tolist()


def test_the_backbone_says_how_images_are_prepared():
    data = DigitsDataModule()
    assert data.config.input_size == (1, 24, 24)
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (32, 1, 24, 24)
    assert images.dtype == torch.float32


def test_three_channels_for_a_colour_backbone():
    data = DigitsDataModule(backbone="vit_tiny_patch16_224", image_size=32, labels_per_class=1)
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (10, 3, 32, 32)
    raw = images * torch.tensor(data.config.std)[:, None, None]
    raw = raw + torch.tensor(data.config.mean)[:, None, None]
    torch.testing.assert_close(raw[:, 0], raw[:, 2])


def test_augmentation_changes_training_only():
    plain, changed = DigitsDataModule(5), DigitsDataModule(5, augment="strong")
    first, second = (next(iter(data.train_dataloader())) for data in (plain, changed))
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
    for split in ("val", "test"):
        one, other = (next(iter(getattr(d, f"{split}_dataloader")())) for d in (plain, changed))
        assert torch.equal(one[0], other[0])


def test_a_mirrored_digit_is_refused():
    with pytest.raises(DataError, match=r"without flip for digits, got flip=True.*Leave flip out"):
        DigitsDataModule(augment=Augment(flip=True))
    assert DigitsDataModule(augment="strong").augment.flip is False


def test_without_validation():
    assert DigitsDataModule(val_per_class=0).val_dataloader() == []


def test_scikit_learn_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lightning-peft\[data\]'"):
        DigitsDataModule().setup()


def test_baselines_are_scikit_learns():
    data = DigitsDataModule(5, seed=2)
    data.setup()
    pixels, target = datasets.load_digits(return_X_y=True)
    train, val, test = (data.indices[name] for name in ("train", "val", "test"))
    distance = ((pixels[test][:, None] - pixels[train][None]) ** 2).sum(-1)
    expected = (target[train][distance.argmin(1)] == target[test]).mean()
    assert nearest_neighbour(data) == pytest.approx(expected, abs=0.002)  # a tie or two
    assert neighbors.KNeighborsClassifier(1).fit(pixels[train], target[train])
    scores = {}
    for strength in (0.01, 0.1, 1, 10, 100):
        model = linear_model.LogisticRegression(C=strength, max_iter=5000)
        model.fit(pixels[train] / 16, target[train])
        fit = (model.score(pixels[val] / 16, target[val]), -strength)
        scores[fit] = model.score(pixels[test] / 16, target[test])
    assert logistic_regression(data) == pytest.approx(scores[max(scores)], abs=0.003)


def test_baselines_without_validation():
    data = DigitsDataModule(5, val_per_class=0)
    assert 0.8 < logistic_regression(data) < 1
    assert 0.8 < nearest_neighbour(data) < 1


@pytest.mark.parametrize("baseline", [nearest_neighbour, logistic_regression])
def test_baselines_need_pixels(baseline):
    with pytest.raises(DataError, match=r"data module with pixels\(split\).*got dict"):
        baseline({})


def test_numpy_sees_what_was_promised():
    pixels, labels = DigitsDataModule(3).pixels("train")
    assert pixels.shape == (30, 64)
    assert np.bincount(labels.numpy()).tolist() == [3] * 10
    assert 0 <= pixels.min() <= pixels.max() <= 1


def test_the_plain_loader_has_the_training_images_without_augmentation():
    data = DigitsDataModule(labels_per_class=2, augment="strong")
    images, labels = next(iter(data.plain_dataloader()))
    plain = DigitsDataModule(labels_per_class=2).images("train")
    assert torch.equal(images, torch.stack([plain[i][0] for i in range(20)]))
    assert labels.tolist() == [int(plain[i][1]) for i in range(20)]
