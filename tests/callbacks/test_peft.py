"""One callback on a trainer that already exists, with modules that know nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    WeightAveraging,
)
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.demos.transformer import LightningTransformer
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import lightning_peft as lp
from tests.trainers import quiet_trainer
from tests.zoo import build

WORDS = 50


class Words(Dataset):
    """What the demo's WikiText2 gives, without the download."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        data = torch.randint(0, WORDS, (9,), generator=torch.Generator().manual_seed(index))
        return data[:-1], data[1:]


class Demo(LightningTransformer):
    """Lightning's own demo; only the download of its text is left out."""

    def __init__(self) -> None:
        super().__init__(vocab_size=WORDS)

    def prepare_data(self) -> None:
        pass


class Classifier(L.LightningModule):
    """A user's module: a timm backbone, an optimizer over everything, nothing of this package."""

    def __init__(self, name: str = "vit", lr: float = 1e-2, late: str = "init") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net: nn.Module
        if late == "init":
            self.net = build(name).train()

    def setup(self, stage: str) -> None:
        if self.hparams["late"] == "setup" and not hasattr(self, "net"):
            self.net = build(self.hparams["name"]).train()

    def configure_model(self) -> None:
        if self.hparams["late"] == "configure_model" and not hasattr(self, "net"):
            self.net = build(self.hparams["name"]).train()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])


def images(n: int = 8, shuffle: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(n, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(data, torch.arange(n) % 3), batch_size=4, shuffle=shuffle)


def trainer(tmp_path: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    writes = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    given = {"default_root_dir": tmp_path, "max_epochs": 1, "enable_checkpointing": writes}
    return quiet_trainer(*callbacks, **{**given, **settings})


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in a if not torch.equal(a[name], b[name])}


# --- a module of Lightning's own, untouched --------------------------------------------


def test_lightnings_own_demo_trains_and_its_checkpoint_is_small(tmp_path: Path) -> None:
    L.seed_everything(0, verbose=False)
    full = trainer(tmp_path, max_steps=2)
    full.fit(Demo(), DataLoader(Words(), batch_size=4))
    full.save_checkpoint(tmp_path / "full.ckpt")

    module = Demo()
    before = state_of(module)
    small = trainer(tmp_path, lp.PEFT("lora", rank=4), max_steps=2)
    small.fit(module, DataLoader(Words(), batch_size=4))
    small.save_checkpoint(tmp_path / "small.ckpt")
    small.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)

    sizes = {p.stem: p.stat().st_size for p in tmp_path.glob("*.ckpt")}
    adaptation = lp.find_adaptation(module.model)
    assert adaptation is not None
    trained = adaptation.report().trained_bytes
    assert sizes["weights"] < 1.05 * trained + 20_000
    assert sizes["small"] < sizes["full"] / 8

    renamed = {now: old for old, now in adaptation.base_names.items()}
    for name, tensor in module.model.state_dict().items():  # frozen means frozen
        if name in renamed:
            assert torch.equal(tensor, before[f"model.{renamed[name]}"]), name


def test_resumed_it_ends_bit_equal_to_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    def run(epochs: int, directory: Path, ckpt_path: Path | None = None) -> nn.Module:
        L.seed_everything(1 if ckpt_path is None else 99, verbose=False)  # another process
        module = Demo()
        if ckpt_path is not None:  # the same pretrained backbone
            module.load_state_dict(initial)
        else:
            initial.update(state_of(module))
            L.seed_everything(2, verbose=False)
        loader = DataLoader(Words(), batch_size=4, shuffle=True)
        keep = ModelCheckpoint(directory, filename="{epoch}", save_top_k=-1)
        trainer(tmp_path, lp.PEFT("lora", rank=4, dropout=0.1), keep, max_epochs=epochs).fit(
            module, loader, ckpt_path=ckpt_path, weights_only=True
        )
        return module

    initial: dict[str, torch.Tensor] = {}
    whole = run(4, tmp_path / "whole")
    resumed = run(4, tmp_path / "resumed", tmp_path / "whole" / "epoch=1.ckpt")
    assert differing(state_of(whole), state_of(resumed)) == set()


# --- every call of a trainer -----------------------------------------------------------


@pytest.mark.parametrize("late", ["init", "setup", "configure_model"])
def test_fit_resume_test_predict_load_and_fit_again(tmp_path: Path, late: str) -> None:
    module = Classifier(late=late)
    keep = ModelCheckpoint(tmp_path / "ckpt", monitor="val_loss", save_last=True)
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2), keep, max_epochs=2)
    tr.fit(module, images(), images())
    trained = state_of(module)
    content = torch.load(keep.best_model_path, weights_only=True)
    adaptation = lp.find_adaptation(module.net)
    assert set(content["state_dict"]) == {f"net.{n}" for n in adaptation.state_names()}

    tr.validate(module, images(), ckpt_path="best", verbose=False)
    tr.test(module, images(), ckpt_path="best", verbose=False)
    predicted = tr.predict(module, images(), ckpt_path=keep.last_model_path)
    assert equal(state_of(module), trained)

    fresh = Classifier(late=late)  # a new process: test straight from a checkpoint
    again = trainer(tmp_path, lp.PEFT("lora", rank=2)).predict(
        fresh, images(), ckpt_path=keep.last_model_path
    )
    assert all(torch.equal(a, b) for a, b in zip(predicted, again, strict=True))

    resumed = Classifier(late=late)
    trainer(tmp_path, lp.PEFT("lora", rank=2), max_epochs=3).fit(
        resumed, images(), images(), ckpt_path=keep.last_model_path
    )
    sites = len(lp.find_adaptation(resumed.net).sites)
    trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(resumed, images())  # a second fit
    assert len(lp.find_adaptation(resumed.net).sites) == sites
    assert set(state_of(resumed)) == set(trained)

    if late != "setup":  # Lightning's load_from_checkpoint does not call setup
        loaded = lp.load_from_checkpoint(Classifier, keep.last_model_path)
        assert type(loaded) is Classifier
        assert equal(state_of(loaded), trained)


def test_a_checkpoint_from_before_the_package_was_added_loads(tmp_path: Path) -> None:
    plain = Classifier()
    tr = trainer(tmp_path)
    tr.fit(plain, images())
    tr.save_checkpoint(tmp_path / "full.ckpt")

    module = Classifier()
    expected = trainer(tmp_path).predict(plain, images())
    got = trainer(tmp_path, lp.PEFT("lora", rank=2)).predict(
        module, images(), ckpt_path=tmp_path / "full.ckpt"
    )
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def broken(path: Path, change) -> Path:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path.with_name("broken.ckpt"))
    return path.with_name("broken.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda c: c["state_dict"].pop("net.blocks.0.attn.qkv.lora_A.default.weight"),
            r"1 missing: net\.blocks\.0\.attn\.qkv\.lora_A\.default\.weight",
            id="missing",
        ),
        pytest.param(
            lambda c: c["state_dict"].update(x=torch.zeros(1), y=torch.zeros(1)),
            "2 unknown: x, y",
            id="unknown",
        ),
        pytest.param(
            lambda c: c["lightning_peft"].update(format_version=9),
            "version 1 or older, got 9",
            id="9",
        ),
        pytest.param(
            lambda c: c["lightning_peft"]["adaptations"]["net"]["method"].update(rank=7),
            "another adaptation: 'net' was adapted with .*7",
            id="method",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, change, message: str) -> None:
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2))
    tr.fit(Classifier(), images())
    tr.save_checkpoint(tmp_path / "good.ckpt")
    path = broken(tmp_path / "good.ckpt", change)
    module = Classifier()
    with pytest.raises(lp.CheckpointError, match=message):
        trainer(tmp_path, lp.PEFT("lora", rank=2)).test(module, images(), ckpt_path=path)


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2))
    tr.fit(Classifier(), images())
    tr.save_checkpoint(tmp_path / "good.ckpt")
    other = Classifier()
    other.net = build("vit", seed=7)
    with pytest.raises(lp.BackboneMismatchError, match="'net': values of the frozen"):
        trainer(tmp_path, lp.PEFT("lora", rank=2)).test(
            other, images(), ckpt_path=tmp_path / "good.ckpt"
        )
    with pytest.warns(UserWarning, match="another backbone"):
        trainer(tmp_path, lp.PEFT("lora", rank=2, strict_backbone=False)).test(
            other, images(), ckpt_path=tmp_path / "good.ckpt", verbose=False
        )


def test_a_checkpoint_without_our_key_cannot_be_loaded_by_us(tmp_path: Path) -> None:
    tr = trainer(tmp_path)
    tr.fit(Classifier(), images())
    tr.save_checkpoint(tmp_path / "full.ckpt")
    with pytest.raises(lp.CheckpointError, match="one without the key 'lightning_peft'"):
        lp.load_from_checkpoint(Classifier, tmp_path / "full.ckpt")


# --- beside other callbacks and settings -----------------------------------------------


def test_beside_checkpoint_early_stopping_schedule_monitor_accumulation_and_bf16(
    tmp_path: Path,
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    module = Classifier()
    before = state_of(module)
    tr = trainer(
        tmp_path,
        lp.PEFT(["lora", "bitfit"]),
        lp.WarmupCosine(warmup=0.5),
        LearningRateMonitor(),
        EarlyStopping("val_loss"),
        ModelCheckpoint(tmp_path / "ckpt", monitor="val_loss", save_weights_only=True),
        max_epochs=2,
        accumulate_grad_batches=2,
        precision="bf16-mixed",
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
    )
    tr.fit(module, images(), images())
    tr.test(module, images(), ckpt_path="best", verbose=False)
    assert tr.global_step == 2
    weight = module.net.blocks[0].attn.qkv
    assert weight.lora_A["default"].weight.dtype == torch.float32
    assert torch.equal(weight.base_layer.weight, before["net.blocks.0.attn.qkv.weight"])
    assert not torch.equal(weight.base_layer.bias, before["net.blocks.0.attn.qkv.bias"])


def test_weight_averaging_comes_after_and_its_checkpoints_are_slim_too(tmp_path: Path) -> None:
    with pytest.raises(lp.MethodError, match="expected PEFT before WeightAveraging"):
        trainer(tmp_path, WeightAveraging(), lp.PEFT()).fit(Classifier(), images())

    def run(epochs: int, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
        module = Classifier()
        keep = ModelCheckpoint(tmp_path / f"{epochs}", filename="{epoch}", save_top_k=-1)
        averaging = WeightAveraging()
        trainer(tmp_path, lp.PEFT("lora", rank=2), averaging, keep, max_epochs=epochs).fit(
            module, images(), ckpt_path=ckpt_path
        )
        return state_of(module)

    torch.manual_seed(0)
    whole = run(3)
    saved = torch.load(tmp_path / "3" / "epoch=0.ckpt", weights_only=True)
    assert not any("base_layer.weight" in name for name in saved["current_model_state"])
    assert not any("base_layer.weight" in name for name in saved["state_dict"])
    torch.manual_seed(1)
    assert differing(run(4, tmp_path / "3" / "epoch=2.ckpt"), whole)  # it trained on
    torch.manual_seed(1)
    resumed = trainer(tmp_path, lp.PEFT("lora", rank=2), WeightAveraging(), max_epochs=3)
    module = Classifier()
    resumed.fit(module, images(), ckpt_path=tmp_path / "3" / "epoch=0.ckpt")
    assert differing(state_of(module), whole) == set()


def test_a_compiled_backbone_and_a_plain_one_share_checkpoints(tmp_path: Path) -> None:
    module = Classifier()
    module.net = torch.compile(module.net, backend="eager")
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2))
    tr.fit(module, images())
    tr.save_checkpoint(tmp_path / "compiled.ckpt")
    plain = Classifier()
    trainer(tmp_path, lp.PEFT("lora", rank=2)).test(
        plain, images(), ckpt_path=tmp_path / "compiled.ckpt", verbose=False
    )
    weights = {name.replace("_orig_mod.", ""): t for name, t in state_of(module).items()}
    assert equal(weights, state_of(plain))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "gradient checkpointing"])
def test_gradient_checkpointing_gives_the_same_weights(tmp_path: Path, checkpointing: bool) -> None:
    def run(on: bool) -> dict[str, torch.Tensor]:
        module = Classifier()
        module.net.set_grad_checkpointing(on)
        torch.manual_seed(3)
        trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(module, images())
        return state_of(module)

    assert equal(run(checkpointing), run(False))


def test_frozen_batchnorm_is_bit_equal_after_training_and_modes_survive_validation(
    tmp_path: Path,
) -> None:
    module = Classifier("resnet")
    before = state_of(module)
    trainer(tmp_path, lp.PEFT("lora", rank=2), max_epochs=2).fit(module, images(), images())
    assert not any(
        "running" in name
        for name in differing(
            before,
            {
                **before,
                **{
                    n.replace(".base_layer", ""): t
                    for n, t in state_of(module).items()
                    if "lora" not in n
                },
            },
        )
    )
    assert not module.net.bn1.training
    assert module.net.layer1.training

    module = Classifier("resnet")
    trainer(tmp_path, lp.PEFT("lora", rank=2, batchnorm="train")).fit(module, images())
    assert not torch.equal(module.net.bn1.running_mean, before["net.bn1.running_mean"])


def test_a_backbone_in_eval_mode_is_put_into_training_mode_and_dropout_can_be_kept_off(
    tmp_path: Path,
) -> None:
    def run(dropout: str) -> nn.Module:
        module = Classifier("bert")
        module.net.eval()  # as from_pretrained gives it
        module.training_step = lambda batch, batch_idx: (
            module.net(
                input_ids=torch.ones(2, 4, dtype=torch.long), labels=torch.tensor([0, 1])
            ).loss
        )
        module.configure_gradient_clipping = lambda *args, **kwargs: seen.update(
            {name: part.training for name, part in module.net.named_modules()}
        )
        trainer(tmp_path, lp.PEFT("lora", rank=2, backbone_dropout=dropout)).fit(module, images())
        return module

    seen: dict[str, bool] = {}
    run("train")
    assert seen["bert.embeddings.dropout"]
    run("eval")
    assert not seen["bert.embeddings.dropout"]
    assert seen["bert.encoder.layer.0.output.dense.lora_dropout"]


def test_lr_find_runs_and_leaves_the_weights(tmp_path: Path) -> None:
    from lightning.pytorch.tuner import Tuner

    module = Classifier()
    module.lr = 0.1
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2), max_epochs=4)
    found = Tuner(tr).lr_find(module, images(), num_training=5, update_attr=False)
    assert len(found.results["lr"]) == 5
    tr.fit(module, images())


# --- what it refuses -------------------------------------------------------------------


def test_two_callbacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(lp.MethodError, match="expected one PEFT callback"):
        trainer(tmp_path, lp.PEFT("lora"), lp.PEFT("bitfit")).fit(Classifier(), images())


def test_another_method_at_the_second_fit_is_refused(tmp_path: Path) -> None:
    module = Classifier()
    trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(module, images())
    with pytest.raises(lp.MethodError, match="is adapted with LoRA.*already"):
        trainer(tmp_path, lp.PEFT("bitfit")).fit(module, images())


def test_a_rank_larger_than_the_layer_of_the_boring_model(tmp_path: Path) -> None:
    with pytest.raises(
        lp.MethodError, match=r"no larger than the layer, got 4 for layer \(at most 2\)"
    ):
        trainer(tmp_path, lp.PEFT("lora", rank=4)).fit(BoringModel())
    trainer(tmp_path, lp.PEFT("lora", rank=2), limit_train_batches=2, limit_val_batches=0).fit(
        BoringModel()
    )


def test_an_optimizer_without_the_adapter_is_refused(tmp_path: Path) -> None:
    module = Classifier()
    module.configure_optimizers = lambda: torch.optim.SGD(module.net.head.parameters(), lr=0.1)
    with pytest.raises(lp.MethodError, match="left out blocks.0.attn.qkv.lora_A.*and .* more"):
        trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(module, images())


class Bypass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x.mean((2, 3)))


def test_an_adapter_without_a_gradient_is_found_within_two_steps(tmp_path: Path) -> None:
    module = Classifier()
    module.net = Bypass()
    with pytest.raises(lp.MethodError, match="no gradient: net.unused.lora_A"):
        trainer(tmp_path, lp.PEFT("lora", rank=2)).fit(module, images())
    module = Classifier()
    module.net = Bypass()
    trainer(tmp_path, lp.PEFT("lora", rank=2, check_gradients=False)).fit(module, images())


# --- equal to peft ---------------------------------------------------------------------


def test_lora_through_lp_equals_lora_through_peft(tmp_path: Path) -> None:
    ours, theirs = build("vit"), build("vit")
    adaptation = lp.adapt(ours, lp.LoRA(rank=4, targets=["qkv", "fc1"]))
    for name in adaptation.adapter_names():  # away from zero, where the two would agree anyway
        nn.init.normal_(ours.get_parameter(name), std=0.1)
    wrapped = peft.get_peft_model(
        theirs,
        peft.LoraConfig(r=4, lora_alpha=4, target_modules=["qkv", "fc1"], modules_to_save=["head"]),
    )
    adaptation.save(tmp_path)
    wrapped.load_adapter(str(tmp_path), "default", is_trainable=True)

    x, y = next(iter(images()))
    losses = []
    for model in (ours, wrapped):
        model.train()
        losses.append(nn.functional.cross_entropy(model(x), y))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1])  # another order of the same products
    grads = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    expected = {
        n.removeprefix("base_model.model.").replace("modules_to_save.default.", ""): p.grad
        for n, p in wrapped.named_parameters()
        if p.grad is not None
    }
    assert grads.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(grads[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
