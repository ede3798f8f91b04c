"""FSDP2 through Lightning's ModelParallelStrategy, on two processes and on one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.multiprocessing import ProcessRaisedException

import lightning_peft as lp
from tests.support.ranks import Images, leave, run_ranks
from tests.support.trainers import quiet_trainer
from tests.support.zoo import build, example_input

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    # the prompts are taken off the output of a block, which leaves a view
    pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor"),
]

EPOCHS = 2
SHARDED_METHODS = {
    "lora": {"rank": 2},
    "ssf": {},
    "adaptformer": {"dropout": 0.0},
    "vpt_deep": {},
    "bitfit": {},
    "fact_tk": {"rank": 2, "dropout": 0.0},
    "ladder": {},
}


def sharded(world: int, *callbacks: L.Callback, whole_file: bool = False, **settings: Any):
    strategy = ModelParallelStrategy(
        data_parallel_size=world,
        tensor_parallel_size=1,
        save_distributed_checkpoint=not whole_file,
    )
    settings = {"use_distributed_sampler": False, **settings}
    return quiet_trainer(*callbacks, devices=world, strategy=strategy, **settings)


def train(world: int, directory: Path, name: str, epochs: int, resume: Path | None = None) -> None:
    """Train ``Images``; every world sees four images a step, in the same order."""
    module = Images(batch_size=4 // world)
    trainer = sharded(world, lp.PEFT("lora", rank=2), max_epochs=epochs)
    trainer.fit(module, ckpt_path=resume, weights_only=True)
    assert isinstance(module.net.blocks[0], FSDPModule)
    assert isinstance(module.net, FSDPModule)
    assert isinstance(module.scale, FSDPModule)
    trainer.save_checkpoint(directory / name)
    leave(module, directory / f"{name}.pt")


def two_ranks(directory: Path) -> None:
    train(2, directory, "stopped", 1)
    train(2, directory, "resumed", EPOCHS, resume=directory / "stopped")
    train(2, directory, "never_stopped", EPOCHS)
    train(2, directory, "from_one", EPOCHS, resume=directory / "stopped_one")


def one_rank(directory: Path) -> None:
    train(1, directory, "stopped_one", 1)


def back_on_one_rank(directory: Path) -> None:
    train(1, directory, "from_two", EPOCHS, resume=directory / "stopped")
    for kind in ("full", "merged"):
        train(1, directory, f"from_{kind}", EPOCHS, resume=directory / f"{kind}.ckpt")


def unsharded(method: Any, **settings: Any) -> dict[str, torch.Tensor]:
    module = Images(batch_size=4, **settings)
    quiet_trainer(lp.PEFT(method), max_epochs=EPOCHS).fit(module)
    return dict(module.named_parameters())


def test_stopped_resumed_and_moved_to_another_number_of_processes(tmp_path: Path) -> None:
    for kind in ("full", "merged"):
        trainer = quiet_trainer(lp.PEFT("lora", rank=2, checkpoints=kind), max_epochs=1)
        trainer.fit(Images(batch_size=4))
        trainer.save_checkpoint(tmp_path / f"{kind}.ckpt")
    run_ranks(1, one_rank, tmp_path)
    run_ranks(2, two_ranks, tmp_path)
    run_ranks(1, back_on_one_rank, tmp_path)
    ends = {path.stem: torch.load(path) for path in tmp_path.glob("*.pt")}
    reference = ends["never_stopped"]
    for name, value in ends["resumed"].items():
        assert torch.equal(value, reference[name]), name
    whole = (ends["from_full"], ends["from_merged"], unsharded(lp.LoRA(rank=2)))
    for other in (ends["from_two"], ends["from_one"], *whole):
        for name, value in other.items():
            torch.testing.assert_close(value, reference[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not torch.equal(reference["net.head.weight"], ends["stopped"]["net.head.weight"])

    stored = dcp.FileSystemReader(tmp_path / "stopped").read_metadata().state_dict_metadata
    kept = {key.removeprefix("state_dict.") for key in stored if key.startswith("state_dict.")}
    assert kept == {n for n in reference if "lora_" in n or ".head." in n or n.startswith("scale.")}


def fit_once(directory: Path) -> None:
    for name, settings in SHARDED_METHODS.items():
        # a gradient that is zero but for rounding is a whole step to Adam
        module = Images(optimizer="SGD")
        method = lp.create_method(name, **settings)
        sharded(2, lp.PEFT(method), max_epochs=EPOCHS).fit(module)
        leave(module, directory / f"{name}.pt")


@pytest.mark.slow
def test_sharded_training_equals_training_on_one_process(tmp_path: Path) -> None:
    run_ranks(2, fit_once, tmp_path)
    for name, settings in SHARDED_METHODS.items():
        expected = unsharded(lp.create_method(name, **settings), optimizer="SGD")
        got = torch.load(tmp_path / f"{name}.pt")
        assert got.keys() == expected.keys()
        for key, value in got.items():
            torch.testing.assert_close(
                value, expected[key], rtol=1e-5, atol=1e-6, msg=f"{name} {key}"
            )


READ = {
    "lora-attention": lp.LoRA(rank=2),
    "dora-lstm": lp.DoRA(rank=2),
    "ssf-eva": lp.create_method("ssf"),
    "lora_qv-eva": lp.create_method("lora_qv", rank=2),
    "hra-conv_transposed": lp.HF("hra", r=2, targets="features.2"),
    "lora-weight_normed": lp.LoRA(rank=2),
}


def sharded_by_hand() -> None:
    """Shard each model in which weights are read with their update; compare it with a whole one."""
    torch.distributed.init_process_group("gloo")
    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    for key, method in READ.items():
        backbone = key.partition("-")[2]
        model, inputs = build(backbone), example_input(backbone)
        torch.manual_seed(1)
        adaptation = lp.adapt(model, method)
        with torch.no_grad():
            for parameter in adaptation.trained_parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        expected = model(inputs)
        expected.square().mean().backward()
        slopes = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        twin = copy.deepcopy(model)
        twin.zero_grad()
        for block in twin.features if hasattr(twin, "features") else twin.blocks:
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
        fully_shard(twin, mesh=mesh)
        got = twin(inputs)
        got.square().mean().backward()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6, msg=key)
        grads = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
        assert grads.keys() == slopes.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(
                grad.full_tensor(), slopes[name], rtol=1e-4, atol=1e-6, msg=f"{key} {name}"
            )
        stored, own = get_model_state_dict(twin), model.state_dict()
        assert stored.keys() == own.keys()
        for name, value in stored.items():
            assert torch.equal(value.full_tensor(), own[name]), f"{key} {name}"
    torch.distributed.destroy_process_group()


def test_a_sharded_weight_is_read_with_its_sharded_update() -> None:
    run_ranks(2, sharded_by_hand)


def resumed_in_weight(directory: Path) -> None:
    for name, epochs, start in (
        ("stopped", 1, None),
        ("resumed", 2, "stopped"),
        ("whole", 2, None),
    ):
        module = Images("tv_vit")
        trainer = sharded(2, lp.PEFT("lora", rank=2), max_epochs=epochs)
        resume = None if start is None else directory / start
        trainer.fit(module, ckpt_path=resume, weights_only=True)
        trainer.save_checkpoint(directory / name)
        leave(module, directory / f"{name}.pt")


@pytest.mark.slow
def test_a_sharded_run_with_updates_in_the_weight_is_resumed_bit_equal(tmp_path: Path) -> None:
    run_ranks(2, resumed_in_weight, tmp_path)
    resumed, whole = (torch.load(tmp_path / f"{name}.pt") for name in ("resumed", "whole"))
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    stored = dcp.FileSystemReader(tmp_path / "stopped").read_metadata().state_dict_metadata
    assert any("in_proj.lora_A" in name for name in stored)
    assert not any("in_proj_weight" in name for name in stored if name.startswith("state_dict."))


class ShardsItself(Images):
    """As Lightning's documentation says: the module's own code shards the network."""

    def configure_model(self) -> None:
        if isinstance(self.net, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for block in self.net.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.net, mesh=mesh)
        fully_shard(self.scale, mesh=mesh)


class BuildsAndShards(ShardsItself):
    def __init__(self) -> None:
        super().__init__()
        self.net = None

    def configure_model(self) -> None:
        self.net = build("vit")
        super().configure_model()


def shards_itself(directory: Path) -> None:
    module = ShardsItself(batch_size=2)
    trainer = sharded(2, lp.PEFT("lora", rank=2), whole_file=True, max_epochs=EPOCHS)
    trainer.fit(module)
    trainer.save_checkpoint(directory / "whole.ckpt")
    leave(module, directory / "own.pt")


def test_a_module_that_shards_itself_is_adapted_first_and_may_leave_one_file(
    tmp_path: Path,
) -> None:
    run_ranks(2, shards_itself, tmp_path)
    expected = unsharded(lp.LoRA(rank=2))
    for name, value in torch.load(tmp_path / "own.pt").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)

    checkpoint = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    assert all("base_layer" not in name for name in checkpoint["state_dict"])
    module = Images(batch_size=4)
    trainer = quiet_trainer(lp.PEFT("lora", rank=2), max_epochs=EPOCHS + 1)
    trainer.fit(module, ckpt_path=tmp_path / "whole.ckpt", weights_only=True)
    longer = Images(batch_size=4)
    quiet_trainer(lp.PEFT("lora", rank=2), max_epochs=EPOCHS + 1).fit(longer)
    for name, value in longer.named_parameters():
        torch.testing.assert_close(
            module.get_parameter(name), value, rtol=1e-4, atol=1e-5, msg=name
        )


class Alone(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    training_step = Images.training_step
    train_dataloader = Images.train_dataloader
    batch_size = 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithABareParameter(Images):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))


def tie(module: Images) -> Images:
    module.net.blocks[1].mlp.fc1.bias = module.net.blocks[0].mlp.fc1.bias
    return module


REFUSED = {
    "sharded before": (BuildsAndShards, "lora", "was sharded before it was adapted"),
    "shared": (Images, lp.HF("unilora"), r"tensors that several blocks share.*unilora_theta_d"),
    "tied": (lambda: tie(Images()), "bitfit", "tensors that several blocks share"),
    "alone": (Alone, lp.LoRA(rank=2), "Alone is its own backbone"),
    "bare": (WithABareParameter, "lora", "temperature of WithABareParameter belong to"),
}


def refused(key: str) -> None:
    make, method, _ = REFUSED[key]
    sharded(1, lp.PEFT(method), max_epochs=1).fit(make())


@pytest.mark.parametrize("key", REFUSED)
def test_what_cannot_be_sharded_is_refused(key: str) -> None:
    with pytest.raises(ProcessRaisedException, match=f"(?s)MethodError.*{REFUSED[key][2]}"):
        run_ranks(1, refused, key)


def misread(directory: Path, wrong: str) -> None:
    trainer = sharded(1, lp.PEFT("lora", rank=2), max_epochs=1)
    trainer.fit(Images())
    trainer.save_checkpoint(directory / "good")
    method = lp.LoRA(rank=2)
    if wrong == "method":
        method = lp.LoRA(rank=3)
    elif wrong == "unfinished":
        (directory / "good" / "meta.pt").unlink()
    sharded(1, lp.PEFT(method), max_epochs=2).fit(Images(), ckpt_path=directory / "good")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("method", "was made with another adaptation"),
        ("unfinished", "expected a distributed checkpoint or a file with a whole one"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(wrong, message, tmp_path: Path) -> None:
    with pytest.raises(ProcessRaisedException, match=f"(?s)CheckpointError.*{message}"):
        run_ranks(1, misread, tmp_path, wrong)


def test_the_first_fsdp_is_refused_with_what_to_use_instead() -> None:
    trainer = quiet_trainer(lp.PEFT("lora", rank=2), max_epochs=1)
    module = Images()
    trainer.strategy.__class__ = type("FSDPStrategy", (type(trainer.strategy),), {})
    assert FSDPStrategy.__name__ == "FSDPStrategy"
    with pytest.raises(lp.MethodError, match="expected ModelParallelStrategy .* got FSDPStrategy"):
        trainer.fit(module)
