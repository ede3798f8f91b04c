import numpy as np
import pytest
import timm
import torch
from PIL import Image

from lightning_peft.data import verify
from lightning_peft.data.augment import Augment
from lightning_peft.data.sampling import Draw
from lightning_peft.errors import DataError
from lightning_peft.lightning.datamodules.folder import ImageFolderDataModule

GRAY = {"input_size": (1, 12, 12), "mean": (0.25,), "std": (0.3,), "crop_pct": 1.0}


def write(folder, n, size=(15, 15)):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(str(folder).encode()))  # no two folders share an image
    for i in range(n):
        pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def bare(tmp_path):
    for name, n in {"cat": 10, "dog": 20, "emu": 30}.items():
        write(tmp_path / name, n)
    (tmp_path / ".cache").mkdir()  # hidden folders are no classes
    return tmp_path


def module(root, **options):
    return ImageFolderDataModule(root, **({"backbone": GRAY, "num_workers": 0} | options))


def test_a_bare_folder_is_split_in_proportion(bare):
    data = module(bare, val_fraction=0.25, test_fraction=0.2)
    data.prepare_data()
    data.setup()
    assert data.class_names == ("cat", "dog", "emu")
    assert data.num_classes == 3
    counts = {name: np.bincount(labels).tolist() for name, (_, labels) in data.files.items()}
    assert counts == {"train": [6, 12, 18], "val": [2, 4, 6], "test": [2, 4, 6]}
    paths = [path for found, _ in data.files.values() for path in found]
    assert len(set(paths)) == 60
    for found, labels in data.files.values():
        assert all(
            path.split("/")[-2] == data.class_names[label]
            for path, label in zip(found, labels, strict=True)
        )


def test_only_its_fraction_moves_the_test_set(bare):
    first, second = module(bare), module(bare, seed=4, labels_per_class=2, val_fraction=0.4)
    first.setup()
    second.setup()
    assert first.files["test"] == second.files["test"]
    assert first.files["val"] != second.files["val"]
    assert np.bincount(second.files["train"][1]).tolist() == [2, 2, 2]


@pytest.mark.parametrize("per_class", [0, 3])
def test_validation_images_may_be_counted(bare, per_class):
    data = module(bare, val_per_class=per_class, val_fraction=0.5, test_fraction=0.2)
    data.setup()
    assert np.bincount(data.files["val"][1], minlength=3).tolist() == [per_class] * 3
    assert np.bincount(data.files["test"][1]).tolist() == [2, 4, 6]
    assert (data.val_dataloader() == []) == (per_class == 0)


def test_a_negative_number_of_validation_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="val_per_class of 0 or more, got -1"):
        module(tmp_path, val_per_class=-1)


def test_given_splits_are_kept(tmp_path):
    for split, n in {"train": 10, "val": 3, "test": 2}.items():
        write(tmp_path / split / "a", n)
        write(tmp_path / split / "b", n)
    data = module(tmp_path)
    data.setup()
    assert {name: len(labels) for name, (_, labels) in data.files.items()} == {
        "train": 20,
        "val": 6,
        "test": 4,
    }


def test_validation_is_taken_from_train_where_there_is_none(tmp_path):
    write(tmp_path / "train" / "a", 10)
    write(tmp_path / "train" / "b", 10)
    data = module(tmp_path, val_fraction=0.2)
    data.setup()
    assert {name: len(labels) for name, (_, labels) in data.files.items()} == {
        "train": 16,
        "val": 4,
        "test": 0,
    }
    with pytest.raises(DataError, match=r"Expected test images, got none.*add a folder `test`"):
        data.test_dataloader()


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path / "train", 5)
    write(tmp_path / "plane", 5)
    data = module(tmp_path)
    assert data.class_names == ("plane", "train")


def test_evaluation_is_timms(bare):
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    config = timm.data.resolve_data_config(model=model)
    data = module(bare, backbone="vit_tiny_patch16_224")
    images, labels = next(iter(data.val_dataloader()))
    transform = timm.data.create_transform(**config)
    data.setup()
    path, label = data.files["val"][0][0], data.files["val"][1][0]
    assert torch.equal(images[0], transform(Image.open(path).convert("RGB")))
    assert labels[0] == label


def test_training_without_augmentation_is_evaluation(bare):
    data = module(bare, augment="none", backbone=GRAY | {"crop_pct": 0.8})
    training = data.images("train")
    plain = data.config.eval_transform()
    expected = plain(Image.open(training.paths[0]).convert("L"))
    torch.testing.assert_close(training[Draw(0, 0, 0)][0], expected)


@pytest.mark.parametrize("augment", ["light", "strong", Augment(crop=0.5), lambda image: image / 2])
def test_training_batches(bare, augment):
    data = module(bare, augment=augment, batch_size=4, steps_per_epoch=2)
    batches = list(data.train_dataloader())
    assert [images.shape for images, _ in batches] == [(4, 1, 12, 12)] * 2
    assert all(images.dtype == torch.float32 for images, _ in batches)
    assert not torch.equal(batches[0][0], batches[1][0])


def test_flip_is_on_unless_it_is_off(bare):
    assert module(bare, augment="light").augment.flip is True
    assert module(bare, augment="light", flip=False).augment.flip is False
    assert module(bare, augment="none").augment.flip is False
    assert module(bare, augment=Augment(flip=False)).augment.flip is False


def test_all_problems_of_the_folders_at_once(tmp_path):
    write(tmp_path / "train" / "a", 2)
    (tmp_path / "train" / "b").mkdir()
    write(tmp_path / "val" / "a", 2)
    write(tmp_path / "val" / "c", 2)
    (tmp_path / "val" / "c" / "broken.png").write_bytes(b"no image")
    with pytest.raises(
        DataError,
        match=(
            r"(?s)no image in the class folders 'b'.*without the classes \['b'\].*"
            r"with classes \['c'\].*broken.png: UnidentifiedImageError"
        ),
    ):
        module(tmp_path).prepare_data()


@pytest.mark.parametrize("classes", [(), ("only",)], ids=["none", "one"])
def test_fewer_than_two_classes(tmp_path, classes):
    for name in classes:
        write(tmp_path / name, 2)
    data = module(tmp_path)
    with pytest.raises(
        DataError, match=f"each of 2 or more classes, found {'only' if classes else 'none'}"
    ):
        data.setup()
    assert data.files == {}


def test_no_folder(tmp_path):
    with pytest.raises(
        DataError,
        match=r"Expected a folder of class folders at .*nowhere, got none",
    ):
        module(tmp_path / "nowhere").setup()


def test_every_unreadable_image_is_listed(bare):
    (bare / "cat" / "empty.png").touch()
    whole = (bare / "dog" / "0.png").read_bytes()
    (bare / "dog" / "damaged.png").write_bytes(whole[:-40] + bytes(20) + whole[-20:])
    with pytest.raises(DataError, match=r"(?s)for 2 reason.*empty.png.*damaged.png"):
        module(bare).prepare_data()
    module(bare, verify="none").prepare_data()


def test_a_truncated_jpeg_is_found_by_decoding_or_when_it_is_loaded(bare):
    path = bare / "emu" / "half.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        path
    )
    path.write_bytes(path.read_bytes()[:1500])
    for how in ("header", "decode"):
        with pytest.raises(DataError, match=r"(?s)for 1 reason.*half.jpg: OSError"):
            module(bare, verify=how).prepare_data()
    data = module(bare, verify="none", val_fraction=0, test_fraction=0)
    with pytest.raises(
        DataError, match=r"readable image, got .*half.jpg: OSError.*verify='decode'"
    ):
        list(data.train_dataloader())


def test_many_files_show_progress(bare, monkeypatch, capsys):
    monkeypatch.setattr(verify, "_PROGRESS_ABOVE", 50)
    module(bare).prepare_data()
    assert "Checking 60 images" in capsys.readouterr().out


def test_more_labels_than_there_are(bare):
    with pytest.raises(
        DataError,
        match=r"8 or more.*'cat' has 7 \(of 10, 2 of them for the test and 1.*labels_per_class=7",
    ):
        module(bare, labels_per_class=8).setup()


def test_too_few_images_to_split(tmp_path):
    write(tmp_path / "a", 2)
    write(tmp_path / "b", 9)
    with pytest.raises(
        DataError,
        match=r"'a' has 0 \(of 2, 1 of them for the test and 1 for validation\).*to these.*"
        r"data.val_fraction=0\).*data.test_fraction=0\)",
    ):
        module(tmp_path).setup()
    (tmp_path / "a" / "1.png").unlink()
    data = module(tmp_path, val_fraction=0, test_fraction=0)
    data.setup()
    assert data.class_counts("train") == [1, 9]


def test_all_wrong_arguments_at_once(tmp_path):
    with pytest.raises(
        DataError,
        match=r"val_fraction in \[0, 1\), got 1.*test_fraction.*got -0.1.*Did you mean 'header'",
    ):
        module(tmp_path, val_fraction=1, test_fraction=-0.1, verify="heder")


def test_without_validation(bare):
    assert module(bare, val_fraction=0).val_dataloader() == []


def test_the_plain_loader_has_the_training_images_without_augmentation(bare):
    data = module(bare, augment="strong", labels_per_class=3)
    first, second = (torch.cat([x for x, _ in data.plain_dataloader()]) for _ in range(2))
    assert torch.equal(first, second)
    transform = data.config.eval_transform()
    with Image.open(data.files["train"][0][0]) as image:
        assert torch.equal(first[0], transform(image.convert("L")))
    labels = torch.cat([y for _, y in data.plain_dataloader("train")])
    assert labels.tolist() == data.files["train"][1]
