"""Stages: which parameters are trained from which epoch on."""

import json

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_peft.adaptation.parameter_groups import parameter_groups
from lightning_peft.lightning.callbacks.efficiency import EfficiencyMonitor
from lightning_peft.lightning.callbacks.freeze import BackboneFreeze, Stage
from lightning_peft.lightning.callbacks.peft import PEFT
from lightning_peft.lightning.callbacks.schedule import WarmupCosine
from tests.support.freezing import (
    HEAD,
    STAGES,
    Net,
    Record,
    filtered,
    names,
    resnet,
    seeded,
    trainer,
)


def test_stages_train_from_their_epoch_on():
    net = seeded()
    record = Record()
    trainer(BackboneFreeze(unfreeze=STAGES), record).fit(net)
    last = HEAD | names(net, "net.blocks.2.", "net.norm.")
    everything = names(net, "net.")
    assert record.changed == [HEAD, last, everything, everything]


def test_a_stage_at_epoch_0_trains_from_the_start():
    net = seeded()
    record = Record()
    freeze = BackboneFreeze(unfreeze=[{"epoch": 0, "layers": [1, 2], "lr": 0.01}])
    trainer(freeze, record, max_epochs=1).fit(net)
    assert record.changed == [HEAD | names(net, "net.blocks.1.", "net.blocks.2.", "net.norm.")]


def test_held_batchnorm_does_not_learn_its_statistics_in_its_stage_either():
    net = seeded(resnet)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    freeze = BackboneFreeze(batchnorm="held", unfreeze=[Stage(1)])
    trainer(freeze, max_epochs=3, limit_val_batches=1).fit(net)
    changed = {n for n, t in net.state_dict().items() if not torch.equal(before[n], t)}
    assert any(name.endswith("bn1.weight") for name in changed)
    assert not any("running" in name or "tracked" in name for name in changed)


def test_batchnorm_learns_from_its_stage_on():
    net = seeded(resnet)
    statistics = []

    class Look(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            norms = [pl_module.net.bn1, pl_module.net.layer4[0].bn1]
            statistics.append([norm.num_batches_tracked.item() for norm in norms])

    freeze = BackboneFreeze(unfreeze=STAGES)
    trainer(freeze, Look(), limit_val_batches=1).fit(net)
    assert statistics == [[0, 0], [0, 3], [3, 6], [6, 9]]


def test_the_groups_of_all_stages_are_there_from_the_start():
    seen = {}

    class Look(L.Callback):
        def on_train_start(self, trainer, pl_module):
            (optimizer,) = trainer.optimizers
            by_id = {id(p): n for n, p in pl_module.named_parameters()}
            for group in optimizer.param_groups:
                seen[group["name"]] = (
                    {by_id[id(p)] for p in group["params"]},
                    group["lr"],
                    group["weight_decay"],
                )

    net = seeded(optimizer=lambda m: torch.optim.AdamW(parameter_groups(m.net, 0.1, 0.05)))
    frozen_too = lambda m: torch.optim.AdamW(  # noqa: E731
        [
            {"params": [p for p in m.parameters() if p.ndim > 1], "name": "decay"},
            {
                "params": [p for p in m.parameters() if p.ndim < 2],
                "name": "none",
                "weight_decay": 0,
            },
        ],
        lr=0.1,
        weight_decay=0.05,
    )
    net.make = frozen_too
    trainer(BackboneFreeze(unfreeze=STAGES), Look(), max_epochs=3).fit(net)
    last = names(net, "net.blocks.2.", "net.norm.")
    flat = {n for n, p in net.named_parameters() if p.ndim < 2}
    rest = names(net, "net.") - last - HEAD
    assert seen == {
        "decay": (HEAD - flat, 0.1, 0.05),
        "none": (HEAD & flat, 0.1, 0),
        "stage0_epoch1_decay": (last - flat, 0.03, 0.05),
        "stage0_epoch1_none": (last & flat, 0.03, 0),
        "stage1_epoch2_decay": (rest - flat, 0.02, 0.05),
        "stage1_epoch2_none": (rest & flat, 0.02, 0),
    }


def test_an_optimizer_without_the_frozen_parameters_is_given_them():
    net = seeded(optimizer=filtered)
    record = Record()
    runner = trainer(BackboneFreeze(unfreeze=STAGES), record)
    runner.fit(net)
    assert record.changed[-1] == names(net, "net.")
    decays = {g["name"]: g["weight_decay"] for g in runner.optimizers[0].param_groups}
    assert decays == {
        "decay": 0.05, "no_decay": 0.0,
        "stage0_epoch1_decay": 0.05, "stage0_epoch1_no_decay": 0.0,
        "stage1_epoch2_decay": 0.05, "stage1_epoch2_no_decay": 0.0,
    }  # fmt: skip


def test_an_optimizer_that_knows_the_names():
    net = seeded(optimizer=lambda m: torch.optim.AdamW(list(m.named_parameters()), lr=0.1))
    runner = trainer(BackboneFreeze(unfreeze=STAGES), max_epochs=3)
    runner.fit(net)
    for group in runner.optimizers[0].param_groups:
        named = [net.net.get_parameter(name.removeprefix("net.")) for name in group["param_names"]]
        assert all(a is b for a, b in zip(named, group["params"], strict=True))


def test_equal_to_unfreezing_by_hand():
    """A plain loop that adds the groups when they are due gives the same weights."""
    net = seeded(optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
    trainer(BackboneFreeze(unfreeze=STAGES)).fit(net)

    by_hand = seeded()
    head = list(by_hand.net.head.parameters())
    last = [*by_hand.net.blocks[2].parameters(), *by_hand.net.norm.parameters()]
    known = {id(p) for p in (*head, *last)}
    rest = [p for p in by_hand.net.parameters() if id(p) not in known]
    optimizer = torch.optim.SGD(head, lr=0.1, momentum=0.9)
    for parameter in (*last, *rest):
        parameter.requires_grad_(False)
    for epoch in range(4):
        for due, part, lr in ((1, last, 0.03), (2, rest, 0.02)):
            if epoch == due:
                for parameter in part:
                    parameter.requires_grad_(True)
                optimizer.add_param_group({"params": part, "lr": lr})
        for batch in by_hand.data():
            optimizer.zero_grad()
            by_hand.training_step(batch, 0).backward()
            optimizer.step()
    for (name, ours), theirs in zip(net.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7, msg=name)


def test_a_second_fit_begins_frozen_again():
    net = seeded()
    record = Record()
    freeze = BackboneFreeze(unfreeze=STAGES)
    for _ in range(2):
        trainer(freeze, record, max_epochs=3).fit(net)
    assert record.changed[:3] == record.changed[3:]


def test_manual_optimization_gives_the_stages_to_the_optimizer_of_the_backbone():
    class Manual(Net):
        automatic_optimization = False

        def configure_optimizers(self):
            body = [p for n, p in self.net.named_parameters() if not n.startswith("head")]
            head = self.net.head.parameters()
            return torch.optim.SGD(head, lr=0.1), torch.optim.SGD(body, lr=0.1)

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

    L.seed_everything(1, verbose=False)
    net, record = Manual(), Record()
    runner = trainer(BackboneFreeze(unfreeze=STAGES), record)
    runner.fit(net)
    assert [len(o.param_groups) for o in runner.optimizers] == [1, 3]
    assert record.changed[-1] == names(net, "net.")


def test_a_second_fit_on_top_of_an_adapter():
    net, record = seeded(), Record()
    for _ in range(2):
        both = [PEFT("lora", rank=2), BackboneFreeze(unfreeze=[Stage(1, "last:1")])]
        trainer(*both, record, max_epochs=2).fit(net)
    assert len(record.changed[1] - record.changed[0]) > 8
    assert record.changed[1] == record.changed[3]


def test_a_run_that_ends_before_a_stage_says_so():
    with pytest.warns(UserWarning, match=r"run of 2 epochs \(0 to 1\) ends before Stage\(epoch=2"):
        trainer(BackboneFreeze(unfreeze=STAGES), max_epochs=2).fit(seeded())


def test_fast_dev_run():
    trainer(BackboneFreeze(unfreeze=STAGES), fast_dev_run=True).fit(seeded())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, inputs):
        return inputs + self.two(self.norm(self.one(inputs)))


class Keep(L.Callback):
    """Keep each process's parameters, and how many batches its BatchNorms saw."""

    def __init__(self, directory):
        self.directory = directory

    def on_train_end(self, trainer, pl_module):
        flat = nn.utils.parameters_to_vector(pl_module.parameters()).detach()
        batches = [int(block.norm.num_batches_tracked) for block in pl_module.net.blocks]
        torch.save((flat, batches), self.directory / f"{trainer.global_rank}.pt")


class Vectors(Net):
    def __init__(self):
        super().__init__(nn.Sequential)
        self.net.blocks = nn.Sequential(Block(), Block())
        self.net.head = nn.Linear(4, 2)

    def data(self):
        generator = torch.Generator().manual_seed(0)
        vectors = torch.randn(16, 4, generator=generator)
        return DataLoader(TensorDataset(vectors, torch.tensor([0, 1] * 8)), batch_size=2)

    train_dataloader = data

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


# torch's threads are idle at the fork, and the children run on one thread each
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_ddp_trains_a_stage_alike_on_every_process(tmp_path, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # set by the launcher; put back afterwards
        monkeypatch.delenv(name)
    L.seed_everything(0, verbose=False)
    stages = [Stage(1, "last:1"), Stage(2)]
    net = Vectors()
    start = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    callbacks = [
        BackboneFreeze(unfreeze=stages),
        WarmupCosine(0.1),
        EfficiencyMonitor(verbose=False),
        Keep(tmp_path),
    ]
    options = {"devices": 2, "strategy": "ddp_fork", "default_root_dir": tmp_path}
    trainer(*callbacks, max_epochs=3, **options).fit(net)
    (first, batches), (second, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    assert (first == start).sum() <= 8  # a bias before a BatchNorm has next to no gradient
    assert batches == [4, 8]  # a frozen BatchNorm counts none before its stage
    report = json.loads((tmp_path / "efficiency.json").read_text())
    assert report["trainable_parameters"] == report["total_parameters"] == len(start)
    assert report["step_flops"] > 0
