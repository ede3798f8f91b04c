"""One run or sweep at a time is at work in a directory."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import SoftFileLock

from lightning_peft.cli.comparing.runs import run_of
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.occupied import FILE, holder_of, occupied, occupy, vacate
from lightning_peft.cli.runs.summary import record_death

pytestmark = pytest.mark.usefixtures("undrawn")

FILES = {FILE, f"{FILE}.lock"}
ELSEWHERE = {"id": 7, "host": "elsewhere", "started": 0.0}


@pytest.fixture(autouse=True)
def left():
    yield
    vacate()


@pytest.fixture
def others(tmp_path):
    """Start processes that take ``tmp_path / "sweep"`` at once: ``(processes, what they say)``."""
    started = []

    def start(count):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        words = [
            sys.executable,
            str(Path(__file__).parents[2] / "support" / "hold.py"),
            str(tmp_path / "sweep"),
        ]
        started.extend(subprocess.Popen(words, **pipes) for _ in range(count))
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        return started, [process.stdout.readline() for process in started]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def names(directory):
    return {path.name for path in directory.iterdir()}


def test_of_processes_that_start_at_once_one_has_the_directory(others, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / FILE).write_text('{"id": ')  # of one that was killed
    processes, said = others(4)
    assert said.count("taken\n") == 1, said
    winner = processes[said.index("taken\n")]
    match = (
        rf"sweep is in use: process {winner.pid} since 2.* on this machine works there\. "
        r"Wait for it, end it, or choose another hydra\.sweep\.dir"
    )
    with pytest.raises(ConfigError, match=match) as refused:
        occupy(tmp_path / "sweep", "hydra.sweep.dir")
    assert {told for told in said if told != "taken\n"} == {f"{refused.value}\n"}
    assert holder_of(tmp_path / "sweep")["id"] == winner.pid
    winner.communicate("\n")
    assert names(tmp_path / "sweep") == set(), "left as it was found"


def test_a_process_that_was_killed_holds_nobody_up(others, tmp_path):
    (process,), _ = others(1)
    running = {
        "status": "running",
        "method": {"name": "lora"},
        "process": {"host": socket.gethostname()},
    }
    assert run_of(running, tmp_path / "sweep").status == "running"
    process.kill()
    process.wait()
    assert names(tmp_path / "sweep") == FILES
    assert holder_of(tmp_path / "sweep") is None
    assert run_of(running, tmp_path / "sweep").status == "interrupted"
    occupy(tmp_path / "sweep", "hydra.sweep.dir")
    assert json.loads((tmp_path / "sweep" / FILE).read_text())["id"] == os.getpid()


def test_a_process_of_another_machine_is_told_with_what_to_delete(tmp_path):
    (tmp_path / FILE).write_text(json.dumps(ELSEWHERE))
    match = (
        "may be in use: process 7 since .* on elsewhere took it, and its process cannot be checked "
        rf"from this machine. If it has ended, delete \S*{FILE}; otherwise choose another"
    )
    with pytest.raises(ConfigError, match=match):
        occupy(tmp_path, "hydra.run.dir")
    assert holder_of(tmp_path) == ELSEWHERE
    record_death(tmp_path, {"seed": 0}, "the process of the job ended with exit status 2")
    assert not (tmp_path / "summary.json").exists(), "the job of that machine writes its own"
    (tmp_path / FILE).unlink()
    occupy(tmp_path, "hydra.run.dir")


def test_a_lock_that_a_process_of_another_machine_holds_is_seen(others, tmp_path):
    others(1)
    (tmp_path / "sweep" / FILE).write_text(json.dumps(ELSEWHERE))
    with pytest.raises(ConfigError, match="is in use: process 7 since .* on elsewhere works there"):
        occupy(tmp_path / "sweep", "hydra.sweep.dir")


def test_a_job_that_slurm_started_again_on_another_machine_has_its_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    before = {**ELSEWHERE, "job": "12", "restart": "0"}
    for holder, restart in ((before, "0"), ({**before, "job": "11"}, "1"), (ELSEWHERE, "1")):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
        (tmp_path / FILE).write_text(json.dumps(holder))
        with pytest.raises(ConfigError, match="may be in use: process 7 since .* on elsewhere"):
            occupy(tmp_path, "hydra.run.dir")
    (tmp_path / FILE).write_text(json.dumps(before))
    assert holder_of(tmp_path) is None
    assert occupy(tmp_path, "hydra.run.dir")
    assert json.loads((tmp_path / FILE).read_text())["restart"] == "1"


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", refuse)
    match = r"cannot write in .*new \(No space left on device\)\. Choose another hydra\.run\.dir"
    with pytest.raises(ConfigError, match=match):
        occupy(tmp_path / "new", "hydra.run.dir")
    assert not list(tmp_path.iterdir())
    assert holder_of(tmp_path / "new") is None


def test_a_clock_that_jumps_changes_no_decision(tmp_path, monkeypatch):
    occupy(tmp_path, "hydra.run.dir")
    started = json.loads((tmp_path / FILE).read_text())["started"]
    vacate()
    for jump in (-1e9, 1e9):
        monkeypatch.setattr("time.time", lambda now=started + jump: now)
        (tmp_path / FILE).write_text(json.dumps({"id": 1, "host": socket.gethostname()}))
        assert holder_of(tmp_path) is None
        assert occupy(tmp_path, "hydra.run.dir")
        vacate()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "a" / FILE
    occupy(path.parent, "hydra.run.dir")
    vacate()
    assert not path.parent.exists()
    with SoftFileLock(f"{path}.soft"):  # another process of this machine
        path.write_text(json.dumps({"id": 1, "host": socket.gethostname()}))
        with pytest.raises(ConfigError, match="is in use: process 1 on this machine"):
            occupy(path.parent, "hydra.run.dir")
        path.write_text(json.dumps(ELSEWHERE))
        with pytest.raises(ConfigError, match=rf"delete {path} and {path}\.soft; otherwise"):
            occupy(path.parent, "hydra.run.dir")


def test_a_forked_process_neither_holds_the_directory_nor_leaves_it(others, tmp_path):
    (process,), _ = others(1)
    process.stdin.write("fork\n")
    process.stdin.flush()
    assert process.stdout.readline() == "forked\n"
    with pytest.raises(ConfigError, match=f"in use: process {process.pid} since"):
        occupy(tmp_path / "sweep", "hydra.sweep.dir")
    process.kill()
    occupy(tmp_path / "sweep", "hydra.sweep.dir")  # while the forked one waits for its input


def test_ranks_and_second_calls_belong_to_the_job(others, tmp_path, monkeypatch):
    occupy(tmp_path / "run", "hydra.run.dir")
    with occupied(tmp_path / "run", "output_dir"):
        pass
    assert names(tmp_path / "run") == FILES, "it is held until the command ends"
    others(1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not occupy(tmp_path / "sweep", "hydra.run.dir")


def test_what_came_into_the_directory_stays(tmp_path):
    occupy(tmp_path / "a" / "b", "hydra.run.dir")
    (tmp_path / "a" / "found").write_text("")
    vacate()
    assert names(tmp_path / "a") == {"found"}


@pytest.mark.parametrize("kind", ["sweep", "run"])
def test_the_command_is_refused_and_then_goes_on(train, others, tmp_path, kind):
    words = ("experiment=smoke", "method=bitfit", "test=false", f"hydra.{kind}.dir=sweep")
    many = ("-m", "seed=0,1") if kind == "sweep" else ()
    (process,), _ = others(1)
    status, _, err = train(*many, *words)
    assert status == 2
    assert f"sweep is in use: process {process.pid} since" in err
    assert f"choose another hydra.{kind}.dir" in err
    assert "to resume the sweep" not in err
    assert names(tmp_path / "sweep") == FILES, "nothing was changed"
    process.kill()
    process.wait()
    status, _, err = train(*many, *words)
    assert status == 0, err
    assert not [path for path in tmp_path.rglob("*") if path.name in FILES]


def test_a_job_whose_directory_is_in_use_is_refused_and_says_nothing_of_it(
    train, others, tmp_path, monkeypatch
):
    (process,), _ = others(1)
    monkeypatch.chdir(tmp_path)
    words = ("experiment=smoke", "method=bitfit", "test=false", "seed=0,1")
    status, _, err = train("-m", *words, "hydra.sweep.dir=.", "hydra.sweep.subdir=sweep")
    assert status == 1
    assert f"sweep is in use: process {process.pid} since" in err
    assert names(tmp_path / "sweep") >= FILES
    assert not (tmp_path / "sweep" / "summary.json").exists()


def test_the_directory_that_the_time_and_the_method_choose_is_one_as_well(train, tmp_path):
    status, _, err = train("experiment=smoke", "method=bitfit", "test=false")
    assert status == 0, err
    (found,) = tmp_path.rglob("summary.json")
    assert found.parent.name.endswith("_bitfit")
    assert not [path for path in tmp_path.rglob("*") if path.name in FILES]
