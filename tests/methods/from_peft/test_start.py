"""Initialisations that rewrite the weights: the original is kept, and what was taken out is saved.

The reference is ``peft`` alone and the backbone itself.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.pytorch_utils import Conv1D

import lightning_peft as lp
from lightning_peft.adaptation.serving.soup import average_adapters
from lightning_peft.adaptation.serving.switching import AdapterSwitch
from tests.support.trainers import quiet_trainer

TARGETS = ["0", "2"]
INPUT = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))

TAKEN_OUT: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "niter": {"init_lora_weights": "pissa_niter_4"},
    "rslora": {"init_lora_weights": "pissa_niter_4", "use_rslora": True, "lora_alpha": 3},
    "dora": {"init_lora_weights": "pissa_niter_4", "use_dora": True},
    "patterns": {
        "init_lora_weights": "pissa_niter_4",
        "rank_pattern": {"2": 2},
        "alpha_pattern": {"0": 16},
    },
}
HAS_KASA = hasattr(peft, "KasaConfig")
REWRITTEN = {**TAKEN_OUT, **({"kasa": {"kasa_config": {}}} if HAS_KASA else {})}
RANDOM = ("niter", "rslora", "dora", "patterns")


def backbone() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16), nn.Linear(16, 3))


def method(case: str) -> lp.HF:
    return lp.HF("lora", targets=TARGETS, r=4, **REWRITTEN[case])


def move(model: nn.Module, seed: int = 9) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) / 5)


def adapted(case: str, seed: int = 3) -> tuple[nn.Module, lp.Adaptation]:
    model = backbone()
    torch.manual_seed(seed)
    adaptation = lp.adapt(model, method(case), head="3")
    return model, adaptation


def by_peft(case: str, seed: int = 3, head: bool = True) -> peft.PeftModel:
    options = dict(REWRITTEN[case])
    if "kasa_config" in options:
        options["kasa_config"] = peft.KasaConfig()
    saved = ["3"] if head else None
    config = peft.LoraConfig(r=4, target_modules=TARGETS, modules_to_save=saved, **options)
    model = backbone()
    torch.manual_seed(seed)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("case", REWRITTEN)
@torch.no_grad()
def test_it_is_what_peft_computes_and_the_backbone_comes_back_bit_for_bit(case: str) -> None:
    plain = backbone()(INPUT)
    model, adaptation = adapted(case)
    reference = by_peft(case)
    assert torch.equal(model(INPUT), reference(INPUT))
    move(model)
    move(reference)
    mine = model(INPUT)
    assert torch.equal(mine, reference(INPUT))
    twins = [model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in twins:
        found = lp.find_adaptation(twin)
        with found.disabled():
            assert torch.equal(twin(INPUT), plain)
            with found.disabled():
                assert torch.equal(twin(INPUT), plain)
            assert torch.equal(twin(INPUT), plain)
        assert torch.equal(twin(INPUT), mine)
    adaptation.merge()
    torch.testing.assert_close(model(INPUT), mine)
    adaptation.unmerge()
    restored = adaptation.unload()
    for name, tensor in backbone().state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor), name
    merged = lp.find_adaptation(twins[1]).merge_and_unload()
    torch.testing.assert_close(merged(INPUT), mine)


@pytest.mark.parametrize("case", REWRITTEN)
@torch.no_grad()
def test_saved_it_is_the_same_under_another_seed_here_and_in_peft(case, tmp_path) -> None:
    model, adaptation = adapted(case)
    move(model)
    adaptation.save(tmp_path)
    torch.manual_seed(77)
    again = lp.load_adapter(backbone(), tmp_path)
    assert torch.equal(again(INPUT), model(INPUT))
    with lp.find_adaptation(again).disabled():
        assert torch.equal(again(INPUT), backbone()(INPUT))
    torch.manual_seed(78)
    there = peft.PeftModel.from_pretrained(backbone(), tmp_path)
    torch.testing.assert_close(there(INPUT), model(INPUT))
    # into a backbone that is adapted already, from another seed
    other, standing = adapted(case, seed=4)
    lp.load_adapter(other, tmp_path)
    assert torch.equal(other(INPUT), model(INPUT))
    third, standing = adapted(case, seed=5)
    standing.load_state_dict(adaptation.state_dict())
    assert torch.equal(third(INPUT), model(INPUT))
    lp.find_adaptation(again).save(tmp_path / "again")  # saved again from what was loaded
    assert torch.equal(lp.load_adapter(backbone(), tmp_path / "again")(INPUT), model(INPUT))


@pytest.mark.parametrize("case", REWRITTEN)
@pytest.mark.filterwarnings("ignore:.* changes the base weights of the model:UserWarning")
@torch.no_grad()
def test_files_of_peft_are_read_or_refused_if_something_random_is_in_no_file(case, tmp_path):
    reference = by_peft(case, head=False)  # peft leaves it out of a converted file
    initial = tmp_path / "initial"
    reference.save_pretrained(initial)
    move(reference)
    reference.save_pretrained(tmp_path / "plain")
    if case in RANDOM:
        with pytest.raises(lp.PEFTError, match="draws at random what it takes out of the weights"):
            lp.load_adapter(backbone(), tmp_path / "plain")
    else:
        model = lp.load_adapter(backbone(), tmp_path / "plain")
        torch.testing.assert_close(model(INPUT), reference(INPUT))
    if case in ("pissa", "olora"):  # peft's own way out
        reference.save_pretrained(
            tmp_path / "converted", path_initial_model_for_weight_conversion=str(initial)
        )
        model = lp.load_adapter(backbone(), tmp_path / "converted")
        torch.testing.assert_close(model(INPUT), reference(INPUT))


class Task(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = backbone()

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return self.net(batch).square().mean()

    def test_step(self, batch: Tensor, index: int) -> None:
        self.log("loss", self.training_step(batch, index))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(list(INPUT), batch_size=5)

    test_dataloader = train_dataloader


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_checkpoint_gives_the_same_loss_under_another_seed(precision, tmp_path: Path) -> None:
    def trainer(seed: int, **settings: Any) -> L.Trainer:
        torch.manual_seed(seed)
        callback = lp.PEFT(method("niter"), backbone="net", head="3")
        return quiet_trainer(callback, precision=precision, **settings)

    module = Task()
    first = trainer(3, max_epochs=2)
    first.fit(module)
    first.save_checkpoint(tmp_path / "run.ckpt")
    expected = first.test(module, verbose=False)
    fresh, settings = Task(), {"weights_only": True, "verbose": False}
    found = trainer(4).test(fresh, ckpt_path=tmp_path / "run.ckpt", **settings)
    assert found == expected
    for name, tensor in module.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor), name
    with lp.find_adaptation(fresh.net).disabled():
        plain = backbone().to(fresh.net[0].weight.dtype)
        x = INPUT.to(plain[0].weight.dtype)
        assert torch.equal(fresh.net[:3](x), plain[:3](x))
    alone = lp.load_from_checkpoint(Task, tmp_path / "run.ckpt")
    if precision == "32-true":
        assert torch.equal(alone.net(INPUT), module.net(INPUT))


def test_a_checkpoint_from_before_holds_the_weights_that_it_started_from(tmp_path: Path) -> None:
    before = Task()
    trainer = quiet_trainer(max_epochs=0)
    trainer.fit(before)
    trainer.save_checkpoint(tmp_path / "same.ckpt", weights_only=True)
    with torch.no_grad():
        before.net[0].weight.mul_(2)
    trainer.save_checkpoint(tmp_path / "other.ckpt", weights_only=True)

    def test(name: str) -> Task:
        module = Task()
        callback = lp.PEFT(method("pissa"), backbone="net", head="3")
        quiet_trainer(callback).test(
            module, ckpt_path=tmp_path / name, weights_only=True, verbose=False
        )
        return module

    torch.testing.assert_close(test("same.ckpt").net(INPUT), backbone()(INPUT))
    with pytest.raises(lp.CheckpointError, match="other weights than those that the adapter's"):
        test("other.ckpt")


def test_weights_of_another_backbone_are_refused_in_a_state() -> None:
    model, adaptation = adapted("pissa")
    before = model(INPUT)
    state = dict(model.state_dict())
    adaptation.load_state_dict(state)
    state["0.base_layer.weight"] = 2 * state["0.base_layer.weight"]
    with pytest.raises(lp.CheckpointError, match=r"1 of another backbone: 0\.base_layer\.weight"):
        adaptation.load_state_dict(state)
    assert torch.equal(model(INPUT), before)


@torch.no_grad()
def test_adapters_with_different_factors_take_turns_and_have_no_average(tmp_path: Path) -> None:
    expected = {}
    for seed in (3, 4):
        model, adaptation = adapted("niter", seed)
        move(model, seed)
        adaptation.save(tmp_path / str(seed))
        expected[str(seed)] = model(INPUT)
    switch = AdapterSwitch(backbone(), {name: tmp_path / name for name in expected})
    for name in ("3", "4", "3"):
        with switch.use(name) as model:
            assert torch.equal(model(INPUT), expected[name])
            with switch.adaptation.disabled():
                assert torch.equal(model(INPUT), backbone()(INPUT))
    with pytest.raises(lp.CheckpointError, match="updates of different weights"):
        average_adapters(backbone(), [tmp_path / "3", tmp_path / "4"])


def prepared(start: str) -> tuple[nn.Module, peft.LoraConfig]:
    model = backbone()
    more: dict[str, Any] = {"corda_config": CordaConfig(corda_method="kpm")}
    if start == "lora_ga":
        more = {"lora_ga_config": peft.LoraGAConfig(direction="random")}
    config = peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=start, **more)
    if start == "corda":
        samples = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
        preprocess_corda(model, config, run_model=lambda: model(samples))
    else:
        inputs = INPUT.clone().requires_grad_()
        preprocess_loraga(model, config, lambda: model(inputs).square().mean().backward())
    return model, config


@pytest.mark.parametrize("start", ["corda", "lora_ga"])
def test_what_was_measured_on_data_is_not_needed_to_load(start: str, tmp_path: Path) -> None:
    reference = peft.get_peft_model(*prepared(start))
    torch.manual_seed(3)
    model, config = prepared(start)
    adaptation = lp.adapt(model, config, head=False)
    torch.testing.assert_close(model(INPUT), backbone()(INPUT))
    if start == "corda":
        torch.testing.assert_close(model(INPUT), reference(INPUT))
    move(model)
    adaptation.save(tmp_path)
    again = lp.load_adapter(backbone(), tmp_path)
    assert torch.equal(again(INPUT), model(INPUT))
    there = peft.PeftModel.from_pretrained(backbone(), tmp_path)
    torch.testing.assert_close(there(INPUT), model(INPUT))
    with adaptation.disabled():
        assert torch.equal(model(INPUT), backbone()(INPUT))

    reference.save_pretrained(tmp_path / "peft")
    with pytest.raises(lp.PEFTError, match="path_initial_model_for_weight_conversion"):
        lp.load_adapter(backbone(), tmp_path / "peft")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"init_lora_weights": "eva"}, "reads activations of your data"),
        ({"init_lora_weights": "corda"}, r"preprocess_corda measured .* 0, 2 have none"),
        ({"init_lora_weights": "lora_ga"}, r"preprocess_loraga measured .* 0, 2 have none"),
        pytest.param(
            {"init_lora_weights": "pissa", "kasa_config": {}},
            "both decide what A and B start from",
            marks=pytest.mark.skipif(not HAS_KASA, reason="this peft has no KaSA"),
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.init_lora_weights. is .eva. but:UserWarning")
def test_an_initialisation_without_what_it_needs_is_refused(options, said) -> None:
    model = backbone()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(lp.MethodError, match=said):
        lp.adapt(model, lp.HF("lora", targets=TARGETS, r=4, **options), head="3")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.filterwarnings("ignore:lora with eva initialization used with:UserWarning")
def test_eva_goes_through_peft_and_a_file(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights="eva",
                             eva_config=peft.EvaConfig(rho=1.0))  # fmt: skip
    reference = peft.get_peft_model(backbone(), config)
    samples = [torch.randn(8, 16, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    peft.initialize_lora_eva_weights(
        reference, samples, forward_fn=lambda model, x: model(x),
        prepare_model_inputs_fn=None, prepare_layer_inputs_fn=lambda x, *_: x[0],
        show_progress_bar=False,
    )  # fmt: skip
    move(reference)
    reference.save_pretrained(tmp_path)
    model = lp.load_adapter(backbone(), tmp_path)
    torch.testing.assert_close(model(INPUT), reference(INPUT))


def test_convolutions_are_refused_and_a_transposed_weight_is_served(tmp_path: Path) -> None:
    convolution = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(lp.MethodError, match="expected matrices of floating-point numbers, got 0"):
        lp.adapt(convolution, lp.HF("lora", targets="0", r=2, init_lora_weights="pissa"), head="2")
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(24, 16), nn.GELU(), nn.Linear(24, 3))
    plain = copy.deepcopy(model)
    how = lp.HF("lora", targets="0", r=2, init_lora_weights="pissa_niter_2")
    adaptation = lp.adapt(model, how, head="2")
    torch.testing.assert_close(model(INPUT), plain(INPUT))
    move(model)
    adaptation.save(tmp_path)
    assert torch.equal(lp.load_adapter(copy.deepcopy(plain), tmp_path)(INPUT), model(INPUT))
    with adaptation.disabled():
        assert torch.equal(model(INPUT), plain(INPUT))
