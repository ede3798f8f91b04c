"""A sweep is extended in its directory: new jobs are run, and the finished ones are untouched."""

import json

import pytest

from lightning_peft.cli.sweeps.extended import match

pytestmark = pytest.mark.usefixtures("undrawn")

FIXED = ("-m", "experiment=smoke", "test=false", "hydra.sweep.dir=sweep")


def files(directory, *names):
    """Every file of these jobs, bit for bit, and when it was written."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for name in names
        for path in sorted((directory / name).rglob("*"))
        # Hydra itself writes its own record of a job anew
        if path.is_file() and ".hydra" not in path.parts and path.name != "run.log"
    }


def lines(err):
    return [line.partition(" (about")[0] for line in err.splitlines() if line.startswith("job ")]


def directories(directory):
    return sorted(path.parent.name for path in directory.glob("*/config.yaml"))


def test_more_values_run_the_new_jobs_alone(train, command, tmp_path):
    sweep = tmp_path / "sweep"
    assert train(*FIXED, "method=bitfit", "seed=0")[0] == 0
    old = ["0_bitfit_seed0"]
    assert directories(sweep) == old
    before = files(sweep, *old)
    assert any(path.suffix == ".ckpt" for path in before)

    # values before, between and behind those that were run
    status, out, err = train(*FIXED, "method=linear_probe,bitfit", "seed=1,0")
    assert status == 0, err
    assert "sweep is extended: 3 new jobs in addition to the 1 that it has" in err
    assert lines(err) == [
        "job 1 of 4: method=bitfit seed=0: done already",
        "job 2 of 4: method=linear_probe seed=1",
        "job 3 of 4: method=linear_probe seed=0",
        "job 4 of 4: method=bitfit seed=1",
    ]
    assert directories(sweep) == [
        *old, "1_linear_probe_seed1", "2_linear_probe_seed0", "3_bitfit_seed1"
    ]  # fmt: skip
    assert files(sweep, *old) == before
    assert "2 seeds" in out
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert [job[-1] for job in jobs] == ["seed=0", "seed=1", "seed=0", "seed=1"]

    before = files(sweep, *directories(sweep))
    status, _, err = command("continue", "sweep")
    assert status == 0, err
    assert all(line.endswith("done already") for line in lines(err))
    assert "extended" not in err
    status, _, err = train(*FIXED, "method=ssf,bitfit,linear_probe", "seed=1,0")
    assert status == 0, err
    assert sum(line.endswith("done already") for line in lines(err)) == 4
    assert directories(sweep)[4:] == ["4_ssf_seed1", "5_ssf_seed0"]
    assert files(sweep, *directories(sweep)[:4]) == before


def test_a_job_is_found_by_its_config_where_its_overrides_are_written_otherwise(train, tmp_path):
    assert train(*FIXED, "method=bitfit", "lr=1e-3")[0] == 0
    before = files(tmp_path / "sweep", "0_bitfit_seed0")
    status, _, err = train(*FIXED, "method=bitfit", "lr=0.1,0.001", "seed=0", "data=digits")
    assert status == 0, err
    assert lines(err) == ["job 1 of 2: lr=0.001: done already", "job 2 of 2: lr=0.1"]
    assert files(tmp_path / "sweep", "0_bitfit_seed0") == before


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (("method=bitfit", "lr=0.1,0.3"), "method=bitfit lr=0.2"),
        (("method=bitfit", "lr=0.1,0.2", "trainer.max_steps=2"), "method=bitfit lr=0.1"),
        (("method=ssf", "lr=0.1,0.2"), "method=bitfit lr=0.1"),
    ],
    ids=["a value is gone", "another fixed override", "another method"],
)
def test_a_real_difference_is_refused_before_anything_is_changed(train, tmp_path, words, lost):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    overrides = ["experiment=smoke", "test=false", "method=bitfit", "lr=0.1,0.2"]
    before = json.dumps({"overrides": overrides, "params": {}, "hydra": [], "flags": []})
    (sweep / "sweep.json").write_text(before)
    status, _, err = train(*FIXED, *words)
    assert status == 2
    assert "sweep holds another sweep: 'experiment=smoke test=false method=bitfit" in err
    assert f"{lost}" in err.partition("which lacks the jobs: ")[2]
    assert "A sweep can be extended by more values" in err
    assert [path.name for path in sweep.iterdir()] == ["sweep.json"]
    assert (sweep / "sweep.json").read_text() == before


def test_jobs_are_matched_by_their_overrides_in_any_order():
    now = [["a=1", "b=1"], ["a=1", "b=2"], ["a=2", "b=1"]]
    assert match([["b=1", "a=2"], ["a=3", "b=1"]], now) == [2, None]
    assert match([], now) == []
    # a value that was typed twice is two jobs, and no third one
    assert match([["a=1"], ["a=1"]], [["a=1"], ["a=1"]]) == [0, 1]
    assert match([["a=1"], ["a=1"]], [["a=1"]]) == [0, None]
