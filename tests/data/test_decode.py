"""What is seen in image files of every kind, and that all ways to read them see the same."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_peft.adaptation.serving.predicting import predict_files
from lightning_peft.cli.commands import rank
from lightning_peft.data import decode as decoding_module
from lightning_peft.data.augment import Augment
from lightning_peft.data.decode import (
    Decoding,
    UnreadableImageError,
    decode,
    readable_suffixes,
    size_of,
)
from lightning_peft.data.sampling import Draw
from lightning_peft.errors import DataError
from lightning_peft.lightning.datamodules.folder import ImageFolderDataModule
from lightning_peft.ranking import Candidate
from tests.support.image_zoo import scene, write_zoo

RGB = Decoding("RGB")
NAMES = [
    *("png_rgb", "bmp_rgb", "ppm_rgb", "tga_rgb", "qoi_rgb", "pcx_rgb", "sgi_rgb", "tiff_rgb"),
    *("dds_rgb", "webp_rgb", "jp2_rgb"),
    *("jpeg_rgb", "jfif_rgb", "avif_rgb", "jpeg_gray", "png_gray", "png_bits"),
    *("apng_frames", "mpo_frames", "gif_frames", "gif_palette", "png_palette", "tiff_cmyk"),
    *("jpeg_cmyk", "png_alpha", "webp_alpha", "tiff_alpha", "png_gray_alpha"),
    *("png_palette_alpha", "gif_alpha", "png_colour_key", "png_16_bits", "png_16_bits_rgb"),
    *("tiff_16_bits", "tiff_16_bits_inverse", "pgm_16_bits"),
    *(f"jpeg_turned_{orientation}" for orientation in range(2, 9)),
    *("png_turned", "webp_turned", "tiff_turned", "avif_turned"),
]
REFUSED = ["tiff_floats", "tiff_32_bits", "pfm_floats"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo") / "train" / "a"
    return folder, write_zoo(folder)


def test_every_file_of_the_zoo_is_looked_at(zoo):
    assert sorted(zoo[1]) == sorted([*NAMES, *REFUSED])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_as_a_person_sees_it(zoo, name):
    folder, seen = zoo
    path = folder / seen[name].name
    assert path.suffix.lower() in readable_suffixes()
    image = decode(path, RGB)
    pixels = np.asarray(image).astype(int)
    assert pixels.shape == seen[name].pixels.shape
    assert abs(pixels - seen[name].pixels).max() <= seen[name].near
    assert size_of(path) == image.size
    gray = decode(path, Decoding("L"))
    assert (gray.mode, gray.size) == ("L", image.size)


@pytest.mark.parametrize("name", REFUSED)
def test_values_without_a_meaning_are_refused_or_given_one(zoo, name):
    folder, seen = zoo
    path = folder / seen[name].name
    with pytest.raises(UnreadableImageError, match=seen[name].refused):
        decode(path, RGB)
    white = 255 if name == "tiff_32_bits" else 1
    levels = np.asarray(decode(path, Decoding("L", (0, white))))
    assert (levels == np.asarray(Image.fromarray(scene()).convert("L"))).all()
    halved = np.asarray(decode(path, Decoding("L", (0, 2 * white)))).astype(int)
    assert abs(halved - levels / 2).max() <= 0.5
    assert (np.asarray(decode(path, Decoding("L", (white, 0)))) == 255 - levels).all()


def test_a_range_is_for_deep_images_only(zoo):
    folder, seen = zoo
    deep, plain = folder / seen["png_16_bits"].name, folder / seen["png_gray"].name
    half = Decoding("L", (0, 65535 / 2))
    assert np.asarray(decode(deep, half)).max() == 255
    assert np.asarray(decode(deep, half)).mean() > 1.5 * np.asarray(decode(plain, half)).mean()
    assert decode(plain, half).tobytes() == Image.open(plain).tobytes()


def test_not_a_number_is_no_level(tmp_path):
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImageError, match=r"a\.tif: ValueError: .*no numbers \(NaN"):
        decode(tmp_path / "a.tif", Decoding("L", (0, 1)))


class Seer(nn.Module):
    """Keep the images that a model is shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen = []

    def forward(self, images):
        self.seen += images
        return torch.ones(len(images), 2)


@pytest.mark.parametrize("backbone", ["test_vit", "glyph_vit"])
def test_training_evaluation_ranking_and_prediction_see_the_same(zoo, backbone, tmp_path):
    folder, seen = zoo
    table = tmp_path / "labels.csv"
    rows = [f"{seen[name].name},{'ab'[k % 2]}" for k, name in enumerate(NAMES)]
    table.write_text("\n".join(["file,label", *rows]))
    data = ImageFolderDataModule(
        folder, backbone, labels=table, augment=Augment(flip=False), val_fraction=0,
        test_fraction=0, verify="none", num_workers=0, cache=tmp_path / "pixels", batch_size=50,
    )  # fmt: skip
    data.setup()
    paths = [folder / seen[name].name for name in NAMES]
    assert data.files["train"][0] == [str(path) for path in paths]
    training = [data.images("train")[Draw(k, 0, k)][0] for k in range(len(paths))]
    evaluation = list(next(iter(data.plain_dataloader("train")))[0])
    model = Seer()
    done = predict_files(
        model, paths, decoding=data.decoding, transform=data.eval_transform(), batch_size=50
    )
    assert [item.error for item in done] == [""] * len(paths)
    words = [
        *("data=folder", f"data.root={folder}", f"data.labels={table}", "data.verify=none"),
        *("data.val_fraction=0", "data.test_fraction=0", "data.num_workers=0"),
    ]
    batches = rank._batches_for(rank._compose(words))(Candidate(backbone))
    ranked = torch.cat([images for images, _ in batches])
    transform = data.config.eval_transform()
    gray = data.config.channels == 1
    for k, name in enumerate(NAMES):
        found = (evaluation[k], model.seen[k], ranked[k])
        assert all(torch.equal(found[0], other) for other in found[1:]), name
        torch.testing.assert_close(training[k], found[0])  # it scales in another order
        if seen[name].near <= 1 and not gray:  # without this package's decoder
            expected = transform(Image.fromarray(seen[name].pixels.astype(np.uint8)))
            torch.testing.assert_close(found[0], expected, atol=0.05, rtol=0)


def test_a_truncated_file_is_found_by_its_header_or_in_a_line(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    image = Image.fromarray(noise)
    options = {"webp": {"lossless": True}, "avif": {"quality": 90}}
    for suffix in ("jpg", "png", "gif", "webp", "bmp", "tif", "qoi", "avif"):
        path = tmp_path / "a" / f"{suffix}.{suffix}"
        image.save(path, **options.get(suffix, {}))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    Image.new("L", (9, 9)).save(tmp_path / "b" / "whole.png")
    options = {"backbone": "glyph_vit", "val_fraction": 0, "test_fraction": 0, "num_workers": 1}
    with pytest.raises(DataError) as info:
        ImageFolderDataModule(tmp_path, **options).prepare_data()
    for suffix in ("jpg", "png", "gif", "webp", "bmp", "tif", "avif"):
        assert f"{suffix}.{suffix}: " in str(info.value)
    for suffix in ("jpg", "png", "gif", "webp", "bmp", "tif", "avif"):
        (tmp_path / "a" / f"{suffix}.{suffix}").unlink()
    data = ImageFolderDataModule(tmp_path, **options)
    data.prepare_data()  # of a QOI only a decoder says it
    with pytest.raises(UnreadableImageError) as info:
        list(data.train_dataloader())  # found in a loading process
    told = str(info.value)
    assert told.startswith(f"Expected a readable image, got {tmp_path / 'a' / 'qoi.qoi'}: ")
    assert "Traceback" not in told
    assert "\n" not in told


def test_what_follows_the_end_of_a_jpeg_does_no_harm(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        path = tmp_path / name / "a.jpg"
        Image.fromarray(scene()).rotate(len(name) * ord(name)).save(path)
        path.write_bytes(path.read_bytes() + b"a trailer of the camera" * 9)
    ImageFolderDataModule(tmp_path, val_fraction=0, test_fraction=0).prepare_data()


def test_a_plugin_adds_its_suffix(tmp_path, monkeypatch):
    """A stand-in for ``pillow_heif``, which is not among what the package requires."""
    plugin = tmp_path / "pillow_heif.py"
    plugin.write_text(
        "from PIL import BmpImagePlugin, Image\n"
        "class Heif(BmpImagePlugin.BmpImageFile):\n"
        "    format = 'HEIF'\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', Heif, lambda prefix: prefix[:2] == b'BM')\n"
        "    Image.register_extensions('HEIF', ['.heic'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("OPEN", "EXTENSION", "ID"):
        own = getattr(Image, name)
        monkeypatch.setattr(Image, name, type(own)(own))
    assert ".heic" not in readable_suffixes()
    caches = (readable_suffixes, decoding_module._register_plugins)
    for cached in caches:
        cached.cache_clear()
    try:
        assert ".heic" in readable_suffixes()
        Image.fromarray(scene()).save(tmp_path / "a.heic", format="BMP")
        assert (np.asarray(decode(tmp_path / "a.heic", RGB)) == scene()).all()
    finally:
        monkeypatch.undo()
        sys.modules.pop("pillow_heif", None)
        for cached in caches:
            cached.cache_clear()
