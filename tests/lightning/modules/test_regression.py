"""The regressor: units, what is kept in a checkpoint, and the errors that it refuses."""

import lightning.pytorch as pl
import pytest
import torch
from sklearn import metrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.errors import DataError
from lightning_peft.lightning.modules.regression import ImageRegressor
from lightning_peft.system.randomness import generator
from tests.support.trainers import quiet_trainer

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def regressor(**options):
    torch.manual_seed(0)
    options = {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": SIZES} | options
    return ImageRegressor(pretrained=False, **options)


class Numbers(pl.LightningDataModule):
    task = "regression"

    def __init__(self, outputs=1, n=24):
        super().__init__()
        random = generator("numbers")
        self.num_classes = outputs
        self.class_names = tuple("xyz"[:outputs])
        amounts = torch.rand(n, outputs, generator=random)
        patterns = torch.randn(outputs, 3, 16, 16, generator=random)
        self.images = torch.einsum("nk,kchw->nchw", amounts, patterns)
        self.targets = 500 + 100 * amounts.squeeze(-1)

    def target_statistics(self):
        found = self.targets.reshape(len(self.targets), -1)
        return found.mean(0).tolist(), found.std(0).tolist()

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.images, self.targets), batch_size=8)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def trainer(folder, *callbacks, **options):
    return quiet_trainer(*callbacks, default_root_dir=folder, **{"max_epochs": 1, **options})


@pytest.mark.parametrize(("loss", "outputs"), [("mse", 1), ("smooth_l1", 2)])
def test_it_learns_in_the_unit_of_the_data(tmp_path, outputs, loss):
    data = Numbers(outputs)
    module = regressor(num_outputs=outputs, loss=loss, lr=1e-2)
    run = trainer(tmp_path, lp.PEFT("lora", rank=4), max_epochs=25)
    run.fit(module, data)
    (logged,) = run.test(module, data, verbose=False)
    found = torch.cat([out["predictions"] for out in run.predict(module, data)])
    assert found.shape == data.targets.shape
    assert logged["test/rmse"] == pytest.approx(
        metrics.root_mean_squared_error(data.targets, found), rel=1e-4
    )
    assert logged["test/r2"] > 0.5, "better than the mean, whose deviation is about 30"
    rows = module.test_results().numbers
    assert [row.name for row in rows] == list("xyz"[:outputs])
    assert sum(row.rmse for row in rows) / outputs == pytest.approx(logged["test/rmse"], rel=1e-4)
    low, high = module.test_results().intervals(replicates=200)["test/rmse"]
    assert low < logged["test/rmse"] < high


def test_mean_and_deviation_are_in_the_checkpoint(tmp_path):
    data, module = Numbers(), regressor()
    run = trainer(tmp_path, lp.PEFT("lora", rank=2))
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "it.ckpt", weights_only=True)
    mean, std = data.target_statistics()
    assert module.target_mean.tolist() == pytest.approx(mean)
    torch.manual_seed(0)  # the backbone's own weights are random here
    loaded = lp.load_from_checkpoint(ImageRegressor, tmp_path / "it.ckpt")
    assert loaded.target_std.tolist() == pytest.approx(std)
    other = Numbers()
    other.targets = other.targets * 7  # other data changes nothing of a trained module
    fresh = regressor()
    trainer(tmp_path, lp.PEFT("lora", rank=2)).test(
        fresh, other, ckpt_path=tmp_path / "it.ckpt", verbose=False
    )
    assert fresh.target_mean.tolist() == pytest.approx(mean)
    module.eval(), loaded.eval()
    batch = data.images
    got, expected = (m.predict_step(batch, 0)["predictions"] for m in (loaded, module))
    assert torch.equal(got, expected)


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    class Saver(pl.Callback):
        def on_train_epoch_end(self, run, module):
            run.save_checkpoint(f"{tmp_path}/{run.current_epoch}.ckpt")

    ends = []
    for callbacks, start in (([Saver()], None), ([], tmp_path / "0.ckpt")):
        module = regressor()
        run = trainer(tmp_path, lp.PEFT("lora", rank=2), *callbacks, max_epochs=3)
        run.fit(module, Numbers(), ckpt_path=start)
        ends.append(module.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_standardised_by_hand():
    module = ImageRegressor(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 1)), target_mean=10.0, target_std=2.0
    )
    images, targets = torch.randn(3, 1, 2, 2), torch.tensor([8.0, 10.0, 14.0])
    module.log = lambda *args, **kwargs: None
    raw = module(images).squeeze(-1)
    loss = module.training_step((images, targets), 0)
    torch.testing.assert_close(loss, (raw - torch.tensor([-1.0, 0.0, 2.0])).square().mean())
    torch.testing.assert_close(module.predict_step(images, 0)["predictions"], 2 * raw + 10)


def test_nobody_says_the_mean(tmp_path):
    data = Numbers().train_dataloader()
    with pytest.raises(DataError, match=r"mean and deviation .* got neither: give target_mean"):
        trainer(tmp_path).fit(regressor(), data)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"loss": "l3"}, r"a loss, got 'l3'. Known: mse, smooth_l1"),
        ({"num_outputs": 0}, r"num_outputs of 1 or more, got 0"),
        ({"target_mean": 1.0}, r"both target_mean and target_std"),
        ({"target_mean": 1.0, "target_std": 0.0}, r"numbers that vary .* deviation of \[0.0\]"),
        ({"target_mean": [1.0, 2.0], "target_std": [1.0, 1.0]}, r"each of 1 numbers, got \[1.0"),
    ],
)
def test_refused_arguments(options, match):
    with pytest.raises(DataError, match=match):
        regressor(**options)


@pytest.mark.parametrize(
    ("targets", "match"),
    [
        (torch.ones(24, 2), r"1 number\(s\) for each image.*got shape \(8, 2\)"),
        (torch.full((24,), float("nan")), r"finite numbers, got NaN"),
    ],
)
def test_refused_targets(tmp_path, targets, match):
    data = Numbers()
    data.targets = targets
    module = regressor(target_mean=0.0, target_std=1.0)
    with pytest.raises(DataError, match=match):
        trainer(tmp_path).fit(module, data)


def test_a_classifier_for_numbers_is_refused(tmp_path):
    module = lp.ImageClassifier("vit_tiny_patch16_224", 2, pretrained=False, backbone_kwargs=SIZES)
    with pytest.raises(DataError, match=r"task 'multiclass', got 'regression' from Numbers"):
        trainer(tmp_path).fit(module, Numbers(2))
