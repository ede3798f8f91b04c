"""The command on texts: train, predict, show, and what is refused."""

import csv
import json

import pytest

import lightning_peft as lp
from tests.support.encoders import tiny_encoder

SHORT = (
    *("data=text", "data.root=reviews.csv", "model.backbone=encoder", "data.batch_size=8"),
    *("trainer=cpu", "trainer.max_steps=4", "bootstrap=20", "callbacks.progress=null"),
)
TEXTS = [f"the film was {'so ' * (i % 12)}{('bad', 'good')[i // 12 % 2]}" for i in range(24)]


@pytest.fixture
def reviews(tmp_path):
    tiny_encoder(tmp_path / "encoder")
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="") as file:
        rows = [(text, text.split()[-1]) for text in TEXTS]
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def test_the_whole_way(command, reviews, tmp_path):
    status, out, err = command(*SHORT, "method=lora", "output_dir=run", "calibrate=temperature")
    assert status == 0, err
    assert "other test texts" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert sum(summary["images"].values()) == 24
    assert {"test/accuracy", "test/f1", "val/accuracy"} <= set(summary["metrics"])
    assert (tmp_path / "run" / "confusion.csv").exists()

    status, out, err = command("predict", "run", "reviews.csv", "--out", "found.csv", "--top", "2")
    assert status == 0, err
    with (tmp_path / "found.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == TEXTS
    for row in rows:
        assert {row["class"], row["class_2"]} == {"good", "bad"}
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=2e-6)

    status, _, err = command("predict", "run", "encoder")
    assert status != 0
    assert "there is no image below encoder" in err
    (tmp_path / "other.csv").write_text("texts,label\nthe film,good\n")
    status, _, err = command("predict", "run", "other.csv")
    assert status != 0
    assert "it has no column 'text' in its first line. Did you mean 'texts'?" in " ".join(
        err.split()
    )


def test_what_a_run_would_see_is_shown(command, reviews):
    status, out, err = command("show", *SHORT)
    assert status == 0, err
    assert "good" in out
    assert "labels used: " in out


def test_a_plan_for_texts_is_what_adapting_does(command, reviews, tmp_path):
    from lightning_peft.backbones.hugging_face import load_sequence_classifier

    words = ("plan", "data=text", "data.root=reviews.csv", "model.backbone=encoder", "--json")
    words = (*words, "method=lora", "method.rank=4", "--classes", "2")
    found = {}
    for flags in (("--batch", "30", "--tokens", "7"), ("--batch", "60", "--tokens", "7"), ()):
        status, out, err = command(*words, *flags)
        assert status == 0, err
        found[flags] = json.loads(out)
    model = load_sequence_classifier(str(tmp_path / "encoder"), 2)
    report = lp.adapt(model, lp.LoRA(rank=4)).report()
    once, twice, whole = found.values()
    assert once["report"]["trained"] == report.trained
    assert once["report"]["total"] == report.total
    assert sum(layer["trained"] for layer in once["layers"]) == report.trained
    assert twice["memory"]["activations"] == pytest.approx(2 * once["memory"]["activations"], 0.01)
    # the tiny encoder reads 24 tokens, and 32 texts a step are the default
    ratio = whole["memory"]["activations"] / once["memory"]["activations"]
    assert ratio > 32 * 24 / (30 * 7), "attention grows with the square of the tokens"
    assert once["memory"]["optimizer"] < once["full"]["optimizer"]


def test_a_plan_for_texts_knows_what_is_made_again(command, reviews):
    words = ("plan", "data=text", "data.root=reviews.csv", "model.backbone=encoder", "--json")
    kept = []
    for memory in ("high", "default", "lowest"):
        status, out, err = command(*words, f"callbacks.peft.memory={memory}")
        assert status == 0, err
        kept.append(json.loads(out)["memory"]["activations"])
    assert kept[0] > kept[1] > kept[2]


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("plan", "model=text", "model.backbone=encoder", "--tokens", "25"), "at most the 24 that"),
        (("plan", "--tokens", "8"), "--tokens: expected model=text"),
        (("plan", "model=text", "model.backbone=encoder", "--tokens", "0"), "--tokens of at least"),
        (
            ("rank", "models=[glyph_vit]", "data=text", "data.root=reviews.csv"),
            "a model of images in timm",
        ),
    ],
)
def test_what_cannot_be_planned_or_ranked(command, reviews, words, match):
    status, _, err = command(*words)
    assert status == 2
    assert match in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("augment=strong",), "no augmentation, which is for images"),
        (("model=timm", "model.backbone=resnet18"), "'resnet18', which is a model of images"),
        (("data.root=review.csv",), "Did you mean 'reviews.csv'?"),
        (
            ("baselines=[nearest_neighbour]",),
            "nearest_neighbour needs pixels, but TextDataModule has no pixels(split)",
        ),
        (("data.labels_per_class=100",), "100 or more labelled training texts of each class"),
    ],
)
def test_what_cannot_be_run(command, reviews, words, match):
    status, _, err = command(*SHORT, *words)
    assert status != 0
    assert match in " ".join(err.split())


def test_runs_on_texts_are_compared(command, reviews, tmp_path):
    words = (*SHORT, "method=lora,bitfit", "seed=0", "hydra.sweep.dir=sweep")
    status, out, err = command("-m", *words)
    assert status == 0, err
    assert "labelled texts trained" in out
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "Texts of the test set" in page
    assert "labelled images" not in page
