"""One run or sweep at a time is at work in a directory."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.occupied import FILE, holder_of, occupy, vacate
from lightning_peft.cli.runs.processes import is_alive, this_process
from lightning_peft.cli.runs.summary import record_death

HOLD = """
import sys, time
from pathlib import Path
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.occupied import occupy, vacate
sys.stdin.readline()
try:
    occupy(Path(sys.argv[1]), "hydra.sweep.dir")
    print("taken", flush=True)
    sys.stdin.readline()
    vacate()
except ConfigError as error:
    print(error, flush=True)
"""


@pytest.fixture(autouse=True)
def left():
    yield
    vacate()


@pytest.fixture
def others(tmp_path):
    """Start processes that take ``tmp_path / "sweep"`` at the first line that they read."""
    started = []

    def start(count):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        words = [sys.executable, "-c", HOLD, str(tmp_path / "sweep")]
        started.extend(subprocess.Popen(words, **pipes) for _ in range(count))
        return started

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ask(processes):
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.stdout.readline() for process in processes]


def test_of_processes_that_start_at_once_one_has_the_directory(others, tmp_path):
    processes = others(4)
    said = ask(processes)
    assert said.count("taken\n") == 1, said
    winner = processes[said.index("taken\n")]
    for told in said:
        if told != "taken\n":
            assert f"sweep is in use: process {winner.pid} since 2" in told
            assert "Wait for it, end it, or choose another hydra.sweep.dir." in told
    with pytest.raises(ConfigError, match=f"process {winner.pid} since .* on this machine"):
        occupy(tmp_path / "sweep", "hydra.sweep.dir")
    assert holder_of(tmp_path / "sweep")["id"] == winner.pid
    winner.stdin.write("\n")
    winner.stdin.flush()
    winner.wait()
    assert not (tmp_path / "sweep").exists(), "left as it was found"
    occupy(tmp_path / "sweep", "hydra.sweep.dir")


def test_of_processes_that_find_a_dead_one_one_has_the_directory(others, tmp_path):
    processes = others(3)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / FILE).write_text(json.dumps({**this_process(), "id": gone.pid}))
    said = ask(processes)
    assert said.count("taken\n") == 1, said
    assert [p.name for p in (tmp_path / "sweep").iterdir()] == [FILE]


def test_a_process_that_was_killed_holds_nobody_up(others, tmp_path):
    (process,) = others(1)
    assert ask([process]) == ["taken\n"]
    process.kill()
    process.wait()
    assert (tmp_path / "sweep" / FILE).exists()
    occupy(tmp_path / "sweep", "hydra.sweep.dir")
    assert json.loads((tmp_path / "sweep" / FILE).read_text())["id"] == os.getpid()


def test_a_number_that_another_process_has_now_is_another_process(tmp_path):
    now = this_process()
    assert is_alive(now) is True
    if now["born"] is None:
        pytest.skip("the system does not say when a process was started")
    assert is_alive({**now, "id": os.getppid(), "born": -1}) is False
    (tmp_path / FILE).write_text(json.dumps({**now, "born": now["born"] - 1}))
    occupy(tmp_path, "hydra.run.dir")  # a container that is started anew gives the same numbers


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"id": 7, "host": "elsewhere"}, "process 7 on elsewhere took it.*it cannot be asked.*"),
        (None, "does not say by which process.*If nothing runs there, "),
    ],
)
def test_who_cannot_be_asked_is_told_with_what_to_delete(tmp_path, content, match):
    path = tmp_path / FILE
    path.write_text("" if content is None else json.dumps(content))
    with pytest.raises(ConfigError, match=rf"may be in use: .*{match}.*delete .*{FILE}"):
        occupy(tmp_path, "hydra.run.dir")
    path.unlink()
    occupy(tmp_path, "hydra.run.dir")


def test_ranks_and_second_calls_belong_to_the_job(tmp_path, monkeypatch):
    occupy(tmp_path, "hydra.run.dir")
    occupy(tmp_path, "hydra.run.dir")
    vacate()
    (tmp_path / FILE).write_text(json.dumps({"id": 1, "host": socket.gethostname()}))
    monkeypatch.setenv("LOCAL_RANK", "1")
    occupy(tmp_path, "hydra.run.dir")
    assert holder_of(tmp_path)["id"] == 1


def test_what_came_into_the_directory_stays(tmp_path):
    occupy(tmp_path / "a" / "b", "hydra.run.dir")
    (tmp_path / "a" / "found").write_text("")
    vacate()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["found"]


def test_the_summary_of_a_run_at_work_is_not_taken_for_a_dead_one(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"id": 1, "host": "elsewhere", "started": time.time()}))
    record_death(tmp_path, {"seed": 0}, "the process of the job ended with exit status 2")
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("kind", ["sweep", "run"])
def test_the_command_is_refused_and_then_goes_on(train, others, tmp_path, kind):
    words = ("experiment=smoke", "method=bitfit", "test=false", f"hydra.{kind}.dir=sweep")
    many = ("-m", "seed=0,1") if kind == "sweep" else ()
    (process,) = others(1)
    assert ask([process]) == ["taken\n"]
    status, _, err = train(*many, *words)
    assert status == 2
    assert f"sweep is in use: process {process.pid} since" in err
    assert f"choose another hydra.{kind}.dir" in err
    assert "to resume the sweep" not in err
    assert [p.name for p in (tmp_path / "sweep").iterdir()] == [FILE], "nothing was changed"
    process.kill()
    process.wait()
    status, _, err = train(*many, *words)
    assert status == 0, err
    assert not (tmp_path / "sweep" / FILE).exists()


def test_the_directory_that_the_time_and_the_method_choose_is_one_as_well(train, tmp_path):
    status, _, err = train("experiment=smoke", "method=bitfit", "test=false")
    assert status == 0, err
    (found,) = tmp_path.rglob("summary.json")
    assert found.parent.name.endswith("_bitfit")
    assert not list(tmp_path.rglob(FILE))
