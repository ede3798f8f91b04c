"""AdaLoRA's work at each step: that of peft's own model, kept in checkpoints."""

import lightning as L
import peft
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from tests.support.trainers import quiet_trainer
from tests.support.zoo import CLASSES, build

STEPS = 12
METHOD = lp.AdaLoRA(rank=1, initial_rank=2, warmup=0.1, final=0.25, interval=2, orthogonality=0.3)


def batches():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2 * STEPS, 3, 32, 32, generator=generator)
    return TensorDataset(images, torch.arange(2 * STEPS) % CLASSES)


class Images(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = build("vit")

    def training_step(self, batch):
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def train_dataloader(self):
        return DataLoader(batches(), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


class Mixed(lp.PEFTMixin, Images):
    peft = METHOD


def trained(module=None, callbacks=None, path=None, **options):
    torch.manual_seed(1)
    module = Images() if module is None else module
    callbacks = [lp.PEFT(METHOD)] if callbacks is None else callbacks
    options = {"max_epochs": 1, **options}
    trainer = quiet_trainer(*callbacks, **options)
    trainer.fit(module, ckpt_path=path)
    return module, trainer


def by_hand():
    """The loop that peft's documentation asks for, with peft's own model."""
    torch.manual_seed(1)
    model = build("vit").requires_grad_(False)
    model.head.requires_grad_(True)
    config = peft.AdaLoraConfig(
        target_modules=["qkv", "proj", "fc1", "fc2"],
        exclude_modules=["patch_embed.proj"],
        init_r=2,
        target_r=1,
        lora_alpha=2,
        tinit=1,
        tfinal=3,
        deltaT=2,
        orth_reg_weight=0.3,
        total_step=STEPS,
    )
    tuner = peft.AdaLoraModel(model, {"default": config}, "default")
    model.head.requires_grad_(True)
    tuner.peft_config["default"].total_step = STEPS
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    for step, (images, labels) in enumerate(DataLoader(batches(), batch_size=2), 1):
        loss = nn.functional.cross_entropy(model(images), labels)
        sides = [
            p @ p.T if "lora_A" in n else p.T @ p
            for n, p in model.named_parameters()
            if "lora_A" in n or "lora_B" in n
        ]
        penalty = sum(torch.norm(c - torch.eye(len(c)), p="fro") for c in sides) / len(sides)
        optimizer.zero_grad()
        (loss + 0.3 * penalty).backward()
        optimizer.step()
        tuner.update_and_allocate(step)
    return model


def ranks(net):
    return [int((p != 0).sum()) for n, p in net.named_parameters() if "lora_E" in n]


def test_it_is_what_peft_does():
    module, _ = trained()
    expected = by_hand().state_dict()
    got = module.net.state_dict()
    assert set(got) >= {name for name in expected if "lora_" in name}
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_the_ranks_end_at_what_was_asked_for():
    module, _ = trained()
    assert sum(ranks(module.net)) == len(ranks(module.net)) * METHOD.rank
    assert min(ranks(module.net)) < max(ranks(module.net))


def test_the_mixin_does_the_same():
    module, _ = trained(Mixed(), callbacks=[])
    expected, _ = trained()
    for name, value in expected.net.state_dict().items():
        assert torch.equal(module.net.state_dict()[name], value), name


class StopAfter(L.Callback):
    def __init__(self, steps, path):
        self.steps, self.path = steps, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.steps:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


@pytest.mark.parametrize("epochs", [1, 2])
def test_stopped_and_resumed_it_ends_as_if_it_had_not_stopped(epochs, tmp_path):
    whole, _ = trained(max_epochs=3)
    path = tmp_path / "last.ckpt"
    trained(callbacks=[lp.PEFT(METHOD), StopAfter(epochs * STEPS, path)], max_epochs=3)
    (kept,) = torch.load(path, weights_only=True)["lightning_peft"]["steppers"]["net"]
    assert kept["exp_avg_ipt"]
    rest, _ = trained(path=path, max_epochs=3)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(rest.net.state_dict()[name], value), name


def test_a_run_that_goes_on_with_fewer_steps_ends_at_the_ranks(tmp_path):
    path = tmp_path / "last.ckpt"
    trained(callbacks=[lp.PEFT(METHOD), StopAfter(2 * STEPS, path)], max_epochs=3)
    rest, trainer = trained(path=path, max_epochs=3, accumulate_grad_batches=4)
    assert rest.net.peft_config["default"].total_step == trainer.global_step == 24 + 3
    assert sum(ranks(rest.net)) == len(ranks(rest.net)) * METHOD.rank


def test_accumulated_gradients_are_one_step_and_one_penalty():
    module, trainer = trained(accumulate_grad_batches=2, max_epochs=2)
    assert trainer.global_step == STEPS
    assert sum(ranks(module.net)) == len(ranks(module.net)) * METHOD.rank


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_a_step_or_two_ends_at_the_ranks_too(steps):
    module, _ = trained(max_steps=steps, max_epochs=-1)
    assert sum(ranks(module.net)) <= 8 * METHOD.rank


def test_a_run_without_a_length_is_refused():
    with pytest.raises(lp.MethodError, match="expected a run of known length"):
        trained(max_epochs=-1)


def test_a_schedule_for_another_run_is_refused():
    method = lp.HF("adalora", target_r=1, init_r=2, total_step=999)
    with pytest.raises(lp.MethodError, match="the length of the run, 12 steps, got 999"):
        trained(callbacks=[lp.PEFT(method)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 8, "initial_rank": 4}, r"initial_rank to be more than rank \(8\), .* got 4"),
        ({"rank": 8, "initial_rank": 8}, r"so that there are ranks to prune, got 8"),
        ({"warmup": 0.5, "final": 0.5}, "leave some of it for the allocation, got 0.5 and 0.5"),
        ({"orthogonality": -1}, "orthogonality to be 0 or positive, got -1"),
        ({"interval": 0, "alpha": 0}, "interval .* got 0; expected alpha to be positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(lp.MethodError, match=message):
        lp.AdaLoRA(**settings)
