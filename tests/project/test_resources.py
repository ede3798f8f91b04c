"""The harness of ``python -m benchmarks.resources``, on tiny models; no time is asserted."""

import functools
import json
import logging

import pytest
import torch

from benchmarks.evidence.store import Store
from benchmarks.resources import measure
from benchmarks.resources import page as pages
from benchmarks.resources.__main__ import Runner, main
from benchmarks.resources.models import MODELS, RECIPE, Model, images, loss_of, sentences, texts
from benchmarks.resources.plan import KEYS, Job, jobs, matching
from benchmarks.resources.summary import Spread, ratio, to_a_loss
from benchmarks.resources.variants import build, methods, variants
from lightning_peft.errors import DataError


def tiny_vit():
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=2, img_size=32, num_classes=4
    )


def tiny_bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(
        BertConfig(**sizes, intermediate_size=32, vocab_size=30000, num_labels=4)
    )


def tiny_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"intermediate_size": 32, "vocab_size": 32000, "tie_word_embeddings": True}
    return LlamaForCausalLM(LlamaConfig(**sizes, **more, use_cache=False))


@pytest.fixture
def tiny(monkeypatch, caplog):
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")
    monkeypatch.setitem(MODELS, "vit_b16", Model("ViT", (2, 32), tiny_vit, images, "head"))
    monkeypatch.setitem(MODELS, "bert_base", Model("BERT", (2, 6), tiny_bert, texts, "classifier"))
    monkeypatch.setitem(MODELS, "llama", Model("Llama", (2, 6), tiny_llama, sentences))
    torch.manual_seed(0)

    @functools.cache
    def base(name):
        return MODELS[name].make()

    return base


@pytest.mark.parametrize("name", ["vit_b16", "bert_base", "llama"])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_peft_alone_trains_as_much_at_the_same_places(tiny, name, method):
    ours, theirs = (build(name, tiny(name), v) for v in (method, f"peft {method}"))
    counts = [
        sorted(p.shape for p in net.parameters() if p.requires_grad) for net in (ours, theirs)
    ]
    assert counts[0] == counts[1]
    batch = measure._batch(name)
    with torch.no_grad():
        found = [loss_of(net.eval(), batch) for net in (ours, theirs)]
    torch.testing.assert_close(*found)


def test_what_stays_frozen_is_shared_and_a_step_changes_no_other_variant(tiny):
    base = tiny("bert_base")
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    for variant in ("full", "lora", "last_blocks"):
        net = build("bert_base", base, variant)
        step, _ = measure.stepping(net, measure._batch("bert_base"), 0.1)
        step()
        shared = {p.data_ptr() for p in base.parameters()}
        for p in net.parameters():
            assert (p.data_ptr() in shared) is not p.requires_grad
    for name, p in base.named_parameters():
        assert torch.equal(p, before[name])


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
def test_bytes_add_up(tiny):
    found = {v: measure.bytes_of("bert_base", tiny("bert_base"), v) for v in ("full", "lora")}
    full, lora = found["full"], found["lora"]
    assert full["trained"] == full["total"]
    assert lora["trained"] < lora["total"]
    for row in (full, lora):
        assert row["optimizer"] >= 8 * row["trained"]  # two moments of float32
        assert row["beyond"] >= 4 * row["trained"] + row["optimizer"]
        assert row["file"] < row["checkpoint"]
    assert full["checkpoint"] > 12 * full["trained"]
    assert lora["checkpoint"] < full["checkpoint"] / 20


@pytest.mark.slow  # it imports the Trainer
@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
def test_every_variant_is_timed_in_every_round(tiny):
    pytest.importorskip("accelerate")
    steps = measure.Steps("bert_base", tiny("bert_base"))
    for number in range(2):
        found = measure.seconds_of_round(steps, number)
        assert set(found) == set(variants("bert_base", "time"))
        assert all(value > 0 for value in found.values())


def test_training_ends_when_the_loss_is_low_or_the_steps_are_over(tiny, monkeypatch):
    learns = {"items": 4, "size": 32, "loss": 1e9, "most": 5}
    model = Model("ViT", (2, 32), tiny_vit, images, "head", learns=learns)
    monkeypatch.setitem(MODELS, "vit_b16", model)
    steps, seconds = measure.steps_of_round("vit_b16", tiny("vit_b16"), 0)
    assert steps == dict.fromkeys(methods("vit_b16"), measure.MEAN_OF)
    assert set(seconds) == set(steps)
    learns["loss"] = -1
    steps, _ = measure.steps_of_round("vit_b16", tiny("vit_b16"), 0)
    assert set(steps.values()) == {None}


def test_jobs_have_keys_of_their_own_and_can_be_chosen():
    every = list(jobs())
    assert len({job.key for job in every}) == len(every)
    assert [job for job in every if matching(["vit_b16", "time"], job)] == [
        Job("time", "vit_b16", round=number) for number in range(5)
    ]
    assert all(len(set(methods(name))) == 8 for name in MODELS)
    with pytest.raises(DataError, match=r"Expected vit_b16, .*, got resnet\."):
        matching(["resnet"], every[0])


def test_variants_that_are_none_are_refused_and_some_can_be_timed_alone(tiny, capsys, tmp_path):
    with pytest.raises(SystemExit, match="^2$"):
        main(["--variants", "lora", "full fused", "--out", str(tmp_path / "never.jsonl")])
    assert "expected variants among Lightning, lora, " in (said := capsys.readouterr().err)
    assert said.endswith("got full fused\n")
    assert not list(tmp_path.iterdir())
    steps = measure.Steps("bert_base", tiny("bert_base"), ["full", "full, fused"])
    assert list(steps.timers) == ["full", "full, fused"]


def test_a_run_that_was_stopped_goes_on(tmp_path):
    asked = [Job("time", "vit_b16", round=0), Job("bytes", "vit_b16", "lora")]
    path, said = tmp_path / "results.jsonl", []

    def work(job):
        if job.kind == "bytes" and len(said) == 1:
            raise RuntimeError("no memory")
        return {"seconds": {"full": 1.0}}

    first = Runner(Store(path, {}, KEYS), work, said.append)
    assert first.run(asked) == ["vit_b16, bytes, lora: RuntimeError: no memory"]
    again = Runner(Store(path, {}, KEYS), work, said.append)
    assert again.run(asked) == []
    assert again.run(asked) == []
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert [(line["kind"], line["round"]) for line in lines] == [("time", 0), ("bytes", None)]
    assert said[-1].startswith("1 of 1, about 0 min left  vit_b16, bytes, lora")


def made_up():
    """Return results in which every figure is known."""
    about = {"processor": "Abacus", "torch": "1", "timm": "2", "transformers": "3", "peft": "4"}
    yield {"kind": "about", "model": "", "took": 0.0, **about, "lightning": "5"}
    for number in range(3):
        seconds = {"full": 2.0 * (number + 1), "lora": number + 1.0 + 0.2 * number}
        more = {"peft lora": 2.0 * seconds["lora"], "Trainer, full": 2 * seconds["full"]}
        yield {"kind": "time", "model": "bert_base", "round": number, "seconds": seconds | more}
    for variant, one in (("full", 1000), ("lora", 10), ("peft lora", 10)):
        beyond = {"full": 8000, "lora": 2000, "peft lora": 4000}[variant]
        sizes = {"trained": one, "total": 1000, "peak": beyond + 4000, "beyond": beyond}
        files = {"optimizer": 8 * one, "file": 4 * one, "checkpoint": 12 * one}
        yield {"kind": "bytes", "model": "bert_base", "variant": variant, **sizes, **files}
    for number, steps in enumerate((10, 20)):
        seconds = {"full": 10.0, "lora": 5.0, "ia3": 9.0}
        found = {"full": steps, "lora": 2 * steps, "ia3": 7 if number else None}
        line = {"model": "glyph_vit", "round": number, "steps": found, "seconds": seconds}
        yield {"kind": "loss", **line}


def test_ratios_are_within_a_round_and_quartiles_among_the_values():
    found = ratio(list(made_up()), "bert_base", "lora")
    # 1/2, 2.2/4, 3.4/6
    assert (found.median, found.count) == (0.55, 3)
    assert found.low == pytest.approx((0.5 + 0.55) / 2)
    assert str(found) == "0.55 (0.53–0.56)"
    assert Spread.of([]) is None
    assert str(Spread.of([1])) == "1.00"
    assert ratio(list(made_up()), "bert_base", "dora") is None


def test_a_loss_that_was_missed_is_in_no_mean():
    steps, taken = to_a_loss(list(made_up()), "glyph_vit")["ia3"]
    assert steps == [7]
    assert taken.median == 0.9


def test_the_page_has_what_was_measured_and_says_what_is_missing(tmp_path):
    pytest.importorskip("matplotlib")
    store = Store(tmp_path / "results.jsonl", RECIPE, KEYS)
    for line in made_up():
        store.add(line)
    where = ["--results", str(store.path), "--docs", str(tmp_path)]
    assert pages.main(where) == 0
    text = (tmp_path / "resources.md").read_text(encoding="utf-8")
    assert "| `lora` | 10 | 0.55 (0.53–0.56) | 0.50 | 0.25 | 80 B | 40 B | 120 B |" in text
    assert "| BERT-base size | 0.50 (0.50–0.50) | 0.50 | – | – | – | – |" in text
    assert "| Trainer, full | 2.00 (2.00–2.00) |" in text
    assert "| `ia3` | 7 (1 of 2 did not) | 0.90 |" in text
    assert "optimizer's state is 100 times" in text
    assert "measurements are still missing" in text
    assert "an Abacus, with torch 1" in text
    assert (tmp_path / "resources.png").stat().st_size > 1000
    assert pages.main([*where, "--check"]) == 0
    (tmp_path / "resources.md").write_text("old")
    assert pages.main([*where, "--check"]) == 1
