"""The command on language: train, predict, export, plan, show, and what is refused."""

import json
import re

import pytest

from lightning_peft.backbones.byte_llama import byte_tokenizer
from tests.support.language import chats, pairs, tiny_lm

TINY = (
    "model.backbone_kwargs={hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1}",
    *("model.pretrained=false", "data=chat", "data.root=chats.jsonl"),
)
SHORT = (
    *TINY,
    *("trainer=cpu", "trainer.max_steps=2", "callbacks.progress=null", "output_dir=run"),
    *("model.samples=1", "model.max_new_tokens=3"),
)


@pytest.fixture
def examples(tmp_path, one_thread):
    for name, rows in (("chats", chats()), ("pairs", pairs())):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


# peft asks a model of transformers by its old name
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_whole_way(command, examples):
    import peft
    import torch
    import transformers

    import lightning_peft as lp

    tiny_lm().save_pretrained("base")  # the weights of a random one would be others next time
    byte_tokenizer(128).save_pretrained("base")
    words = (*SHORT[len(TINY) :], "data=chat", "model.backbone=base", "data.root=chats.jsonl")
    status, out, err = command(*words)
    assert status == 0, err
    assert "test perplexity" in out
    summary = json.loads((examples / "run" / "summary.json").read_text())
    assert summary["monitor"] == "val/perplexity"
    assert summary["objective"]["name"] == "val/perplexity"
    assert summary["images"] == {"train": 7, "val": 1, "test": 2}
    assert summary["noun"] == "texts"
    (sample,) = (examples / "run" / "csv" / "samples.jsonl").read_text().splitlines()[-1:]
    assert set(json.loads(sample)) == {"step", "prompt", "generated", "reference"}

    (examples / "prompts.txt").write_text("say red\nsay\n")
    words = ("predict", "run", "prompts.txt", "--max-new-tokens", "3", "--out")
    for name in ("a.jsonl", "a.csv"):
        status, _, err = command(*words, name)
        assert status == 0, err
    found = [json.loads(line) for line in (examples / "a.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in found] == ["say red", "say"]
    assert (examples / "a.csv").read_text().startswith("prompt,generated\nsay red,")

    status, out, err = command("export", "run", "--out", "merged")
    assert status == 0, err
    assert "of the largest output, read back" in out
    status, out, err = command("export", "run", "--to", "adapter", "--out", "adapter")
    assert status == 0, err
    assert "that of peft" in out
    # the files of both, by the libraries alone
    merged = transformers.AutoModelForCausalLM.from_pretrained("merged").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("merged")
    ids = tokenizer("say red", return_tensors="pt")["input_ids"]
    plain = lp.load_from_checkpoint(lp.CausalLM, "run/checkpoints/last.ckpt").backbone
    adapted = plain.eval()(input_ids=ids).logits
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, adapted, atol=1e-5, rtol=1e-4)
    lp.find_adaptation(plain).unload()
    loaded = peft.PeftModel.from_pretrained(plain, "adapter", low_cpu_mem_usage=False).eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, adapted, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_runs_of_one_base_are_averaged_and_serve(command, examples):
    tiny_lm().save_pretrained("base")
    byte_tokenizer(128).save_pretrained("base")
    words = [*SHORT[len(TINY) : -3], "data=chat", "model.backbone=base", "data.root=chats.jsonl"]
    words += ["model.samples=0", "data.seed=0"]
    for seed in (0, 1):
        status, _, err = command(*words, f"seed={seed}", f"output_dir=runs/{seed}")
        assert status == 0, err
    status, out, err = command("soup", "runs", "--updates", "--out", "soup")
    assert status == 0, err
    assert "val perplexity, lower is better" in out
    summary = json.loads((examples / "soup" / "soup.json").read_text())
    assert set(summary["metrics"]) >= {"val/perplexity", "test/perplexity", "test/loss"}
    assert len(summary["members"]) == 2
    (examples / "prompts.txt").write_text("say red\n")
    status, _, err = command("predict", "soup", "prompts.txt", "--max-new-tokens", "2")
    assert status == 0, err
    status, out, err = command("export", "soup", "--to", "adapter", "--out", "adapter")
    assert status == 0, err


def test_preferences(command, examples):
    words = [w for w in SHORT if "samples" not in w and "max_new" not in w]
    status, out, err = command(*words, "data.root=pairs.jsonl", "model=preference")
    assert status == 0, err
    assert "test margin" in out
    summary = json.loads((examples / "run" / "summary.json").read_text())
    assert summary["monitor"] == "val/accuracy"


def test_a_plan_is_in_tokens(command, examples):
    found = []
    for flags in ((), ("--tokens", "64"), ("--batch", "2", "--tokens", "64")):
        status, out, err = command("plan", *TINY, "--json", *flags)
        assert status == 0, err
        found.append(json.loads(out))
    assert [plan["step"]["tokens"] for plan in found] == [8 * 1024, 8 * 64, 2 * 64]
    # the logits of the 260 bytes in float32 are a part of it
    assert found[1]["memory"]["peak"] > 8 * 64 * 260 * 4
    assert found[1]["memory"]["activations"] > 3.9 * found[2]["memory"]["activations"]
    status, out, err = command("plan", *TINY, "--tokens", "64")
    assert "a step: 8 texts of 64 tokens, 512 tokens altogether" in out


def test_what_a_run_would_see_is_shown(command, examples):
    status, out, err = command("show", *TINY, "data.max_length=32", "trainer.max_steps=4")
    assert status == 0, err
    assert "learned" in out
    assert "<|im_start|>assistant\\n[R" in out


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("data.root=pairs.jsonl",), "which has pairs of answers .*Choose model=preference."),
        (("data.root=none.jsonl",), "none.jsonl, which does not exist. Known: chats"),
        (("data.train_on=some",), "expected 'answers' or 'all', got 'some'"),
        (("callbacks.peft=null", "data.root=pairs.jsonl", "model=preference"),
         "expected a model with one adapter"),
        (("model=text", "model.backbone=byte_llama"), "got lightning_peft.TextClassifier. "
         "Choose model=causal_lm"),
    ],
)  # fmt: skip
def test_what_cannot_be_run(command, examples, words, match):
    own = any(word.startswith("model=") for word in words)
    kept = [w for w in SHORT if not (own and ("samples" in w or "max_new" in w))]
    status, _, err = command(*kept, *words)
    assert status != 0
    assert re.search(match, " ".join(err.split())), err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("predict", "run", "no.txt", "--top", "2", "--out", "a.txt"),
         "--top: a run on language.*a file of prompts.*--out: expected .jsonl or .csv"),
        (("predict", "run", "bad.jsonl"), "line 2: expected one of prompt.*line 3: .*empty line"),
        (("export", "run", "--out", "out", "--to", "onnx"), "expected one of safetensors, adapter"),
        (("export", "run", "--out", "full"), "expected a new or an empty directory"),
    ],
)  # fmt: skip
def test_what_cannot_be_served(command, tmp_path, words, match):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "serving.json").write_text('{"task": "language"}')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"texts": "b"}\n\n')
    status, _, err = command(*words)
    assert status == 2
    assert re.search(match, " ".join(err.split())), err
