"""Each key of regularisation changes the thing that it names, and a mistyped one is refused."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from timm.layers import DropPath

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.adaptation.parameter_groups import parameter_groups
from lightning_peft.cli.config.check import check_targets, check_values
from lightning_peft.cli.config.help import REGULARISERS, help_text
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.errors import MethodError, PEFTError


@dataclass
class Built:
    """A module that is adapted as the command would, and its optimizer."""

    cfg: Any
    module: Any

    @property
    def groups(self):
        return self.module.configure_optimizers().param_groups

    def of(self, option):
        """What each parameter gets of an option of its group."""
        names = {id(p): n for n, p in self.module.named_parameters()}
        return {names[id(p)]: group[option] for group in self.groups for p in group["params"]}


def composed(*words):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", ["name=test", "output_dir=out", *words])


def build(*words):
    cfg = composed(*words)
    check_targets(check_values(cfg, frozenset(cfg)))
    with torch.random.fork_rng():
        module = instantiate(cfg.model, num_classes=10, pretrained=False, _convert_="all")
        instantiate(cfg.callbacks.peft, _convert_="all").attachment(module)
    return Built(cfg, module)


def test_the_help_names_every_key_and_every_key_is_one():
    text = help_text()
    cfg = composed("callbacks/average=ema", "callbacks/stop=early")
    for key, told in REGULARISERS.items():
        assert f"    {key}" in text
        assert told.split()[0] in text
        OmegaConf.select(cfg, key, throw_on_missing=True)
        parent, _, leaf = key.rpartition(".")
        assert leaf in OmegaConf.select(cfg, parent), key


@pytest.mark.parametrize("key", [k for k in REGULARISERS if k.count(".") == 1])
def test_a_mistyped_key_is_refused(command, key):
    status, _, err = command(f"{key}x=0.1", "experiment=smoke")
    assert status == 2
    assert f"unknown key '{key}x'. Did you mean '{key.rpartition('.')[2]}'" in err


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_adapter_dropout(p):
    module = build("method=lora", f"method.dropout={p}").module
    found = [m for n, m in module.named_modules() if "lora_dropout." in n]
    assert len(found) > 10
    assert {getattr(m, "p", 0.0) for m in found} == {p}


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_head_dropout(p):
    backbone = build(f"model.head_dropout={p}").module.backbone
    assert backbone.head_drop.p == p
    others = [m.p for m in backbone.modules() if isinstance(m, torch.nn.Dropout)]
    assert [q for q in others if q] == ([p] if p else [])


def test_drop_path_grows_to_the_last_block():
    backbone = build("model.drop_path=0.2").module.backbone
    found = [m.drop_prob for m in backbone.modules() if isinstance(m, DropPath)]
    assert max(found) == pytest.approx(0.2)
    assert found == sorted(found)
    assert not any(isinstance(m, DropPath) for m in build().module.modules())


def test_label_smoothing_is_in_the_loss():
    torch.manual_seed(0)
    images, labels = torch.randn(4, 1, 24, 24), torch.tensor([0, 1, 2, 3])
    for smoothing in (0.0, 0.2):
        module = build(f"model.label_smoothing={smoothing}").module.eval()
        module.log = lambda *args, **kwargs: None
        logs = module(images).log_softmax(-1)
        target = torch.nn.functional.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
        loss = module.training_step((images, labels), 0)
        assert torch.allclose(loss, -(target * logs).sum(-1).mean())


def parts_of(built):
    """The names of the parameters of the adapter and of the head that decay, and of the rest."""
    ((path, adaptation),) = find_adaptations(built.module).items()
    adapter = {f"{path}.{name}" for name in adaptation.adapter_names()}
    head = {f"{path}.{name}" for name in adaptation.head_names()}
    return adapter, head


def test_weight_decay_of_everything_and_of_each_part():
    keys = ("optimizer.weight_decay=0.5", "model.adapter_weight_decay=0.25",
            "model.head_weight_decay=0.125")  # fmt: skip
    built = build(*keys[:1], "method=lora")
    adapter, head = parts_of(built)
    assert {d for n, d in built.of("weight_decay").items() if "bias" not in n} == {0.5}
    assert {d for n, d in built.of("weight_decay").items() if n.endswith("bias")} == {0.0}

    decays = build(*keys, "method=lora").of("weight_decay")
    assert {decays[n] for n in adapter} == {0.25}
    assert {decays[n] for n in head if n.endswith("weight")} == {0.125}
    assert {decays[n] for n in head if n.endswith("bias")} == {0.0}

    decays = build(keys[0], keys[2], "method=full").of("weight_decay")
    assert {d for n, d in decays.items() if n not in head} == {0.5, 0.0}
    assert {decays[n] for n in head if n.endswith("weight")} == {0.125}


@pytest.mark.parametrize("method", ["lora", "lora_qv"])
def test_lora_plus_is_the_rate_of_the_second_factor(method):
    built = build(f"method={method}", "lr=0.01", "model.lora_plus=16")
    adapter, _ = parts_of(built)
    model = dict(built.module.named_parameters())
    # B is zero at step 0, A is not
    second = {n for n in adapter if not model[n].any()}
    assert 0 < len(second) < len(adapter)
    for name, rate in built.of("lr").items():
        assert rate == pytest.approx(0.16 if name in second else 0.01), name
    assert set(build(f"method={method}", "lr=0.01").of("lr").values()) == {0.01}


def test_the_rates_of_the_head_and_of_each_depth():
    words = ("method=bitfit", "lr=0.01", "model.layer_decay=0.5", "model.head_lr=0.3")
    built = build(*words)
    _, head = parts_of(built)
    rates = built.of("lr")
    assert {rates[n] for n in head} == {0.3}
    blocks = sorted({n.split(".blocks.")[1].split(".")[0] for n in rates if ".blocks." in n})
    last = len(blocks)
    for block in blocks:
        (found,) = {rates[n] for n in rates if f".blocks.{block}." in n}
        assert found == pytest.approx(0.01 * 0.5 ** (last - int(block)))


def test_the_pull_the_average_and_the_patience_reach_their_callbacks():
    cfg = composed(
        "callbacks.l2sp.strength=0.3", "callbacks/average=ema", "callbacks.average.decay=0.9",
        "callbacks/stop=early", "callbacks.stop.patience=7", "schedule.warmup=2 epochs",
    )  # fmt: skip
    assert instantiate(cfg.callbacks.l2sp).strength == 0.3
    average = instantiate(cfg.callbacks.average)
    averaged = average._kwargs["avg_fn"](torch.tensor(1.0), torch.tensor(0.0), 3)
    assert float(averaged) == pytest.approx(0.9)
    assert instantiate(cfg.callbacks.stop).patience == 7
    assert instantiate(cfg.callbacks.schedule).warmup == "2 epochs"


@pytest.mark.slow
def test_a_run_with_a_pull_resumes_to_the_same_weights(train, tmp_path):
    words = ("experiment=smoke", "method=bitfit", "callbacks.l2sp.strength=0.5", "test=false",
             "schedule=none")  # fmt: skip

    def run(name, *more):
        status, _, err = train(*words, *more, f"hydra.run.dir={name}")
        assert status == 0, err
        path = tmp_path / name / "checkpoints" / "last.ckpt"
        return torch.load(path, weights_only=True)["state_dict"]

    whole = run("whole", "trainer.max_steps=6")
    run("part", "trainer.max_steps=4")
    rest = run("rest", "trainer.max_steps=6", "resume=part/checkpoints/last.ckpt")
    free = run("free", "trainer.max_steps=6", "callbacks.l2sp.strength=0")
    assert all(torch.equal(tensor, rest[name]) for name, tensor in whole.items())
    assert any(not torch.equal(tensor, free[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=bitfit", "model.lora_plus=4"], "expected low-rank updates for lora_plus, found"),
        (["method=full", "model.adapter_weight_decay=1"], "weight_decay is the one to set"),
        (["model.lora_plus=0"], "expected lora_plus to be a number above 0, got 0"),
        (["model.head_weight_decay=-1"], "expected head_weight_decay to be a number from 0"),
    ],
)
def test_what_a_method_does_not_have_is_refused(words, message):
    with pytest.raises(MethodError, match=message):
        _ = build(*words).groups


def test_dropout_of_a_method_without_it_is_refused():
    with pytest.raises(Exception, match="dropout"):
        build("method=bitfit", "method.dropout=0.1")


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(PEFTError, match=r"head_weight_decay .*; .*lora_plus .*above 0"):
        parameter_groups(torch.nn.Linear(2, 2), 0.1, head_weight_decay=-1, lora_plus=-2)
