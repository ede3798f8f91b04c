import json
import math
import pickle

import lightning.pytorch as L
import pytest
import timm
import torch
from lightning.pytorch.callbacks import LearningRateFinder, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.adaptation.parameter_groups import parameter_groups
from lightning_peft.errors import CheckpointError, MethodError, ScheduleError, TargetError
from lightning_peft.lightning.callbacks.efficiency import EfficiencyMonitor
from lightning_peft.lightning.callbacks.freeze import BackboneFreeze, Stage
from lightning_peft.lightning.callbacks.peft import PEFT
from lightning_peft.lightning.callbacks.schedule import WarmupCosine
from lightning_peft.lightning.schedules import lr_multiplier
from tests.support.trainers import quiet_trainer

STAGES = [Stage(epoch=1, layers="last:1", lr=0.03), Stage(epoch=2, layers="all", lr=0.02)]


def vit(**options):
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 3, "num_heads": 2}
    options = {**sizes, "num_classes": 2, **options}
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **options)


def resnet():
    return timm.create_model(
        "resnet18", pretrained=False, num_classes=2, layers=(1, 1, 1, 1), channels=(4, 4, 8, 8),
        stem_width=4,
    )  # fmt: skip


class Net(L.LightningModule):
    def __init__(self, net=vit, optimizer=None):
        super().__init__()
        self.net = net()
        self.make = optimizer

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        if self.make is not None:
            return self.make(self)
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.01)

    def data(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(6, 3, 16, 16, generator=generator)
        return DataLoader(TensorDataset(images, torch.tensor([0, 1] * 3)), batch_size=2)

    train_dataloader = val_dataloader = data


def trainer(*callbacks, **options):
    return quiet_trainer(*callbacks, **{"max_epochs": 4, "limit_val_batches": 0, **options})


def seeded(net=vit, optimizer=None):
    L.seed_everything(1, verbose=False)
    return Net(net, optimizer)


class Record(L.Callback):
    """The parameters, by name, that each epoch changes; and a checkpoint at the end of each."""

    def __init__(self, directory=None):
        self.changed = []
        self.directory = directory

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = {n: p.detach().clone() for n, p in pl_module.named_parameters()}

    def on_train_epoch_end(self, trainer, pl_module):
        now = dict(pl_module.named_parameters())
        self.changed.append({n for n, p in self.before.items() if not torch.equal(p, now[n])})
        if self.directory is not None:
            trainer.save_checkpoint(self.directory / f"{trainer.current_epoch}.ckpt")


HEAD = {"net.head.weight", "net.head.bias"}


def names(module, *prefixes):
    return {n for n, _ in module.named_parameters() if n.startswith(prefixes)}


# --- freezing --------------------------------------------------------------------------------


def test_frozen_means_bit_equal_and_the_head_is_trained():
    record = Record()
    trainer(BackboneFreeze(), record, max_epochs=1).fit(seeded())
    assert record.changed == [HEAD]


def test_a_head_outside_the_backbone():
    class Two(Net):
        def __init__(self):
            super().__init__(lambda: vit(num_classes=0))
            self.classifier = nn.Linear(8, 2)

        def training_step(self, batch, batch_idx):
            logits = self.classifier(self.net(batch[0]))
            return nn.functional.cross_entropy(logits, batch[1])

    record = Record()
    trainer(BackboneFreeze(), record, max_epochs=1).fit(Two())
    assert record.changed == [{"classifier.weight", "classifier.bias"}]


def test_the_backbone_and_its_head_may_be_named():
    record = Record()
    net = seeded()
    freeze = BackboneFreeze("net", head=["head", "norm"])
    trainer(freeze, record, max_epochs=1).fit(net)
    assert record.changed == [HEAD | names(net, "net.norm.")]


@pytest.mark.parametrize("policy", ["frozen", "train"])
def test_batchnorm(policy):
    net = seeded(resnet)
    before = {n: b.clone() for n, b in net.named_buffers()}
    trainer(BackboneFreeze(batchnorm=policy), max_epochs=2, limit_val_batches=1).fit(net)
    same = all(torch.equal(before[n], b) for n, b in net.named_buffers())
    assert same == (policy == "frozen")


@pytest.mark.parametrize("policy", ["train", "eval"])
def test_dropout(policy):
    modes = []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            part = pl_module.net
            modes.append([part.blocks[0].mlp.drop1, part.blocks[2].mlp.drop1, part.head])
            modes[-1] = [module.training for module in modes[-1]]

    freeze = BackboneFreeze(backbone_dropout=policy, unfreeze=[Stage(1, "last:1")])
    trainer(freeze, Look(), max_epochs=2, limit_val_batches=1).fit(
        seeded(lambda: vit(drop_rate=0.1, proj_drop_rate=0.1))
    )
    on = policy == "train"
    assert modes[:3] == [[on, on, True]] * 3
    assert modes[3:] == [[on, True, True]] * 3


def test_a_backbone_in_evaluation_mode_is_trained_in_training_mode():
    net = seeded()
    net.net.eval()  # as from_pretrained gives it
    trainer(BackboneFreeze(), max_epochs=1).fit(net)
    assert net.net.training


def test_what_the_user_froze_stays_frozen():
    net = seeded()
    net.net.pos_embed.requires_grad_(False)
    record = Record()
    freeze = BackboneFreeze(unfreeze=[Stage(1)])
    for _ in range(2):
        trainer(freeze, record, max_epochs=2).fit(net)
    assert record.changed[1] == record.changed[3]
    assert "net.pos_embed" not in record.changed[1]
    assert "net.cls_token" in record.changed[1]


def test_test_and_predict_leave_the_module_usable_and_picklable():
    net = seeded()
    runner = trainer(BackboneFreeze(unfreeze=STAGES))
    runner.fit(net)
    net.test_step = net.validation_step
    runner.test(net, net.data(), verbose=False)
    pickle.loads(pickle.dumps(net.configure_model))


# --- stages ----------------------------------------------------------------------------------


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


def filtered(module):
    """What many write: only what requires a gradient now."""
    return torch.optim.AdamW(
        parameter_groups(module.net, 0.1, 0.05)
    )  # which leaves out the frozen parameters


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


def test_a_learning_rate_finder_finds_the_rate_of_the_head(tmp_path):
    net = seeded(optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=m.lr))
    net.lr = 0.1
    finder = LearningRateFinder(num_training_steps=15, early_stop_threshold=None)
    options = {"default_root_dir": tmp_path, "max_epochs": 8}
    runner = trainer(BackboneFreeze(unfreeze=STAGES), finder, **options)
    runner.fit(net)
    rates = [group["lr"] for group in runner.optimizers[0].param_groups]
    assert rates == [net.lr, 0.03, 0.02]
    assert net.lr != 0.1


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


@pytest.mark.parametrize(
    ("optimizer", "scheduled"), [(None, True), (filtered, False)], ids=["scheduled", "filtered"]
)
def test_a_resumed_run_is_bit_equal_in_any_epoch(tmp_path, optimizer, scheduled):
    def callbacks(*more):
        schedule = [WarmupCosine(0.2)] if scheduled else []
        return [*schedule, BackboneFreeze(unfreeze=STAGES), *more]

    whole = seeded(resnet, optimizer)
    runner = trainer(*callbacks(Record(tmp_path)))
    runner.fit(whole)
    for epoch in range(3):
        rest = seeded(resnet, optimizer)
        again = trainer(*callbacks())
        again.fit(rest, ckpt_path=tmp_path / f"{epoch}.ckpt")
        for (name, ours), theirs in zip(
            whole.state_dict().items(), rest.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs), (epoch, name)
        groups = [
            [{k: v for k, v in g.items() if k != "params"} for g in o.optimizers[0].param_groups]
            for o in (runner, again)
        ]
        assert groups[0] == groups[1]


# the loader gives the same batches in every run, so there is nothing to resume in it
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_a_run_resumed_in_the_middle_of_an_epoch_has_its_stage(tmp_path):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 4:  # the first batch of epoch 1
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    trainer(BackboneFreeze(unfreeze=STAGES), Stop(), max_epochs=3).fit(seeded())
    net, seen = seeded(), []

    class Look(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            seen.append((trainer.current_epoch, pl_module.net.blocks[2].norm1.weight.requires_grad))

    freeze = BackboneFreeze(unfreeze=STAGES)
    trainer(freeze, Look(), max_epochs=3).fit(net, ckpt_path=tmp_path / "a.ckpt")
    assert set(seen) == {(1, True), (2, True)}
    assert seen[0] == (1, True)


def test_a_checkpoint_of_the_validation_within_an_epoch_resumes(tmp_path):
    class Save(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def run(*callbacks, path=None):
        net = seeded(resnet)
        runner = trainer(BackboneFreeze(unfreeze=STAGES), *callbacks, limit_val_batches=1)
        runner.fit(net, ckpt_path=path)
        return net.state_dict().values()

    whole = run(Save())
    for epoch in (0, 1):
        assert all(map(torch.equal, whole, run(path=tmp_path / f"{epoch}.ckpt")))


def test_a_second_fit_begins_frozen_again():
    net = seeded()
    record = Record()
    freeze = BackboneFreeze(unfreeze=STAGES)
    for _ in range(2):
        trainer(freeze, record, max_epochs=3).fit(net)
    assert record.changed[:3] == record.changed[3:]


def test_learning_rate_monitor_names_the_stages(tmp_path):
    monitor = LearningRateMonitor()
    freeze = BackboneFreeze(unfreeze=STAGES)
    logger = CSVLogger(tmp_path)
    trainer(freeze, monitor, logger=logger, log_every_n_steps=1).fit(seeded())
    assert set(monitor.lrs) == {
        "lr-AdamW/pg1", "lr-AdamW/stage0_epoch1", "lr-AdamW/stage1_epoch2"
    }  # fmt: skip


@pytest.mark.parametrize("first", ["schedule", "freeze"])
def test_a_schedule_applies_to_the_stages_from_the_start_of_the_run(first):
    used = []

    class Look(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            used.append([group["lr"] for group in optimizer.param_groups])

    both = [WarmupCosine(0.25), BackboneFreeze(unfreeze=STAGES)]
    trainer(*(both if first == "schedule" else both[::-1]), Look()).fit(seeded())
    factors = [lr_multiplier(step, 12, 3) for step in range(12)]
    assert used == [[0.1 * f, 0.03 * f, 0.02 * f] for f in factors]


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 2)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "WarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.25, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 4)],
        [2],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_modules_own_scheduler_goes_on_with_the_stages(name):
    """Every group follows the schedule that the same scheduler gives a group of its rate."""

    def optimizer(module):
        made = torch.optim.SGD(module.parameters(), lr=0.1)
        scheduler = SCHEDULERS[name](made)
        return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}

    used = []

    class Look(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            used.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    freeze = BackboneFreeze(unfreeze=STAGES)
    trainer(freeze, Look(), max_epochs=5, limit_val_batches=1).fit(seeded(optimizer=optimizer))
    assert len(used) == 5
    for first, second, third in used:
        assert second == pytest.approx(first * 0.3)
        assert third == pytest.approx(first * 0.2)

    weight = nn.Parameter(torch.zeros(1))
    alone = torch.optim.SGD([weight], lr=0.1)
    scheduler = SCHEDULERS[name](alone)
    if name != "ReduceLROnPlateau":
        for rates in used:
            assert rates[0] == pytest.approx(alone.param_groups[0]["lr"])
            alone.step()
            scheduler.step()
    assert len({tuple(rates) for rates in used}) > 1


def test_a_schedulers_state_is_restored_with_the_stages(tmp_path):
    def optimizer(module):
        made = torch.optim.SGD(module.parameters(), lr=0.1)
        return [made], [lr_scheduler.CosineAnnealingLR(made, 4)]

    whole = seeded(optimizer=optimizer)
    trainer(BackboneFreeze(unfreeze=STAGES), Record(tmp_path)).fit(whole)
    rest = seeded(optimizer=optimizer)
    trainer(BackboneFreeze(unfreeze=STAGES)).fit(rest, ckpt_path=tmp_path / "1.ckpt")
    assert all(map(torch.equal, whole.state_dict().values(), rest.state_dict().values()))


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


# --- on top of an adapter --------------------------------------------------------------------


def test_stages_on_top_of_an_adapter(tmp_path):
    def run(*callbacks, path=None):
        net = seeded()
        both = [PEFT("lora", rank=2), BackboneFreeze(unfreeze=[Stage(1, "last:1", lr=0.03)])]
        trainer(*both, *callbacks, max_epochs=3).fit(net, ckpt_path=path)
        return net

    record = Record(tmp_path)
    whole = run(record)
    (adaptation,) = find_adaptations(whole).values()
    adapter = {f"net.{n}" for n in adaptation.adapter_names()}
    last = names(whole, "net.blocks.2.", "net.norm.") - adapter
    assert record.changed[0] <= HEAD | adapter
    assert record.changed[1] == record.changed[2] == HEAD | adapter | last

    saved = torch.load(tmp_path / "1.ckpt", weights_only=False)["state_dict"]
    assert last <= set(saved)
    assert "net.blocks.0.mlp.fc1.weight" not in saved
    rest = run(path=tmp_path / "1.ckpt")
    assert all(map(torch.equal, whole.state_dict().values(), rest.state_dict().values()))


def test_a_second_fit_on_top_of_an_adapter():
    net, record = seeded(), Record()
    for _ in range(2):
        both = [PEFT("lora", rank=2), BackboneFreeze(unfreeze=[Stage(1, "last:1")])]
        trainer(*both, record, max_epochs=2).fit(net)
    assert len(record.changed[1] - record.changed[0]) > 8
    assert record.changed[1] == record.changed[3]


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (lambda: BackboneFreeze(), "it already freezes that backbone: remove BackboneFreeze"),
        (
            lambda: BackboneFreeze(unfreeze=STAGES, batchnorm="train", backbone_dropout="eval"),
            r"batchnorm is 'frozen' there and 'train' here.*dropout is 'train' there and 'eval'",
        ),
        (lambda: BackboneFreeze(unfreeze=STAGES, head="norm"), "set the head there only"),
    ],
    ids=["nothing to do", "policies", "head"],
)
def test_what_contradicts_an_adaptation_is_refused(freeze, message):
    with pytest.raises(MethodError, match=f"(?s)adapted with lora, and .*{message}"):
        trainer(PEFT("lora", rank=2), freeze()).fit(seeded())


def test_an_adapter_after_the_freezing_is_refused():
    with pytest.raises(MethodError, match="expected PEFT before BackboneFreeze"):
        trainer(BackboneFreeze(unfreeze=STAGES), PEFT("lora", rank=2)).fit(seeded())


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Stage(-1), ScheduleError, "expected epoch to be a whole number from 0, got -1"),
        (lambda: Stage(True, lr=0), ScheduleError, "epoch .* got True; expected lr .* got 0"),
        (lambda: Stage(1, lr=math.inf), ScheduleError, "expected lr to be a number above 0"),
        (lambda: BackboneFreeze(unfreeze=[3]), ScheduleError, "to be a Stage, or a mapping .* 3"),
        (
            lambda: BackboneFreeze(unfreeze=[{"epoch": 1, "layer": "all"}]),
            ScheduleError,
            "mapping with epoch, layers and lr, got {'epoch': 1, 'layer': 'all'}",
        ),
        (
            lambda: BackboneFreeze(batchnorm="eval", backbone_dropout="frozen"),
            MethodError,
            r"batchnorm to be one of \('frozen', 'train'\), got 'eval'; .*dropout .* got 'frozen'",
        ),
    ],
)
def test_impossible_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def unchanged_after(error, message, net, *callbacks, **options):
    before = {n: p.requires_grad for n, p in net.named_parameters()}
    with pytest.raises(error, match=message):
        trainer(*callbacks, **options).fit(net)
    return before == {n: p.requires_grad for n, p in net.named_parameters()}


def test_nothing_left_to_train_is_refused():
    net = seeded(lambda: vit(num_classes=0))
    assert unchanged_after(MethodError, r"beside the backbone 'net' .* got nothing", net,
                           BackboneFreeze())  # fmt: skip


def test_a_stage_without_anything_new_is_refused():
    freeze = BackboneFreeze(unfreeze=[Stage(1, "all"), Stage(2, "last:1")])
    assert unchanged_after(ScheduleError, r"got nothing for Stage\(epoch=2", seeded(), freeze)


def test_layers_of_a_backbone_without_blocks_are_refused():
    net = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Linear(4, 2)))
    freeze = BackboneFreeze("net", head="2", unfreeze=STAGES)
    assert unchanged_after(MethodError, "repeated blocks .* Use layers='all'", net, freeze)


def test_layers_that_are_not_there_are_refused():
    freeze = BackboneFreeze(unfreeze=[Stage(1, (7,))])
    assert unchanged_after(TargetError, "7", seeded(), freeze)


@pytest.mark.parametrize("kind", ["OneCycleLR", "CyclicLR"])
def test_schedulers_with_a_state_of_their_own_a_group_are_refused(kind):
    def optimizer(module):
        made = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        options = {
            "OneCycleLR": {"max_lr": 0.1, "total_steps": 12},
            "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2},
        }
        scheduler = getattr(lr_scheduler, kind)(made, **options[kind])
        return [made], [{"scheduler": scheduler, "interval": "step"}]

    with pytest.raises(ScheduleError, match=f"{kind} cannot be given new parameter groups"):
        trainer(BackboneFreeze(unfreeze=STAGES)).fit(seeded(optimizer=optimizer))


def test_resuming_with_other_stages_is_refused(tmp_path):
    trainer(BackboneFreeze(unfreeze=STAGES), Record(tmp_path)).fit(seeded())
    with pytest.raises(CheckpointError, match=r"stages \[\{'epoch': 1.*got one with .*'epoch': 2"):
        trainer(BackboneFreeze(unfreeze=STAGES[:1])).fit(seeded(), ckpt_path=tmp_path / "0.ckpt")


def test_resuming_a_run_that_had_no_stages_is_refused(tmp_path):
    trainer(Record(tmp_path)).fit(seeded())
    with pytest.raises(CheckpointError, match=r"got one with \[\], whose optimizer has other"):
        trainer(BackboneFreeze(unfreeze=STAGES)).fit(seeded(), ckpt_path=tmp_path / "0.ckpt")


def test_the_weights_of_other_stages_can_be_tested(tmp_path):
    trainer(BackboneFreeze(unfreeze=STAGES), Record(tmp_path)).fit(seeded())
    net = seeded()
    net.test_step = net.validation_step
    runner = trainer(BackboneFreeze(unfreeze=STAGES[:1]))
    runner.test(net, net.data(), ckpt_path=tmp_path / "0.ckpt", verbose=False)


def test_several_optimizers_without_the_backbone_are_refused():
    class Manual(Net):
        automatic_optimization = False

        def configure_optimizers(self):
            head = self.net.head
            return torch.optim.SGD([head.weight], lr=0.1), torch.optim.SGD([head.bias], lr=0.1)

    with pytest.raises(ScheduleError, match="expected one optimizer that trains .* got 0 of 2"):
        trainer(BackboneFreeze(unfreeze=STAGES)).fit(Manual())


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.* returned .None.*:UserWarning")
def test_no_optimizer_is_refused():
    with pytest.raises(ScheduleError, match="expected a torch optimizer .* got _MockOptimizer"):
        trainer(BackboneFreeze(unfreeze=STAGES)).fit(seeded(optimizer=lambda module: None))


def test_a_sharding_strategy_is_refused():
    from lightning.pytorch.strategies import ModelParallelStrategy

    runner = trainer(BackboneFreeze(unfreeze=STAGES))
    strategy = object.__new__(ModelParallelStrategy)
    runner._accelerator_connector.strategy = strategy
    with pytest.raises(ScheduleError, match="ModelParallelStrategy cannot train more parameters"):
        runner.callbacks[0].setup(runner, seeded(), "fit")


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
