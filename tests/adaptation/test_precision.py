"""What is trained is float32 inside a backbone in half precision, whoever casts it and when."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Iterator

import lightning as L
import peft
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from tests.fixtures.backbone import Tiny, TinyModule, example
from tests.support.trainers import quiet_trainer
from tests.support.zoo import build, example_input

RATE = 1e-4
LAYERS = ["fc1", "fc2"]


class Learner(TinyModule):
    """A small regression; ``width`` is large enough for entries of every size."""

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__(width=16)
        torch.manual_seed(0)
        for parameter in self.model.parameters():
            nn.init.normal_(parameter, 0.0, 0.2)
        self.eps = eps

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.mse_loss(self.model(batch[0]).float(), batch[1].float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            [p for p in self.parameters() if p.requires_grad], lr=RATE, eps=self.eps
        )


class Starts(L.Callback):
    """Keeps what the optimizer begins with."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.optimized = {id(p): p for g in trainer.optimizers[0].param_groups for p in g["params"]}
        self.values = {n: p.detach().clone() for n, p in pl_module.named_parameters()}


def data() -> DataLoader:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, 16, generator=random)
    targets = torch.randn(8, 3, generator=random)
    return DataLoader(TensorDataset(inputs, targets), batch_size=8)


def fitted(precision: str, method: object, steps: int = 20, **settings: object):
    module, starts = Learner(), Starts()
    trainer = quiet_trainer(
        lp.PEFT(method, **settings), starts, precision=precision, max_steps=steps, max_epochs=-1
    )
    trainer.fit(module, data())
    return module, starts


@functools.cache
def moved_in_float32(method: object) -> dict[str, Tensor]:
    """Tell which entries move where nothing is rounded: a dead ReLU moves nothing."""
    module, starts = fitted("32-true", method)
    return {n: p != starts.values[n] for n, p in module.named_parameters()}


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("method", [lp.LoRA(rank=4), "ssf", "norm", "linear_probe"], ids=str)
def test_everything_that_is_trained_moves(precision: str, method: object) -> None:
    would = moved_in_float32(method)
    module, starts = fitted(precision, method)
    adaptation = lp.find_adaptation(module.model)
    half = torch.bfloat16 if precision == "bf16-true" else torch.float16
    trained = {f"model.{name}" for name in adaptation.trained_names()}
    for name, parameter in module.named_parameters():
        assert parameter.dtype == (torch.float32 if name in trained else half), name
        assert parameter.isfinite().all(), name
        if name in trained:
            assert id(parameter) in starts.optimized
            moved = (parameter != starts.values[name])[would[name]]
            assert moved.float().mean() > 0.95, name


def test_the_loss_follows_peft_with_autocast_adapter_dtype() -> None:
    module, _ = fitted("bf16-true", lp.LoRA(rank=4), 1)
    ours = lp.find_adaptation(module.model)
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=LAYERS)
    theirs = peft.get_peft_model(Learner().model.bfloat16(), config, autocast_adapter_dtype=True)
    state = {n: t for n, t in ours.state_dict().items() if "lora_" in n}
    missing = theirs.base_model.model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    losses = []
    for model, names in ((module.model, set(state)), (theirs.base_model.model, set(state))):
        trained = [p for n, p in model.named_parameters() if n in names]
        assert {p.dtype for p in trained} == {torch.float32}
        optimizer = torch.optim.Adam(trained, lr=1e-2)
        for inputs, targets in [next(iter(data()))] * 30:
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs.bfloat16()).float(), targets)
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_the_setting_says_otherwise() -> None:
    module, _ = fitted("bf16-true", lp.LoRA(rank=4), 1, adapter_dtype="bfloat16")
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    model = build("vit")
    adaptation = lp.adapt(model, "ssf", adapter_dtype=torch.bfloat16)
    names = set(adaptation.adapter_names())
    for name, parameter in model.double().named_parameters():
        assert parameter.dtype == (torch.bfloat16 if name in names else torch.float64)
    assert model(example_input("vit").double()).dtype == torch.float64
    adaptation.set_adapter_dtype(None)
    assert model.get_parameter(adaptation.adapter_names()[0]).dtype == torch.float32
    with pytest.raises(
        lp.MethodError, match="adapter_dtype: expected one of float32, .* got 'int8'"
    ):
        adaptation.set_adapter_dtype("int8")
    with pytest.raises(lp.MethodError, match="adapter_dtype: .* Did you mean 'bfloat16'"):
        lp.PEFT("lora", adapter_dtype="bfloat")
    before = dict(model.named_parameters())
    with pytest.raises(lp.MethodError, match="adapter_dtype: expected one of"):
        lp.adapt(build("vit"), "lora", adapter_dtype=torch.int8)
    assert before.keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("method", ["lora", "ssf", "norm", "houlsby"])
def test_float64_and_moves_are_followed_and_casts_are_undone(method: str) -> None:
    model = build("vit")
    adaptation = lp.adapt(model, method)
    inputs = example_input("vit")
    expected = model.eval()(inputs)
    model.bfloat16().to("cpu")  # a move is no cast: the head stays float32 inside bfloat16
    assert model(inputs.bfloat16()).dtype == torch.bfloat16
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(twin(inputs.bfloat16()), model(inputs.bfloat16()))
    twin.half()
    assert twin(inputs.half()).dtype == torch.float16
    assert {twin.get_parameter(n).dtype for n in adaptation.trained_names()} == {torch.float32}
    model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    torch.testing.assert_close(model(inputs.double()).float(), expected, rtol=0.05, atol=0.05)
    assert not model.head._forward_hooks
    model.bfloat16()
    plain = adaptation.unload()
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert "_apply" not in plain.__dict__
    assert plain(inputs.bfloat16()).dtype == torch.bfloat16
    assert {p.dtype for p in plain.half().parameters()} == {torch.float16}


@pytest.mark.parametrize("method", ["lora", "ssf", lp.HF("ln_tuning")], ids=str)
def test_merged_it_is_summed_in_float32_and_rounded_once(method: object) -> None:
    model = build("vit")
    adaptation = lp.adapt(model, method)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) / 50)
    exact = copy.deepcopy(model)
    for name, parameter in exact.named_parameters():  # the backbone as it is after the cast
        if name not in adaptation.trained_names():
            parameter.data = parameter.data.bfloat16().float()
    lp.find_adaptation(exact).merge_and_unload()
    plain = lp.find_adaptation(model.bfloat16()).merge_and_unload()
    for name, parameter in plain.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, exact.get_parameter(name).bfloat16()), name


def test_what_is_tied_or_trained_in_part_has_the_dtype_of_the_backbone() -> None:
    model = build("vit")
    lp.adapt(model, "bitfit")
    model.bfloat16()
    assert model.blocks[0].mlp.fc1.bias.dtype == torch.bfloat16
    assert model.head.weight.dtype == torch.float32
    shared = Tiny(width=3)
    shared.blocks[0].extra = nn.Linear(3, 3)
    shared.blocks[0].extra.weight = shared.head.weight
    lp.adapt(shared, "lora", targets="blocks.*.fc1", rank=1)
    shared.bfloat16()
    assert shared.head.weight.dtype == torch.bfloat16
    assert shared(example()[:, :3].bfloat16()).dtype == torch.bfloat16


def test_what_stays_in_half_precision_is_said_or_refused() -> None:
    trainer = quiet_trainer(lp.PEFT("bitfit"), precision="bf16-true", max_steps=1)
    with pytest.warns(UserWarning, match="trained in half precision, .* model.blocks.0.norm.bias"):
        trainer.fit(Learner(), data())
    trainer = quiet_trainer(lp.PEFT("bitfit"), precision="16-true", max_steps=1)
    module = Learner()
    with pytest.raises(lp.MethodError, match=r"eps float16 can hold \(from 6e-8\), got 1e-08 for"):
        trainer.fit(module, data())
    trainer = quiet_trainer(lp.PEFT("bitfit"), precision="16-true", max_steps=1)
    with pytest.warns(UserWarning, match="trained in half precision"):
        trainer.fit(Learner(eps=1e-4), data())


class TransformerEnginePrecision(HalfPrecision):
    """Stands in for Lightning's, which needs a GPU."""

    def __init__(self, replace_layers: bool | None) -> None:
        super().__init__("bf16-true")
        self.replace_layers = replace_layers


def test_a_plugin_that_replaces_adapted_layers_is_refused() -> None:
    module = Learner()
    before = dict(module.named_parameters())
    trainer = quiet_trainer(lp.PEFT("ssf"), plugins=[TransformerEnginePrecision(None)], max_steps=1)
    with pytest.raises(lp.MethodError, match="with replace_layers=False, got replace_layers=None"):
        trainer.fit(module, data())
    assert dict(module.named_parameters()).keys() == before.keys()
    plugin = TransformerEnginePrecision(False)
    trainer = quiet_trainer(lp.PEFT("ssf"), plugins=[plugin], max_steps=1)
    trainer.fit(module, data())
    scale = module.model.get_parameter("blocks.0.fc1.adapter_ssf.scale")
    assert scale.dtype == torch.float32


class BuildsLate(Learner):
    """Builds its network where Lightning has made half precision the default dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.model = None

    def configure_model(self) -> None:
        if self.model is None:
            self.model = Tiny(width=16)


def test_initial_values_are_not_rounded_where_half_precision_is_the_default() -> None:
    module, starts = BuildsLate(), Starts()
    trainer = quiet_trainer(lp.PEFT("ssf"), starts, precision="bf16-true", max_steps=1)
    trainer.fit(module, data())
    scale = starts.values["model.blocks.0.fc1.adapter_ssf.scale"]
    assert scale.dtype == torch.float32
    assert not torch.equal(scale, scale.bfloat16().float())


def test_a_checkpoint_brings_back_every_bit(tmp_path) -> None:
    module, _ = fitted("bf16-true", lp.LoRA(rank=4), 3)
    trainer = module.trainer
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    expected = {n: t.clone() for n, t in lp.find_adaptation(module.model).state_dict().items()}
    fresh, starts = Learner(), Starts()
    again = quiet_trainer(lp.PEFT(lp.LoRA(rank=4)), starts, precision="bf16-true", max_steps=4)
    again.fit(fresh, data(), ckpt_path=tmp_path / "last.ckpt")
    for name, tensor in expected.items():
        assert torch.equal(starts.values[f"model.{name}"], tensor), name


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_sharded_the_cast_leaves_it_too(mesh: DeviceMesh) -> None:
    module = Learner()
    adaptation = lp.adapt(module.model, lp.LoRA(rank=2))
    lp.shard(module, "model", mesh)
    module.bfloat16()  # as the precision plugin does in the setup of ModelParallelStrategy
    trained = set(adaptation.trained_names())
    optimizer = torch.optim.SGD(adaptation.trained_parameters(), lr=0.1)
    loss = module.model(next(iter(data()))[0].bfloat16()).float().square().mean()
    loss.backward()
    optimizer.step()
    for name, parameter in module.model.named_parameters():
        assert isinstance(parameter, DTensor)
        assert parameter.dtype == (torch.float32 if name in trained else torch.bfloat16), name
        assert (parameter.grad is not None) == (name in trained), name
