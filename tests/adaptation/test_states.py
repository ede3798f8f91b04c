"""Every operation in every state of an adaptation: right, or refused with nothing changed.

The cells are those of ``docs/states.md``, which the same table makes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from safetensors.torch import load_file
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.adaptation.sharding import shard
from lightning_peft.adaptation.state import OPERATIONS, REFUSED, STATES
from lightning_peft.errors import PEFTError
from lightning_peft.lightning.attachment import Attachment, attach
from lightning_peft.lightning.averaging import _share
from lightning_peft.lightning.sharded_checkpoint import read_trained_only
from tests.fixtures.backbone import Tiny, TinyModule, example, fill
from tests.support.trainers import quiet_trainer

LORA = lp.LoRA(rank=2)
IN_PLACE = lp.SSF() + lp.Norm()


def trained(method: lp.Method, shift: float) -> Tiny:
    """Give an adapted backbone whose trained values come from a formula."""
    model = Tiny()
    adaptation = lp.adapt(model, method)
    fill(dict(zip(adaptation.trained_names(), adaptation.trained_parameters(), strict=True)), shift)
    return model


def output(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(example())


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


class World:
    """A module whose adapter is in some state, and what to compare with."""

    def __init__(self, state: str, operation: str, path: Path, stack: ExitStack) -> None:
        self.method = IN_PLACE if operation == "disabled(), trained in place" else LORA
        self.path, self.folders = path, {}
        self.first, self.second = trained(self.method, 1.0), trained(self.method, 2.0)
        for name, model in (("a", self.first), ("b", self.second)):
            self.folders[name] = path / name
            lp.find_adaptation(model).save(path / name)
        self.module = TinyModule()
        attach(self.module, Attachment(self.method))
        self.switch = None
        if operation.startswith("AdapterSwitch.activate"):
            self.switch = lp.AdapterSwitch(self.module.model, self.folders)
        else:
            lp.load_adapter(self.module.model, self.folders["a"])
        self.model = self.module.model
        self.adaptation = lp.find_adaptation(self.model)
        self.average: AveragedModel | None = None
        self.enter(state, stack)
        self.state = state

    def enter(self, state: str, stack: ExitStack) -> None:
        if state == "merged":
            self.adaptation.merge()
        elif state == "disabled":
            stack.enter_context(self.adaptation.disabled())
        elif state == "averaged":
            self.average = AveragedModel(self.model)
            _share(self.adaptation, self.average.module)
            self.adaptation.state.shares = lambda: True
        elif state == "sharded":
            shard(self.module, "model", init_device_mesh("cpu", (1,)))
        elif state == "unloaded":
            self.adaptation.unload()

    def plain(self) -> Tiny:
        """Give the backbone without the adapter, with the trained head."""
        model = Tiny()
        model.head.load_state_dict(self.first.head.state_dict())
        return model

    def checkpoint(self, model: Tiny) -> dict[str, Any]:
        """Write a checkpoint as the trainer does."""
        module = TinyModule()
        attach(module, Attachment(self.method))
        module.model = model
        return saved(module)

    def snapshot(self) -> tuple[Any, ...]:
        flags = {name: p.requires_grad for name, p in self.module.named_parameters()}
        tensors = {n: whole(t).clone() for n, t in self.module.state_dict().items()}
        states = list(self.adaptation.state.now())
        twin = None if self.average is None else output(self.average)
        return [n for n, _ in self.module.named_modules()], flags, tensors, states, twin


def saved(module: TinyModule) -> dict[str, Any]:
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def loaded(module: TinyModule, checkpoint: dict[str, Any]) -> None:
    checkpoint = copy.deepcopy(checkpoint)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])


def act(world: World, operation: str) -> Any:
    """Carry out an operation."""
    adaptation, model = world.adaptation, world.model
    if operation in ("state_dict()", "merge()", "unmerge()", "merge_and_unload()", "unload()"):
        return getattr(adaptation, operation[:-2])()
    if operation == "load_state_dict()":
        return adaptation.load_state_dict(lp.find_adaptation(world.second).state_dict())
    if operation == "save()":
        return adaptation.save(world.path / "saved")
    if operation == "saving a checkpoint":
        return saved(world.module)
    if operation == "loading a checkpoint":
        other = world.second if world.state != "unloaded" else Tiny()
        checkpoint = world.checkpoint(other)
        if world.state == "sharded":
            torch.save(checkpoint, world.path / "whole.ckpt")
            return read_trained_only(world.path / "whole.ckpt", world.module, [])
        return loaded(world.module, checkpoint)
    if operation == "load_adapter()":
        return lp.load_adapter(model, world.folders["b"])
    if operation == "average_adapters()":
        return lp.average_adapters(model, list(world.folders.values()))
    if operation.startswith("disabled"):
        with adaptation.disabled():
            return output(model)
    if operation == "export_model()":
        return lp.export_model(model, world.path / "exported")
    if operation == "adapt()":
        return lp.adapt(model, world.method)
    if operation == "AdapterSwitch()":
        return lp.AdapterSwitch(model, world.folders)
    assert operation == "AdapterSwitch.activate()"
    return world.switch.activate("b")


def check(world: World, operation: str, result: Any) -> None:
    """Compare what an operation did with a model that was never in another state."""
    first, second, state = output(world.first), output(world.second), world.state
    here = output(world.plain()) if state == "unloaded" else first
    if operation == "state_dict()":
        expected = lp.find_adaptation(world.first).state_dict()
        assert result.keys() == expected.keys()
        for name, tensor in result.items():
            assert torch.equal(whole(tensor), expected[name])
    elif operation == "save()":
        assert torch.equal(output(lp.load_adapter(Tiny(), world.path / "saved")), first)
    elif operation == "saving a checkpoint":
        fresh = TinyModule()
        values = {n: whole(t).clone() for n, t in result["state_dict"].items()}
        if state != "unloaded":
            attach(fresh, Attachment(world.method))
            lp.adapt(fresh.model, world.method)
        loaded(fresh, {**result, "state_dict": values})
        torch.testing.assert_close(output(fresh.model), here)
    elif operation == "unload()":
        torch.testing.assert_close(output(world.model), output(world.plain()))
        Tiny().load_state_dict(world.model.state_dict())
    elif operation.startswith("disabled"):
        expected = output(world.plain()) if world.method is LORA else output_of_original(world)
        torch.testing.assert_close(result, expected)
        if state != "disabled":
            torch.testing.assert_close(output(world.model), first)
    elif operation == "export_model()":
        plain = Tiny()
        plain.load_state_dict(load_file(world.path / "exported"))
        torch.testing.assert_close(output(plain), here)
        torch.testing.assert_close(output(world.model), here)
    elif operation == "adapt()":
        assert list(result.state.now()) == ["beside"]
        torch.testing.assert_close(output(world.model), output(world.plain()))  # B is zero
    elif operation == "average_adapters()":
        model = Tiny()
        lp.adapt(model, world.method)
        for name, parameter in model.named_parameters():
            if name in lp.find_adaptation(model).trained_names():
                both = [m.get_parameter(name) for m in (world.first, world.second)]
                parameter.data = (both[0].data + both[1].data) / 2
        torch.testing.assert_close(output(world.model), output(model))
    elif operation == "AdapterSwitch()":
        assert torch.equal(output(world.model), first)
    elif operation == "loading a checkpoint" and state == "unloaded":
        assert torch.equal(output(world.model), output(Tiny()))
    elif operation in ("merge()", "unmerge()", "merge_and_unload()"):
        torch.testing.assert_close(output(world.model), first)
        if operation == "merge_and_unload()":
            Tiny().load_state_dict(world.model.state_dict())
    else:
        torch.testing.assert_close(output(world.model), second)


def output_of_original(world: World) -> Tensor:
    """Give the output of the pretrained norms, without SSF, under the trained head."""
    return output(world.plain())


CELLS = [(state, operation) for operation in OPERATIONS for state in STATES]


@pytest.fixture
def one_process(request: pytest.FixtureRequest) -> Iterator[None]:
    if "sharded" not in request.node.name:
        yield
        return
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize(("state", "operation"), CELLS)
def test_a_cell(state: str, operation: str, tmp_path: Path, one_process: None) -> None:
    with ExitStack() as stack:
        world = World(state, operation, tmp_path, stack)
        reason = REFUSED.get((state, operation))
        if reason is None:
            check(world, operation, act(world, operation))
            return
        before = world.snapshot()
        with pytest.raises(PEFTError, match=re.escape(reason)):
            act(world, operation)
        after = world.snapshot()
        assert before[:2] == after[:2]
        assert before[3] == after[3] == [state]
        for one, two in ((before[2], after[2]), ({"": before[4]}, {"": after[4]})):
            assert one.keys() == two.keys()
            for name, tensor in one.items():
                assert tensor is two[name] is None or torch.equal(tensor, two[name]), name
        assert not list(tmp_path.glob("saved*"))
        assert not list(tmp_path.glob("exported*"))


def test_the_table_names_only_states_and_operations() -> None:
    assert {state for state, _ in REFUSED} <= set(STATES)
    assert {operation for _, operation in REFUSED} <= set(OPERATIONS)


class Merges(L.Callback):
    """Tries to merge in the middle of a run."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        adaptation = lp.find_adaptation(pl_module.model)
        assert list(adaptation.state.now()) == ["averaged"]
        twin = lp.find_adaptation(copy.deepcopy(pl_module.model))
        assert list(twin.state.now()) == ["beside"]
        with pytest.raises(lp.MethodError, match=r"merge\(\): .* that an average shares"):
            adaptation.merge()


def test_a_run_that_averages_is_seen_and_ends() -> None:
    module, data = TinyModule(), DataLoader(TensorDataset(example()), batch_size=2)
    callbacks = (lp.PEFT("lora", rank=2), WeightAveraging(), Merges())
    quiet_trainer(*callbacks, max_steps=2).fit(module, data)
    lp.find_adaptation(module.model).merge()


def test_what_was_unloaded_is_evaluated_as_it_is_and_fitted_anew(tmp_path: Path) -> None:
    class Validated(TinyModule):
        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.log("loss", self.model(batch[0]).square().mean())

    module, data = Validated(), DataLoader(TensorDataset(example()), batch_size=4)
    trainer = quiet_trainer(lp.PEFT("ssf"), max_steps=2)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    expected = trainer.validate(module, data, verbose=False)[0]["loss"]
    lp.find_adaptation(module.model).merge_and_unload()
    # SSF begins with random numbers, so that another one would be another model
    found = trainer.validate(module, data, verbose=False)[0]["loss"]
    assert lp.find_adaptation(module.model) is None
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(lp.BackboneMismatchError, match="adapter was merged into the weights"):
        trainer.validate(module, data, ckpt_path=tmp_path / "last.ckpt", verbose=False)
    fresh = Validated()
    lp.adapt(fresh.model, "ssf")
    lp.find_adaptation(fresh.model).unload()
    quiet_trainer(lp.PEFT("ssf"), max_steps=1).fit(fresh, data)
    assert lp.find_adaptation(fresh.model) is not None
