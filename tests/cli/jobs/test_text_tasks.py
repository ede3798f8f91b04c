"""The command on pairs, numbers, tagged words and targets, from training to serving."""

import csv
import json
import re

import peft
import pytest
import torch
import transformers

from tests.support.encoders import tiny_encoder, tiny_seq2seq

SHORT = (
    *("model.backbone=base", "data.batch_size=8", "bootstrap=20", "callbacks.progress=null"),
    *("trainer=cpu", "trainer.max_steps=3", "output_dir=run", "method.rank=2"),
)
PAIRS = [
    {"text": f"the film was {'so ' * (i % 6)}{('bad', 'good')[i % 2]}", "other": f"a song {i}"}
    for i in range(24)
]
WORDS = [
    {"tokens": ["the", "film", "was", *["so"] * (i % 6), ("bad", "good")[i // 6 % 2]],
     "tags": ["O", "B-ART", "O", *["O"] * (i % 6), "B-MOOD"]}
    for i in range(12)
]  # fmt: skip
TARGETS = [
    {"text": f"the film was {'so ' * (i % 12)}good", "target": "good film"} for i in range(12)
]
JOBS = {
    "pairs": ("text", [row | {"label": "ab"[i % 2]} for i, row in enumerate(PAIRS)]),
    "numbers": ("text", [row | {"label": i / 4 + 0.1} for i, row in enumerate(PAIRS)]),
    "words": ("tokens", WORDS),
    "targets": ("seq2seq", TARGETS),
}
MAIN = {"pairs": "accuracy", "numbers": "rmse", "words": "f1", "targets": "rougeL"}
AUTO = {"words": "TokenClassification", "targets": "Seq2SeqLM"}
TASK_TYPES = {"words": "TOKEN_CLS", "targets": "SEQ_2_SEQ_LM"}


@pytest.fixture
def files(tmp_path, one_thread):
    for name, (_, rows) in JOBS.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return tmp_path


def words_of(job, path):
    make = tiny_seq2seq if job == "targets" else tiny_encoder
    torch.manual_seed(0)
    make(path / "base")
    more = ("data.pair_column=other",) if job in ("pairs", "numbers") else ()
    beams = "model.generation={num_beams: 2, length_penalty: 0.1}"
    more += ("model.max_new_tokens=4", beams) if job == "targets" else ()
    return (*SHORT, f"data={JOBS[job][0]}", f"data.root={job}.jsonl", *more)


def inputs_of(job, directory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    if job == "targets":
        found = tokenizer("the film was so good", return_tensors="pt")
        return {**found, "decoder_input_ids": torch.tensor([[0, 4]])}
    both = ("the film was bad", "a song") if job != "words" else ("the film was bad",)
    return dict(tokenizer(*both, return_tensors="pt"))


def predicted(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# peft asks a model of transformers by its old name
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("job", [
    "words", *(pytest.param(job, marks=pytest.mark.slow) for job in JOBS if job != "words")
])  # fmt: skip
def test_the_whole_way(command, files, undrawn, job):
    words = words_of(job, files)
    status, out, err = command("show", *words)
    assert status == 0, err
    status, out, err = command(*words, "method=lora")
    assert status == 0, err
    summary = json.loads((files / "run" / "summary.json").read_text())
    assert summary["monitor"] == f"val/{MAIN[job]}"
    assert summary["noun"] == "texts"
    assert f"test/{MAIN[job]}" in summary["metrics"]
    count = len(JOBS[job][1])
    assert sum(summary["images"].values()) == count

    status, out, err = command("predict", "run", f"{job}.jsonl", "--out", "found.csv")
    assert status == 0, err
    rows = predicted(files / "found.csv")
    assert len(rows) == count

    status, out, err = command("export", "run", "--out", "merged")
    assert status == 0, err
    assert "read back by AutoModelFor" in out
    status, out, err = command("export", "run", "--to", "adapter", "--out", "adapter")
    assert status == 0, err
    # the files of both, by the libraries alone
    auto = AUTO.get(job, "SequenceClassification")
    find = getattr(transformers, f"AutoModelFor{auto}").from_pretrained
    merged = find("merged").eval()
    more = {} if job == "targets" else {"num_labels": merged.config.num_labels}
    config = json.loads((files / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == TASK_TYPES.get(job, "SEQ_CLS")
    kept = json.loads((files / "run" / "adapter" / "adapter_config.json").read_text())
    assert kept["task_type"] == config["task_type"]
    loaded = peft.PeftModel.from_pretrained(find("base", **more), "adapter").eval()
    inputs = inputs_of(job, "merged")
    with torch.no_grad():
        one, other = merged(**inputs).logits, loaded(**inputs).logits
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    if job == "pairs":
        assert merged.config.id2label == {0: "a", 1: "b"}
        first = loaded(**_encoded(PAIRS[0], "merged")).logits.softmax(-1)
        assert float(rows[0]["probability"]) == pytest.approx(float(first.max()), abs=1e-5)
    if job == "numbers":
        facts = json.loads((files / "merged" / "serving.json").read_text())["outputs"]
        number = loaded(**_encoded(PAIRS[0], "merged")).logits.item()
        number = number * facts["std"][0] + facts["mean"][0]
        assert float(rows[0]["label"]) == pytest.approx(number, rel=1e-4)
    if job == "words":
        ids = inputs_of(job, "merged")
        tags = [merged.config.id2label[k] for k in merged(**ids).logits[0].argmax(-1).tolist()]
        (files / "new.jsonl").write_text('{"tokens": ["the", "film", "was", "bad"]}\n')
        status, out, err = command("predict", "run", "new.jsonl", "--out", "found.jsonl")
        assert status == 0, err
        assert json.loads((files / "found.jsonl").read_text())["tags"] == tags

    if job == "targets":  # what is predicted is what was measured
        inputs = {k: v for k, v in inputs.items() if "decoder" not in k}
        row = {"text": "the film was so good"}
        (files / "new.jsonl").write_text(json.dumps(row) + "\n")
        status, out, err = command("predict", "run", "new.jsonl", "--out", "found.jsonl")
        assert status == 0, err
        wanted = merged.generate(
            **inputs, max_new_tokens=4, num_beams=2, length_penalty=0.1, do_sample=False
        )
        text = transformers.AutoTokenizer.from_pretrained("merged").batch_decode(
            wanted, skip_special_tokens=True
        )[0]
        assert json.loads((files / "found.jsonl").read_text())["generated"] == text.strip()

    status, out, err = command("compare", "run")
    assert status == 0, err
    assert MAIN[job].lower() in out.lower()


def _encoded(row, directory):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    return tokenizer(row["text"], row["other"], return_tensors="pt")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("data=text", "data.root=words.jsonl", "data.text_column=tokens",
          "data.label_columns=[tags]"),
         "has words with a tag for each, got lightning_peft.TextClassifier. Choose "
         "model=token_classifier"),
        (("data=text", "data.root=targets.jsonl", "data.label_columns=[target]",
          "data.task=seq2seq"), "has texts with targets, .*Choose model=seq2seq"),
        (("data=tokens", "data.root=pairs.jsonl", "data.text_column=text",
          "data.label_columns=[label]"), "line 1: expected a tag for each of the"),
        (("data=tokens", "data.root=words.jsonl", "data.label_columns=[tag]"),
         "no column 'tag'. Did you mean 'tags'?"),
        (("data=seq2seq", "data.root=targets.jsonl", "data.label_columns=[targets]"),
         "no column 'targets'. Did you mean 'target'?"),
        (("data=text", "data.root=numbers.jsonl", "data.pair_column=other",
          "model.label_smoothing=0.1"),
         "model.label_smoothing: expected a setting for regression"),
        (("data=seq2seq", "model=token_classifier", "data.root=targets.jsonl"),
         "got lightning_peft.TokenClassifier. Choose model=seq2seq"),
    ],
)  # fmt: skip
def test_what_cannot_be_run(command, files, words, match):
    tiny_encoder(files / "base")
    kept = [word for word in SHORT if "output_dir" not in word]
    status, _, err = command(*kept, *words)
    assert status != 0
    assert re.search(match, " ".join(err.split())), err


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("predict", "run", "none.jsonl"), "got none.jsonl, which does not exist"),
        (("plan", "data=tokens", "data.root=words.jsonl", "model.backbone=base", "--tokens", "25"),
         "at most the 24 that"),
    ],
)  # fmt: skip
def test_what_cannot_be_served(command, files, words, match):
    tiny_encoder(files / "base")
    status, _, err = command(*words)
    assert status == 2
    assert match in " ".join(err.split())


def test_a_plan_of_targets_counts_both_sides(command, files):
    tiny_seq2seq(files / "base")
    status, out, err = command(
        "plan", "data=seq2seq", "data.root=targets.jsonl", "model.backbone=base", "--tokens", "16",
        "--batch", "2", "--json",
    )  # fmt: skip
    assert status == 0, err
    assert json.loads(out)["step"] == {"texts": 2, "length": 16, "tokens": 32}
