"""The config of a recorded run: what is read, and what is refused before anything happens."""

import os
import sys
import time

import pytest
from omegaconf import OmegaConf

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.trust.recorded import parse_plain, problems_in, read_config
from lightning_peft.cli.trust.words import Trust

LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


def test_what_a_run_writes_is_read_as_it_was(tmp_path):
    config = OmegaConf.create(
        {"seed": 0, "lr": 1e-3, "name": "a: b\n#é", "data": {"_target_": "lightning_peft.Augment"},
         "list": [1, [True, None], {"a": "x"}], "empty": {}, "same": "x", "again": "x"}
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("x: !!python/object/apply:os.system ['touch canary']\n", "it has the tag .*os.system"),
        ("x: !!python/name:os.system\n", "it has the tag"),
        ("x: !!binary AAAA\n", "it has the tag"),
        (LAUGHS, "it has an anchor"),
        ("x: &x [*x]\n", "it has an anchor"),
        ("seed: 1\nseed: 2\n", "found duplicate key seed"),
        (f"x: {'[' * 5000}", "it is nested more deeply"),
        (f"x: {'9' * 6000}", "integer"),
        ("x: [1, 2\n", "ParserError"),
        ("x: 1\n---\nx: 2\n", "than any config"),
        ("- a\n", "it is no mapping"),
        ("x: \x00\n", "ReaderError"),
        ("x: \x1b[2J\n", "ReaderError"),
    ],
)
def test_what_a_run_does_not_write_is_refused_in_no_time(tmp_path, monkeypatch, text, match):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=rf"config.yaml: expected the config that a run writes.*{match}"
    ):
        read_config(tmp_path / "config.yaml")
    assert not (tmp_path / "canary").exists()


def test_parts_that_are_no_settings_are_named(tmp_path):
    (tmp_path / "config.yaml").write_text("data: x\nmodel: 3\ntrainer: null\nseed: 0\n")
    with pytest.raises(
        ConfigError, match="data: expected settings, got 'x'; model: expected settings"
    ):
        read_config(tmp_path / "config.yaml")


def test_a_text_of_other_bytes_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"x: \xff\n")
    with pytest.raises(ConfigError, match="UnicodeDecodeError"):
        read_config(tmp_path / "config.yaml")
    os.unlink(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="got a link to /etc/passwd"):
        read_config(tmp_path / "config.yaml")


def test_paths_that_omegaconf_writes_are_texts_with_a_tag():
    from pathlib import Path

    config = OmegaConf.create({"root": Path("a/b")})
    assert parse_plain(OmegaConf.to_yaml(config)).root == Path("a/b")


def test_all_that_a_run_may_not_build_is_named_at_once():
    config = {
        "data": {"_target_": "torch.hub.load", "x": [{"_target_": "os.system"}]},
        "model": {"_target_": "lightning_peft.ImageClassifier",
                  "backbone_kwargs": {"checkpoint_path": "x", "depth": 10**9, "depths": [2, 10**6],
                  "img_size": 8, "pretrained_cfg": None},
                  "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True}},
        "method": {"_target_": "lightning_peft.LoRA", "_args_": [{"_target_": {"a": 1}}]},
        "seed": "${oc.env:HOME}",
        "callbacks": "${oc.create:'{_target_: os.system}'}",
        "_target_": "hydra.utils.get_object",
    }  # fmt: skip
    told = list(problems_in(config))
    assert [problem.partition(":")[0] for problem in told] == [
        "data._target_", "data.x[0]._target_", "model.backbone_kwargs.checkpoint_path",
        "model.backbone_kwargs.depth", "model.backbone_kwargs.depths",
        "method._args_[0]._target_", "seed", "callbacks", "_target_",
    ]  # fmt: skip
    assert "got torch.hub.load" in told[0]
    assert "it reads a file that it names" in told[2]
    assert "a size that a model has, got 1000000000" in told[3]
    assert "resolved, got" in told[6]


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """The directory of a run that names a module next to it; importing it leaves a file."""
    (tmp_path / "stranger.py").write_text(
        "import pathlib\npathlib.Path('canary').touch()\n"
        "def run(**kwargs): raise ValueError('ran')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").write_text(
        "seed: 0\ndata:\n  _target_: stranger.run\nmodel:\n  _target_: torch.hub.load\n  x: 1\n"
        "callbacks: {}\n"
    )
    (run / "serving.json").write_text(
        '{"num_classes": 2, "class_names": null, "preprocessing": null}'
    )
    yield run
    sys.modules.pop("stranger", None)


@pytest.mark.parametrize("name", ["export", "predict"])
def test_a_command_refuses_the_code_of_a_stranger_and_takes_ones_own(
    command, tmp_path, stranger, name
):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    words = {
        "export": ("export", "run", "--out", "out/a.safetensors"),
        "predict": ("predict", "run", "images", "--out", "out/p.csv"),
    }[name]
    status, out, err = command(*words)
    assert (status, out) == (2, "")
    assert (
        "run/config.yaml: data._target_: expected a class that a recorded run may build, got str"
        in err
    )
    assert (
        "run/config.yaml: model._target_: expected a class that a recorded run may build, got tor"
        in err
    )
    assert "--trust" in err
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out").exists()

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "data.yaml").write_text("_target_: stranger.run\n")
    status, _, err = command(*words, "--config-dir", "mine")
    assert status == 2
    assert "data._target_" not in err
    assert "model._target_" in err
    assert not (tmp_path / "canary").exists()

    status, _, err = command(*words, "--trust")
    assert status == 2
    assert (tmp_path / "canary").exists(), "it is the user's word"
    assert "ran" in err
    assert command(*words, "--config-dir", "nowhere")[2].startswith(
        "lightning-peft: --config-dir: expected a directory of configs, got nowhere"
    )


def test_soup_refuses_it_too(command, tmp_path, stranger, run):
    for seed in (0, 1):
        where = run(tmp_path / "sweep", "lora", seed, 0.5)
        (where / "config.yaml").write_text((stranger / "config.yaml").read_text())
        (where / "checkpoints").mkdir()
        (where / "checkpoints" / "best.ckpt").touch()
    status, _, err = command("soup", "sweep", "--out", "out")
    assert status == 2
    assert err.count("data._target_: expected a class that a recorded run may build") == 2
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out").exists()


def test_a_link_to_another_checkpoint_is_no_part_of_a_run(command, tmp_path, run):
    secret = tmp_path / "secret.ckpt"
    secret.touch()
    for seed in (0, 1):
        where = run(tmp_path / "sweep", "lora", seed, 0.5)
        (where / "config.yaml").write_text("seed: 0\ncallbacks: {}\n")
        (where / "checkpoints").mkdir()
        (where / "checkpoints" / "best.ckpt").symlink_to(secret)
    status, _, err = command("soup", "sweep")
    assert status == 2
    assert err.count("best.ckpt: expected a file of") == 2
    assert "got a link to" in err


def test_compare_reads_no_links_no_pipes_and_prints_no_control_characters(
    command, tmp_path, run, undrawn
):
    good = run(tmp_path / "runs", "lo\x1b[2Jra", 0, 0.5)
    linked = run(tmp_path / "runs", "ssf", 0, 0.5)
    (tmp_path / "elsewhere.json").write_text((linked / "summary.json").read_text())
    (linked / "summary.json").unlink()
    (linked / "summary.json").symlink_to(tmp_path / "elsewhere.json")
    piped = run(tmp_path / "runs", "norm", 0, 0.5)
    (piped / "summary.json").unlink()
    os.mkfifo(piped / "summary.json")
    for name in ("confusion.csv", "reliability.csv", "predictions.png", "metrics.csv"):
        os.mkfifo(good / name)
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    for name in ("comparison.json", "comparison.csv", "report.html", ".comparison.png.partial.png"):
        (tmp_path / "runs" / name).symlink_to(victim)
    began = time.monotonic()
    status, out, err = command("compare", "runs")
    assert status == 0, err
    assert time.monotonic() - began < 60
    assert "\x1b[2J" not in out
    assert out.count("not a summary, left out") == 2
    assert victim.read_text() == "as it was"
    assert "elsewhere" not in (tmp_path / "runs" / "comparison.json").read_text()


def test_the_lock_of_a_run_is_no_link(tmp_path):
    from lightning_peft.cli.runs.occupied import holder_of, occupy

    victim = tmp_path / "victim"
    victim.write_text("as it was")
    for name in (".in_use", ".in_use.lock"):
        run = tmp_path / name.strip(".")
        run.mkdir()
        (run / ".in_use").touch()
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(victim)
        with pytest.raises(ConfigError, match=r"cannot write in .* got a link to"):
            occupy(run, "output_dir")
        assert holder_of(run) == {}
    assert victim.read_text() == "as it was"


def test_trust_takes_everything(tmp_path):
    (tmp_path / "config.yaml").write_text("data:\n  _target_: os.system\n  x: ${y}\n")
    assert read_config(tmp_path / "config.yaml", trust=Trust(all=True)).data._target_ == "os.system"
