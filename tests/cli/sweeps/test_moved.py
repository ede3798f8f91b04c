"""A run or a sweep that was moved, copied, renamed or reached by a link goes on with its best."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import lightning.pytorch as L
import optuna
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.jobs.resuming import Resuming
from lightning_peft.cli.runs.checkpoints import missing_best, rerooted
from lightning_peft.cli.runs.recorded import recorded_config
from lightning_peft.cli.sweeps.earlier import check_checkpoints
from lightning_peft.cli.sweeps.moved import in_place, started_in
from lightning_peft.cli.sweeps.search.study import PLACE, standing_among

pytestmark = pytest.mark.usefixtures("undrawn")

FIRST_IS_BEST = "callbacks.best.mode=min"
"""The lowest accuracy is the "best": what follows the first validation does not replace it."""

JOB = "0_linear_probe_seed0"
SETTINGS = ("experiment=smoke", "method=linear_probe", "lr=0.03", "bootstrap=0", FIRST_IS_BEST)
SWEEP = ("-m", *SETTINGS, "seed=0", "hydra.sweep.dir=sweep")
RUN = (*SETTINGS, "seed=0", "hydra.run.dir=run")


def content(directory):
    """Return a digest of every file."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory): hashlib.sha256(path.read_bytes()).digest()
            for path in files}  # fmt: skip


def result(directory):
    """Return what a run measured, and the weights of its best checkpoint."""
    summary = json.loads((directory / "summary.json").read_text())
    best = torch.load(directory / "checkpoints" / "best.ckpt", weights_only=True)
    return summary["metrics"], summary["objective"], best["global_step"], {
        name: tensor.tolist() for name, tensor in best["state_dict"].items()
    }  # fmt: skip


def test_a_sweep_that_lies_elsewhere_goes_on_with_its_best_checkpoint(
    train, command, tmp_path, interrupt, monkeypatch
):
    assert train(*SWEEP)[0] == 0
    shutil.move("sweep", "whole")
    whole = result(tmp_path / "whole" / JOB)
    assert whole[2] == 2, "the first validation of two"
    undo = interrupt(2, "seed 0")
    assert train(*SWEEP)[0] == 130
    undo()
    original = content(tmp_path / "sweep")
    shutil.copytree("sweep", "copied")
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copytree("sweep", "a/b/renamed")
    (tmp_path / "link").symlink_to("a/b/renamed")

    status, _, err = command("continue", "copied")
    assert status == 0, err
    assert "(from its last checkpoint" in err
    assert result(tmp_path / "copied" / JOB) == whole
    assert content(tmp_path / "sweep") == original, "a copy writes nothing into the original"

    shutil.rmtree("sweep")  # a move
    monkeypatch.chdir(tmp_path / "a")
    status, _, err = command("continue", "../link")
    assert status == 0, err
    assert f"continues in {tmp_path}, where the sweep was started" in err
    assert result(tmp_path / "a" / "b" / "renamed" / JOB) == whole


@pytest.mark.slow
def test_a_run_that_lies_elsewhere_goes_on_with_its_best_checkpoint(
    train, command, tmp_path, interrupt
):
    undo = interrupt(2, "seed 0")
    assert train(*RUN)[0] == 130
    undo()
    before = content(tmp_path / "run")
    shutil.copytree("run", "moved")
    status, _, err = train(*RUN[:-1], "hydra.run.dir=moved", "resume=moved/checkpoints/last.ckpt")
    assert status == 0, err
    assert "resuming from" not in err, "nothing differs"
    assert result(tmp_path / "moved")[2] == 2
    assert content(tmp_path / "run") == before

    # a directory of its own
    words = ("resume=run/checkpoints/last.ckpt", "hydra.run.dir=new", "trainer.max_steps=6")
    with pytest.warns(UserWarning, match="the checkpoint was made with"):
        status, _, err = train(*RUN, *words, "data.batch_size=4", "lr=0.5", "test=false")
    assert status == 0, err
    told = [line.strip() for line in err.splitlines() if line.startswith("  ")]
    assert "resuming from run/checkpoints/last.ckpt (after 2 steps), with other settings" in err
    assert told[:4] == [
        "data.batch_size 8 -> 4",
        "lr 0.03 -> 0.5 (has no effect: the optimizer goes on with what is in the checkpoint)",
        "test True -> False",
        "trainer.max_steps 4 -> 6",
    ]
    assert told[4].startswith("val/accuracy 0.")
    assert "run/checkpoints/best.ckpt: the best checkpoint of before stays where it is" in told[4]
    assert result(tmp_path / "new")[2] > 2
    saved = torch.load("new/checkpoints/last.ckpt", weights_only=True)["optimizer_states"]
    assert {group["initial_lr"] for group in saved[0]["param_groups"]} == {0.03}

    # another method does not fit: what the directory holds stays as it was
    kept = ("config.yaml", "summary.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt")
    held = {name: (tmp_path / "moved" / name).read_bytes() for name in kept}
    words = ("hydra.run.dir=moved", "resume=moved/checkpoints/last.ckpt", "method=bitfit")
    status, _, err = train(*RUN[:-1], *words)
    assert status == 2
    assert err.splitlines()[-1].endswith("Use the method that it was trained with.")
    assert {name: (tmp_path / "moved" / name).read_bytes() for name in kept} == held


@pytest.fixture
def left(tmp_path):
    """Write what a job leaves that was interrupted elsewhere, with the files taken along."""

    def write(name, *files, chosen=None):
        place = tmp_path / name / "checkpoints"
        place.mkdir(parents=True)
        (place.parent / "summary.json").write_text('{"status": "running"}')
        for file in files:
            (place / file).touch()
        chosen = {"best.ckpt": 0.75} if chosen is None else chosen
        state = {
            "monitor": "val/accuracy",
            "best_model_score": torch.tensor(max(chosen.values())),
            "best_model_path": f"/old/{name}/checkpoints/{max(chosen, key=chosen.get)}",
            "dirpath": f"/old/{name}/checkpoints",
            "best_k_models": {f"/old/{name}/checkpoints/{file}": torch.tensor(score)
                              for file, score in chosen.items()},
            "kth_best_model_path": "",
            "last_model_path": "",
        }  # fmt: skip
        content = {"callbacks": {"best": state}, "optimizer_states": []}
        torch.save(content, place / "last.ckpt")
        return state, place

    return write


def test_a_sweep_without_its_best_checkpoints_is_refused_before_anything_is_written(
    left, command, tmp_path
):
    for job in ("sweep/0_a", "sweep/1_b"):
        left(job)
    left("sweep/2_c", "best.ckpt")
    before = content(tmp_path)
    status, _, err = command(*SWEEP)
    assert status == 2
    first, second = err.splitlines()
    for line, job in ((first, "0_a"), (second, "1_b")):
        best = tmp_path / "sweep" / job / "checkpoints" / "best.ckpt"
        assert f"got no file {best} (val/accuracy 0.75)" in line
        assert f"they were in /old/sweep/{job}/checkpoints before. Copy them there." in line
        assert line.endswith("to start again.")
    assert content(tmp_path) == before
    with pytest.raises(ConfigError, match="expected the best checkpoints of the run so far"):
        check_checkpoints(tmp_path / "sweep")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run/checkpoints/last.ckpt", "expected the best checkpoints of the run so far beside it"),
        ("run/checkpoints/no.ckpt", "resume: expected a checkpoint to resume from, got no file"),
        ("run/checkpoints/cut.ckpt", "resume: expected a whole checkpoint to resume from, got run"),
        ("run/checkpoints/weights.ckpt", "weights and no state of the optimizer. Resume from run"),
    ],
)
def test_a_run_is_refused_before_anything_is_written(command, left, tmp_path, words, message):
    _, place = left("run")
    (place / "cut.ckpt").write_bytes((place / "last.ckpt").read_bytes()[:-100])
    torch.save({"state_dict": {}, "lightning_peft": {}}, place / "weights.ckpt")
    before = content(tmp_path)
    status, _, err = command(f"resume={words}", "hydra.run.dir=run")
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert err.endswith(".\n")
    assert content(tmp_path) == before


def test_lightning_takes_the_state_as_that_of_the_directory(left, recwarn):
    state, place = left("run", "best.ckpt", "second.ckpt",
                        chosen={"best.ckpt": 0.75, "second.ckpt": 0.5})  # fmt: skip
    callback = ModelCheckpoint(place, monitor="val/accuracy", mode="max", save_top_k=2)
    callback.load_state_dict(rerooted(state, place))
    assert not recwarn.list, "such as 'The dirpath has changed'"
    assert callback.best_model_path == str(place / "best.ckpt")
    assert {Path(p).name: float(s) for p, s in callback.best_k_models.items()} == {
        "best.ckpt": 0.75, "second.ckpt": 0.5,
    }  # fmt: skip
    assert list(missing_best(state, place, place / "last.ckpt")) == []


def test_one_that_a_better_one_had_replaced_when_the_run_was_killed_is_not_missed(left):
    chosen = {"best-epoch=3.ckpt": 0.75, "best-epoch=2.ckpt": 0.5}
    state, place = left("run", "best-epoch=2.ckpt", "best-epoch=6.ckpt", chosen=chosen)
    assert list(missing_best(state, place, place / "last.ckpt")) == []
    now = rerooted(state, place)
    assert [Path(path).name for path in now["best_k_models"]] == ["best-epoch=2.ckpt"]
    assert now["best_model_path"] == ""
    (place / "best-epoch=6.ckpt").unlink()
    (told,) = missing_best(state, place, place / "last.ckpt")
    assert "best-epoch=3.ckpt (val/accuracy 0.75)" in told
    assert "best-epoch=2.ckpt" not in told


def test_a_checkpoint_callback_of_another_folder_is_found_when_training_starts(left, tmp_path):
    state, place = left("run", "best.ckpt")
    other = ModelCheckpoint(tmp_path / "run" / "other", monitor="val/accuracy", mode="max")
    trainer = L.Trainer(logger=False, callbacks=[other], enable_progress_bar=False,
                        accelerator="cpu")  # fmt: skip
    trainer._checkpoint_connector._ckpt_path = str(place / "last.ckpt")
    inside = {
        key: value.replace("/checkpoints", "/other") if isinstance(value, str) else value
        for key, value in state.items()
    } | {"best_k_models": {}}
    checkpoint = {"callbacks": {other.state_key: inside}}
    resuming = Resuming(tmp_path / "run")
    with pytest.raises(ConfigError, match="run/other/best.ckpt .* were in /old/run/other before"):
        resuming.on_load_checkpoint(trainer, None, checkpoint)
    assert checkpoint["callbacks"][other.state_key] == inside
    (tmp_path / "run" / "other").mkdir()
    (tmp_path / "run" / "other" / "best.ckpt").touch()
    resuming.on_load_checkpoint(trainer, None, checkpoint)
    found = checkpoint["callbacks"][other.state_key]
    assert found["best_model_path"] == str(tmp_path / "run" / "other" / "best.ckpt")


def test_the_words_of_a_copied_sweep_are_about_the_copy(tmp_path):
    record = {
        "overrides": ["data.root=/data", "+callbacks.best.dirpath=/old/a/keep", "x=/old/ab"],
        "hydra": ["hydra.sweeper.storage=sqlite:////old/a/study.db", "hydra/sweeper=search"],
        "jobs": [["+callbacks.best.dirpath=/old/a/keep"]],
        "flags": ["--config-dir", "/old/conf"],
        "cwd": "/old",
        "directory": "/old/a",
    }
    found = in_place(record, tmp_path)
    assert found["overrides"] == [
        "data.root=/data", f"+callbacks.best.dirpath={tmp_path}/keep", "x=/old/ab"
    ]  # fmt: skip
    assert found["jobs"] == [[f"+callbacks.best.dirpath={tmp_path}/keep"]]
    assert found["hydra"][0] == f"hydra.sweeper.storage=sqlite:///{tmp_path}/study.db"
    assert found["flags"] == record["flags"]
    relative = {**record, "hydra": ["hydra.sweeper.storage=a/study.journal"]}
    storage = f"hydra.sweeper.storage={tmp_path}/study.journal"
    assert in_place(relative, tmp_path)["hydra"] == [storage]
    older = {key: record[key] for key in ("overrides", "hydra")}
    assert in_place(older, tmp_path) == older


@pytest.mark.parametrize(
    ("typed", "here", "expected"),
    [
        ("project/sweeps/a", "project", None),
        ("project/sweeps/a", "elsewhere", "project"),
        ("elsewhere/a", "elsewhere", "project"),
        # the whole project was copied
        ("copy/sweeps/a", "copy", None),
    ],
)
def test_relative_paths_begin_where_the_sweep_was_started(
    tmp_path, monkeypatch, typed, here, expected
):
    project = tmp_path / "project"
    for name in ("project", "elsewhere", "copy"):
        (tmp_path / name).mkdir()
    (tmp_path / typed).mkdir(parents=True)
    record = {"cwd": str(project), "directory": str(project / "sweeps" / "a")}
    (tmp_path / typed / "sweep.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path / here)
    found = started_in(tmp_path / typed / "sweep.json")
    assert found == (None if expected is None else tmp_path / expected)


def test_the_interrupted_trials_of_a_search_that_was_moved_are_its_own(tmp_path):
    study = optuna.create_study()
    for place in (tmp_path / "gone", tmp_path / "here", tmp_path / "other", tmp_path / "original"):
        study.ask().set_user_attr(PLACE, str(place))
    study.ask()  # killed while it was proposed
    for name in ("here", "other", "original"):
        (tmp_path / name).mkdir()
    for job in ("0_lora", "1_lora", "2_lora", "3_lora"):
        (tmp_path / "here" / job).mkdir()
    (tmp_path / "original" / "study.journal").touch()  # what is here is a copy of it
    trials = study.get_trials()

    def interrupted(file):
        return standing_among(trials, tmp_path / "here", file).interrupted

    assert interrupted(tmp_path / "here" / "study.journal") == (0, 1, 3)
    assert interrupted(tmp_path / "shared.journal") == (1,)
    assert interrupted(None) == (1,)
    (tmp_path / "here" / "0_lora").rmdir()  # of a sweep on another machine that shares the study
    assert interrupted(tmp_path / "here" / "study.journal") == (1, 3)


def test_a_recorded_config_is_about_the_directory_in_which_it_lies(tmp_path, monkeypatch):
    run, start = tmp_path / "here", tmp_path / "start"
    (start / "images").mkdir(parents=True)
    (run / ".hydra").mkdir(parents=True)
    config = {
        "output_dir": "/old/run",
        "resume": "/old/run/checkpoints/last.ckpt",
        "trainer": {"default_root_dir": "/old/run", "devices": 1},
        "data": {"root": "images", "cache": "/old/runner"},
        "callbacks": {},
    }
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))
    monkeypatch.chdir(tmp_path)
    assert recorded_config(run).data.root == "images", "nobody knows where it was"
    hydra = {"hydra": {"runtime": {"cwd": str(start)}}}
    (run / ".hydra" / "hydra.yaml").write_text(OmegaConf.to_yaml(hydra))
    found = OmegaConf.to_container(recorded_config(run))
    assert found == {
        "output_dir": str(run),
        "resume": f"{run}/checkpoints/last.ckpt",
        "trainer": {"default_root_dir": str(run), "devices": 1},
        "data": {"root": str(start / "images"), "cache": "/old/runner"},
        "callbacks": {},
    }
    with contextlib.chdir(start):
        assert recorded_config(run).data.root == "images"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed: 0\ndata:\n  root: x\n", "bytes of one: it is cut off. Copy the file again"),
        ("seed: 0\ncallbacks:\n  best", "it is cut off"),
        ("seed: [1\nb: 2\n", r"cannot be read \(expected ',' or '\]', but got ':', in line 2\)"),
        ("", "0 bytes of one: it is cut off"),
    ],
)
def test_a_recorded_config_that_is_cut_off_is_refused_with_a_whole_sentence(tmp_path, text, reason):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        recorded_config(tmp_path)
