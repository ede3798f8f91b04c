"""DPO against ``trl``, where it is installed: `uv pip install trl` beside this package."""

import json

import lightning as L
import pytest
import torch

import lightning_peft as lp
from lightning_peft.backbones.byte_llama import byte_tokenizer
from tests.support.language import pairs, tiny_lm
from tests.support.trainers import quiet_trainer

STEPS = 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of another library
def test_the_first_steps_are_those_of_trl(tmp_path):
    trl = pytest.importorskip("trl", reason="trl brings pandas and pyarrow: it is no extra")
    import datasets
    import peft

    tokenizer = byte_tokenizer(128)
    # B is 0 at first: trl takes the adapter as it comes for the reference, not the model without it
    start = lp.adapt(tiny_lm(), lp.LoRA(rank=4, targets=["q_proj", "v_proj"]))
    start.save(tmp_path / "start")

    losses = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    # all pairs in one batch, so that the order plays no part
    data = lp.ChatDataModule(
        records=pairs(), backbone=tokenizer, val_fraction=0, test_fraction=0, batch_size=10
    )
    module = lp.PreferenceModule(start.model, beta=0.5, lr=4.0, optimizer=torch.optim.SGD)
    quiet_trainer(Watch(), max_steps=STEPS, max_epochs=-1).fit(module, data)

    policy = peft.PeftModel.from_pretrained(tiny_lm(), tmp_path / "start", is_trainable=True)
    settings = trl.DPOConfig(
        output_dir=str(tmp_path / "trl"), beta=0.5, learning_rate=4.0, optim="sgd",
        lr_scheduler_type="constant", max_steps=STEPS, per_device_train_batch_size=10,
        max_grad_norm=0.0, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, gradient_checkpointing=False, bf16=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=policy,
        args=settings,
        train_dataset=datasets.Dataset.from_list(pairs()),
        processing_class=tokenizer,
    )
    trainer.train()
    theirs = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == len(theirs) == STEPS, json.dumps(trainer.state.log_history)
    assert losses == pytest.approx(theirs, abs=2e-4)  # trl rounds what it logs
    assert abs(losses[0] - losses[-1]) > 0.01
