"""The feature cache changes how long a run takes, and nothing else."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from tests.support.cached import SAMPLES, Net, Rows, assert_close, close, fit, same, samples
from tests.support.trainers import quiet_trainer
from tests.support.zoo import CLASSES, build

CASES = [
    ("vit", "linear_probe"),
    ("resnet", "linear_probe"),
    ("convnext", "linear_probe"),
    ("bert", "linear_probe"),
    ("deit_distilled", "linear_probe"),
    ("vit", "last_blocks"),
    ("swin", "last_blocks"),
    ("resnet", "last_blocks"),
    ("tv_vit", "last_blocks"),
    ("hf_vit", "last_blocks"),
    ("vit", "ladder"),
    ("hf_vit", "ladder"),
]


@pytest.mark.parametrize(
    ("name", "method", "shuffle"),
    [
        pytest.param(
            *case,
            shuffle,
            marks=[pytest.mark.slow] if (number % 2 == 0) is shuffle else [],
            id=f"{'-'.join(case)}-{'shuffled' if shuffle else 'in order'}",
        )
        for number, case in enumerate(CASES)
        for shuffle in (True, False)
    ],
)
def test_the_run_is_the_same(name, method, shuffle):
    plain = fit(Net(name, shuffle=shuffle), lp.PEFT(method, backbone_dropout="eval"))
    callback = lp.FeatureCache()
    peft = lp.PEFT(method, backbone_dropout="eval")
    cached = fit(Net(name, shuffle=shuffle), peft, callback)
    assert callback.cache.off is None
    # four epochs of three batches (of two in order) and of two: all of the first are new, one of
    # each is looked at
    assert callback.cache.count.cached >= 10, callback.cache.count
    (close if shuffle else same)(plain, cached)
    assert "forward" not in cached.net.__dict__


def test_adapters_in_the_last_blocks():
    def method():
        return lp.PEFT(lp.LoRA(rank=2, layers="last:1"))

    callback = lp.FeatureCache()
    close(fit(Net("vit"), method()), fit(Net("vit"), method(), callback))
    assert callback.cache.count.cached >= 10


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_the_first_part_shrinks_with_the_stages_of_a_freezing(name, said):
    def freeze():
        return lp.BackboneFreeze(
            unfreeze=[lp.Stage(2, layers="last:1"), lp.Stage(4)], backbone_dropout="eval"
        )

    callback = lp.FeatureCache()
    plain = fit(Net(name), freeze(), max_epochs=5)
    cached = fit(Net(name), freeze(), callback, max_epochs=5)
    close(plain, cached)
    assert callback.cache.count.cached >= 4
    assert said().count("something else is trained now") == 2
    assert "ends too early" in said()  # in the last stage all of it is trained


def test_a_head_outside_of_the_backbone_skips_all_of_it():
    class Two(Net):
        def __init__(self):
            super().__init__(net=build("vit"))
            self.net.reset_classifier(0)
            self.classifier = nn.Linear(32, CLASSES)

        def loss(self, batch):
            loss = nn.functional.cross_entropy(self.classifier(self.net(batch[0])), batch[1])
            self.losses.append((self.training, float(loss.detach())))
            return loss

    def module():
        torch.manual_seed(0)
        return Two()

    callback = lp.FeatureCache()
    freeze = lp.BackboneFreeze()
    close(fit(module(), freeze), fit(module(), lp.BackboneFreeze(), callback))
    assert callback.cache.count.cached >= 10


def test_a_position_embedding_that_is_trained_ends_the_first_part():
    def method():
        return lp.PEFT("linear_probe", also_train=["pos_embed"])

    callback = lp.FeatureCache(min_share=0)
    close(fit(Net("vit"), method()), fit(Net("vit"), method(), callback))
    assert callback.cache.off is None
    assert callback.cache.count.cached == 13
    assert callback.cache.where == "behind 'patch_embed'"  # in training and in validation


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_run_that_is_resumed(on_disk, tmp_path):
    def run(*more):
        """Two epochs, and two more in another trainer."""
        L.seed_everything(5, verbose=False)
        trainer = quiet_trainer(lp.PEFT("last_blocks"), *more, max_epochs=2)
        trainer.fit(Net("vit"))
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        module = Net("vit")
        trainer = quiet_trainer(lp.PEFT("last_blocks"), *more, max_epochs=4)
        trainer.fit(module, ckpt_path=tmp_path / "half.ckpt")
        return module

    callback = lp.FeatureCache(directory=tmp_path / "features" if on_disk else None)
    close(run(), run(callback))
    count = callback.cache.count  # of the second trainer
    assert count.found == count.samples if on_disk else count.found < count.samples


def test_validation_and_test_outside_of_fit_read_a_directory(tmp_path):
    class Tested(Net):
        def test_step(self, batch, batch_idx):
            self.loss(batch)

        def test_dataloader(self):
            return self.val_dataloader()

    def losses(directory):
        torch.manual_seed(0)
        module = Tested("vit")
        cache = lp.FeatureCache(directory=directory)
        trainer = quiet_trainer(lp.PEFT("linear_probe"), cache, max_epochs=2)
        trainer.fit(module)
        for evaluate in (trainer.validate, trainer.test):
            evaluate(module, verbose=False)
            if directory is not None:
                count = cache.cache.count
                assert count.found == count.samples == SAMPLES
            assert "forward" not in module.net.__dict__
        return [loss for _, loss in module.losses]

    assert losses(tmp_path / "features") == pytest.approx(losses(None))


class Keep(L.Callback):
    """Leaves the weights of each rank, and how much it has read back."""

    def __init__(self, directory, cache=None):
        self.directory = directory
        self.cache = cache

    def on_train_end(self, trainer, pl_module):
        cached = self.cache.cache.count.cached if self.cache else 0
        torch.save((pl_module.state_dict(), cached), self.directory / f"{trainer.global_rank}.pt")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_two_processes_share_a_directory(tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # set by the launcher; put back afterwards
        monkeypatch.delenv(name)
    options = {"devices": 2, "strategy": "ddp_fork", "max_epochs": 4}
    states = []
    for with_cache in (False, True):
        cache = lp.FeatureCache(directory=tmp_path / "features") if with_cache else None
        place = tmp_path / str(with_cache)
        place.mkdir()
        callbacks = [lp.PEFT("last_blocks"), Keep(place, cache), *([cache] if cache else [])]
        fit(Net("vit", validate=False), *callbacks, **options)
        states.append([torch.load(place / f"{rank}.pt") for rank in (0, 1)])
    for (plain, _), (cached, count) in zip(*states, strict=True):
        assert count > 0
        assert_close(plain, cached)  # the other process made some of the features in its batches


def test_tensors_without_a_dataset_length():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            rows = Rows(samples("vit"))
            return (rows[i] for i in range(SAMPLES))

    class Streamed(Net):
        def train_dataloader(self):
            return DataLoader(Stream(), batch_size=4)

    callback = lp.FeatureCache()
    plain = fit(Streamed("vit", validate=False), lp.PEFT("linear_probe"))
    cached = fit(Streamed("vit", validate=False), lp.PEFT("linear_probe"), callback)
    same(plain, cached)
    assert callback.cache.count.cached == 5


def test_what_the_trainers_datasets_are_is_read_from_any_loader():
    callback = lp.FeatureCache()

    class Twice(Net):
        def val_dataloader(self):
            tensors = TensorDataset(samples("vit"), torch.arange(SAMPLES) % CLASSES)
            return [DataLoader(self.rows, batch_size=4), DataLoader(tensors, batch_size=4)]

        def validation_step(self, batch, batch_idx, dataloader_idx):
            self.loss(batch)

    fit(Twice("vit"), lp.PEFT("linear_probe"), callback, max_epochs=2)
    assert callback.cache.off is None
