"""Where a study is kept: journals that are cut off or held, and studies of earlier releases."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import optuna
import pytest
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.storage import open_storage
from lightning_peft.cli.sweeps.search.check import check_search
from tests.cli.conftest import study_in

pytestmark = pytest.mark.usefixtures("undrawn")


def database(path, release="2.10.1"):
    """Make what tells a database of Optuna's from any other."""
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE version_info (schema_version INTEGER, library_version TEXT)")
        made.execute("INSERT INTO version_info VALUES (12, ?)", (release,))
        made.execute("CREATE TABLE studies (study_id INTEGER PRIMARY KEY, study_name TEXT)")
        made.execute("INSERT INTO studies VALUES (1, 'search')")
        made.commit()
    return path.read_bytes()


def checked(storage, place):
    sweeper = {"n_trials": 3, "direction": "maximize", "params": {"lr": "interval(0,1)"}}
    sweeper |= {"storage": storage, "study_name": "search"}
    hydra = {"sweeper": sweeper, "sweep": {"dir": str(place)}, "overrides": {"task": []}}
    check_search(OmegaConf.create({"objective": None, "hydra": hydra}))


@pytest.mark.parametrize(
    "storage",
    ["search/study.journal", "sqlite:///search/study.db", "search/study.db"],
    ids=["beside it", "by its address", "as a file"],
)
def test_a_study_of_an_earlier_release_is_refused_and_left_as_it_is(tmp_path, monkeypatch, storage):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search").mkdir()
    before = database(tmp_path / "search" / "study.db")
    match = (
        r"hydra.sweeper.storage: expected a study of this release, got search/study.db, a database "
        r"of Optuna 2.10.1 .*choose another hydra.sweep.dir.*"
        r"optuna storage upgrade --storage sqlite:///search/study.db\) and add "
        r"hydra.sweeper.storage=sqlite:///search/study.db$"
    )
    with pytest.raises(ConfigError, match=match):
        checked(storage, "search")
    assert (tmp_path / "search" / "study.db").read_bytes() == before
    assert os.listdir("search") == ["study.db"]


def test_a_whole_command_is_refused_before_anything_is_made(command, tmp_path):
    (tmp_path / "search").mkdir()
    before = database(tmp_path / "search" / "study.db")
    status, _, err = command("-m", "experiment=optuna", "hydra.sweep.dir=search")
    assert status == 2
    assert "Optuna 2.10.1" in err
    assert os.listdir("search") == ["study.db"]
    assert (tmp_path / "search" / "study.db").read_bytes() == before


def test_a_database_of_this_release_is_a_study_like_another(tmp_path):
    address = f"sqlite:///{tmp_path}/study.db"
    checked(address, tmp_path)
    optuna.create_study(study_name="search", storage=address)
    checked(address, tmp_path)
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE mine (x INTEGER)")
    checked(f"sqlite:///{tmp_path}/other.db", tmp_path / "elsewhere")


def journal(directory):
    study = optuna.create_study(study_name="search", storage=open_storage(f"{directory}/j"))
    study.tell(study.ask(), 0.5)
    return (directory / "j").read_bytes()


@pytest.mark.parametrize("tail", [b'{"op_code":4,"wor', b"\0" * 7], ids=["killed", "power cut"])
def test_a_line_that_was_half_written_is_cut_off(tmp_path, tail):
    whole = journal(tmp_path)
    with open(tmp_path / "j", "ab") as file:
        file.write(tail)
    storage = open_storage(f"{tmp_path}/j")
    assert (tmp_path / "j").read_bytes() == whole
    study = optuna.load_study(study_name="search", storage=storage)
    study.tell(study.ask(), 0.7)
    (tmp_path / "j").rename(tmp_path / "study.journal")
    assert [trial.value for trial in study_in(tmp_path).trials] == [0.5, 0.7]


def test_not_even_the_first_line_has_to_be_whole(tmp_path):
    for size in range(30):
        (tmp_path / "j").write_bytes(b'{"op_code":0,"worker_id":"ab-c'[:size])
        optuna.create_study(study_name="search", storage=open_storage(f"{tmp_path}/j"))
        (tmp_path / "j").unlink()


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    journal(tmp_path)
    lock = FileLock(f"{tmp_path}/j.held")
    code = (
        "import sys, time; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    command = [sys.executable, "-c", code, lock.lock_file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Timeout, match="could not be acquired"):
            lock.acquire(timeout=0)
        holder.send_signal(signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL
    with lock.acquire(timeout=0):  # Optuna's own locks would be held for another 30 s
        pass
    study = optuna.load_study(study_name="search", storage=open_storage(f"{tmp_path}/j"))
    study.tell(study.ask(), 0.7)
    assert len(study.trials) == 2
