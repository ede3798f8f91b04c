"""``lightning-peft soup`` over checkpoints of one run and over settings."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_peft.adaptation.serving.soup import soup
from lightning_peft.cli.commands.soup_members import candidates_of
from lightning_peft.cli.commands.soup_metric import judge_of
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.objectives import Judge
from lightning_peft.files.reading import read_adapter

pytestmark = pytest.mark.usefixtures("undrawn")

SMOKE = ("experiment=smoke", "schedule=none", "test=false")


@pytest.fixture
def member(run, tmp_path):
    """Write what a run leaves that has a checkpoint, without training one."""

    def write(*, model=(), **data):
        directory = run(tmp_path, "lora", 0, 0.5)
        config = {
            "model": {"backbone": "glyph_vit", **dict(model)},
            "data": {"seed": 0, "batch_size": 32, "augment": {"crop": 0.8}, "mean": None, **data},
        }
        (directory / "config.yaml").write_text(json.dumps(config))
        (directory / "checkpoints").mkdir()
        (directory / "checkpoints" / "best.ckpt").touch()
        return directory

    return write


def candidates(*directories, out="soup"):
    return candidates_of(
        Namespace(
            directories=directories,
            out=Path(out),
            top_k=None,
            metric=None,
            trust=False,
            config_dir=[],
        )
    )


def trained(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("backbone."): tensor for name, tensor in state.items()}


@pytest.fixture
def rates(train, tmp_path):
    """A sweep of two rates on the same images, and on one backbone: its weights are seeded."""
    words = ("lr=0.01,0.02", "data.seed=0", "method=bitfit", "hydra.sweep.dir=sweep")
    status, _, err = train("-m", *SMOKE, *words)
    assert status == 0, err
    return tmp_path / "sweep"


def test_the_best_checkpoints_of_one_run_are_averaged(train, command, tmp_path):
    words = ("callbacks/average=soup", "hydra.run.dir=run", "trainer.max_steps=6", "method=ssf")
    status, _, err = train(*SMOKE, *words)
    assert status == 0, err
    paths = sorted((tmp_path / "run" / "checkpoints").glob("best*.ckpt"))
    assert len(paths) == 3
    recorded = tmp_path / "run" / "config.yaml"  # as if it had been resumed
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    recorded.write_text(recorded.read_text().replace("resume: null", f"resume: {last}"))
    log = (tmp_path / "run" / "csv" / "metrics.csv").read_bytes()
    status, out, err = command("soup", "run", "--out", "mean")
    assert status == 0, err
    assert (tmp_path / "run" / "csv" / "metrics.csv").read_bytes() == log, "a soup only reads"
    assert "the soup of 3, on validation" in out
    expected = soup([trained(path) for path in paths])
    found = read_adapter(tmp_path / "mean" / "adapter").tensors
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)
    summary = json.loads((tmp_path / "mean" / "soup.json").read_text())
    assert len(summary["members"]) == len(summary["scores"]) == 3
    assert "test/accuracy" not in summary["metrics"]
    status, _, err = command("export", "mean", "--out", "mean.safetensors")
    assert status == 0, err


@pytest.mark.slow
def test_a_greedy_soup_of_settings_is_not_worse_than_the_best_of_them(rates, command, tmp_path):
    status, _, err = command("soup", str(rates), "--greedy")
    assert status == 0, err
    summary = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert summary["metrics"]["val/accuracy"] >= max(summary["scores"].values())
    assert len(summary["members"]) + len(summary["left_out"]) == 2
    status, _, err = command("soup", str(rates), "--top-k", "1", "--out", "one")
    assert status == 0, err
    best = json.loads((tmp_path / "one" / "soup.json").read_text())
    assert best["metrics"]["val/accuracy"] == max(summary["scores"].values())
    status, _, err = command("soup", str(rates), "--updates")
    assert status == 2
    assert "expected LoRA on linear layers or ungrouped convolutions, got 'bitfit'" in err


def test_what_cannot_be_averaged_is_refused(rates, train, command, tmp_path):
    for name, words in {
        "other_images": ("data.seed=1", "method=bitfit"),
        "other_method": ("data.seed=0", "method=ssf"),
    }.items():
        status, _, err = train(*SMOKE, "trainer.max_steps=2", *words, f"hydra.run.dir={name}")
        assert status == 0, err
    status, _, err = command("soup", str(rates), "other_images")
    assert status == 2
    assert "other_images/checkpoints/best.ckpt was trained on other data" in err
    assert "(seed differ): no validation set is new to both" in err
    status, _, err = command("soup", str(rates), "other_method")
    assert status == 2
    assert "other_method/checkpoints/best.ckpt: the checkpoint was made with another" in err
    assert not (tmp_path / "soup").exists()
    status, _, err = command("soup", "other_method", "--top-k", "0")
    assert status == 2
    assert "expected --top-k of at least 1, got 0" in err
    status, _, err = command("soup", "other_method")
    assert status == 2
    assert "expected at least two checkpoints of finished runs, found 1" in err


def test_members_may_differ_in_how_their_images_are_handed_out(member):
    more = {"batch_size": 8, "augment": None, "num_workers": 2, "flip": False, "verify": "none"}
    assert len(candidates(member(), member(**more))) == 2


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"seed": 1},
            r"on other data than .*\(seed differ\).*Fix the data in the sweep",
        ),
        ({"root": "b"}, r"on other data than .*\(root differ\): no validation set is new to b"),
        ({"mean": 0.5, "batch_size": 8}, r"images prepared in another way than .*\(mean differ\)"),
        ({"model": {"backbone": "x"}, "backbone": "x"}, r"ckpt has another backbone than .*ckpt.$"),
    ],
)
def test_members_of_other_images_are_refused(member, settings, match):
    with pytest.raises(ConfigError, match=match):
        candidates(member(), member(**settings))


def test_what_is_not_finished_is_left_out_with_a_word(member, capsys):
    members = [member(), member(), member(), member()]
    for path, text in ((members[2], '{"status": "pruned", "method": {}}'), (members[3], '{"sta')):
        (path / "summary.json").write_text(text)
    assert len(candidates(*members)) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"lightning-peft: left out, as it is not finished: {members[2]} (pruned)"
    assert second.endswith(f"{members[3]} (summary.json cannot be read)")
    with pytest.raises(ConfigError, match=r"found 1\. .* Not finished: .*2_lora \(pruned\)\."):
        candidates(members[0], members[2])


def test_a_soup_replaces_no_run_and_no_file(member, tmp_path):
    runs = [member(), member()]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out: .* is the directory of a run, whose adapter"):
        candidates(*runs, out=runs[1])
    with pytest.raises(ConfigError, match="a directory to write to, got .*, where .*file is a fi"):
        candidates(*runs, out=tmp_path / "file" / "soup")


def config(monitor, mode="max"):
    """Of a run whose checkpoint was chosen so; the progress bar watches something as well."""
    checkpoint = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"}
    return {
        "callbacks": {
            "progress": {
                "_target_": "lightning_peft.cli.jobs.progress.StepProgress",
                "monitor": "val/x",
            },
            "last": {**checkpoint, "save_weights_only": False},
            "none": None,
            "best": {**checkpoint, "monitor": monitor, "mode": mode},
        }
    }


def judged(*configs, metric=None, task="multiclass"):
    return judge_of([(Path(f"{i}.ckpt"), c) for i, c in enumerate(configs)], metric, task)


def test_what_chose_the_checkpoints_chooses_the_members():
    assert judged(config("val/f1"), config("val/f1")) == Judge("val/f1", lower=False)
    assert judged(config("val/rmse", "min")) == Judge("val/rmse", lower=True)
    assert judged(config("val/own", "min"), metric="val/own").lower, "as the runs had it"
    assert judged(config("val/f1"), metric="val/loss") == Judge("val/loss", lower=True)
    assert judged({"callbacks": {}}, task="regression") == Judge("val/rmse", lower=True)
    assert judged(config(None), task="multilabel") == Judge("val/accuracy", lower=False)


@pytest.mark.parametrize(
    ("configs", "metric", "match"),
    [
        (
            [config("val/f1")],
            "test/f1",
            "'test/f1' is a metric of the test set.*Use 'val/f1' with --metric",
        ),
        ([config("test/f1")], None, "chose the checkpoints: 'test/f1' is a metric of the test set"),
        ([config("val/f1")], "train/loss", "expected a validation metric.* got 'train/loss'"),
        (
            [config("val/f1"), config("val/loss", "min")],
            None,
            "0.ckpt: val/f1, higher is better; 1",
        ),
        ([config("val/f1"), config("val/f1", "min")], None, "chosen by different metrics"),
    ],
)
def test_what_may_not_choose(configs, metric, match):
    with pytest.raises(ConfigError, match=match):
        judged(*configs, metric=metric)


def test_a_metric_that_is_not_there_or_no_number():
    judge = Judge("val/acuracy", lower=False)
    with pytest.raises(ConfigError, match="got 'val/acuracy'.*Did you mean 'val/accuracy'"):
        judge.read({"val/accuracy": 0.5, "val/loss": 1.0}, "the soup")
    with pytest.raises(ConfigError, match="val/auroc of the soup is not a number"):
        Judge("val/auroc", lower=False).read({"val/auroc": float("nan")}, "the soup")


def test_another_metric_and_a_test_metric(rates, command, tmp_path):
    status, out, err = command("soup", str(rates), "--metric", "val/loss", "--top-k", "1")
    assert status == 0, err
    assert "val loss, lower is better" in out
    summary = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert summary["metric"] == "val/loss"
    best = min(summary["scores"], key=summary["scores"].get)
    assert summary["members"] == [best]
    assert summary["metrics"]["val/loss"] == pytest.approx(summary["scores"][best])
    status, _, err = command("soup", str(rates), "--metric", "test/accuracy", "--out", "other")
    assert status == 2
    assert "'test/accuracy' is a metric of the test set, which must choose nothing" in err
    assert not (tmp_path / "other").exists()


def test_of_numbers_the_least_error_is_the_best(train, command, tmp_path):
    pixels = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(40):
        image = (60 * (i % 4) + pixels.integers(0, 60, (24, 24))).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    lines = ["file,height", *(f"{i}.png,{100 + i % 4}.5" for i in range(40))]
    (tmp_path / "images" / "heights.csv").write_text("\n".join(lines))
    words = (
        *("data=folder", f"data.root={tmp_path / 'images'}", "data.labels=heights.csv"),
        *("data.num_workers=0", "data.batch_size=8", "data.flip_safe=true", "data.seed=0"),
        *("trainer=cpu", "trainer.max_steps=6", "callbacks.progress=null", "bootstrap=0"),
    )
    status, _, err = train("-m", *words, "method=bitfit", "lr=1e-5,0.05", "hydra.sweep.dir=sweep")
    assert status == 0, err
    status, out, err = command("soup", "sweep", "--greedy")
    assert status == 0, err
    assert "val rmse, lower is better" in out
    assert "the soup, on test" in out
    summary = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert summary["metrics"]["val/rmse"] <= min(summary["scores"].values())
    facts = json.loads((tmp_path / "soup" / "serving.json").read_text())
    assert facts["outputs"]["task"] == "regression"
    assert facts["outputs"]["mean"] == pytest.approx([102.0], abs=0.5), "in the unit of the data"
