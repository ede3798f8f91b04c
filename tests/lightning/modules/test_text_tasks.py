"""Pairs, numbers, tagged words and targets, against transformers, seqeval, scikit-learn, rouge."""

import copy
import json
import subprocess
import sys
from importlib.util import find_spec

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F

import lightning_peft as lp
from lightning_peft.data.tagged_words import for_words
from lightning_peft.evaluation.tags import TagCounts, per_type_table, scores_of
from tests.support.encoders import WORDS, tiny_encoder, tiny_seq2seq
from tests.support.trainers import quiet_trainer

TAGS = ("B-A", "B-B", "I-A", "I-B", "O")
SENTENCES = [[*WORDS[i : i + 3], "film", "zebra"] for i in range(12)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory):
    return tiny_seq2seq(tmp_path_factory.mktemp("seq2seq"))


def random_tags(seed, names=TAGS, rows=SENTENCES):
    random = torch.Generator().manual_seed(seed)
    return [
        [names[int(torch.randint(len(names), (), generator=random))] for _ in row] for row in rows
    ]


def as_tensors(rows, names, holes=()):
    """Tags as a batch of tokens, some of which have none."""
    found = torch.tensor([[names.index(tag) for tag in row] for row in rows])
    found[:, list(holes)] = -100
    return found


def test_entities_are_those_of_seqeval():
    metrics = pytest.importorskip("seqeval.metrics", reason="extra: text")
    true, called = random_tags(0), random_tags(1)
    kept = (
        [[tag for i, tag in enumerate(row) if i != 2] for row in true],
        [[tag for i, tag in enumerate(row) if i != 2] for row in called],
    )
    counts = TagCounts(TAGS)
    found = counts(as_tensors(called, TAGS), as_tensors(true, TAGS, holes=[2])).sum(0)
    scores = scores_of(found, counts.entities)
    for name in ("precision", "recall", "f1"):
        wanted = getattr(metrics, f"{name}_score")(*kept)
        assert float(scores[name]) == pytest.approx(wanted)
    assert float(scores["accuracy"]) == pytest.approx(metrics.accuracy_score(*kept))
    report = metrics.classification_report(*kept, output_dict=True)
    for row in per_type_table(found, counts.types):
        assert row.f1 == pytest.approx(report[row.name]["f1-score"])
        assert row.support == report[row.name]["support"]


def test_tags_without_entities_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    names = ("NOUN", "VERB", "X")
    true, called = random_tags(0, names[:2]), random_tags(1, names[:2])
    counts = TagCounts(names)
    found = counts(as_tensors(called, names), as_tensors(true, names)).sum(0)
    flat = [[tag for row in rows for tag in row] for rows in (true, called)]
    scores = scores_of(found, counts.entities)
    assert float(scores["f1"]) == pytest.approx(metrics.f1_score(*flat, average="macro"))
    assert float(scores["accuracy"]) == pytest.approx(metrics.accuracy_score(*flat))


def test_words_are_trained_and_measured(encoder, tmp_path):
    """The loss is that of transformers, and the test that of seqeval, on the same tokens."""
    metrics = pytest.importorskip("seqeval.metrics", reason="extra: text")
    rows, tags = SENTENCES * 2, random_tags(0) * 2
    splits = ["train", "test"] * len(SENTENCES)
    data = lp.TextDataModule(backbone=encoder, texts=rows, labels=tags, splits=splits, batch_size=5)
    module = lp.TokenClassifier(encoder, class_names=data.class_names, lr=3e-2)
    (inputs, labels) = next(iter(data.plain_dataloader("train")))
    plain = copy.deepcopy(module.backbone).eval()
    wanted = plain(**inputs, labels=labels).loss
    assert torch.equal(module.eval()._cross_entropy(module(inputs), labels), wanted)

    trainer = quiet_trainer(lp.PEFT("lora", rank=2), max_epochs=12)
    trainer.fit(module.train(), data)
    (found,) = trainer.test(module, data, verbose=False)
    called, true = [], []
    module.eval()
    with torch.no_grad():
        for inputs, labels in data.test_dataloader():
            for row, other in zip(module(inputs).argmax(-1), labels, strict=True):
                kept = other != -100
                called.append([TAGS[k] for k in row[kept]])
                true.append([TAGS[k] for k in other[kept]])
    assert found["test/f1"] == pytest.approx(metrics.f1_score(true, called), abs=1e-6)
    assert found["test/f1"] > 0.3  # it has learned something, so that the comparison says something
    results = module.test_results()
    low, high = results.intervals(replicates=50)["test/f1"]
    assert low <= found["test/f1"] <= high
    assert [path.name for path in results.write_csv(tmp_path)] == ["per_class.csv"]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert not any("embeddings" in name for name in state)  # slim
    loaded = lp.load_from_checkpoint(lp.TokenClassifier, tmp_path / "a.ckpt").eval()
    with torch.no_grad():
        assert torch.equal(loaded(inputs), module.eval()(inputs))


def test_a_tag_is_at_the_first_token_of_its_word(encoder):
    data = lp.TextDataModule(
        backbone=encoder, texts=[["a", "film-song", "was"], ["the", "play"]] * 2,
        labels=[["O", "B-A", "I-A"], ["B-B", "O"]] * 2, splits=["train"] * 4, max_length=4,
        val_fraction=0.0,
    )  # fmt: skip
    _, labels = data.texts("train").__getitems__([0, 1])
    names = data.class_names
    wanted = [["O", "B-A", None, None], ["B-B", "O", None, None]]
    assert [[None if k == -100 else names[k] for k in row] for row in labels.tolist()] == wanted
    assert data.texts("train").tokens.cut == 2  # "was" is after the fourth token


def test_words_of_a_tokeniser_over_bytes_begin_as_words():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE({"a": 0, "b": 1, "Ġ": 2}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    before = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("b")
    after = for_words(tokenizer).backend_tokenizer.pre_tokenizer.pre_tokenize_str("b")
    assert [before[0][0], after[0][0]] == ["b", "Ġb"]
    assert tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("b") == before
    with pytest.raises(lp.DataError, match="Expected a fast tokeniser"):
        for_words(object())


def test_pairs_and_numbers(encoder):
    """The batches are the tokeniser's own, and the metrics those of scikit-learn and scipy."""
    metrics = pytest.importorskip("sklearn.metrics")
    stats = pytest.importorskip("scipy.stats")
    pairs = [(f"the film was {'so ' * i}good", f"a {word}") for i, word in enumerate(WORDS)]
    numbers = [2.5 * i + 0.5 for i in range(len(pairs))]
    splits = ["train", "test", "train"] * 5
    data = lp.TextDataModule(
        backbone=encoder, texts=pairs, labels=numbers, splits=splits, batch_size=4
    )
    inputs, labels = next(iter(data.test_dataloader()))
    held = [pair for pair, split in zip(pairs, splits, strict=True) if split == "test"]
    wanted = data.tokenizer(
        [one for one, _ in held], [other for _, other in held], padding=True, return_tensors="pt"
    )
    assert torch.equal(inputs["input_ids"], wanted["input_ids"])
    torch.manual_seed(0)  # a correlation needs predictions that differ
    module = lp.TextRegressor(encoder, lr=1e-2)
    trainer = quiet_trainer(lp.PEFT("lora", rank=2), max_epochs=8)
    trainer.fit(module, data)
    (found,) = trainer.test(module, data, verbose=False)
    called = trainer.predict(module, data)[0]["predictions"]
    assert found["test/rmse"] == pytest.approx(
        metrics.root_mean_squared_error(labels, called), rel=1e-5
    )
    assert found["test/r2"] == pytest.approx(metrics.r2_score(labels, called), abs=1e-4)
    assert found["test/pearson"] == pytest.approx(stats.pearsonr(labels, called)[0], abs=1e-4)
    assert found["test/spearman"] == pytest.approx(stats.spearmanr(labels, called)[0], abs=1e-4)
    train = torch.tensor([numbers[i] for i in data.indices["train"]])
    torch.testing.assert_close(module.target_mean[0], train.mean())
    torch.testing.assert_close(module.target_std[0], train.std(correction=0))


def targets(count=12):
    texts = [f"the {a} was {b}" for a in WORDS[4:7] for b in ("good", "bad", "not", "seen")]
    return texts[:count], [" ".join(reversed(text.split()[1::2])) for text in texts[:count]]


def rouge_of(wanted, written):
    """The means of rouge_score, in a process of its own: its log closes what pytest captures."""
    code = (
        "import json, sys; from rouge_score.rouge_scorer import RougeScorer\n"
        "names = ['rouge1', 'rouge2', 'rougeL']; score = RougeScorer(names).score\n"
        "rows = [score(a, b) for a, b in zip(*json.load(sys.stdin))]\n"
        "print(json.dumps({n: sum(r[n].fmeasure for r in rows) / len(rows) for n in names}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([wanted, written]), text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_targets_are_trained_and_measured(seq2seq, tmp_path):
    """The losses are those of transformers; ROUGE is rouge_score's, of what generate() writes."""
    if find_spec("rouge_score") is None:
        pytest.skip("rouge_score is not installed")
    texts, wanted = targets()
    splits = ["train", "train", "val", "test"] * 3
    data = lp.TextDataModule(
        backbone=seq2seq, texts=texts, labels=wanted, splits=splits, task="seq2seq", batch_size=2,
        eval_batch_size=2, prefix="the ",
    )  # fmt: skip
    module = lp.Seq2SeqLM(seq2seq, lr=3e-2, max_new_tokens=4, samples=2)
    trainer = quiet_trainer(lp.PEFT("lora", rank=2), max_epochs=15)
    trainer.fit(module, data)
    assert [sample.reference for sample in module.latest] == [wanted[2], wanted[6]]
    assert module.latest[0].prompt == "the " + texts[2]
    (found,) = trainer.test(module, data, verbose=False)

    module.eval()
    total = tokens = 0
    written = []
    with torch.no_grad():
        for batch in data.test_dataloader():
            logits = module.backbone(**batch).logits
            total += F.cross_entropy(
                logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum"
            )
            tokens += int((batch["labels"] != -100).sum())
            out = module.backbone.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"],
                max_new_tokens=4, do_sample=False,
            )  # fmt: skip
            written += data.tokenizer.batch_decode(out, skip_special_tokens=True)
    assert found["test/loss"] == pytest.approx(float(total) / tokens, rel=1e-5)
    held = [t for t, split in zip(wanted, splits, strict=True) if split == "test"]
    for name, mean in rouge_of(held, written).items():
        assert found[f"test/{name}"] == pytest.approx(mean, abs=1e-6)
    assert found["test/rouge1"] > 0.1  # so that the comparison says something
    prompts = ["the " + t for t, s in zip(texts, splits, strict=True) if s == "test"]
    assert module.generate(prompts, max_new_tokens=4) == written
    assert module.generate(prompts[0], max_new_tokens=4) == written[0]

    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = lp.load_from_checkpoint(lp.Seq2SeqLM, tmp_path / "a.ckpt")
    assert loaded.generate(prompts, max_new_tokens=4) == written


@pytest.mark.parametrize(
    ("module", "settings", "match"),
    [
        (lambda e, s: lp.TextClassifier(e), {"labels": [["O", "B-A"], ["O", "O"]]},
         "data of the task 'multiclass', got 'token_classification'"),
        (lambda e, s: lp.TokenClassifier(e, 3), {"labels": [["O", "B-A"], ["O", "O"]]},
         "data of 3 classes, as the head has, got 2"),
        (lambda e, s: lp.TokenClassifier(e, 2), {"texts": ["a", "b"], "labels": ["x", "y"]},
         "data of the task 'token_classification', got 'multiclass'"),
        (lambda e, s: lp.TextRegressor(e), {"texts": ["a", "b"], "labels": ["x", "y"]},
         "data of the task 'regression', got 'multiclass'"),
        (lambda e, s: lp.Seq2SeqLM(s), {"texts": ["a", "b"], "labels": ["x", "y"]},
         "texts with targets .*got data of the task 'multiclass'"),
        (lambda e, s: lp.TextClassifier(e),
         {"texts": ["a", "b"], "labels": ["x", "y"], "task": "seq2seq"}, "got 'seq2seq'"),
    ],
)  # fmt: skip
def test_data_of_another_task_is_refused(encoder, seq2seq, module, settings, match):
    settings = {"texts": [["a", "film"], ["a", "song"]], "val_fraction": 0.0} | settings
    data = lp.TextDataModule(backbone=encoder, splits=["train", "train"], **settings)
    with pytest.raises(lp.DataError, match=match):
        quiet_trainer(max_steps=1).fit(module(encoder, seq2seq), data)


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
def test_texts_that_the_model_cannot_read_are_refused_before_the_first_step(encoder, kind):
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=8, hidden_size=16, intermediate_size=32, num_hidden_layers=1, pad_token_id=0,
        num_attention_heads=2, max_position_embeddings=6,
    )  # fmt: skip
    limit = {"Bert": 6, "Roberta": 5}[kind]  # a position of RoBERTa is that of the padding
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    texts = ["the " * (limit - 1), "the " * limit, "the " * (limit + 1), "a"]

    def data(**settings):
        options = {"texts": texts, "labels": ["a", "b"] * 2, "splits": ["train"] * 4} | settings
        return lp.TextDataModule(backbone=encoder, val_fraction=0.0, **options)

    match = rf"(?s)at most the {limit} tokens that {kind}F\w+ reads, got one of {limit + 1}: set"
    with pytest.raises(lp.DataError, match=match):
        quiet_trainer(max_steps=1).fit(lp.TextClassifier(model), data())
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0)
    trainer.fit(lp.TextClassifier(model), data(max_length=limit))
    # the limit is that of the model itself
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|bounds)|must match"):
        model(input_ids=torch.ones(1, limit + 1).long())
    words, tags = [["heard", "a"], ["a", "the"]] * 2, [["O", "B-A"], ["O", "O"]] * 2
    tagger = transformers.BertForTokenClassification(transformers.BertConfig(**config.to_dict()))
    with pytest.raises(lp.DataError, match="below the 8 rows .*got 16 in the train texts"):
        trainer.fit(lp.TokenClassifier(tagger, 2), data(texts=words, labels=tags))


def test_batches_that_cannot_be_learned_from(encoder, seq2seq):
    inputs = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2).long()}

    def fit(module, batch):
        loader = torch.utils.data.DataLoader([batch], batch_size=None)
        quiet_trainer(max_steps=1).fit(module, loader)

    words = lp.TokenClassifier(encoder, class_names=["O", "B-A"])
    with pytest.raises(lp.DataError, match="tags from 0 to 1, .*got tags from 2 to 2"):
        fit(words, (inputs, torch.tensor([[2, -100]])))
    with pytest.raises(lp.DataError, match=r"shape \(B, T\), got torch.int64 of shape \(1,\)"):
        fit(words, (inputs, torch.tensor([1])))
    with pytest.raises(lp.DataError, match="the names of the tags"):
        fit(lp.TokenClassifier(encoder, 2), (inputs, torch.tensor([[1, -100]])))
    texts = lp.Seq2SeqLM(seq2seq)
    with pytest.raises(lp.DataError, match="got labels that are -100 everywhere"):
        fit(texts, inputs | {"labels": torch.tensor([[-100]])})
    with pytest.raises(lp.DataError, match="labels below the 18 rows .*got 40"):
        fit(texts, inputs | {"labels": torch.tensor([[40]])})
    with pytest.raises(lp.DataError, match="with labels, got input_ids, attention_mask"):
        fit(texts, inputs)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda e, s: lp.TokenClassifier(e), "num_classes of 2 or more, got 0"),
        (lambda e, s: lp.TokenClassifier(e, 3, class_names=["O", "B-A"]), "3 class_names, got 2"),
        (lambda e, s: lp.TextRegressor(e, loss="mae"), "a loss, got 'mae'"),
        (lambda e, s: lp.TextRegressor(e, target_mean=1.0), "both target_mean and target_std"),
        (lambda e, s: lp.Seq2SeqLM(s, samples=-1, max_new_tokens=0),
         "samples of 0 or more, got -1; max_new_tokens of 1 or more"),
        (lambda e, s: lp.Seq2SeqLM(e), "a model that maps texts to texts"),
        (lambda e, s: lp.TokenClassifier(lp.TextRegressor(e, 4).backbone, 3),
         "a head of 3 outputs, got BertForSequenceClassification with 4"),
        (lambda e, s: lp.TextDataModule(backbone=e, texts=["a"], labels=["b"], task="summaries"),
         "a task out of .*, got 'summaries'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(encoder, seq2seq, build, match):
    with pytest.raises(lp.DataError, match=match):
        build(encoder, seq2seq)


def test_a_checkpoint_with_targets_is_resumed_to_the_same_bits(seq2seq, tmp_path):
    texts, wanted = targets()

    def fit(*callbacks, path=None):
        L.seed_everything(0, verbose=False)
        data = lp.TextDataModule(
            backbone=seq2seq, texts=texts, labels=wanted, task="seq2seq", batch_size=4
        )
        module = lp.Seq2SeqLM(seq2seq, max_new_tokens=2)
        trainer = quiet_trainer(
            lp.PEFT("lora", rank=2), *callbacks, max_steps=5, enable_checkpointing=bool(callbacks)
        )
        trainer.fit(module, data, ckpt_path=path, weights_only=True)
        return module

    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    whole = fit(keep)
    resumed = fit(path=tmp_path / "step=2.ckpt")
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other), name
