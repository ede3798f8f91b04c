import functools
from types import MappingProxyType

import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import torch
from sklearn import metrics
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_peft.errors import DataError
from lightning_peft.lightning.callbacks.peft import PEFT
from lightning_peft.lightning.datamodules.digits import DigitsDataModule
from lightning_peft.lightning.modules.image import ImageClassifier
from lightning_peft.methods import LoRA
from lightning_peft.system.randomness import generator
from tests.support.trainers import quiet_trainer

SIZES = MappingProxyType(
    {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
)


def classifier(num_classes=4, **options):
    torch.manual_seed(0)
    options = {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": SIZES} | options
    return ImageClassifier(num_classes=num_classes, pretrained=False, **options)


def loader(n=24, num_classes=4, batch_size=8, channels=3):
    random = generator("data")
    labels = torch.arange(n) % num_classes
    patterns = torch.randn(num_classes, channels, 16, 16, generator=random)
    images = patterns[labels] + torch.randn(n, channels, 16, 16, generator=random)
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)


def trainer(folder, callbacks=(), **options):
    return quiet_trainer(*callbacks, default_root_dir=folder, **{"max_epochs": 1, **options})


def reference_ece(probabilities, labels, bins=15):
    confidence, called = probabilities.max(1), probabilities.argmax(1)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    error = 0.0
    for b in range(bins):
        inside = place == b
        if inside.any():
            gap = (called == labels)[inside].mean() - confidence[inside].mean()
            error += inside.mean() * abs(gap)
    return error


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_scikit_learns(tmp_path, stage):
    module, data = classifier(), loader(n=29)  # the last batch is smaller
    run = trainer(tmp_path)
    (logged,) = (run.validate if stage == "val" else run.test)(module, data, verbose=False)
    images, labels = data.dataset.tensors
    module.eval()
    with torch.no_grad():
        logits = module(images)
    probabilities = logits.softmax(-1).numpy()
    called, true = probabilities.argmax(1), labels.numpy()
    expected = {
        f"{stage}/loss": F.cross_entropy(logits, labels).item(),
        f"{stage}/accuracy": metrics.accuracy_score(true, called),
        f"{stage}/balanced_accuracy": metrics.balanced_accuracy_score(true, called),
        f"{stage}/f1": metrics.f1_score(true, called, average="macro"),
        f"{stage}/ece": reference_ece(probabilities, true),
    }
    if stage == "test":
        expected["test/auroc"] = metrics.roc_auc_score(true, probabilities, multi_class="ovr")
    assert logged == pytest.approx(expected, rel=1e-5)
    if stage == "test":
        found = module.test_results()
        assert found.confusion.tolist() == metrics.confusion_matrix(true, called).tolist()
        expected = metrics.precision_recall_fscore_support(true, called, zero_division=0)
        got = [[row.precision, row.recall, row.f1, row.support] for row in found.classes]
        np.testing.assert_allclose(np.array(got).T, np.array(expected))
        assert found.metrics == {k: v for k, v in logged.items() if k != "test/loss"}


def test_metrics_start_anew_each_time(tmp_path):
    module, data = classifier(), loader()
    run = trainer(tmp_path)
    assert run.validate(module, data, verbose=False) == run.validate(module, data, verbose=False)
    assert run.test(module, data, verbose=False) == run.test(module, data, verbose=False)
    assert module.test_results().confusion.sum() == 24
    module.val_metrics.update(torch.full((3, 4), 0.25), torch.tensor([0, 1, 2]))  # interrupted
    again = run.validate(module, data, verbose=False)[0]["val/accuracy"]
    assert again == run.validate(module, data, verbose=False)[0]["val/accuracy"]


def test_results_before_a_test():
    with pytest.raises(DataError, match=r"Expected a tested module.*trainer.test\(module\) first"):
        classifier().test_results()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1, "head_dropout": 0.2, "drop_path": 0.1},
        {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1},
        {"optimizer": functools.partial(torch.optim.SGD, momentum=0.9), "lr": 0.05},
        {"layer_decay": 0.7},
    ],
    ids=["plain", "regularised", "mixed", "sgd", "layer-decay"],
)
def test_it_learns(tmp_path, options):
    module, data = classifier(**({"lr": 5e-3} | options)), loader()
    run = trainer(tmp_path, max_epochs=15)
    run.fit(module, data, data)
    assert run.callback_metrics["val/accuracy"] > 0.5  # chance is a quarter
    assert run.callback_metrics["train/loss"].isfinite()


@pytest.mark.filterwarnings("ignore:CPU autocast only supports")
def test_bf16(tmp_path):
    module, data = classifier(mixup=0.2), loader()
    run = trainer(tmp_path, precision="bf16-mixed")
    run.fit(module, data, data)
    run.test(module, data, verbose=False)
    probabilities = torch.cat([out["probabilities"] for out in run.predict(module, data)])
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(1), torch.ones(24))


@pytest.mark.parametrize("pairs", [True, False], ids=["labelled", "images"])
def test_predictions(tmp_path, pairs):
    module, data = classifier(), loader()
    images = data.dataset.tensors[0]
    found = trainer(tmp_path).predict(module, data if pairs else DataLoader(images, batch_size=8))
    module.eval()
    with torch.no_grad():
        expected = module(images).softmax(-1)
    torch.testing.assert_close(torch.cat([out["probabilities"] for out in found]), expected)
    assert torch.equal(torch.cat([out["predictions"] for out in found]), expected.argmax(1))


def test_regularisers_reach_the_backbone():
    module = classifier(head_dropout=0.25, drop_path=0.5)
    assert module.backbone.head_drop.p == 0.25
    assert module.backbone.blocks[-1].drop_path1.drop_prob == 0.5


def test_label_smoothing_and_mixup_are_what_they_say(tmp_path):
    module = classifier(label_smoothing=0.2, mixup=1.0)
    images, labels = next(iter(loader()))
    module.trainer = trainer(tmp_path)
    module.log = lambda *args, **kwargs: None
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loss = module.training_step((images, labels), 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(module.training_step((images, labels), 3), loss)  # by its place
    assert not torch.allclose(module.training_step((images, labels), 4), loss)
    mixed, targets = module._mix(images, labels)
    share = targets.max(1).values.min()
    pairs = torch.where(targets.argmax(1) == labels, share, 1 - share).view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, pairs * images + (1 - pairs) * images.roll(1, 0))
    smooth = 0.8 * targets + 0.2 / 4
    expected = -(smooth * F.log_softmax(module(mixed), -1)).sum(1).mean()
    got = F.cross_entropy(module(mixed), targets, label_smoothing=module.label_smoothing)
    torch.testing.assert_close(got, expected)


def test_cutmix_labels_are_the_areas_that_come_from_each_image():
    module = classifier(cutmix=1.0)
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    torch.manual_seed(3)
    mixed, targets = module._mix(images, torch.arange(4))
    for i in range(4):
        shares = torch.stack([(mixed[i] == k).float().mean() for k in range(4)])
        torch.testing.assert_close(targets[i], shares)
        assert 0 < float(shares[i]) < 1


def test_metrics_are_of_unmixed_images(tmp_path):
    plain, mixing = classifier(), classifier(mixup=1.0, cutmix=1.0)
    mixing.load_state_dict(plain.state_dict())
    logged = [trainer(tmp_path).validate(m, loader(), verbose=False)[0] for m in (plain, mixing)]
    assert logged[0] == logged[1]


def test_checkpoint_of_a_named_backbone(tmp_path):
    options = {"class_names": ("a", "b", "c", "d"), "optimizer": torch.optim.SGD, "lr": 0.01}
    module, run = classifier(**options), trainer(tmp_path)
    run.fit(module, loader(), loader())
    run.save_checkpoint(tmp_path / "it.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "it.ckpt", weights_only=True)
    assert loaded.class_names == ["a", "b", "c", "d"]
    assert loaded.lr == 0.01
    assert dict(loaded.hparams) == dict(module.hparams)
    assert dict(loaded.hparams)["backbone_kwargs"] == dict(SIZES)
    images = loader().dataset.tensors[0]
    module.eval(), loaded.eval()
    assert torch.equal(module(images), loaded(images))


def test_checkpoint_of_a_module(tmp_path):
    def backbone():
        return nn.Sequential(nn.Flatten(), nn.Linear(768, 4))

    module, run = ImageClassifier(backbone(), 4), trainer(tmp_path)
    run.fit(module, loader(), loader())
    run.save_checkpoint(tmp_path / "it.ckpt")
    held = torch.load(tmp_path / "it.ckpt", weights_only=True)["hyper_parameters"]
    assert "backbone" not in held
    loaded = ImageClassifier.load_from_checkpoint(
        tmp_path / "it.ckpt", backbone=backbone(), weights_only=True
    )
    images = loader().dataset.tensors[0]
    assert torch.equal(module(images), loaded(images))


def test_containers_of_hydra_do_not_end_up_in_a_checkpoint():
    omegaconf = pytest.importorskip("omegaconf")
    config = omegaconf.OmegaConf.create({"kwargs": dict(SIZES), "names": list("abcd")})
    module = classifier(backbone_kwargs=config.kwargs, class_names=config.names)
    assert type(module.hparams["backbone_kwargs"]) is dict
    assert type(module.hparams["class_names"]) is list


def test_only_what_is_trained_is_optimised():
    module = classifier()
    module.backbone.requires_grad_(False)
    module.backbone.head.requires_grad_(True)
    groups = module.configure_optimizers().param_groups
    found = {id(p) for group in groups for p in group["params"]}
    assert found == {id(p) for p in module.backbone.head.parameters()}


def test_data_config():
    config = classifier().data_config
    assert config.input_size == (3, 16, 16)
    assert config.mean == (0.5, 0.5, 0.5)


class Classes(pl.LightningDataModule):
    class_names = ("a", "b", "c", "d")

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes = num_classes

    def train_dataloader(self):
        return loader()

    val_dataloader = test_dataloader = train_dataloader


def test_names_come_from_the_data_module(tmp_path):
    module = classifier()
    trainer(tmp_path).test(module, datamodule=Classes(), verbose=False)
    assert [row.name for row in module.test_results().classes] == list("abcd")


def test_the_data_has_other_classes_than_the_head(tmp_path):
    module = classifier()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(DataError, match=r"data of 4 classes.*got 7 from Classes.*num_classes=7"):
        trainer(tmp_path).fit(module, datamodule=Classes(7))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_labels_beyond_the_head(tmp_path, stage):
    run = trainer(tmp_path)
    data = loader(num_classes=6)
    loaders = [data, data] if stage == "fit" else [data]
    with pytest.raises(DataError, match=r"labels from 0 to 3.*from 0 to 5.*num_classes=6"):
        getattr(run, stage)(classifier(), *loaders)


def test_a_module_with_another_head():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, **SIZES)
    with pytest.raises(DataError, match=r"head of 4 classes, got VisionTransformer with 7"):
        ImageClassifier(model, 4)


def test_options_of_timm_with_a_module():
    with pytest.raises(DataError, match=r"\['drop_rate', 'img_size'\] only with a timm name"):
        ImageClassifier(nn.Linear(2, 2), 2, head_dropout=0.1, backbone_kwargs={"img_size": 3})


def test_unknown_backbone():
    with pytest.raises(
        DataError, match=r"no model 'vit_tinny_patch16_224'. Did you mean .*vit_tiny"
    ):
        classifier(backbone="vit_tinny_patch16_224")


def test_a_backbone_without_what_is_to_be_dropped():
    with pytest.raises(DataError, match=r"'vgg11' takes no \['drop_path_rate'\]: leave it out"):
        classifier(backbone="vgg11", backbone_kwargs=None, drop_path=0.1)


def test_all_arguments_out_of_range_at_once():
    with pytest.raises(
        DataError,
        match=r"head_dropout in \[0, 1\), got 1.*label_smoothing.*mixup of 0 or more, got -1.*"
        r"2 or more, got 1.*1 class_names, got 2",
    ):
        classifier(1, head_dropout=1, label_smoothing=-0.1, mixup=-1, class_names=["a", "b"])


class Scores(pl.Callback):
    def on_validation_end(self, run, module):
        scores = {name: float(value) for name, value in run.callback_metrics.items()}
        torch.save(scores, f"{run.default_root_dir}/{module.global_rank}.pt")


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork",
    "ignore:Using `DistributedSampler` with the dataloaders",  # 24 images: none is repeated
)
def test_two_ranks_find_the_metrics_of_one(tmp_path):
    module, data = classifier(), loader()
    (one,) = trainer(tmp_path).validate(module, data, verbose=False)
    two = trainer(tmp_path, strategy="ddp_fork", devices=2, callbacks=[Scores()])
    two.validate(module, data, verbose=False)
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(one, rel=1e-5)


class Saver(pl.Callback):
    def on_train_batch_end(self, run, *args):
        run.save_checkpoint(f"{run.default_root_dir}/{run.global_step}.ckpt")


@pytest.mark.parametrize("step", [3, 5], ids=["epoch", "mid-epoch"])
def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path, step):
    def make():
        module = classifier(
            10, head_dropout=0.2, drop_path=0.2, mixup=0.3, cutmix=0.3, label_smoothing=0.1
        )
        data = DigitsDataModule(2, 2, backbone=module.data_config, batch_size=8, augment="strong")
        return module, data, PEFT(LoRA(rank=2, dropout=0.3))

    ends = []
    for callbacks, start in (([Saver()], None), ([], tmp_path / f"{step}.ckpt")):
        module, data, adapters = make()
        run = trainer(tmp_path, max_epochs=3, callbacks=[adapters, *callbacks])
        torch.manual_seed(17 if start is None else 99)
        run.fit(module, data, ckpt_path=start)
        ends.append((run.global_step, module.state_dict()))
    (steps, whole), (other_steps, resumed) = ends
    assert steps == other_steps == 9
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
