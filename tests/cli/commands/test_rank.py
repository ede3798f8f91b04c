"""``lightning-peft rank``."""

import csv
import json

import pytest
import yaml

from lightning_peft.cli.commands import rank
from lightning_peft.cli.commands.rank import parse_count, split_names
from lightning_peft.cli.commands.ranking_table import _shown
from lightning_peft.cli.comparing.agreement import agreements, fine_tuned
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.errors import DataError
from lightning_peft.ranking import Ranking, Row
from tests.support.encoders import tiny_encoder

DIGITS = ("data.labels_per_class=5",)


@pytest.fixture(autouse=True)
def timed_briefly(monkeypatch):
    """Time a forward pass by three of them, whatever they take."""
    monkeypatch.setattr("lightning_peft.ranking.features.MOST_SECONDS", 0.0)


def test_rank_prints_a_table_and_leaves_files(command, tmp_path):
    status, out, err = command(
        "rank", "models=[glyph_vit:random,glyph_vit]", *DIGITS, "--out", "found", "--folds", "3"
    )
    assert status == 0, err
    lines = [line.split() for line in out.splitlines() if line.strip()]
    assert [line[:2] for line in lines if line[0] in "12"] == [
        ["1", "glyph_vit"],
        ["2", "glyph_vit:random"],
    ]
    assert "50 labelled images of 10 classes, ranked by probe" in out
    found = json.loads((tmp_path / "found" / "ranking.json").read_text())
    with (tmp_path / "found" / "ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [row["label"] for row in found["rows"]]
    for row, entry in zip(rows, found["rows"], strict=True):
        assert float(row["probe"]) == entry["probe"]
        assert float(row["logme"]) == entry["scores"]["logme"]
        assert int(row["parameters"]) == entry["parameters"]


def test_rank_by_another_score_as_json(command):
    words = ("rank", "models=glyph_vit:random,glyph_vit", "--by", "logme", "--json", "seed=1")
    status, out, err = command(*words, *DIGITS, "max_parameters=1.5M", "max_ms=10000")
    assert status == 0, err
    found = json.loads(out)
    assert found["by"] == "logme"
    assert [row["label"] for row in found["rows"]] == ["glyph_vit", "glyph_vit:random"]


def test_encoders_of_texts_are_ranked_on_a_file(command, tmp_path):
    directory = tiny_encoder(tmp_path / "encoder")
    lines = [f"a {word} was seen {i},{word}" for word in ("film", "song") for i in range(12)]
    (tmp_path / "texts.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    words = (f"models={directory},{directory}:random", "data=text", "data.root=texts.csv")
    status, out, err = command("rank", *words, "--folds", "3")
    assert status == 0, err
    assert "labelled texts of 2 classes, ranked by probe" in out
    assert "ms: forward, a text, on this machine" in " ".join(out.split())
    status, _, err = command("rank", "max_parameters=1M", "data=text", "data.root=texts.csv")
    assert status == 2
    assert "expected models=NAME,... with data=text: name Hugging Face encoders" in err


def test_without_a_measured_candidate_the_status_is_1(command):
    status, out, _ = command("rank", "models=glyph_vit", "max_parameters=1k", *DIGITS)
    assert status == 1
    assert "left out: glyph_vit, it has 1,287,392 parameters" in out
    assert "no candidate could be measured" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected models=NAME,... or a budget such as max_parameters=30M"),
        (["models=glyph_vt"], "timm has no model 'glyph_vt'. Did you mean 'glyph_vit'?"),
        (["max_parameters=lots"], "max_parameters: expected a number above 0, such as 30M, got"),
        (["models=glyph_vit", "max_ms=-1"], "max_ms: expected a number above 0"),
        (["models=glyph_vit", "--by", "logmee"], "--by: there is no score 'logmee'"),
        (
            ["models=glyph_vit", "model=timm"],
            "'model=timm': rank compares models; name them",
        ),
        (["models=glyph_vit", "data=digts"], "there is no data=digts. Did you mean 'digits'"),
        (["models=glyph_vit", "data=folder"], "data.root needs a value"),
        (["models=a", "data=chat"], "data=chat: expected data with classes, by which rank"),
        (["models=a", "data=tokens"], "data=tokens: expected data with classes, by which rank"),
        (["models=a", "data=seq2seq"], "data=seq2seq: expected data with classes, by which rank"),
        (["models=glyph_vit", "--against", "none"], "--against: expected a directory of runs"),
        (
            ["models=glyph_vit", "--out", "file"],
            "--out: expected a directory to write to, got the file",
        ),
        (
            ["models=glyph_vit", "--device", "xyz"],
            "--device: expected a device such as cuda or cpu",
        ),
        (["models=glyph_vit", "--folds", "1"], "Expected from 2 to 100 folds, got 1"),
        (["models=resnet*"], "Expected at most 20 candidates, got"),
        (["models=glyph_vit", "data.labels_per_class=two"], "expected a whole number or null"),
    ],
)
def test_a_ranking_that_cannot_be_made_is_told_in_a_line(command, tmp_path, words, message):
    (tmp_path / "file").touch()
    status, _, err = command("rank", *words)
    assert status == 2
    assert f"lightning-peft: {message}" in err.replace("data.labels_per_class: ", "")


def test_every_wrong_flag_is_told_at_once(command):
    words = ("--by", "x", "--device", "y", "--against", "z")
    status, _, err = command("rank", "models=glyph_vit", *words)
    assert (status, len(err.splitlines())) == (2, 3)


def test_json_has_no_number_that_json_does_not_have(monkeypatch, capsys):
    ranking = ranking_of({"a": float("nan")}, [float("inf")])
    monkeypatch.setattr(rank, "_rank", lambda options: (ranking, []))
    assert rank.main(["models=a", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["rows"]
    assert (row["probe"], row["scores"]["knn"]) == (None, None)


@pytest.mark.parametrize(("typed", "said"), [("null", True), ("false", False)])
def test_nobody_is_warned_of_mirroring_where_nothing_is_trained(tmp_path, typed, said):
    cfg = rank._compose(["data=folder", f"data.root={tmp_path}", f"data.flip_safe={typed}"])
    rank._batches_for(cfg)
    assert cfg.data.flip_safe is said


def test_numbers_and_names_are_read_as_they_are_typed():
    assert [parse_count("x", text) for text in ("30M", "2.5k", "1e6", "1B")] == [
        30e6,
        2500.0,
        1e6,
        1e9,
    ]
    with pytest.raises(ConfigError, match="x: expected a number above 0"):
        parse_count("x", "inf")
    assert split_names("a, b:random ,'c*'") == ["a", "b:random", "c*"]
    assert split_names("[a,b]") == ["a", "b"]
    assert split_names("resnet[15]*") == ["resnet[15]*"]
    assert split_names("[resnet[15]*,b]") == ["resnet[15]*", "b"]


def test_a_table_shows_the_name_of_a_file_without_its_directory():
    shown = [_shown(label) for label in ("resnet18", "a:random", "a:some/where/b.pth")]
    assert shown == ["resnet18", "a:random", "a:b.pth"]


def write_run(directory, accuracy, method="lora", status="completed", **model):
    directory.mkdir(parents=True)
    summary = {"status": status, "method": {"name": method}, "metrics": {}}
    if accuracy is not None:
        summary["metrics"] = {"test/accuracy": accuracy}
    (directory / "summary.json").write_text(json.dumps(summary))
    (directory / "config.yaml").write_text(yaml.safe_dump({"model": model}))


def ranking_of(probes, knn):
    rows = [
        Row(label, 1, 1.0, 1, probe, 0.0, 0.0, {"knn": near, "logme": None, "h_score": 1.0,
                                                "nleep": -probe})
        for (label, probe), near in zip(probes.items(), knn, strict=True)
    ]  # fmt: skip
    return Ranking("probe", tuple(rows), (), 10, 2, 5)


def test_the_correlation_is_with_the_mean_accuracy_of_each_model(tmp_path):
    weights = tmp_path / "own.safetensors"
    write_run(tmp_path / "a0", 0.7, backbone="a", pretrained=True)
    write_run(tmp_path / "a1", 0.9, backbone="a", pretrained=True)
    write_run(tmp_path / "b", 0.6, backbone="a", pretrained=False)
    overlay = {"pretrained_cfg_overlay": {"file": str(weights)}}
    write_run(tmp_path / "c", 0.7, backbone="a", pretrained=True, backbone_kwargs=overlay)
    write_run(tmp_path / "failed", None, status="failed", backbone="b", pretrained=True)
    write_run(tmp_path / "few", 0.5, method="full", backbone="a", pretrained=True)
    own = f"a:{weights}"
    assert fine_tuned(tmp_path)["lora"] == pytest.approx({"a": 0.8, "a:random": 0.6, own: 0.7})
    # the order of fine-tuning is a, own, random: the probe has it, 5-NN has two of three pairs
    ranking = ranking_of({"a": 0.9, own: 0.8, "a:random": 0.3}, [0.9, 0.2, 0.5])
    found = {item.score: item for item in agreements(ranking, tmp_path)}
    assert set(found) == {"probe", "knn", "nleep"}  # LogME is not known, H-score has no order
    assert {item.method for item in found.values()} == {"lora"}
    assert (found["probe"].kendall, found["probe"].spearman) == pytest.approx((1.0, 1.0))
    assert (found["nleep"].kendall, found["nleep"].spearman) == pytest.approx((-1.0, -1.0))
    assert (found["knn"].kendall, found["knn"].spearman) == pytest.approx((1 / 3, 1 / 2))
    assert found["probe"].models == 3


def test_too_few_runs_say_nothing(tmp_path):
    ranking = ranking_of({"a": 0.9, "a:random": 0.3}, [0.9, 0.2])
    with pytest.raises(DataError, match="Expected runs of fine-tuning below"):
        agreements(ranking, tmp_path)
    write_run(tmp_path / "a", 0.8, backbone="a", pretrained=True)
    write_run(tmp_path / "b", 0.6, backbone="a", pretrained=False)
    with pytest.raises(DataError, match="3 or more models.*got 2 with lora"):
        agreements(ranking, tmp_path)
