"""Runs with stages that are resumed, and checkpoints of other stages."""

import lightning.pytorch as L
import pytest
import torch

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.errors import CheckpointError
from lightning_peft.lightning.callbacks.freeze import BackboneFreeze, Stage
from lightning_peft.lightning.callbacks.peft import PEFT
from lightning_peft.lightning.callbacks.schedule import WarmupCosine
from tests.support.freezing import HEAD, STAGES, Record, filtered, names, resnet, seeded, trainer


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
