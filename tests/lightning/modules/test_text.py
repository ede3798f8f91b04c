"""The classifier of texts: on a pretrained MiniLM, and what is refused."""

from __future__ import annotations

import copy

import lightning as L
import peft
import pytest
import torch
from torch.nn import functional as F

import lightning_peft as lp
from lightning_peft.kernels import fast_layers
from tests.support.encoders import minilm, tiny_encoder
from tests.support.fast import nothing_too_small
from tests.support.topics import topics
from tests.support.trainers import quiet_trainer

METHODS = ("lora", "bitfit", "linear_probe", "full")
SENTENCES = [
    "the soup was cold",
    "she took the night train to the sea, and nobody asked her why she had not come by car",
    "bread",
]


@pytest.fixture(scope="module")
def directory():
    return minilm()


@pytest.fixture(scope="module")
def pretrained(directory):
    torch.manual_seed(0)
    return lp.TextClassifier(directory).eval()


@pytest.fixture(scope="module")
def inputs(directory):
    module = lp.TextDataModule(backbone=directory, **topics())
    return module.tokenise(SENTENCES)


@pytest.fixture
def backbone(pretrained):
    return copy.deepcopy(pretrained.backbone)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


def logits_of(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def moved(model):
    """Move an adapter from its start, as training would."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lp.find_adaptation(model).trained_parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    return model


@pytest.mark.parametrize("method", METHODS)
def test_step_0_is_the_identity(backbone, inputs, method):
    before = logits_of(backbone, inputs)
    lp.adapt(backbone, method)
    torch.testing.assert_close(logits_of(backbone.eval(), inputs), before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_saved_loaded_and_merged(backbone, pretrained, inputs, tmp_path, method):
    adaptation = lp.adapt(backbone, method)
    moved(backbone).eval()
    after = logits_of(backbone, inputs)
    assert (after - logits_of(pretrained.backbone, inputs)).abs().max() > 1e-3
    adaptation.save(tmp_path)
    fresh = lp.load_adapter(copy.deepcopy(pretrained.backbone), tmp_path).eval()
    assert torch.equal(logits_of(fresh, inputs), after)
    merged = adaptation.merge_and_unload()
    difference = (logits_of(merged, inputs) - after).abs().max()
    assert difference <= 1e-5 * after.abs().max().clamp_min(1)


@nothing_too_small()
def test_every_linear_layer_of_the_blocks_is_adapted_and_takes_the_fast_way(
    backbone, inputs, monkeypatch
):
    linear = sum(isinstance(m, torch.nn.Linear) for m in backbone.bert.encoder.modules())
    lp.adapt(backbone, lp.LoRA())
    taken = []
    plain = fast_layers.low_rank_linear
    monkeypatch.setattr(
        fast_layers, "low_rank_linear", lambda *a, **k: taken.append(1) or plain(*a, **k)
    )
    backbone.train()(**inputs)
    assert len(taken) == linear == 36
    assert lp.accelerate(backbone).plain == {}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@nothing_too_small()
def test_logits_and_gradients_are_those_of_peft(backbone, pretrained, inputs, tmp_path):
    ours = lp.adapt(backbone, lp.LoRA(rank=4))
    moved(backbone).eval()
    ours.save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(
        copy.deepcopy(pretrained.backbone), tmp_path, is_trainable=True
    ).eval()
    labels = torch.tensor([0, 1, 0])
    found = []
    for model in (backbone, theirs):
        logits = model(**inputs).logits
        F.cross_entropy(logits, labels).backward()
        gradients = {
            name.removeprefix("base_model.model.").replace("lora_A.default", "A")
            .replace("lora_B.default", "B"): parameter.grad
            for name, parameter in model.named_parameters()
            if "lora_" in name
        }  # fmt: skip
        found.append((logits.detach(), gradients))
    (mine, my_gradients), (other, other_gradients) = found
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    assert len(my_gradients) == len(other_gradients) == 72
    for name, gradient in my_gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_training_is_that_of_a_plain_loop(directory):
    """Against peft, transformers' own loss and torch's AdamW, on the same batches."""
    data = lp.TextDataModule(backbone=directory, **topics(), labels_per_class=8, batch_size=8)
    still = {
        "num_hidden_layers": 2,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    torch.manual_seed(0)
    module = lp.TextClassifier(directory, backbone_kwargs=still, lr=1e-3, weight_decay=0.0)
    plain = copy.deepcopy(module.backbone)
    trainer = quiet_trainer(lp.PEFT("lora", rank=4), max_steps=4, limit_val_batches=0)
    seen = []
    step = module.training_step
    module.training_step = lambda batch, batch_idx: seen.append(batch) or step(batch, batch_idx)
    start = {}
    module.on_train_start = lambda: start.update(
        {n: p.detach().clone() for n, p in module.backbone.named_parameters() if p.requires_grad}
    )
    trainer.fit(module, data)

    names = ["query", "key", "value", "dense"]
    config = peft.LoraConfig(
        r=4, lora_alpha=module.backbone.peft_config["default"].lora_alpha, target_modules=names,
        exclude_modules=["bert.pooler.dense"], modules_to_save=["classifier"],
    )  # fmt: skip
    other = peft.get_peft_model(plain, config)

    def in_peft(name):
        return f"base_model.model.{name}".replace(
            "classifier.", "classifier.modules_to_save.default."
        )

    theirs = dict(other.named_parameters())
    assert {in_peft(name) for name in start} == {n for n, p in theirs.items() if p.requires_grad}
    with torch.no_grad():
        for name, value in start.items():
            theirs[in_peft(name)].copy_(value)
    optimizer = torch.optim.AdamW(
        [p for p in other.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0
    )
    assert len(seen) == 4
    for batch, labels in seen:
        optimizer.zero_grad()
        other(**batch, labels=labels).loss.backward()
        optimizer.step()
    mine = dict(module.backbone.named_parameters())
    moved_by = 0.0
    for name, value in start.items():
        # Adam divides by the gradient's own size, which makes rounding of the smallest large
        torch.testing.assert_close(mine[name], theirs[in_peft(name)], rtol=0, atol=1e-4)
        moved_by = max(moved_by, float((mine[name] - value).detach().abs().max()))
    assert moved_by > 3e-3


def test_padding_does_not_change_logits(pretrained, directory):
    data = lp.TextDataModule(backbone=directory, **topics())
    with torch.no_grad():
        together = pretrained(data.tokenise(SENTENCES))
        alone = torch.cat([pretrained(data.tokenise([text])) for text in SENTENCES])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def accuracy_on_unseen_nouns(directory, method, lr, pretrained=True):
    L.seed_everything(0, verbose=False)
    data = lp.TextDataModule(
        backbone=directory, **topics(), labels_per_class=8, val_fraction=0.1, batch_size=16
    )
    module = lp.TextClassifier(directory, pretrained=pretrained, lr=lr)
    trainer = quiet_trainer(lp.PEFT(method), max_steps=10, limit_val_batches=0)
    trainer.fit(module, data)
    (scores,) = trainer.test(module, data, verbose=False)
    return scores["test/accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "lr"), [("lora", 3e-3), ("bitfit", 3e-3), ("linear_probe", 3e-2)]
)
def test_with_few_labels_a_pretrained_encoder_knows_nouns_that_it_was_not_trained_on(
    directory, method, lr
):
    """Eight labels a topic; the nouns of the test are in none of the training sentences."""
    assert accuracy_on_unseen_nouns(directory, method, lr) > 0.9


@pytest.mark.slow
def test_the_same_network_from_scratch_can_only_guess(directory):
    assert accuracy_on_unseen_nouns(directory, "full", 1e-3, pretrained=False) < 0.7


def test_a_checkpoint_holds_what_is_trained_and_loads(directory, tmp_path, inputs):
    torch.manual_seed(0)
    module = lp.TextClassifier(directory, backbone_kwargs={"num_hidden_layers": 1}, lr=1e-2)
    data = lp.TextDataModule(backbone=directory, **topics(), batch_size=4, steps_per_epoch=2)
    trainer = quiet_trainer(lp.PEFT("lora"), max_steps=2, limit_val_batches=0)
    trainer.fit(module, data)
    path = tmp_path / "a.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    assert path.stat().st_size < 2e6
    loaded = lp.load_from_checkpoint(lp.TextClassifier, path)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(inputs), module.eval()(inputs))


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_the_other_tasks(tiny, tmp_path, task):
    texts = [
        f"the film was {'so ' * (i % 12)}{'good' if i // 12 % 2 else 'bad'}" for i in range(24)
    ]
    rows = [
        f"{text},{text.split()[-1] if task == 'binary' else ('x', 'y', 'x|y', '')[i % 4]}"
        for i, text in enumerate(texts)
    ]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]))
    data = lp.TextDataModule(tmp_path / "a.csv", tiny, task=task, batch_size=8)
    module = lp.TextClassifier(tiny, 2, task=task)
    trainer = quiet_trainer(lp.PEFT("bitfit"), max_steps=2)
    trainer.fit(module, data)
    (scores,) = trainer.test(module, data, verbose=False)
    assert ("test/auroc" if task == "binary" else "test/map") in scores
    outputs = trainer.predict(module, data)
    assert outputs[0]["probabilities"].shape[1] == 2
    assert module.test_results().classes[0].name == data.class_names[0]


def test_an_encoder_comes_in_float32_and_training_with_its_own_dropout(tiny):
    module = lp.TextClassifier(tiny, 3, head_dropout=0.4)
    assert module.backbone.training
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert module.backbone.dropout.p == 0.4
    assert lp.TextClassifier(tiny).backbone.dropout.p == 0.1
    assert module.backbone.classifier.out_features == 3


def test_random_weights_are_those_of_the_seed_and_not_the_pretrained(tiny):
    found = []
    for pretrained in (True, False, False):
        torch.manual_seed(3)
        module = lp.TextClassifier(tiny, pretrained=pretrained)
        found.append(module.backbone.bert.embeddings.word_embeddings.weight)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


def test_a_head_of_another_size_in_the_file_is_replaced(tiny, tmp_path):
    lp.TextClassifier(tiny, 5).backbone.save_pretrained(tmp_path)
    module = lp.TextClassifier(str(tmp_path), 3)
    assert module.backbone.classifier.out_features == 3


def test_weights_of_another_architecture_are_refused(tiny, tmp_path):
    import transformers

    config = transformers.BertConfig.from_pretrained(tiny)
    other = transformers.DistilBertConfig(
        vocab_size=config.vocab_size, dim=16, hidden_dim=32, n_layers=1, n_heads=2
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    with pytest.raises(lp.DataError, match="tensors of its encoder: it is of another"):
        lp.TextClassifier(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "settings", "match"),
    [
        (("glyph_vit",), {}, "'glyph_vit', which is a model of images in timm"),
        (("/nowhere/at/all",), {}, "directory of a Hugging Face model, got '/nowhere/at/all'"),
        (("TINY", 1), {"lr": 1e-3}, "num_classes of 2 or more, got 1"),
        (("TINY",), {"head_dropout": 1.5, "temperature": 0}, "head_dropout in .*; temperature"),
        (("TINY",), {"task": "regression"}, "Expected a task out of"),
        (
            ("TINY",),
            {"backbone_kwargs": {"hidden_dropout": 0.1}},
            "hidden_dropout: Did you mean.*'hidden_dropout_prob'",
        ),
        (("MODULE", 3), {}, "a head of 3 outputs, got BertForSequenceClassification with 2"),
        (("MODULE",), {"head_dropout": 0.1}, r"\['head_dropout'\] only with the name of a model"),
    ],
)
def test_what_cannot_be_built(tiny, arguments, settings, match):
    if arguments[0] == "TINY":
        arguments = (tiny, *arguments[1:])
    elif arguments[0] == "MODULE":
        arguments = (lp.TextClassifier(tiny).backbone, *arguments[1:])
    with pytest.raises(lp.DataError, match=match):
        lp.TextClassifier(*arguments, **settings)


def test_a_directory_without_a_model_is_told(tmp_path):
    with pytest.raises(lp.DataError, match="Expected a model under the name or in the directory"):
        lp.TextClassifier(str(tmp_path))
