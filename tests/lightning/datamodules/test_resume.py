"""A run that is stopped and resumed sees the batches of the run that was never stopped."""

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch.utils.data import SequentialSampler

from lightning_peft.data.sampling import Draw, EpochSampler
from lightning_peft.errors import DataError
from lightning_peft.lightning.datamodules.digits import DigitsDataModule
from lightning_peft.lightning.datamodules.folder import ImageFolderDataModule
from lightning_peft.system.randomness import generator
from tests.support.trainers import quiet_trainer

EPOCHS = 3


class Recorder(pl.LightningModule):
    """Keeps every batch that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {}

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen[self.current_epoch, batch_idx] = (images.clone(), labels.clone())
        return self.weight * images.mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        # what a warm-up asks for; it makes Lightning build the loader before it restores anything
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD([self.weight], lr=0.1)


def fit(make, folder, ckpt_path=None, callbacks=(), module=None, **options):
    module, data = module or Recorder(), make()
    trainer = quiet_trainer(
        *callbacks, default_root_dir=folder, **{"max_epochs": EPOCHS, **options}
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module


class Saver(pl.Callback):
    """Saves after each step, when ModelCheckpoint would."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *args):
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")


def digits(**options):
    chosen = {"labels_per_class": 2, "val_per_class": 1, "batch_size": 8, "backbone": None}
    chosen |= {"image_size": 12, "channels": 1, "augment": "strong", "seed": 5}
    return lambda: DigitsDataModule(**(chosen | options))


def jitter(image):
    return image + torch.rand(())


@pytest.fixture
def tiny_folder(tmp_path):
    random = generator("files")
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = torch.randint(0, 256, (20, 24, 3), generator=random, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def same(first, second):
    assert first.keys() == second.keys()
    for place, (images, labels) in first.items():
        assert torch.equal(images, second[place][0]), place
        assert torch.equal(labels, second[place][1]), place


@pytest.mark.parametrize("step", [3, 4], ids=["epoch", "mid-epoch"])
@pytest.mark.parametrize(
    "options",
    [{}, {"steps_per_epoch": 3}, {"augment": jitter}, {"num_workers": 1}],
    ids=["pass", "steps", "callable", "workers"],
)
def test_digits_resume(tmp_path, options, step):
    make = digits(**options)
    _, whole = fit(make, tmp_path, callbacks=[Saver(tmp_path)])
    _, rest = fit(
        make,
        tmp_path,
        ckpt_path=tmp_path / f"step={step}.ckpt",
    )
    assert len(whole.seen) == 9
    same(rest.seen, {place: whole.seen[place] for place in list(whole.seen)[step:]})
    assert torch.equal(rest.weight, whole.weight)


def test_digits_resume_after_a_finished_run(tmp_path):
    make = digits()
    _, whole = fit(make, tmp_path)
    trainer, first = fit(make, tmp_path, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    _, rest = fit(make, tmp_path, ckpt_path=tmp_path / "stopped.ckpt")
    same(first.seen | rest.seen, whole.seen)


def test_folder_resume(tmp_path, tiny_folder):
    def make(workers):
        return lambda: ImageFolderDataModule(
            tiny_folder, image_size=16, batch_size=6, num_workers=workers, test_fraction=0.3
        )

    _, whole = fit(make(0), tmp_path, callbacks=[Saver(tmp_path)])
    _, rest = fit(  # with a worker, where there was none
        make(1),
        tmp_path,
        ckpt_path=tmp_path / "step=4.ckpt",
    )
    same(rest.seen, {place: whole.seen[place] for place in list(whole.seen)[4:]})


def test_epochs_and_positions_differ():
    _, module = fit(digits(augment=None, labels_per_class=1, batch_size=10), None)
    orders = [module.seen[epoch, 0][1].tolist() for epoch in range(EPOCHS)]
    assert len({tuple(order) for order in orders}) == EPOCHS
    assert all(sorted(order) == list(range(10)) for order in orders)
    _, module = fit(digits(labels_per_class=1, steps_per_epoch=2, batch_size=10), None)
    batches = [images for images, _ in module.seen.values()]
    assert all(not torch.equal(batches[0], other) for other in batches[1:])


def test_the_global_generator_is_left_alone():
    loader = digits(augment=jitter)().train_dataloader()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(loader)
    assert torch.equal(torch.rand(3), expected)


def test_repeated_passes_draw_all_equally_often():
    sampler = EpochSampler(5, samples=15, seed=1)
    drawn = [draw.image for draw in sampler]
    assert [sorted(drawn[i : i + 5]) for i in (0, 5, 10)] == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(drawn[i : i + 5]) for i in (0, 5, 10)}) == 3


@pytest.mark.parametrize("samples", [None, 12, 25])
def test_ranks_share_one_order(samples):
    whole = [draw.image for draw in EpochSampler(10, samples=samples, seed=3)]
    ranks = [
        list(EpochSampler(10, samples=samples, seed=3, num_replicas=4, rank=r)) for r in range(4)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    together = sorted((draw for rank in ranks for draw in rank), key=lambda draw: draw.position)
    assert [draw.image for draw in together][: len(whole)] == whole
    assert [draw.image for draw in together][len(whole) :] == whole[: len(together) - len(whole)]


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader")
def test_overfit_batches_may_replace_the_sampler(tmp_path):
    trainer, module = fit(digits(), tmp_path, overfit_batches=1, max_epochs=2)
    assert isinstance(trainer.train_dataloader.sampler, SequentialSampler)
    assert torch.equal(module.seen[0, 0][0], module.seen[1, 0][0])


def test_an_image_asked_for_by_index_is_not_augmented():
    data = digits()()
    images = data.images("train")
    assert torch.equal(images[3][0], images[3][0])
    assert not torch.equal(images[3][0], images[Draw(3, 0, 0)][0])


@pytest.mark.parametrize("name", ["batch_size", "steps_per_epoch"])
def test_sizes_are_positive(name):
    with pytest.raises(DataError, match=f"{name} of 1 or more, got 0"):
        digits(**{name: 0})().train_dataloader()


class Labels(Recorder):
    """Each rank writes down what it was given."""

    def on_train_end(self):
        assert isinstance(self.trainer.train_dataloader.sampler, EpochSampler)
        seen = [(place, labels.tolist()) for place, (_, labels) in self.seen.items()]
        torch.save(seen, f"{self.trainer.default_root_dir}/{self.global_rank}.pt")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_two_ranks_share_the_batches(tmp_path):
    fit(
        digits(batch_size=5, val_per_class=2, augment=None),
        tmp_path,
        module=Labels(),
        strategy="ddp_fork",
        devices=2,
        max_epochs=2,
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert [len(seen) for seen in ranks] == [4, 4]  # 20 images, 2 ranks, batches of 5, 2 epochs
    for epoch in range(2):
        labels = [
            label for seen in ranks for place, found in seen if place[0] == epoch for label in found
        ]
        assert sorted(labels) == sorted([*range(10)] * 2)
