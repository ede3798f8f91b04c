"""What is frozen, what is trained beside it, and what is refused."""

import math
import pickle

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from lightning_peft.errors import MethodError, ScheduleError, TargetError
from lightning_peft.lightning.callbacks.freeze import BackboneFreeze, Stage
from lightning_peft.lightning.callbacks.peft import PEFT
from tests.support.freezing import (
    HEAD,
    STAGES,
    Net,
    Record,
    names,
    resnet,
    seeded,
    trainer,
    vit,
)


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
            r"batchnorm to be one of \('frozen', 'held', 'train'\), got 'eval'; .* got 'frozen'",
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
