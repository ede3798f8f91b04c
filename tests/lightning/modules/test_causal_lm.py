"""Training a causal language model, against a loop in plain torch; samples, generation, checks."""

import json
import math

import lightning as L
import peft
import pytest
import torch
from torch.nn import functional as F

import lightning_peft as lp
from lightning_peft.backbones.byte_llama import byte_tokenizer
from lightning_peft.lightning.modules.language_checks import see_each_other
from tests.support.language import chats, pairs, tiny_lm
from tests.support.trainers import quiet_trainer

TOKENIZER = byte_tokenizer(128)
BATCH = ("input_ids", "attention_mask", "labels")


def data(records=None, **settings):
    defaults = {"val_fraction": 0.2, "test_fraction": 0.0, "batch_size": 4}
    return lp.ChatDataModule(
        records=chats() if records is None else records,
        backbone=TOKENIZER,
        **{**defaults, **settings},
    )


@pytest.mark.parametrize("most", [2**24, 3000])
def test_a_run_is_that_of_a_plain_loop(most, monkeypatch):
    monkeypatch.setattr("lightning_peft.lightning.modules.token_loss.MOST", most)
    seen, losses = [], []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))
            seen.append(batch)

    module = lp.CausalLM(tiny_lm(), lr=0.5, weight_decay=0.0, samples=0, optimizer=torch.optim.SGD)
    trainer = quiet_trainer(Watch(), max_steps=3, max_epochs=-1)
    trainer.fit(module, data())

    # row by row without padding, the labels shifted and the loss summed by hand
    plain = tiny_lm()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.5)
    for batch, expected in zip(seen, losses, strict=True):
        total, count = torch.zeros(()), 0
        for ids, mask, labels in zip(*(batch[key] for key in BATCH), strict=True):
            length = int(mask.sum())
            log_p = plain(input_ids=ids[None, :length]).logits[0].log_softmax(-1)
            for i in range(1, length):
                if labels[i] != -100:
                    total, count = total - log_p[i - 1, ids[i]], count + 1
        assert float((total / count).detach()) == pytest.approx(expected, rel=1e-5)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.backbone.state_dict()[name], value)


@pytest.mark.parametrize("most", [2**24, 3000])
def test_the_metrics_are_means_over_tokens(most, monkeypatch):
    monkeypatch.setattr("lightning_peft.lightning.modules.token_loss.MOST", most)
    module = lp.CausalLM(tiny_lm(), samples=0)
    datamodule = data(val_fraction=0.5, eval_batch_size=2)
    trainer = quiet_trainer()
    (found,) = trainer.validate(module, datamodule, verbose=False)
    total, count = 0.0, 0
    with torch.no_grad():
        for index in range(5):  # one by one, without padding
            row = datamodule.texts("val")[index]
            logits = module.backbone(input_ids=row["input_ids"]).logits[0, :-1]
            labels = row["labels"][0, 1:]
            total += float(F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            count += int((labels != -100).sum())
    assert found["val/loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["val/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    # a sum in bfloat16 would be off by up to 1 in 256, and a count would stop there
    half = quiet_trainer(precision="bf16-true")
    (found,) = half.validate(module, datamodule, verbose=False)
    assert found["val/perplexity"] == pytest.approx(math.exp(found["val/loss"]), rel=1e-4)


def test_samples_are_logged_and_a_checkpoint_generates_the_same(tmp_path):
    records = [{**row, "split": "val" if i > 3 else "train"} for i, row in enumerate(chats(6))]
    datamodule = data(records)
    module = lp.CausalLM(tiny_lm(), lr=2e-2, samples=2, max_new_tokens=8)
    csv = L.pytorch.loggers.CSVLogger(tmp_path)
    trainer = quiet_trainer(
        lp.PEFT("lora", rank=8), lp.WarmupCosine(warmup=0.1),
        max_steps=2, max_epochs=-1, logger=csv, log_every_n_steps=1, num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule)
    assert [s.reference for s in module.latest] == ["WHITE", "GREY"]
    assert module.latest[0].prompt == chats(5)[4]["messages"][:1]
    rows = (tmp_path / "lightning_logs/version_0/samples.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows[:4]] == [1, 1, 2, 2], "none before training"
    assert json.loads(rows[-1])["generated"] == module.latest[1].generated

    trainer.save_checkpoint(tmp_path / "a.ckpt")
    prompts = ["say", "tell me a colour"]
    found = module.generate(prompts, max_new_tokens=6)
    loaded = lp.load_from_checkpoint(
        lp.CausalLM, tmp_path / "a.ckpt", backbone=tiny_lm(), tokenizer=TOKENIZER
    )
    assert loaded.generate(prompts, max_new_tokens=6) == found
    assert loaded.hparams.lr == 2e-2
    assert module.generate(chats()[0]["messages"][:1], max_new_tokens=3) != ""


def test_prompts_of_a_batch_do_not_change_each_other():
    module = lp.CausalLM(tiny_lm(), tokenizer=TOKENIZER)
    prompts = ["a", "a longer prompt", "the longest prompt of all"]
    state = torch.get_rng_state()
    together = module.generate(prompts, max_new_tokens=5, do_sample=False)
    alone = []
    for prompt in prompts:
        ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            for _ in range(5):  # without a cache, a mask or padding
                best = module.backbone(input_ids=ids).logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat([ids, best], 1)
        alone.append(TOKENIZER.decode(ids[0, len(TOKENIZER(prompt)["input_ids"]):],
                                      skip_special_tokens=True))  # fmt: skip
    assert together == alone
    module.generate("a", max_new_tokens=2, do_sample=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.training


def test_the_mixin_adapts_it_too(tmp_path):
    class Mine(lp.PEFTMixin, lp.CausalLM):
        peft = lp.LoRA(rank=2)

    module = Mine(tiny_lm(), lr=0.1, lora_plus=4, samples=["say"], max_new_tokens=2)
    trainer = quiet_trainer(lp.WarmupLinear(warmup=1), max_steps=2, max_epochs=-1)
    trainer.fit(module, data())
    assert {group["name"] for group in trainer.optimizers[0].param_groups} == {
        "decay", "lora_b_decay"
    }  # fmt: skip
    assert [(s.prompt, s.reference) for s in module.latest] == [("say", "")]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Mine.load_from_checkpoint(tmp_path / "a.ckpt", backbone=tiny_lm())
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, module.state_dict()[name])


def test_it_is_built_from_a_name_without_a_network():
    module = lp.CausalLM(
        "byte_llama", pretrained=False, dtype="bfloat16",
        backbone_kwargs={"hidden_size": 32, "num_hidden_layers": 1},
    )  # fmt: skip
    assert module.backbone.config.hidden_size == 32
    assert module.backbone.dtype == torch.bfloat16
    assert len(module.tokenizer) == module.backbone.config.vocab_size == 260
    with pytest.raises(lp.DataError, match="hidden_siz: Did you mean 'hidden_size'"):
        lp.CausalLM("byte_llama", pretrained=False, backbone_kwargs={"hidden_siz": 3})


def test_random_weights_are_said(caplog):
    lp.CausalLM("byte_llama", backbone_kwargs={"num_hidden_layers": 1})
    assert "'byte_llama' has no pretrained weights: they are random" in caplog.text


def test_an_encoder_is_no_language_model(tmp_path):
    from tests.support.encoders import tiny_encoder

    with pytest.raises(lp.DataError, match="got a file without .*which would be random"):
        lp.CausalLM(tiny_encoder(tmp_path))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lr": -1.0, "samples": -1, "max_new_tokens": 0}, "samples of 0.*max_new.*lr of 0"),
        ({"dtype": "bfloat16", "pretrained": False}, "pretrained, dtype only with the name"),
        ({"samples": "tell me"}, "samples as a number or a list"),
        ({"tokenizer": 3}, "tokenizer as a name or a tokeniser, got int"),
    ],
)
def test_arguments_are_checked(settings, match):
    with pytest.raises(lp.DataError, match=match):
        lp.CausalLM(tiny_lm(), **settings)


@pytest.mark.parametrize(
    ("model", "records", "settings", "match"),
    [
        ({"vocab_size": 250}, None, {}, "fits the 250 rows of the model's embedding, got .*of 260"),
        ({}, None, {"max_length": 200}, "at most the 128 tokens that LlamaForCausalLM reads, got "
         "max_length=200"),
        ({}, pairs(), {}, "got data of the task 'preference': use PreferenceModule"),
    ],
)  # fmt: skip
def test_data_that_does_not_fit_the_model(model, records, settings, match):
    backbone = tiny_lm()
    if model:
        backbone.resize_token_embeddings(model["vocab_size"])
    with pytest.raises(lp.DataError, match=match):
        quiet_trainer(max_steps=1).fit(lp.CausalLM(backbone), data(records, **settings))


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ([torch.zeros(1, 4).long()] * 2, "by name .a mapping., got list"),
        ({"input_ids": torch.zeros(1, 4).long()}, "labels, got input_ids"),
        (
            {"input_ids": torch.full((1, 200), 300), "labels": torch.full((1, 200), -100)},
            "labels that are -100 everywhere.*at most the 128 tokens .*got 200.*below the 260 rows",
        ),
    ],
)
def test_batches_of_ones_own(batch, match):
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    with pytest.raises(lp.DataError, match=match):
        quiet_trainer(max_steps=1).fit(lp.CausalLM(tiny_lm()), loader)


def test_packing_is_tried_in_the_model():
    device = torch.device("cpu")
    for kind in ("llama", "gpt2"):
        model = tiny_lm(kind).train()
        assert see_each_other(model, device) is None
        assert all(part.training for part in model.modules())
    module = lp.CausalLM(tiny_lm("mamba"), tokenizer=TOKENIZER)
    with pytest.raises(lp.DataError, match="MambaForCausalLM: .*Set packing=False"):
        quiet_trainer(max_steps=1).fit(module, data(packing=True))
    trainer = quiet_trainer(max_steps=2, max_epochs=-1)
    trainer.fit(lp.CausalLM(tiny_lm(), samples=0), data(packing=True, max_length=80))
    assert trainer.global_step == 2


def test_prompts_that_do_not_fit_are_refused():
    module = lp.CausalLM(tiny_lm(), tokenizer=TOKENIZER)
    with pytest.raises(lp.DataError, match="prompts of at most 28 tokens.*got one of 30"):
        module.generate("a" * 30, max_new_tokens=100)
    with pytest.raises(lp.DataError, match="Pass tokenizer="):
        lp.CausalLM(tiny_lm()).generate("a")


@pytest.mark.parametrize("most", [2**24, 100])
def test_prompts_in_front_of_the_tokens_are_not_scored(most, monkeypatch):
    monkeypatch.setattr("lightning_peft.lightning.modules.token_loss.MOST", most)
    base = tiny_lm().requires_grad_(False)
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(base, settings)
    module = lp.CausalLM(model, samples=0, tokenizer=TOKENIZER)
    datamodule = data(val_fraction=0.5, eval_batch_size=2, max_length=64)
    trainer = quiet_trainer(lp.PEFT("existing"), max_steps=1, max_epochs=-1)
    trainer.fit(module, datamodule)
    (found,) = trainer.validate(module, datamodule, verbose=False)
    total, count = 0.0, 0
    words = base.get_input_embeddings()
    with torch.no_grad():
        prompts = model.prompt_encoder["default"].embedding.weight[None]
        for index in range(5):
            row = datamodule.texts("val")[index]
            given = torch.cat([prompts, words(row["input_ids"])], 1)
            logits = base(inputs_embeds=given).logits[0, 3:-1]
            labels = row["labels"][0, 1:]
            total += float(F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            count += int((labels != -100).sum())
    assert found["val/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert found["val/loss"] == pytest.approx(total / count, rel=1e-4)
