"""DPO with the adapter switched off as the reference, against a frozen copy and a loss by hand."""

import copy

import pytest
import torch

import lightning_peft as lp
from lightning_peft.backbones.byte_llama import byte_tokenizer
from tests.support.language import chats, pairs, tiny_lm
from tests.support.trainers import quiet_trainer

TOKENIZER = byte_tokenizer(128)


def data(records=None, **settings):
    defaults = {"val_fraction": 0.2, "test_fraction": 0.2, "batch_size": 2}
    records = pairs() if records is None else records
    return lp.ChatDataModule(records=records, backbone=TOKENIZER, **{**defaults, **settings})


def log_probability(model, prompt, answer):
    """The log probability of an answer, token by token, without padding or masks."""
    first = TOKENIZER(prompt)["input_ids"]
    ids = torch.tensor([*first, *TOKENIZER(answer)["input_ids"], TOKENIZER.eos_token_id])
    found = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return sum(found[i - 1, ids[i]] for i in range(len(first), len(ids)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradients_are_those_of_a_frozen_copy(smoothing):
    backbone = tiny_lm()
    reference = copy.deepcopy(backbone).eval().requires_grad_(False)
    module = lp.PreferenceModule(backbone, beta=0.3, label_smoothing=smoothing)
    adaptation = lp.adapt(module.backbone, lp.LoRA(rank=4))
    with torch.no_grad():  # a policy that differs from its reference
        for name, parameter in module.backbone.named_parameters():
            if name in adaptation.trained_names():
                parameter.normal_(std=0.3)
    datamodule = data(val_fraction=0.0, test_fraction=0.0)
    batch = datamodule.texts("train").__getitems__([0, 1, 2])
    module.train()
    loss = module.training_step(batch, 0)
    loss.backward()
    trained = [p for p in module.parameters() if p.requires_grad]
    gradients = [p.grad.clone() for p in trained]
    module.zero_grad()

    total = torch.zeros(())
    for row in pairs(3):
        better, worse = (
            log_probability(module.backbone, row["prompt"], row[key])
            - log_probability(reference, row["prompt"], row[key])
            for key in ("chosen", "rejected")
        )
        probability = torch.sigmoid(0.3 * (better - worse))
        total = total - (1 - smoothing) * probability.log() - smoothing * (1 - probability).log()
    (total / 3).backward()
    assert abs(float(loss.detach()) - 0.6931) > 1e-3, "the policy is not its reference"
    torch.testing.assert_close(loss.detach(), (total / 3).detach())
    for parameter, gradient in zip(trained, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_a_run_prefers_the_better_answers():
    module = lp.PreferenceModule(tiny_lm(), lr=2e-2)
    trainer = quiet_trainer(lp.PEFT("lora", rank=4), max_steps=6, max_epochs=-1)
    trainer.fit(module, data())
    assert trainer.callback_metrics["train/accuracy"] == 1
    assert trainer.callback_metrics["train/loss"] < 0.68
    (found,) = trainer.test(module, data(), verbose=False)
    assert set(found) == {"test/loss", "test/accuracy", "test/margin"}


@pytest.mark.parametrize(
    ("callbacks", "records", "error", "match"),
    [
        ([], None, lp.MethodError, "expected a model with one adapter.*got none.*lp.PEFT"),
        ([lp.PEFT("full")], None, lp.MethodError, "keeps no copy of the original weights"),
        ([lp.PEFT("lora")], chats(), lp.DataError, "pairs of answers .*'language': use CausalLM"),
    ],
)
def test_what_is_refused(callbacks, records, error, match):
    with pytest.raises(error, match=match):
        quiet_trainer(*callbacks, max_steps=1).fit(lp.PreferenceModule(tiny_lm()), data(records))


def test_batches_and_arguments_are_checked():
    with pytest.raises(lp.DataError, match=r"beta above 0, got 0; label_smoothing in \[0, 0.5\)"):
        lp.PreferenceModule(tiny_lm(), beta=0, label_smoothing=0.5)
    module = lp.PreferenceModule(tiny_lm())
    batch = {"input_ids": torch.zeros(3, 4).long(), "labels": torch.zeros(3, 4).long()}
    with pytest.raises(lp.DataError, match="of pairs, the better answers in the first half.*3"):
        module.training_step(batch, 0)
