"""The callback beside everything else that Lightning has."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from tests.support.runs import Classifier, differing, equal, images, state_of, trainer
from tests.support.zoo import build


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


class Remembering(EMAWeightAveraging):
    """Keep what was trained, and what the average was, after every step."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.trained, self.averaged = [], []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        self.trained.append(state_of(pl_module))
        self.averaged.append(state_of(self._average_model.module))


def test_an_exponential_average_is_of_what_is_trained_and_leaves_the_rest_bit_equal(
    tmp_path: Path,
) -> None:
    module = Classifier()
    before = state_of(module)
    ema = Remembering(decay=0.7)
    keep = ModelCheckpoint(tmp_path, monitor="val_loss", filename="best", save_weights_only=True)
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2), ema, keep, max_epochs=3)
    tr.fit(module, images(), images())

    expected = ema.trained[0]
    for now in ema.trained[1:]:
        expected = {name: 0.7 * expected[name] + 0.3 * now[name] for name in now}
    trained = set(torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"])
    after = state_of(module)
    for name in trained:
        assert torch.allclose(after[name], expected[name], atol=1e-7), name
    # 0.7 x + 0.3 x is not x: the frozen part must not be averaged with itself
    assert differing(before, plain(module)) == {"net.head.weight", "net.head.bias"}
    # and one backbone is in memory, not two
    copied = dict(ema._average_model.module.named_parameters())
    shared = {name for name, p in module.named_parameters() if copied[name] is p}
    assert shared == set(after) - trained


def test_a_weights_only_checkpoint_holds_the_average_that_was_judged(tmp_path: Path) -> None:
    module, ema = Classifier(), Remembering(decay=0.7)
    keep = ModelCheckpoint(tmp_path, filename="{step}", save_weights_only=True, save_top_k=-1,
                           monitor="val_loss")  # fmt: skip
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2), ema, keep, max_epochs=2)
    tr.fit(module, images(), images())
    saved = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, ema.averaged[1][name]) for name, tensor in saved.items())
    assert any(not torch.equal(tensor, ema.trained[1][name]) for name, tensor in saved.items())
    judged = keep.best_model_score
    fresh = Classifier()
    (found,) = trainer(tmp_path, lp.PEFT("lora", rank=2)).validate(
        fresh, images(), ckpt_path=keep.best_model_path, verbose=False
    )
    assert found["val_loss"] == pytest.approx(float(judged))


def test_an_average_leaves_indices_in_integer_buffers_alone(tmp_path: Path) -> None:
    module = Classifier("swin")
    before = {n: b.clone() for n, b in module.named_buffers() if not b.is_floating_point()}
    assert before
    ema = EMAWeightAveraging(decay=0.7)
    trainer(tmp_path, lp.PEFT("lora", rank=2), ema, max_epochs=2).fit(module, images(), images())
    after = dict(module.named_buffers())
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_an_average_beside_tied_weights_and_late_stages(tmp_path: Path) -> None:
    """A stage trains more of the backbone later: it is averaged too, and tied weights stay tied."""
    module, ema = Classifier(), Remembering(decay=0.7)
    module.net.blocks[1].mlp.fc1.weight = module.net.blocks[0].mlp.fc1.weight
    stages = lp.BackboneFreeze(unfreeze=[{"epoch": 1, "layers": "last:1"}])
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2, targets="attention"), stages, ema, max_epochs=2)
    tr.fit(module, images(), images())
    expected = ema.trained[0]
    for now in ema.trained[1:]:
        expected = {n: 0.7 * t + 0.3 * now[n] if t.is_floating_point() else t
                    for n, t in expected.items()}  # fmt: skip
    after = state_of(module)
    for name, tensor in after.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


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


def plain(module: nn.Module) -> dict[str, torch.Tensor]:
    """Give the state of a module that LoRA adapts under the names of the backbone's own."""
    return {n.replace(".base_layer", ""): t for n, t in state_of(module).items() if "lora" not in n}


def test_stochastic_weight_averaging_averages_what_is_trained(tmp_path: Path) -> None:
    def run(ckpt_path: Path | None = None) -> Classifier:
        torch.manual_seed(0)
        module = Classifier()
        before.update(state_of(module))
        swa = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1, annealing_epochs=1)
        keep = ModelCheckpoint(tmp_path / str(ckpt_path is None), filename="{epoch}", save_top_k=-1)
        tr = trainer(tmp_path, lp.PEFT("lora", rank=2), swa, keep, max_epochs=4)
        tr.fit(module, images(), images(), ckpt_path=ckpt_path)
        return module

    before: dict[str, torch.Tensor] = {}
    module = run()
    after = {
        n.replace(".base_layer", ""): t for n, t in state_of(module).items() if "lora" not in n
    }
    assert differing(before, after) == {"net.head.weight", "net.head.bias"}
    assert lp.find_adaptation(module.net) is not None


@pytest.mark.parametrize(
    "averaging",
    [WeightAveraging, lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)],
    ids=["running", "stochastic"],
)
def test_a_run_killed_behind_its_last_checkpoint_still_ends_in_the_average(
    averaging, tmp_path: Path
) -> None:
    def run(ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = Classifier()
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        tr = trainer(tmp_path, lp.PEFT("lora", rank=2), averaging(), keep, max_epochs=3)
        tr.fit(module, images(), images(), ckpt_path=ckpt_path)
        return state_of(module)

    whole = run()
    assert differing(run(tmp_path / "epoch=2.ckpt"), whole) == set()


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


class ByHand(Classifier):
    """Manual optimization: one optimizer for the head, one for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self):
        head = list(self.net.head.parameters())
        rest = [p for n, p in self.net.named_parameters() if not n.startswith("head.")]
        return [torch.optim.SGD(head, lr=0.1), torch.optim.AdamW(rest, lr=0.01)]


def test_manual_optimization_with_two_optimizers_resumes_bit_equal(tmp_path: Path) -> None:
    def run(epochs: int, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = ByHand()
        keep = ModelCheckpoint(tmp_path / str(ckpt_path is None), filename="{epoch}", save_top_k=-1)
        tr = trainer(tmp_path, lp.PEFT("lora", rank=2), keep, max_epochs=epochs)
        tr.fit(module, images(), images(), ckpt_path=ckpt_path)
        return state_of(module)

    whole = run(3)
    assert differing(run(3, tmp_path / "True" / "epoch=0.ckpt"), whole) == set()


class TwoNetworks(L.LightningModule):
    """A generator and a discriminator, of which one is a pretrained backbone to adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.judge, self.make = build("vit"), nn.Linear(4, 3 * 32 * 32)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        fake = self.make(torch.randn(4, 4)).view(4, 3, 32, 32)
        self.toggle_optimizer(first)
        loss = nn.functional.cross_entropy(self.judge(fake.detach()), torch.zeros(4).long())
        self.manual_backward(loss)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        loss = nn.functional.cross_entropy(self.judge(fake), torch.ones(4).long())
        self.manual_backward(loss)
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.judge.parameters(), lr=0.1),
            torch.optim.SGD(self.make.parameters(), lr=0.1),
        ]


def test_toggled_optimizers_leave_the_backbone_frozen(tmp_path: Path) -> None:
    module = TwoNetworks()
    before = state_of(module)
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2, backbone="judge"), max_epochs=2)
    tr.fit(module, images())
    after = {
        n.replace(".base_layer", ""): t for n, t in state_of(module).items() if "lora" not in n
    }
    moved = differing(before, after)
    assert moved == {"judge.head.weight", "judge.head.bias", "make.weight", "make.bias"}


def test_validation_before_the_first_fit_is_that_of_the_backbone(tmp_path: Path) -> None:
    plain, module = Classifier(), Classifier()
    expected = trainer(tmp_path).validate(plain, images(), verbose=False)
    tr = trainer(tmp_path, lp.PEFT("lora", rank=2))
    assert tr.validate(module, images(), verbose=False) == expected
    tr.fit(module, images())
    assert len(lp.find_adaptation(module.net).sites) == 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's use of jsonargparse
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended to run")
def test_the_command_line_of_lightning_itself(tmp_path: Path) -> None:
    from lightning.pytorch.cli import LightningCLI

    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return images()

        val_dataloader = train_dataloader

    settings = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(tmp_path),
    }
    words = [f"--trainer.{key}={value}" for key, value in settings.items()]
    cli = LightningCLI(
        Classifier,
        Data,
        args=[
            "fit",
            "--trainer.callbacks+=lightning_peft.PEFT",
            "--trainer.callbacks.method=ssf",
            *words,
        ],
        save_config_callback=None,
        seed_everything_default=0,
    )
    adaptation = lp.find_adaptation(cli.model.net)
    assert adaptation is not None
    assert adaptation.method == lp.SSF()


def test_fabric_takes_an_adapted_model_and_a_few_lines(tmp_path: Path) -> None:
    from lightning.fabric import Fabric

    def run(steps: int, resume: bool) -> dict[str, torch.Tensor]:
        fabric = Fabric(accelerator="cpu", devices=1)
        torch.manual_seed(0)
        net = build("vit")
        adaptation = lp.adapt(net, lp.LoRA(rank=2))
        optimizer = torch.optim.AdamW(adaptation.trained_parameters(), lr=0.01)
        model, optimizer = fabric.setup(net, optimizer)
        done = 0
        if resume:
            held = fabric.load(tmp_path / "state.ckpt")
            adaptation.load_state_dict(held["adapter"])
            optimizer.load_state_dict(held["optimizer"])
            done = held["step"]
        batches = list(fabric.setup_dataloaders(images()))
        for step in range(done, steps):
            x, y = batches[step % len(batches)]
            fabric.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        state = {
            "adapter": adaptation.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": steps,
        }
        fabric.save(tmp_path / "state.ckpt", state)
        return state_of(net)

    whole = run(4, resume=False)
    run(2, resume=False)
    assert equal(run(4, resume=True), whole)


def test_a_requeued_job_of_slurm_goes_on_from_the_checkpoint_that_was_left(tmp_path: Path) -> None:
    def run(epochs: int) -> tuple[L.Trainer, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        module = Classifier()
        tr = trainer(tmp_path, lp.PEFT("lora", rank=2), max_epochs=epochs)
        tr.fit(module, images(), images())
        return tr, state_of(module)

    _, whole = run(3)
    stopped, _ = run(1)
    # what Lightning does when Slurm says that the time is up
    stopped.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    content = torch.load(tmp_path / "hpc_ckpt_1.ckpt", weights_only=True)
    assert not any("base_layer" in name for name in content["state_dict"])
    _, requeued = run(3)  # it is found by itself
    assert equal(requeued, whole)
