"""The setting ``memory``: where it is said, where it arrives, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle

import lightning as L
import peft
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import lightning_peft as lp
from lightning_peft.cli.config.paths import conf_dir
from tests.support.fast import nothing_too_small
from tests.support.runs import Classifier, equal, images, state_of, trainer
from tests.support.zoo import build, example_input

pytestmark = pytest.mark.usefixtures("fast_forward")
LAYERS = 8  # of the zoo's ViT: two blocks of qkv, proj, fc1 and fc2


@pytest.fixture(scope="module")
def fast_forward():
    """It is the fast forward whose memory this is about."""
    with nothing_too_small():
        yield


def memory_of(model):
    (adaptation,) = filter(None, map(lp.find_adaptation, model.modules()))
    found = adaptation.report().acceleration
    assert found is not None
    assert len(found.fast) == LAYERS
    return found.memory


def gradients(model):
    torch.manual_seed(0)
    model(example_input("vit")).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- where it is said ---------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["default", "low", "lowest", "high"])
def test_adapt_hands_it_to_every_layer_and_gradients_do_not_depend_on_it(memory):
    model, plain = build("vit").train(), build("vit").train()
    torch.manual_seed(0)
    lp.adapt(model, "lora", rank=2, memory=memory)
    torch.manual_seed(0)
    lp.adapt(plain, "lora", rank=2)
    assert memory_of(model) == memory
    got = gradients(model)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(got[name], gradient, msg=name)


@pytest.mark.parametrize(
    "method",
    [
        lp.LoRAFA(rank=2),
        lp.HF("lora", r=2),
        peft.LoraConfig(r=2, target_modules=["qkv", "attn.proj", "fc1", "fc2"]),
        ["lora", "bitfit"],
    ],
)
def test_every_way_to_lora_is_served(method):
    model = build("vit")
    lp.adapt(model, method, memory="low")
    assert memory_of(model) == "low"


def test_copies_and_pickles_keep_it():
    model = build("vit")
    lp.adapt(model, "lora", memory="low")
    assert memory_of(copy.deepcopy(model)) == memory_of(pickle.loads(pickle.dumps(model))) == "low"


def test_the_adapters_file_does_not_say_it_and_loading_does(tmp_path):
    model = build("vit")
    lp.adapt(model, "lora", memory="low").save(tmp_path)
    assert '"memory"' not in (tmp_path / "adapter_config.json").read_text()

    assert memory_of(lp.load_adapter(build("vit"), tmp_path)) == "default"
    assert memory_of(lp.load_adapter(build("vit"), tmp_path, memory="low")) == "low"
    assert memory_of(lp.load_adapter(model, tmp_path)) == "low"  # adapted already: as it is
    assert memory_of(lp.load_adapter(model, tmp_path, memory="high")) == "high"


class Mine(lp.PEFTMixin, Classifier):
    def configure_peft(self):
        return {"method": lp.LoRA(rank=2), "memory": "low"}


def test_the_callback_says_it_and_a_checkpoint_does_not(tmp_path):
    module, keep = Classifier(), ModelCheckpoint(tmp_path, save_weights_only=True)
    fit = trainer(tmp_path, lp.PEFT("lora", rank=2, memory="low"), keep, max_steps=1)
    fit.fit(module, images())
    assert memory_of(module) == "low"

    path = keep.best_model_path
    assert memory_of(lp.load_from_checkpoint(Classifier, path)) == "default"
    loaded = lp.load_from_checkpoint(Classifier, path, memory="low")
    assert memory_of(loaded) == "low"
    assert equal(state_of(loaded), state_of(module))

    # what is adapted already stays as it is, unless the callback says otherwise
    trainer(tmp_path, lp.PEFT("lora", rank=2)).test(loaded, images(), verbose=False)
    assert memory_of(loaded) == "low"
    trainer(tmp_path, lp.PEFT("lora", rank=2, memory="high")).test(loaded, images(), verbose=False)
    assert memory_of(loaded) == "high"


def test_the_mixin_says_it(tmp_path):
    module, keep = Mine(), ModelCheckpoint(tmp_path, save_weights_only=True)
    trainer(tmp_path, keep, max_steps=1).fit(module, images())
    assert memory_of(module) == "low"
    assert memory_of(Mine.load_from_checkpoint(keep.best_model_path)) == "low"
    assert memory_of(lp.load_from_checkpoint(Mine, keep.best_model_path)) == "low"
    assert memory_of(lp.load_from_checkpoint(Mine, keep.best_model_path, memory="high")) == "high"


def test_the_command_line_says_it(tmp_path):
    def attached(*overrides):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("config", [*overrides, "name=test", f"output_dir={tmp_path}"])
        return instantiate(cfg.callbacks.peft, _convert_="all").attachment.memory

    assert attached() == "default"
    assert attached("callbacks.peft.memory=low") == "low"


def test_training_is_the_same_run(tmp_path):
    def trained(memory):
        L.seed_everything(0, verbose=False)
        module = Classifier()
        run = trainer(tmp_path, lp.PEFT("lora", rank=2, memory=memory), max_steps=3)
        run.fit(module, images())
        return state_of(module)

    low, high = trained("low"), trained("high")
    for name, tensor in low.items():
        torch.testing.assert_close(tensor, high[name], msg=name)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["least", None, ["low"], 1])
def test_an_unknown_value_is_refused_before_anything_is_changed(memory):
    model = build("vit")
    before = list(model.state_dict())
    with pytest.raises(lp.MethodError, match="expected 'default', 'low', 'lowest' or 'high', got"):
        lp.adapt(model, "lora", memory=memory)
    assert list(model.state_dict()) == before
    assert lp.find_adaptation(model) is None


def test_the_callback_and_the_loaders_refuse_it_too(tmp_path):
    with pytest.raises(lp.MethodError, match="memory: expected 'default', 'low'"):
        lp.PEFT("lora", memory="tiny")
    model = build("vit")
    lp.adapt(model, "lora").save(tmp_path)
    for target in (build("vit"), model):
        with pytest.raises(lp.MethodError, match="memory: expected 'default', 'low'"):
            lp.load_adapter(target, tmp_path, memory="tiny")
    assert memory_of(model) == "default"


@pytest.mark.parametrize("method", ["bitfit", "dora", "adalora"])
def test_low_is_refused_where_no_layer_is_fast(method):
    model = build("vit")
    before = list(model.state_dict())
    with pytest.raises(lp.MethodError, match=r"fast LoRA layers \(lora, lora_fa, hf with .* got"):
        lp.adapt(model, method, memory="low")
    assert list(model.state_dict()) == before
    with pytest.raises(lp.MethodError, match="whose backward pass it would not change"):
        lp.PEFT(method, memory="low")
    lp.adapt(model, method, memory="high")  # nothing is made again there in any case


def test_low_is_refused_on_a_backbone_whose_layers_cannot_be_fast():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, dilation=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    before, types = list(model.state_dict()), [type(part) for part in model]
    with pytest.raises(lp.MethodError, match="on this backbone: 0 LoRA layers .* in the weight"):
        lp.adapt(model, lp.LoRA(rank=2, targets="0"), memory="low")
    assert list(model.state_dict()) == before
    assert [type(part) for part in model] == types

    adaptation = lp.adapt(model, lp.LoRA(rank=2, targets="0"))
    with pytest.raises(lp.MethodError, match="its update is in the weight"):
        adaptation.set_memory("low")


@pytest.mark.parametrize("options", [{"use_dora": True}, {"init_lora_weights": "mica"}], ids=str)
def test_low_is_refused_for_a_variant_of_lora(options):
    model, method = build("vit"), lp.HF("lora", r=2, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(lp.MethodError, match=r"on this backbone: 0 LoRA .*LinearVariant"):
        lp.adapt(model, method, memory="low")
    assert {k: torch.equal(v, before[k]) for k, v in model.state_dict().items()} == dict.fromkeys(
        before, True
    )
    adaptation = lp.adapt(model, method)
    with pytest.raises(lp.MethodError, match="variant of LoRA"):
        adaptation.set_memory("low")


def test_problems_come_together():
    with pytest.raises(lp.MethodError, match=r"(?s)batchnorm.*memory: expected"):
        lp.adapt(build("vit"), "lora", batchnorm="melted", memory="tiny")


# --- the report ---------------------------------------------------------------------------------


def test_the_report_says_how_many_layers_are_fast():
    model = build("vit")
    report = lp.adapt(model, "lora", memory="low").report()
    assert f"speed: {LAYERS} LoRA layers with the fast forward, low in memory" in str(report)
    as_data = json.loads(json.dumps(report.to_dict()))
    assert as_data["acceleration"] == {"fast": LAYERS, "plain": {}, "memory": "low"}


def test_the_report_says_why_layers_are_not_fast():
    report = lp.adapt(build("vit"), "dora").report()
    assert report.acceleration is not None
    assert list(report.to_dict()["acceleration"]["plain"].values()) == [LAYERS]
    assert f"{LAYERS} as peft has them: it is a variant of LoRA" in " ".join(str(report).split())


@pytest.mark.parametrize("method", ["bitfit", "ssf", "full"])
def test_without_lora_layers_the_report_does_not_speak_of_them(method):
    report = lp.adapt(build("vit"), method).report()
    assert report.acceleration is report.to_dict()["acceleration"] is None
    assert "speed" not in str(report)


def test_the_report_sees_what_was_done_by_hand():
    model = build("vit")
    adaptation = lp.adapt(model, "lora")
    lp.accelerate(model, memory="low")
    assert memory_of(model) == "low"
    lp.accelerate(model.blocks[0], memory="high")
    assert memory_of(model) == "mixed"
    adaptation.set_memory("default")
    assert memory_of(model) == "default"
