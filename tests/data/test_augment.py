import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from lightning_peft.data.augment import PRESETS, Augment, augmentation
from lightning_peft.data.batched import apply, augment_batch, draw
from lightning_peft.errors import DataError
from lightning_peft.system.randomness import generator, seeded

BILINEAR = v2.InterpolationMode.BILINEAR


def images(channels=3, height=16, width=16, n=6):
    return torch.rand(n, channels, height, width, generator=generator("images"))


def each(batch, change):
    return torch.stack([change(image, i) for i, image in enumerate(batch)])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20)], ids=["square", "wide"])
def test_batched_affine_is_torchvisions(height, width):
    batch = images(height=height, width=width)
    augment = Augment(rotation=40, translate=0.25, scale=(0.7, 1.4), shear=20)
    values = draw(len(batch), augment, generator("values"))
    # torchvision shifts by whole pixels
    pixels = (values["shift"] * torch.tensor([width, height])).round()
    values["shift"] = pixels / torch.tensor([width, height])
    expected = each(
        batch,
        lambda image, i: reference.affine(
            image,
            angle=float(values["angle"][i]),
            translate=pixels[i].int().tolist(),
            scale=float(values["scale"][i]),
            shear=[float(values["shear"][i]), 0.0],
            interpolation=BILINEAR,
        ),
    )
    torch.testing.assert_close(apply(batch, values), expected, rtol=1e-4, atol=1e-5)


def test_batched_crop_is_torchvisions():
    batch = images()
    boxes = torch.tensor([[0, 0, 8, 8], [4, 2, 8, 12], [1, 3, 15, 13]] * 2)  # in pixels
    expected = each(
        batch,
        lambda image, i: reference.resized_crop(
            image,
            top=int(boxes[i, 1]),
            left=int(boxes[i, 0]),
            height=int(boxes[i, 3]),
            width=int(boxes[i, 2]),
            size=[16, 16],
            antialias=False,
        ),
    )
    got = apply(batch, {"crop": boxes / 16})
    # at the crop's border torchvision repeats the crop's own pixels, where the image goes on here
    torch.testing.assert_close(got[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])


def test_batched_flip_is_torchvisions():
    batch = images()
    flip = torch.tensor([True, False] * 3)
    expected = each(batch, lambda x, i: reference.horizontal_flip(x) if flip[i] else x)
    torch.testing.assert_close(apply(batch, {"flip": flip}), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_batched_colour_is_torchvisions(name, channels):
    batch = images(channels)
    factors = torch.tensor([0.3, 0.7, 0.95, 1.0, 1.2, 1.7])
    change = getattr(reference, f"adjust_{name}")
    expected = each(batch, lambda image, i: change(image, float(factors[i])))
    torch.testing.assert_close(apply(batch, {name: factors}), expected, rtol=1e-4, atol=1e-5)


def test_values_stay_in_their_ranges_and_fill_them():
    augment = Augment(
        rotation=15, translate=0.1, scale=(0.8, 1.2), shear=9, crop=0.5, flip=True, erase=0.5
    )
    values = draw(4000, augment, generator("ranges"))
    assert 14 < values["angle"].abs().max() <= 15
    assert 8.9 < values["shear"].abs().max() <= 9
    assert 0.099 < values["shift"].abs().max() <= 0.1
    assert 0.8 <= values["scale"].min() < values["scale"].max() <= 1.2
    left, top, width, height = values["crop"].unbind(1)
    assert 0.5 - 1e-6 <= (width * height).min() < 0.51
    assert (width * height).max() <= 1
    for low, side in ((left, width), (top, height)):
        assert low.min() >= 0
        assert (low + side).max() <= 1 + 1e-6
    assert 0.45 < values["flip"].float().mean() < 0.55
    assert 0.45 < (values["erase"][:, 2] > 0).float().mean() < 0.55


@pytest.mark.parametrize("smallest", [0.08, 0.5, 0.8, 0.95])
def test_crops_are_as_large_and_as_wide_as_torchvisions(smallest):
    """Its crops are of whole pixels, so the image is large enough for these not to matter."""
    left, top, width, height = draw(3000, Augment(crop=smallest), generator("sizes"))["crop"].T
    assert (width * height).min() >= smallest - 1e-6
    crop, image = v2.RandomResizedCrop(8, scale=(smallest, 1.0)), torch.empty(1, 4000, 4000)
    with seeded("crops", 0):
        drawn = [crop.make_params([image]) for _ in range(1000)]
    theirs = {name: np.array([d[name] for d in drawn]) / 4000 for name in drawn[0]}
    for ours, expected in (
        (width * height, theirs["width"] * theirs["height"]),
        (width / height, theirs["width"] / theirs["height"]),
        (left, theirs["left"]),
        (top, theirs["top"]),
    ):
        assert stats.ks_2samp(ours.numpy(), expected).pvalue > 0.001


def test_noise_has_the_given_deviation():
    gray = torch.full((64, 1, 24, 24), 0.5)
    noisy = augment_batch(gray, Augment(noise=0.05), generator("noise"))
    assert noisy.std().item() == pytest.approx(0.05, rel=0.02)
    assert noisy.mean().item() == pytest.approx(0.5, abs=1e-3)


def test_erasing_sets_a_rectangle_to_zero():
    erased = augment_batch(torch.ones(200, 1, 20, 20), Augment(erase=1.0), generator("erase"))
    share = (erased == 0).float().mean((1, 2, 3))
    assert share.min() > 0
    assert share.max() <= 0.25  # 20 % of the area, in whole pixels


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("channels", [1, 3])
def test_presets_run_both_ways(name, channels):
    batch = images(channels)
    augment = augmentation(name, flip=True)
    got = augment_batch(batch, augment, generator(name))
    one = augment.transform(16)(batch[0])
    assert got.shape == batch.shape
    assert one.shape == batch[0].shape
    if name == "none":
        assert torch.equal(one, batch[0])
        torch.testing.assert_close(got, batch)
    else:
        assert 0 <= got.min() <= got.max() <= 1
        assert not torch.allclose(got, batch)


def test_images_that_go_in_are_left_alone():
    batch = images()
    before = batch.clone()
    augment_batch(batch, PRESETS["strong"], generator())
    augment_batch(batch, Augment(noise=0.1, erase=1.0), generator())
    assert torch.equal(batch, before)


def test_uint8_images_are_scaled():
    image = torch.full((3, 10, 10), 255, dtype=torch.uint8)
    assert Augment().transform(5)(image).unique().tolist() == [1.0]


def test_unknown_preset():
    with pytest.raises(DataError, match=r"no augmentation 'lihgt'. Did you mean 'light'"):
        augmentation("lihgt")


def test_unknown_field():
    with pytest.raises(DataError, match=r"'rotations': Did you mean 'rotation'"):
        augmentation("light", rotations=3)


def test_no_augmentation_at_all():
    with pytest.raises(DataError, match=r"an Augment or None, got float"):
        augmentation(0.5)


def test_all_values_out_of_range_are_named():
    with pytest.raises(
        DataError, match=r"rotation in \[0, 180\].*noise.*crop in \(0, 1\].*scale as"
    ):
        Augment(rotation=-1, noise=math.nan, crop=0, scale=(2, 1))


def test_what_the_user_says_of_flip_stands():
    assert augmentation(Augment(flip=False), flip=True).flip is False
    assert augmentation("strong", flip=True).flip is True
    assert Augment(scale=[0.5, 1]).scale == (0.5, 1)  # as YAML has it


def test_batched_hue_is_torchvisions_and_leaves_gray_alone():
    batch = images()
    turns = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.3, 0.5])
    expected = each(batch, lambda image, i: reference.adjust_hue(image, float(turns[i])))
    torch.testing.assert_close(apply(batch, {"hue": turns}), expected)
    gray = images(1)
    assert torch.equal(apply(gray, {"hue": turns}), gray)


@pytest.mark.parametrize("channels", [1, 3])
def test_randaugment_is_torchvisions_with_a_seed_of_its_own(channels):
    batch = images(channels, n=20)
    augment = Augment(randaugment=2, magnitude=20)
    state = torch.get_rng_state()
    got = augment_batch(batch, augment, generator("a"))
    assert torch.equal(torch.get_rng_state(), state)  # dropout draws from the global generator
    assert torch.equal(got, augment_batch(batch, augment, generator("a")))
    assert not torch.equal(got, augment_batch(batch, augment, generator("b")))
    assert got.shape == batch.shape
    assert 0 <= float(got.min()) <= float(got.max()) <= 1
    changed = [not torch.equal(a, b) for a, b in zip(got, batch, strict=True)]
    assert sum(changed) > 15
    whole = augment.transform(16)
    (step,) = [s for s in whole.transforms if isinstance(s, v2.RandAugment)]
    assert (step.num_ops, step.magnitude) == (2, 20)


def test_a_larger_magnitude_changes_more():
    batch = images(n=64)

    def change(magnitude):
        augment = Augment(randaugment=1, magnitude=magnitude)
        return float((augment_batch(batch, augment, generator("m")) - batch).abs().mean())

    assert change(1) < change(30)


def test_colour_jitter_of_one_image_turns_hues_too():
    augment = Augment(hue=0.3)
    (jitter,) = [s for s in augment.transform(16).transforms if isinstance(s, v2.ColorJitter)]
    assert jitter.hue == (-0.3, 0.3)
    values = draw(2000, augment, generator("hue"))["hue"]
    assert -0.3 <= float(values.min()) < -0.29
    assert 0.29 < float(values.max()) <= 0.3


def test_ranges_of_the_new_fields_are_held():
    with pytest.raises(DataError) as caught:
        Augment(hue=0.6, randaugment=1.5, magnitude=31)
    text = str(caught.value)
    assert "hue in [0, 0.5], got 0.6" in text
    assert "randaugment as a whole number from 0 to 14, got 1.5" in text
    assert "magnitude as a whole number from 0 to 30, got 31" in text
