"""A run on a disk that fills up: what matters is whole, the rest is left out, and it goes on."""

import errno
import json
import logging
import os
import pickle
import re
import shlex

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from lightning_peft.cli.jobs.loggers import forgiving

RUN = ("experiment=smoke", "method=bitfit", "hydra.run.dir=run", "callbacks=no_validation")


@pytest.fixture
def full(monkeypatch):
    """Fail the flush of a file from a given time on, and give a way to make room again."""
    own = os.fsync

    def fill(name, number=1):
        calls = []

        def flush(file):
            calls.append(os.readlink(f"/proc/self/fd/{file}").endswith(name))
            if calls[-1] and sum(calls) >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            own(file)

        monkeypatch.setattr(os, "fsync", flush)
        return lambda: monkeypatch.setattr(os, "fsync", own)

    return fill


def state(run):
    return json.loads((run / "summary.json").read_text())["status"]


def temporary(run):
    return [path for path in run.rglob(".*") if re.match(r"\.[0-9a-f]{12}\.", path.name)]


def test_a_run_that_a_full_disk_ends_is_interrupted_and_goes_on_with_its_hint(
    train, full, tmp_path
):
    make_room = full("last.ckpt", number=2)
    status, _, err = train(*RUN, "test=false")
    assert status == 1
    assert re.search(
        r"^lightning-peft: .*run/checkpoints/last\.ckpt: expected room for at least [\d,]+ bytes, "
        r"got a disk with [\d,]+ bytes left \(No space left on device\)\. The previous file ",
        err,
        re.MULTILINE,
    )
    assert "Traceback" not in err
    run = tmp_path / "run"
    assert state(run) == "interrupted"
    assert not temporary(run)
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2

    make_room()
    hint = re.search(r"to resume the run: lightning-peft (.*)", err)[1]
    (run / "checkpoints" / ".0123456789ab.last.ckpt").write_text("of a process that was killed")
    status, _, err = train(*shlex.split(hint))
    assert status == 0, err
    assert state(run) == "completed"
    assert not temporary(run)
    assert json.loads((run / "summary.json").read_text())["steps"] == 4


def test_a_logger_that_cannot_write_is_switched_off_with_one_line(
    train, tmp_path, monkeypatch, caplog
):
    def refuse(self):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")

    monkeypatch.setattr(CSVLogger, "save", refuse)
    status, _, err = train(*RUN, "test=false")
    assert status == 0, err
    assert state(tmp_path / "run") == "completed"
    assert err.count("CSVLogger: off, and the training goes on: [Errno 28]") == 1


def test_other_errors_of_a_logger_stay_errors(tmp_path, caplog):
    class Logger(CSVLogger):
        fails = OSError

        def log_metrics(self, metrics, step):
            raise self.fails("mine")

    strict, lenient = (forgiving(Logger(tmp_path)) for _ in range(2))
    strict.fails = ValueError
    with pytest.raises(ValueError, match="mine"):
        strict.log_metrics({}, 0)
    with caplog.at_level(logging.WARNING):
        lenient.log_metrics({}, 0)
        lenient.log_metrics({}, 1)
        lenient.save()
    assert [record.getMessage() for record in caplog.records] == [
        f"Logger: off, and the training goes on: mine (in {tmp_path})"
    ]
    copy = pickle.loads(pickle.dumps(forgiving(CSVLogger(tmp_path))))
    copy.log_metrics({"a": 1.0}, 0)
    copy.save()
    assert list(tmp_path.rglob("metrics.csv"))
