"""What is wrong with a directory or a search ends the command in a line, before anything runs."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.sweeps.record import check_kind, describe, read_record
from lightning_peft.cli.sweeps.state import STATE
from lightning_peft.cli.sweeps.whole import WholeSweep

pytestmark = pytest.mark.usefixtures("undrawn")

SEARCH = ("-m", "hydra/sweeper=search", "hydra.sweep.dir=d", "lr=interval(0.1,0.2)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-m", "hydra.sweep.dir=cut", "seed=0,1"), "cut/sweep.json does not say which sweep cut"),
        (("-m", "hydra.sweep.dir=file", "seed=0,1"), "hydra.sweep.dir: cannot write in "),
        (("hydra.run.dir=file",), "hydra.run.dir: cannot write in "),
        (("hydra.run.dir=/proc/nope",), "hydra.run.dir: cannot write in /proc/nope"),
        (("-m", "hydra.sweep.dir=run", "seed=0,1"), "run holds a single run, but a sweep needs"),
        (("-m", "hydra.sweeper=null", "hydra.sweep.dir=d"), "hydra.sweeper: expected a mapping"),
        ((*SEARCH, "hydra.sweeper.n_trials=abc"), "hydra.sweeper.n_trials: expected a whole"),
        ((*SEARCH, "objective=3"), "objective: expected a name"),
        ((*SEARCH, "hydra.sweeper.pruner=median"), "hydra.sweeper.pruner: expected a mapping"),
        ((*SEARCH, "hydra.sweeper.params=3"), "hydra.sweeper.params: expected a mapping"),
        (
            (*SEARCH, "hydra.sweeper.storage=sqlit:///x"),
            "hydra.sweeper.storage: expected",
        ),
        (
            (*SEARCH, "hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_warmup_steps=-1"),
            "hydra.sweeper.pruner: ValueError: Number of warmup steps cannot be negative",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_the_command_ends_in_one_line_with_status_2(command, tmp_path, words, message):
    (tmp_path / "file").write_text("")
    for name, file in (("cut", "sweep.json"), ("run", "summary.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text('{"overr')
    before = sorted(tmp_path.rglob("*"))
    status, out, err = command(*words)
    assert (status, out) == (2, ""), err
    assert err.startswith(f"lightning-peft: {message}"), err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


FINISHED = {"seed": 3, "lr": 0.5, "resume": None, "callbacks": {}}


@pytest.mark.parametrize(
    ("status", "words", "refused"),
    [
        ("completed", (), True),
        ("pruned", (), True),
        ("failed", (), False),
        ("completed", ("resume=there/checkpoints/last.ckpt",), False),
        ("completed", ("hydra.run.dir=elsewhere",), False),
    ],
)
def test_a_finished_run_is_not_overwritten_by_another(
    command, tmp_path, monkeypatch, status, words, refused
):
    there = tmp_path / "there"
    there.mkdir()
    (there / "config.yaml").write_text(OmegaConf.to_yaml({**FINISHED, "output_dir": str(there)}))
    (there / "summary.json").write_text(json.dumps({"status": status}))
    ran = []
    monkeypatch.setattr("lightning_peft.cli.jobs.train.train", ran.append)
    (there / "checkpoints").mkdir()
    torch.save({"optimizer_states": []}, there / "checkpoints" / "last.ckpt")
    files = sorted(there.glob("*.*"))
    before = [path.read_bytes() for path in files]
    ended, _, err = command("method=bitfit", "seed=4", "hydra.run.dir=there", *words)
    assert (ended, len(ran)) == ((2, 0) if refused else (0, 1)), err
    if refused:
        assert "there holds a finished run of another config: " in err
        assert "Choose another hydra.run.dir" in err
        assert [path.read_bytes() for path in files] == before


def test_the_same_run_is_made_again(command, tmp_path, monkeypatch):
    def train(cfg):
        (tmp_path / "run" / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
        (tmp_path / "run" / "summary.json").write_text(json.dumps({"status": "completed"}))
        ran.append(cfg.seed)

    ran = []
    monkeypatch.setattr("lightning_peft.cli.jobs.train.train", train)
    for _ in range(2):
        assert command("method=bitfit", "seed=4", "hydra.run.dir=run")[0] == 0
    status, _, err = command("method=bitfit", "seed=5", "hydra.run.dir=run")
    assert (status, ran) == (2, [4, 4])
    assert "; seed was 4, now 5. Choose another hydra.run.dir" in err


def record(kind=None, hydra=(), overrides=("method=bitfit",)):
    made = {"overrides": list(overrides), "params": {}, "hydra": list(hydra), "flags": []}
    return made if kind is None else {**made, "sweeper": kind}


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        (
            record("plain"),
            record("search"),
            "a plain sweep, 'method=bitfit'; this one is a search",
        ),
        (record("search"), record("plain"), "a search, 'method=bitfit'; this one is a plain sweep"),
        (record(hydra=["hydra/sweeper=search"]), record("plain"), "holds a search, "),
        (record(hydra=["hydra/sweeper=basic"]), record("search"), "holds a plain sweep, "),
        (record(), record("search"), "holds a plain sweep, "),
        # of an older release: the experiment may bring a search along
        (record(overrides=["experiment=optuna"]), record("search"), None),
        (record("search"), record("search"), None),
    ],
)
def test_a_search_and_a_plain_sweep_do_not_share_a_directory(tmp_path, before, now, refused):
    (tmp_path / "sweep.json").write_text(json.dumps(before))
    if refused is None:
        check_kind(tmp_path, now)
        return
    with pytest.raises(ConfigError, match=f"{refused}.*lightning-peft continue .*Otherwise choose"):
        check_kind(tmp_path, now)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"overrides": 3}', "\x00"])
def test_a_record_that_says_nothing_is_no_sweep_to_go_on_with(tmp_path, content):
    assert read_record(tmp_path) is None
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ConfigError, match=r"sweep\.json does not say which sweep .*delete"):
        read_record(tmp_path)


@pytest.mark.parametrize("name", ["config", "mine"])
def test_a_sweep_goes_on_with_the_config_that_it_began_with(name):
    hydra = {
        "sweeper": {"params": None},
        "sweep": {"dir": "d"},
        "overrides": {"task": ["seed=0,1"], "hydra": ["hydra.sweep.dir=d"]},
        "runtime": {"config_sources": [{"provider": "command-line", "path": "/own"}]},
        "job": {"config_name": name},
    }
    more = [] if name == "config" else ["--config-name", "mine"]
    found = describe(OmegaConf.create({"hydra": hydra}))
    assert found["flags"] == ["--config-dir", "/own", *more]
    assert found["sweeper"] == "plain"
    assert found["directory"] == str(Path.cwd() / "d")


@pytest.mark.parametrize(("is_search", "failed"), [(True, 0), (False, 1)])
def test_a_search_is_not_marred_for_ever_by_a_trial_that_failed(
    tmp_path, monkeypatch, run, is_search, failed
):
    monkeypatch.setattr(STATE, "failed", 0)
    run(tmp_path, "bitfit", 0, 0.5)
    run(tmp_path, "lora", 0, 0.5, status="failed", error="of an earlier start")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    WholeSweep(is_search=is_search).on_multirun_end(config)
    assert STATE.failed == failed


def test_what_nobody_foresaw_does_not_let_a_sweep_go_on_unchecked(tmp_path, monkeypatch, capsys):
    def fail(config):
        raise ZeroDivisionError("of a\nplugin")

    monkeypatch.setattr("lightning_peft.cli.sweeps.whole.check_search", fail)
    with pytest.raises(SystemExit) as stopped:
        WholeSweep().on_multirun_start(OmegaConf.create({}))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "lightning-peft: ZeroDivisionError: of a plugin\n"
    assert STATE.directory is None
