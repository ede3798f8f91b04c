"""The feature cache changes how long a run takes, and nothing else."""

import copy
import logging
import re

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lightning_peft as lp
from lightning_peft.errors import MethodError
from lightning_peft.evaluation.efficiency import human_bytes
from tests.support.trainers import quiet_trainer
from tests.support.zoo import BATCH, CLASSES, build, example_input, output_of

SAMPLES = 8


def samples(name, count=SAMPLES):
    """Inputs of a model, one a sample."""
    batches = [example_input(name, seed) for seed in range(count // BATCH)]
    if isinstance(batches[0], dict):
        return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    return torch.cat(batches)


class Rows(Dataset):
    def __init__(self, inputs, noise=0.0):
        self.inputs = inputs
        self.noise = noise

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        if isinstance(self.inputs, dict):
            return {key: value[index] for key, value in self.inputs.items()}, index % CLASSES
        image = self.inputs[index]
        return image + self.noise * torch.randn_like(image), index % CLASSES


class Net(L.LightningModule):
    def __init__(self, name="vit", data=None, validate=True, net=None, shuffle=True):
        super().__init__()
        self.shuffle = shuffle
        self.name = name
        self.net = build(name) if net is None else net
        self.rows = Rows(samples(name)) if data is None else data
        self.validate = validate
        self.losses = []

    def loss(self, batch):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(output_of(self.net, self.name, inputs), labels)
        self.losses.append((self.training, float(loss.detach())))
        return loss

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.loss(batch)

    def configure_optimizers(self):
        # not Adam, which divides a gradient by its size: rounding alone, where it is nothing else,
        # would become whole steps
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self):
        if not self.shuffle:
            return DataLoader(self.rows, batch_size=4)
        generator = torch.Generator().manual_seed(3)
        return DataLoader(self.rows, batch_size=3, shuffle=True, generator=generator)

    def val_dataloader(self):
        return DataLoader(self.rows, batch_size=4)


def fit(module, *callbacks, **options):
    L.seed_everything(5, verbose=False)
    options = {"max_epochs": 4, "limit_val_batches": None if module.validate else 0, **options}
    quiet_trainer(*callbacks, **options).fit(module)
    return module


def same(left, right):
    """Compare two runs bit for bit: right where features are read back in the batches of before."""
    mine, theirs = left.state_dict(), right.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    assert left.losses == right.losses


def close(left, right):
    """Compare two runs up to rounding, for features that are read back in another batch.

    There a processor may add up the numbers of the same sample in another order. A run carries the
    difference on: a ResNet's ReLUs and BatchNorms make up to 5e-4 of it in five epochs. A feature
    of another sample would be more than a hundred times as much.
    """
    assert_close(left.state_dict(), right.state_dict())
    assert [mode for mode, _ in left.losses] == [mode for mode, _ in right.losses]
    assert [loss for _, loss in left.losses] == pytest.approx(
        [loss for _, loss in right.losses], rel=2e-3
    )


def assert_close(mine, theirs):
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        largest = max(float(theirs[name].abs().max()), 0.1)
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-3 * largest, msg=name)


@pytest.fixture
def said(caplog):
    """What the callback has said: rank-zero information of either namespace."""
    caplog.set_level(logging.INFO)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


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


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in order"])
@pytest.mark.parametrize(("name", "method"), CASES, ids=lambda case: str(case))
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


# --- where it would be wrong ---------------------------------------------------------------------


def test_random_augmentation_turns_it_off_in_the_second_epoch(said):
    data = Rows(samples("vit"), noise=0.1)
    callback = lp.FeatureCache()
    fit(Net("vit", data, validate=False), lp.PEFT("linear_probe"), callback)
    assert "0 had been seen before" in callback.cache.off
    assert "RepeatedViews" in said()
    assert callback.cache.count.batches == 6  # the first epoch, and the second until its end
    assert len(callback.cache.store) == 0


def test_augmentation_that_repeats_itself_is_cached():
    def module():
        data = lp.RepeatedViews(Rows(samples("vit"), noise=0.1), views=2)
        return Net("vit", data, validate=False)

    callback = lp.FeatureCache()
    cached = fit(module(), lp.PEFT("linear_probe"), callback, max_epochs=6)
    assert callback.cache.off is None
    assert callback.cache.count.cached == 11  # four epochs of three batches, less the one compared

    class Epochs(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.rows.set_epoch(trainer.current_epoch)

    close(fit(module(), lp.PEFT("linear_probe"), Epochs(), max_epochs=6), cached)


def test_dropout_before_the_end_ends_the_first_part(said):
    def module():
        net = build("vit")
        net.pos_drop.p = 0.5
        return Net(net=net)

    callback = lp.FeatureCache(min_share=0.5)
    close(fit(module(), lp.PEFT("linear_probe")), fit(module(), lp.PEFT("linear_probe"), callback))
    assert "'pos_drop': it draws random numbers in this mode" in said()
    # in evaluation mode there is no dropout, and validation reads its features back
    assert callback.cache.count.cached == 5


def test_batchnorm_that_learns_its_statistics_ends_it(said):
    def peft():
        return lp.PEFT("linear_probe", batchnorm="train")

    callback = lp.FeatureCache()
    same(fit(Net("resnet"), peft()), fit(Net("resnet"), peft(), callback))
    assert "'bn1': it changes its buffers" in said()
    assert callback.cache.count.cached == 0


def test_gradient_checkpointing_turns_it_off():
    module = Net("vit")
    module.net.set_grad_checkpointing()
    callback = lp.FeatureCache()
    fit(module, lp.PEFT("last_blocks"), callback, max_epochs=1)
    assert "gradient checkpointing" in callback.cache.off


def test_a_module_that_never_calls_its_backbone(said):
    class Parts(Net):
        def loss(self, batch):
            features = self.net.forward_features(batch[0])
            return nn.functional.cross_entropy(self.net.forward_head(features), batch[1])

    callback = lp.FeatureCache()
    fit(Parts("vit"), lp.PEFT("linear_probe"), callback, max_epochs=2)
    assert "never called the backbone's own forward" in said()


def test_more_than_max_bytes_is_refused_before_anything_is_kept(said):
    callback = lp.FeatureCache(max_bytes=100)
    fit(Net("vit"), lp.PEFT("linear_probe"), callback, max_epochs=2)
    found = re.search(r"it would keep (\d+) B a sample, (.*) for 16 samples", callback.cache.off)
    assert found is not None, callback.cache.off
    assert found[2] == human_bytes(16 * int(found[1]))
    assert callback.cache.count.cached == 0


def test_frozen_weights_that_are_written_to_are_noticed(said):
    class Write(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:  # behind autograd's back, which counts no such writes
                pl_module.net.blocks[0].mlp.fc1.weight.data.mul_(1.5)

    plain = fit(Net("vit"), lp.PEFT("linear_probe"), Write())
    cached = fit(Net("vit"), lp.PEFT("linear_probe"), Write(), lp.FeatureCache())
    close(plain, cached)
    assert "frozen weights were written to" in said()


def test_an_exception_leaves_the_backbone_as_it_was():
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if trainer.global_step == 5:
                raise RuntimeError("stop")

    module = Net("vit")
    with pytest.raises(RuntimeError, match="stop"):
        fit(module, lp.PEFT("linear_probe"), lp.FeatureCache(), Stop())
    assert "forward" not in module.net.__dict__
    assert not any("forward" in part.__dict__ for part in module.modules())


def test_a_copy_made_in_the_middle_runs_whole():
    class Copy(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.copy = copy.deepcopy(pl_module.net)

    keep = Copy()
    module = fit(Net("vit"), lp.PEFT("linear_probe"), lp.FeatureCache(), keep)
    images = example_input("vit", 9)
    assert torch.equal(keep.copy.eval()(images), module.net.eval()(images))


# --- resuming, files, processes ------------------------------------------------------------------


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


# --- settings ------------------------------------------------------------------------------------


def test_settings_out_of_range_are_refused_together(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(MethodError, match="max_bytes.*min_share.*directory"):
        lp.FeatureCache(max_bytes=0, min_share=2, directory=file)


def test_a_strategy_that_shards_is_left_alone(said):
    class FSDPStrategy:
        pass

    class Trainer:
        strategy = FSDPStrategy()

    callback = lp.FeatureCache()
    callback.on_fit_start(Trainer(), Net("vit"))
    assert "FSDPStrategy" in callback.cache.off


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
