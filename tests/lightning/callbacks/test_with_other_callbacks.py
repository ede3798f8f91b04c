"""The callback beside the other callbacks and settings of a Trainer."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from tests.support.runs import Classifier, differing, equal, images, state_of, trainer


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


@pytest.mark.parametrize("method", ["full", "norm"])
def test_held_batchnorm_keeps_its_statistics_though_it_is_trained(
    tmp_path: Path, method: str
) -> None:
    module = Classifier("resnet")
    before = state_of(module)
    peft = lp.PEFT(method, batchnorm="held")
    trainer(tmp_path, peft, max_epochs=2).fit(module, images(), images())
    changed = differing(before, state_of(module))
    assert "net.bn1.weight" in changed
    assert not any("running" in name or "tracked" in name for name in changed)
    saved = lp.find_adaptation(module.net).state_names()
    assert "bn1.weight" in saved
    assert "bn1.running_mean" not in saved


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


def test_the_batch_size_finder_leaves_an_adapter_that_has_not_been_trained(tmp_path: Path) -> None:
    class Data(L.LightningDataModule):
        batch_size = 2

        def train_dataloader(self):
            data = TensorDataset(torch.randn(16, 3, 32, 32), torch.arange(16) % 3)
            return DataLoader(data, batch_size=self.batch_size)

        val_dataloader = train_dataloader

    data, module = Data(), Classifier()
    finder = BatchSizeFinder(steps_per_trial=1, max_trials=2, init_val=2)
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2), finder, max_epochs=1)
    tr.fit(module, data)
    assert data.batch_size > 2
    assert tr.global_step == 16 // data.batch_size
    assert len(lp.find_adaptation(module.net).sites) == 8


# the callback makes Lightning look for a checkpoint to go on from, and say that there is none
@pytest.mark.filterwarnings("ignore:.*was called without a model", "ignore:.*no last checkpoint")
def test_an_exception_leaves_a_slim_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    class Breaks(Classifier):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 2 and self.hparams["lr"] == 0.03:
                raise RuntimeError("the power went out")

    module = Breaks(lr=0.03)
    last = OnExceptionCheckpoint(tmp_path, "broken")
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2), last, max_epochs=4, enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="the power went out"):
        tr.fit(module, images(), images())
    content = torch.load(tmp_path / "broken.ckpt", weights_only=True)
    assert not any("base_layer" in name for name in content["state_dict"])
    going_on = Breaks(lr=0.02)
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2), max_epochs=4)
    tr.fit(going_on, images(), images(), ckpt_path=tmp_path / "broken.ckpt")
    assert tr.current_epoch == 4


def test_validation_before_the_first_fit_is_that_of_the_backbone(tmp_path: Path) -> None:
    plain, module = Classifier(), Classifier()
    expected = trainer(tmp_path).validate(plain, images(), verbose=False)
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2))
    assert tr.validate(module, images(), verbose=False) == expected
    tr.fit(module, images())
    assert len(lp.find_adaptation(module.net).sites) == 8
