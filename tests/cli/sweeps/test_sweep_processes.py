"""Sweeps in real processes: several ranks a job, jobs that die, sweeps that are killed."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import TINY

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SWEEP = ("-m", "experiment=smoke", "hydra.sweep.dir=sweep", "method=linear_probe", "test=false")
DDP = ("trainer=ddp", "trainer.accelerator=cpu")
DYING = """
import os
import time
from lightning.pytorch import Callback

class Dying(Callback):
    def __init__(self, seed):
        self.seed = seed

    def on_train_epoch_start(self, trainer, pl_module):
        if self.seed == 0 and trainer.global_rank == 1:
            os._exit(3)
        if self.seed == 0:
            time.sleep(300)  # in no collective that would fail: Lightning has to end this process
"""


def summaries(directory):
    return [json.loads(path.read_text()) for path in sorted(directory.glob("sweep/*/summary.json"))]


@pytest.mark.parametrize("launcher", ["basic", "fresh"])
def test_a_job_inherits_no_ranks_from_the_one_before(process, tmp_path, launcher):
    words = (*TINY, *SWEEP, *DDP, "trainer.devices=2,1", f"hydra/launcher={launcher}")
    done = process(["-m", "lightning_peft.cli", *words])
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]  # no second sweep elsewhere
    assert len([path for path in (tmp_path / "sweep").iterdir() if path.is_dir()]) == 2
    found = summaries(tmp_path)
    assert [(s["status"], s["ranks"], s["steps"]) for s in found] == [
        ("completed", 2, 4),
        ("completed", 1, 4),
    ]
    assert done.stderr.count("job 1 of 2") == done.stderr.count("job 2 of 2") == 1


def test_a_rank_that_dies_takes_its_job_with_it_and_no_other(process, tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    dying = ("+callbacks.dying._target_=dying.Dying", "+callbacks.dying.seed=${seed}")
    words = (*TINY, *SWEEP, *DDP, "seed=0,1", *dying, "hydra/launcher=fresh")
    done = process(["-m", "lightning_peft.cli", *words])
    assert done.returncode == 1
    first, second = summaries(tmp_path)
    assert first["status"] == "failed"
    assert "was killed by SIGKILL" in first["error"]
    assert second["status"] == "completed"
    told = " ".join(done.stdout.split())
    assert "linear_probe" in told
    assert "failed: linear_probe" in told
    assert "0_linear_probe_seed0" in told
    assert "to resume the sweep: lightning-peft continue sweep" in done.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_sweep_killed_in_the_middle_ends_in_the_table_of_the_whole_one(process, ranks):
    script = str(ROOT / "benchmarks" / "kill_sweep.py")
    done = process([script, "--jobs", "2", "--ranks", str(ranks)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed: 1 of 2 jobs done" in done.stdout
    assert "tables equal: yes" in done.stdout
    assert "weights equal, bit for bit: yes" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["the first validation is the best", "a search"])
def test_killed_sweeps_that_are_moved_end_as_if_left_alone(process, kind):
    script = str(ROOT / "benchmarks" / "move_sweeps.py")
    done = process([script, "--sweeps", "2", "--kind", kind])
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_trains_and_sweeps_in_an_application_that_is_not_ours(process, tmp_path):
    script = str(ROOT / "examples" / "hydra_app" / "train.py")
    methods = "lightning_peft/method@peft=lora,bitfit"
    places = ("hydra.sweep.dir=sweep", "hydra/launcher=fresh")
    done = process([script, "-m", methods, "trainer.max_steps=2", *places])
    assert done.returncode == 0, done.stderr
    for line in ("lightning_peft.LoRA: ", "lightning_peft.BitFit: "):
        assert line in done.stdout
    assert "parameters trained" in done.stdout
    assert [p.name for p in sorted((tmp_path / "sweep").iterdir()) if p.is_dir()] == ["0", "1"]
