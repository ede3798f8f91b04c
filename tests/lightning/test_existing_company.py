"""``PEFT("existing")`` beside other callbacks, and what cannot act on a ``PeftModel``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import peft
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from peft import LoraConfig
from torch import Tensor
from torch.utils.data import DataLoader

import lightning_peft as lp
from tests.lightning.callbacks.test_averaging import Remembering
from tests.lightning.test_existing import CONFIGS, FLIPPED, IDS, LM, VIRTUAL, Module, base, outputs
from tests.support.language import tiny_lm
from tests.support.runs import differing, state_of
from tests.support.trainers import quiet_trainer


class Validated(Module):
    rates: list[float]

    def __init__(self, kind: str, **settings: Any) -> None:
        super().__init__(lambda: peft.get_peft_model(base(), CONFIGS[kind](), **settings))
        self.rates = []

    def training_step(self, ids: Tensor) -> Tensor:
        if self.trainer.optimizers:
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return super().training_step(ids)

    def validation_step(self, ids: Tensor) -> None:
        self.log("val/loss", super().training_step(ids))


class Killed(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 5:
            raise RuntimeError("killed")


def fit(
    module: L.LightningModule, *callbacks: L.Callback, path: Any = None, **settings: Any
) -> Any:
    torch.manual_seed(1)
    trainer = quiet_trainer(lp.PEFT("existing"), *callbacks, num_sanity_val_steps=0, **settings)
    data = DataLoader(IDS, batch_size=3)
    val = data if isinstance(module, Validated) else None
    trainer.fit(module, data, val, ckpt_path=path, weights_only=False)
    return trainer


@pytest.mark.parametrize(
    "kind",
    ["lora", "prompt", *(pytest.param(k, marks=pytest.mark.slow) for k in ("prefix", "p", "rows"))],
)
def test_averaged_scheduled_measured_killed_and_resumed(tmp_path: Path, kind: str) -> None:
    def run(*more: L.Callback, path: Any = None) -> tuple[Validated, Remembering, Any]:
        module, average = Validated(kind), Remembering(decay=0.7)
        monitor = lp.EfficiencyMonitor(verbose=False)
        stopping = EarlyStopping("val/loss", patience=9)
        callbacks = [lp.WarmupCosine(warmup=0.3), average, monitor, stopping, *more]
        fit(
            module,
            *callbacks,
            path=path,
            max_epochs=4,
            default_root_dir=tmp_path,
            enable_checkpointing=bool(more),
        )
        return module, average, monitor.report

    whole, average, report = run()
    keep = ModelCheckpoint(tmp_path, filename="kept", every_n_epochs=2)
    with pytest.raises(RuntimeError, match="killed"):
        run(keep, Killed())
    resumed, *_ = run(path=tmp_path / "kept.ckpt")
    assert differing(state_of(whole), state_of(resumed)) == set()
    assert whole.rates[0] < max(whole.rates) > whole.rates[-1]
    assert whole.rates[4:] == resumed.rates

    expected = average.trained[0]
    for now in average.trained[1:]:
        expected = {name: 0.7 * expected[name] + 0.3 * now[name] for name in now}
    after = state_of(whole)
    trained = {n for n, p in whole.named_parameters() if p.requires_grad}
    assert trained
    assert all(torch.allclose(after[name], expected[name], atol=1e-6) for name in trained)
    model = whole.part.lm
    assert report["trainable_parameters"] == model.get_nb_trainable_parameters()[0]
    assert report["full_trainable_parameters"] == base().num_parameters()
    assert report["step_flops"] > 0
    with model.disable_adapter() if kind != "prefix" else lp.find_adaptation(model).disabled():
        assert torch.equal(outputs(model), outputs(base()))


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_stages_train_the_base_that_is_used_and_the_run_stops_early(kind: str) -> None:
    module = Validated(kind)
    before = state_of(module)
    stages = lp.BackboneFreeze(unfreeze=[{"epoch": 1, "layers": "last:1"}, {"epoch": 2}])
    trainer = fit(module, stages, max_epochs=3)
    assert trainer.current_epoch == 3
    moved = differing(before, state_of(module))
    behind = {name for name in before if ".original_module." in name}  # its copy is trained
    assert bool(behind) == (kind == "lora")
    assert {n for n, _ in module.named_parameters()} - behind <= moved
    assert all(not p.requires_grad for n, p in module.named_parameters() if n in behind)
    stopping = EarlyStopping("val/loss", patience=1, min_delta=9.0)
    assert fit(Validated(kind), stopping, max_epochs=5).current_epoch == 2


def test_what_cannot_act_is_refused_before_the_first_step() -> None:
    def refused(match: str, kind: str, *callbacks: L.Callback, **settings: Any) -> None:
        module = Validated(kind)
        peft_callback = lp.PEFT("existing", **settings)
        trainer = quiet_trainer(peft_callback, *callbacks, max_epochs=1, num_sanity_val_steps=0)
        with pytest.raises(lp.PEFTError, match=match):
            trainer.fit(module, DataLoader(IDS, batch_size=3))
        assert trainer.global_step == 0

    refused("expected no head, got .'lm_head',.: the PeftModel says", "prompt", head="lm_head")
    refused("merge_at_end=True: 'existing' cannot be merged: a prompt", "p", merge_at_end=True)
    refused("merge_at_end=True: .* aLoRA does not support", "alora", merge_at_end=True)
    refused("it already freezes that backbone: remove", "prefix", lp.BackboneFreeze())
    refused("trained in place, got none with 'existing'", "prompt", lp.L2SP(0.1))
    refused("uses, got .*original_module.*copy is trained already", "lora",
            also_train="*ln_f.original_module")  # fmt: skip
    for word in ("low", "lowest"):
        with pytest.raises(lp.MethodError, match=f"memory='{word}': expected a method with fast"):
            lp.PEFT("existing", memory=word)
    left_out = Validated("p")
    first = [next(p for p in left_out.parameters() if p.requires_grad)]
    left_out.configure_optimizers = lambda: torch.optim.SGD(first)
    with pytest.raises(lp.MethodError, match="configure_optimizers left out prompt_encoder"):
        fit(left_out, max_epochs=1)


def test_parameters_that_configure_optimizers_leaves_out_are_added() -> None:
    module = Validated("p")
    first = [next(p for p in module.parameters() if p.requires_grad)]
    module.configure_optimizers = lambda: torch.optim.SGD(first, 0.1)
    before = state_of(module)
    trainer = quiet_trainer(lp.PEFT("existing", add_to_optimizer=0.2), max_epochs=1)
    trainer.fit(module, DataLoader(IDS, batch_size=3))
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.1, 0.2]
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert differing(before, state_of(module)) == trained


def test_rows_and_activated_adapters_whose_tokens_are_not_there() -> None:
    """A row that no first batch holds is learned later; an adapter that is never called is not."""
    rare = LoraConfig(**LM, **FLIPPED, trainable_token_indices=[3])  # none of IDS
    untied: Any = {"tie_word_embeddings": False}
    module = Module(lambda: peft.get_peft_model(base(**untied), rare))
    fit(module, max_epochs=2)
    called = LoraConfig(**LM, **FLIPPED, alora_invocation_tokens=[3])
    with pytest.raises(lp.MethodError, match=r"calls? the activated LoRA \(\[3\]; check_grad"):
        fit(Module(lambda: peft.get_peft_model(base(), called)), max_epochs=2)


def test_x_lora_is_trained_as_by_peft_and_neither_merged_nor_written(tmp_path: Path) -> None:
    def llama() -> Any:
        return tiny_lm(use_cache=False)

    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        one = LoraConfig(**LM, r=2, target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(llama(), one).save_pretrained(str(tmp_path / name))

    def make() -> Any:
        torch.manual_seed(2)
        adapters = {"0": str(tmp_path / "a"), "1": str(tmp_path / "b")}
        sizes = {"hidden_size": 16, "xlora_depth": 2, "xlora_size": 4, "xlora_dropout_p": 0.0}
        return peft.get_peft_model(llama(), peft.XLoraConfig(**LM, **sizes, adapters=adapters))

    module, alone = Module(make), Module(make)
    fit(module, max_epochs=2)
    quiet_trainer(max_epochs=2).fit(alone, DataLoader(IDS, batch_size=3))
    assert differing(state_of(module), state_of(alone)) == set()
    adaptation = lp.find_adaptation(module.part.lm)
    assert adaptation is not None
    assert adaptation.trained_names() == tuple(
        n for n, _ in module.part.lm.named_parameters() if "internal_xlora_classifier" in n
    )
    with pytest.raises(lp.MethodError, match="cannot be merged: X-LoRA mixes its adapters anew"):
        adaptation.merge()
    model: Any = module.part.lm
    if len(peft.get_peft_model_state_dict(model)) < len(adaptation.trained_names()):
        # peft takes a layer of the classifier for a part of the adapter "0", and leaves it out
        with pytest.raises(lp.AdapterFileError, match="classifier.layers.0.bias.*a checkpoint"):
            adaptation.save(tmp_path / "saved")
    else:
        adaptation.save(tmp_path / "saved")
        theirs = peft.PeftModel.from_pretrained(llama(), str(tmp_path / "saved"))
        assert torch.equal(outputs(theirs), outputs(model))
    with adaptation.disabled():
        assert torch.equal(outputs(module.part.lm), outputs(llama()))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (peft.MultitaskPromptTuningConfig(**VIRTUAL, num_tasks=2), "task_ids, for .* got input"),
        (peft.PromptTuningConfig(**VIRTUAL), "at most the 125 tokens that .* got max_length=128"),
    ],
    ids=["tasks", "length"],
)
def test_a_language_model_with_prompts_says_what_its_data_lack(config: Any, match: str) -> None:
    chats = [{"prompt": f"{n}: ", "completion": "yes"} for n in range(9)]
    limit = 128 if "128" in match else 32
    data = lp.ChatDataModule(records=chats, backbone="byte_llama", max_length=limit)
    module = lp.CausalLM(peft.get_peft_model(tiny_lm(), config), samples=0)
    with pytest.raises(lp.DataError, match=match):
        quiet_trainer(lp.PEFT("existing"), max_epochs=1).fit(module, data)
