"""Binary and multilabel classifiers: losses, checks, checkpoints, calibration, predictions."""

import dataclasses
import logging

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn import metrics
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_peft.errors import DataError
from lightning_peft.lightning.callbacks.peft import PEFT
from lightning_peft.lightning.modules.image import ImageClassifier
from lightning_peft.lightning.modules.tasks import task_loss
from lightning_peft.methods import LoRA
from lightning_peft.system.randomness import generator
from tests.support.trainers import quiet_trainer

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def classifier(task="multilabel", num_classes=None, **options):
    torch.manual_seed(0)
    count = num_classes or {"multiclass": 4, "binary": 2, "multilabel": 3}[task]
    options = {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": SIZES} | options
    return ImageClassifier(num_classes=count, pretrained=False, task=task, **options)


def loader(task="multilabel", n=24):
    random = generator("tasks")
    bits = torch.stack([torch.arange(n) >> k & 1 for k in range(3)], 1)
    patterns = torch.randn(3, 3, 16, 16, generator=random)
    images = torch.einsum("nk,kchw->nchw", bits.float(), patterns)
    images = images + 0.3 * torch.randn(images.shape, generator=random)
    labels = {
        "multilabel": bits.float(),
        "binary": bits[:, 0],
        "multiclass": bits[:, 0] + 2 * bits[:, 1],
    }[task]
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def trainer(folder, *callbacks, **options):
    return quiet_trainer(*callbacks, default_root_dir=folder, **{"max_epochs": 1, **options})


@pytest.mark.parametrize(("task", "mixup"), [("binary", 0.3), ("multilabel", 0.0)])
def test_it_learns_with_adapters(tmp_path, task, mixup):
    module, data = classifier(task, mixup=mixup, lr=1e-2, label_smoothing=0.05), loader(task)
    epochs = {"max_epochs": 20, "check_val_every_n_epoch": 20, "num_sanity_val_steps": 0}
    run = trainer(tmp_path, PEFT(LoRA(rank=4)), **epochs)
    run.fit(module, data, data)
    assert run.callback_metrics["val/accuracy"] > 0.6
    (logged,) = run.test(module, data, verbose=False)
    found = module.test_results()
    assert found.metrics == {k: v for k, v in logged.items() if k != "test/loss"}
    predicted = run.predict(module, data)
    called = torch.cat([out["predictions"] for out in predicted])
    probabilities = torch.cat([out["probabilities"] for out in predicted])
    labels = data.dataset.tensors[1].long()
    assert (called == labels).reshape(24, -1).all(1).float().mean() == logged["test/accuracy"]
    if task == "binary":
        assert probabilities.shape == (24, 2)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(24))
        assert found.confusion.tolist() == metrics.confusion_matrix(labels, called).tolist()
    else:
        expected = metrics.precision_recall_fscore_support(labels, called, zero_division=0)
        got = [[row.precision, row.recall, row.f1, row.support] for row in found.classes]
        np.testing.assert_allclose(np.array(got).T, np.array(expected))
        assert found.confusion is None


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_the_intervals_hold_what_was_measured(tmp_path, task):
    module, data = classifier(task), loader(task)
    trainer(tmp_path).test(module, data, verbose=False)
    found = module.test_results()
    ends = found.intervals(replicates=200)
    assert ends.keys() == found.metrics.keys() - {"test/auroc"} | (
        {"test/auroc"} if task == "binary" else set()
    )
    for name in ("test/accuracy", "test/f1"):
        assert ends[name][0] <= found.metrics[name] <= ends[name][1]
    assert ends == found.intervals(replicates=200)


def test_the_losses_are_torchs():
    logits = torch.randn(5, 1, generator=generator("loss"))
    labels = torch.tensor([0, 1, 1, 0, 1])
    two = torch.cat([torch.zeros(5, 1), logits], 1)  # one logit is two, of which one is 0
    torch.testing.assert_close(task_loss("binary", logits, labels), F.cross_entropy(two, labels))
    torch.testing.assert_close(
        task_loss("binary", logits, labels, 0.2),
        F.cross_entropy(two, labels, label_smoothing=0.2),
    )
    shares = F.one_hot(labels, 2) * 0.7 + F.one_hot(labels.roll(1), 2) * 0.3
    torch.testing.assert_close(task_loss("binary", logits, shares), F.cross_entropy(two, shares))
    many = torch.randn(5, 3, generator=generator("many"))
    truth = (many > 0).float()
    expected = sum(task_loss("binary", many[:, [k]], truth[:, k].long()) for k in range(3)) / 3
    torch.testing.assert_close(task_loss("multilabel", many, truth), expected)


@pytest.mark.parametrize(
    ("task", "labels", "match"),
    [
        ("binary", torch.tensor([0, 2]), r"from 0 to 1.*from 0 to 2.*task='multiclass'"),
        ("multiclass", torch.ones(2, 4), r"one class for each item.*task='multilabel'"),
        ("multilabel", torch.tensor([0, 2]), r"each of 3 labels.*got shape \(2,\).*multiclass"),
        ("multilabel", torch.tensor([[0, 1, 0.5]] * 2), r"labels of 0 and 1.*regressor"),
    ],
)
def test_labels_that_the_head_cannot_have(tmp_path, task, labels, match):
    data = DataLoader(TensorDataset(torch.zeros(2, 3, 16, 16), labels), batch_size=2)
    with pytest.raises(DataError, match=match):
        trainer(tmp_path).fit(classifier(task), data)


def test_arguments_that_fit_no_task():
    with pytest.raises(DataError, match=r"temperature above 0, got 0.*num_classes=2 .* got 3"):
        classifier("binary", 3, temperature=0)
    with pytest.raises(DataError, match=r"got 'regression'.*multiclass"):
        classifier("regression", 2)


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_calibration(tmp_path, task):
    module, data = classifier(task, lr=1e-2), loader(task)
    run = trainer(tmp_path, PEFT(LoRA(rank=4)), max_epochs=12)
    run.fit(module, data)
    (plain,) = run.test(module, data, verbose=False)
    before = [b.confidence for b in module.test_results().reliability()]
    temperature = module.calibrate(run, data)
    assert temperature != 1
    assert module.hparams["temperature"] == temperature
    (logged,) = run.test(module, data, verbose=False)
    found = module.test_results()
    assert [b.confidence for b in found.reliability(calibrated=False)] == pytest.approx(before)
    assert found.reliability() != found.reliability(calibrated=False)
    for name in ("test/accuracy", "test/f1"):
        assert logged[name] == plain[name], "no prediction changes"
    assert logged["test/ece_uncalibrated"] == pytest.approx(plain["test/ece"], abs=1e-6)
    assert logged["test/ece"] == pytest.approx(found.calibration_error(), abs=1e-6)
    run.save_checkpoint(tmp_path / "it.ckpt")
    held = torch.load(tmp_path / "it.ckpt", weights_only=True)["hyper_parameters"]
    assert held["temperature"] == temperature
    assert not [name for name in module.state_dict() if "_kept" in name or "record" in name]


def test_calibration_looks_at_validation_alone(tmp_path):
    class Data(pl.LightningDataModule):
        def val_dataloader(self):
            return loader("binary")

        def test_dataloader(self):
            raise AssertionError("the test set was asked for")

    module = classifier("binary")
    assert module.calibrate(trainer(tmp_path), Data()) > 0
    with pytest.raises(DataError, match="Expected validation images to fit a temperature on, got"):
        classifier("binary").calibrate(trainer(tmp_path, limit_val_batches=0), Data())


class Counted(pl.LightningDataModule):
    num_classes, class_names, task = 4, tuple("abcd"), "multiclass"

    def class_counts(self, split):
        return [10, 10, 10, 30] if split == "train" else [5, 5, 5, 5]

    def train_dataloader(self):
        return loader("multiclass")

    val_dataloader = train_dataloader


def test_uneven_classes_are_told_once(tmp_path, caplog):
    module = classifier("multiclass")
    with caplog.at_level(logging.WARNING, "lightning_peft.lightning.modules.classifier"):
        trainer(tmp_path, max_epochs=2).fit(module, datamodule=Counted())
    (record,) = [
        r for r in caplog.records if r.name == "lightning_peft.lightning.modules.classifier"
    ]
    assert "the train images are uneven: 'd' has 3.0 times the images of 'a'" in record.message


def test_data_of_another_task(tmp_path):
    data = Counted()
    data.task = "multilabel"
    with pytest.raises(DataError, match=r"task 'multiclass', got 'multilabel' from Counted"):
        trainer(tmp_path).fit(classifier("multiclass"), datamodule=data)


@pytest.mark.parametrize("kind", [pl.callbacks.ModelCheckpoint, pl.callbacks.EarlyStopping])
def test_nothing_is_chosen_on_the_test_set(tmp_path, kind):
    run = trainer(tmp_path, kind(monitor="test/accuracy"), enable_checkpointing=True)
    with pytest.raises(DataError, match=rf"{kind.__name__} watches test/accuracy; watch val/acc"):
        run.fit(classifier("binary"), loader("binary"))


class Results(pl.Callback):
    def on_test_end(self, run, module):
        found = module.test_results()
        content = {
            "metrics": found.metrics,
            "images": len(found.targets),
            "ends": found.intervals(replicates=300),
            "bins": [dataclasses.asdict(item) for item in found.reliability()],
        }
        torch.save(content, f"{run.default_root_dir}/{module.global_rank}.pt")


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork",
    "ignore:Using `DistributedSampler` with the dataloaders",  # 24 images: none is repeated
)
@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_two_ranks_test_as_one(tmp_path, task):
    module, data = classifier(task), loader(task)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    trainer(tmp_path / "one", Results()).test(module, data, verbose=False)
    two = trainer(tmp_path / "two", Results(), strategy="ddp_fork", devices=2)
    two.test(module, data, verbose=False)
    one = torch.load(tmp_path / "one" / "0.pt")
    ranks = [torch.load(tmp_path / "two" / f"{rank}.pt") for rank in (0, 1)]
    assert ranks[0] == ranks[1], "the very same interval on each rank"
    assert ranks[0]["images"] == one["images"] == 24
    assert ranks[0]["metrics"] == pytest.approx(one["metrics"], rel=1e-5)
    for mine, other in zip(ranks[0]["bins"], one["bins"], strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
    for name, ends in one["ends"].items():  # in another order of the images
        assert ranks[0]["ends"][name] == pytest.approx(ends, abs=0.15)
