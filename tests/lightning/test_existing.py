"""``PEFT("existing")``: a ``PeftModel`` in the module is taken as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

import lightning_peft as lp
from lightning_peft.adaptation.handle import find_adaptations
from tests.support.trainers import quiet_trainer

IDS = torch.randint(5, 30, (6, 5), generator=torch.Generator().manual_seed(0))
IDS[:, 1] = 4  # what calls an activated LoRA


def base(kind: type[Any] = GPT2LMHeadModel, **settings: Any) -> Any:
    torch.manual_seed(0)
    small = {"vocab_size": 30, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return kind(GPT2Config(**{**small, **ends, **settings}))


class Around(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.lm = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm(input_ids=ids).logits


class Module(L.LightningModule):
    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.part = Around(make())

    def training_step(self, ids: Tensor) -> Tensor:
        found = self.part(ids)
        wanted = ids if found.ndim == 3 else ids[:, 0] % 2
        logits = found[:, -ids.shape[1] :].flatten(0, -2)
        return nn.functional.cross_entropy(logits, wanted.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 0.05)


def fitted(make: Callable[[], nn.Module], epochs: int, path: Any = None, **settings: Any) -> Any:
    module = Module(make)
    torch.manual_seed(1)
    callback = [lp.PEFT("existing", **settings)] if settings.pop("callback", True) else []
    trainer = quiet_trainer(*callback, max_epochs=epochs)
    trainer.fit(module, DataLoader(IDS, batch_size=3), ckpt_path=path, weights_only=False)
    return module, trainer


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(input_ids=IDS).logits
        return found


def state(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict().values())


LM: dict[str, Any] = {"task_type": "CAUSAL_LM"}
VIRTUAL: dict[str, Any] = {**LM, "num_virtual_tokens": 3}
FLIPPED: dict[str, Any] = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
TIED: dict[str, Any] = {"ensure_weight_tying": True}
CONFIGS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: LoraConfig(**LM, **FLIPPED, modules_to_save=["ln_f"]),
    "prompt": lambda: peft.PromptTuningConfig(**VIRTUAL),
    "prefix": lambda: peft.PrefixTuningConfig(**VIRTUAL),
    "p": lambda: peft.PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=4),
    "alora": lambda: LoraConfig(**LM, **FLIPPED, alora_invocation_tokens=[4]),
    "rows": lambda: LoraConfig(**LM, **FLIPPED, trainable_token_indices=[4, 7]),
    "tied": lambda: LoraConfig(**LM, **FLIPPED, **TIED, modules_to_save=["lm_head"]),
}


SLOW = ("prefix", "p", "alora", "rows", "tied")


# peft, of the file that it wrote itself
@pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying.:UserWarning")
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in CONFIGS]
)
def test_it_trains_as_peft_alone_resumes_and_is_loaded_by_peft(tmp_path: Path, kind: str) -> None:
    def make() -> nn.Module:
        return peft.get_peft_model(base(), CONFIGS[kind]())

    whole, _ = fitted(make, 2)
    alone, _ = fitted(make, 2, callback=False)
    assert all(map(torch.equal, state(whole), state(alone)))

    half, trainer = fitted(make, 1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fitted(make, 2, tmp_path / "half.ckpt")
    assert all(map(torch.equal, state(whole), state(resumed)))
    saved = torch.load(tmp_path / "half.ckpt", weights_only=False)["state_dict"]
    trained = {n for n, p in half.named_parameters() if p.requires_grad}
    assert trained <= set(saved)
    assert sum(t.numel() for t in saved.values()) < 0.7 * sum(p.numel() for p in half.parameters())
    loaded = lp.load_from_checkpoint(Module, tmp_path / "half.ckpt", make=make)
    assert all(map(torch.equal, state(loaded), state(half)))

    adaptation = lp.find_adaptation(whole.part.lm)
    assert adaptation is not None
    adaptation.save(tmp_path / "adapter")
    plain = peft.PeftModel.from_pretrained(base(), str(tmp_path / "adapter"))
    assert torch.equal(outputs(plain), outputs(whole.part.lm))
    with adaptation.disabled():
        assert torch.equal(outputs(whole.part.lm), outputs(base()))
    assert torch.equal(outputs(plain), outputs(whole.part.lm))


def test_a_head_in_modules_to_save_is_the_head() -> None:
    config = LoraConfig(task_type="SEQ_CLS", **FLIPPED)
    model = peft.get_peft_model(base(GPT2ForSequenceClassification), config)
    adaptation = lp.adapt(model, "existing")
    assert adaptation.head == ("base_model.model.score.modules_to_save.default",)
    assert adaptation.report().trained == model.get_nb_trainable_parameters()[0]


def test_full_and_merged_checkpoints_are_those_of_the_model_inside(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return peft.get_peft_model(base(), CONFIGS["lora"]())

    whole = state(fitted(make, 2)[0])
    for kind in ("full", "merged"):
        module, trainer = fitted(make, 1, checkpoints=kind)
        trainer.save_checkpoint(tmp_path / f"{kind}.ckpt")
        resumed, _ = fitted(make, 2, tmp_path / f"{kind}.ckpt", checkpoints=kind)
        assert all(map(torch.equal, state(resumed), whole))
    wanted = outputs(module.part.lm)
    saved = torch.load(tmp_path / "merged.ckpt", weights_only=False)["state_dict"]
    plain = Module(base)
    plain.load_state_dict(saved)
    assert torch.allclose(outputs(plain.part.lm), wanted, atol=1e-5)
    ended, _ = fitted(make, 1, merge_at_end=True)
    assert type(ended.part.lm) is GPT2LMHeadModel
    assert torch.allclose(outputs(ended.part.lm), wanted, atol=1e-5)


def test_what_cannot_work_is_refused() -> None:
    def prompts() -> nn.Module:
        return peft.get_peft_model(base(), CONFIGS["prompt"]())

    with pytest.raises(lp.MethodError, match="checkpoints='merged': 'existing' .* a prompt is a"):
        fitted(prompts, 1, checkpoints="merged")
    adaptation = lp.adapt(peft.get_peft_model(base(), CONFIGS["lora"]()), "existing")
    with pytest.raises(lp.MethodError, match="expected dequantize=False, got True"):
        adaptation.merge(dequantize=True)
    wrapped = peft.get_peft_model(base(), CONFIGS["lora"]())
    with pytest.raises(lp.MethodError, match=r"Take it as it is with lp.PEFT\('existing'\)"):
        lp.adapt(wrapped, "lora")
    with pytest.raises(lp.MethodError, match=r"lp.PEFT\('existing'\)"):
        quiet_trainer(lp.PEFT("lora"), max_epochs=1).fit(
            Module(lambda: wrapped), DataLoader(IDS, batch_size=3)
        )
    with pytest.raises(lp.MethodError, match="expected a PeftModel .*, got GPT2LMHeadModel"):
        lp.adapt(base(), "existing")
    with pytest.raises(lp.MethodError, match="expected no head, got 'lm_head'"):
        lp.adapt(wrapped, "existing", head="lm_head")
    with pytest.raises(lp.MethodError, match="expected to stand alone"):
        lp.adapt(base(), ["existing", "bitfit"])
    with pytest.raises(lp.TargetError, match="expected a PeftModel in Module, got none"):
        fitted(base, 1)
    ranks = peft.AdaLoraConfig(**LM, **FLIPPED, total_step=9, tinit=1, tfinal=2)
    with pytest.raises(lp.MethodError, match="ADALORA needs update_and_allocate"):
        lp.adapt(peft.get_peft_model(base(), ranks), "existing")
    for parameter in wrapped.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(lp.MethodError, match="got one that is frozen. Load it with"):
        lp.adapt(wrapped, "existing")


def test_another_config_is_refused_and_of_two_models_one_has_to_be_named(tmp_path: Path) -> None:
    def make(alpha: int = 8) -> nn.Module:
        return peft.get_peft_model(base(), LoraConfig(**LM, **FLIPPED, lora_alpha=alpha))

    _, trainer = fitted(make, 1)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    with pytest.raises(lp.CheckpointError, match="'lora_alpha': 8.* now with .*'lora_alpha': 16"):
        fitted(lambda: make(16), 2, tmp_path / "run.ckpt")
    two = Module(make)
    two.other = make()
    with pytest.raises(lp.TargetError, match=r"got 2: 'part.lm', 'other'. Say which"):
        quiet_trainer(lp.PEFT("existing"), max_epochs=1).fit(two, DataLoader(IDS))
    quiet_trainer(lp.PEFT("existing", backbone="part"), max_epochs=1).fit(two, DataLoader(IDS, 3))
    assert set(find_adaptations(two)) == {"part.lm"}


def test_values_of_a_file_are_loaded_into_it(tmp_path: Path) -> None:
    first = peft.get_peft_model(base(), CONFIGS["p"]())
    first.save_pretrained(str(tmp_path))
    model = peft.get_peft_model(base(), peft.PromptTuningConfig(**VIRTUAL))
    lp.adapt(model, "existing")
    with pytest.raises(lp.AdapterFileError, match="expected an adapter of the tuner PROMPT_TUNING"):
        lp.load_adapter(model, tmp_path)
    other = peft.get_peft_model(base(), peft.PromptTuningConfig(**VIRTUAL))
    other.save_pretrained(str(tmp_path / "prompt"))
    lp.load_adapter(model, tmp_path / "prompt")
    assert torch.equal(outputs(model), outputs(other))
