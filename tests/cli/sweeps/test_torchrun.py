"""Ranks that torchrun starts: each runs the command, and one of them prints and writes."""

import json

import pytest
from omegaconf import OmegaConf

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.sweeps.launcher_check import check_launcher
from lightning_peft.cli.sweeps.whole import WholeSweep
from tests.cli.conftest import TINY

SWEEP = OmegaConf.create({"hydra": {"launcher": {}}})


def test_a_sweep_is_refused_since_its_jobs_would_meet_at_the_address_of_the_one_before(monkeypatch):
    check_launcher(SWEEP)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_launcher(SWEEP)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"got 2 ranks of torchrun.* starts its ranks\."):
        check_launcher(SWEEP)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_tells_what_becomes_of_a_sweep(tmp_path, monkeypatch, capsys, run, undrawn, rank):
    monkeypatch.setenv("RANK", str(rank))
    run(tmp_path, "bitfit", 0, 0.5)
    run(tmp_path, "lora", 0, 0.5, status="failed", error="such is life")
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    WholeSweep().on_multirun_end(config)
    out, err = capsys.readouterr()
    assert (tmp_path / "comparison.csv").exists() == (rank == 0)
    again = f"1 of its jobs failed. To try them again: lightning-peft continue {tmp_path}"
    assert (again in err) == (rank == 0)
    assert ("failed: lora, seed 0: such is life" in out) == (rank == 0)


@pytest.mark.slow
def test_a_run_of_two_ranks(process, tmp_path):
    start = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lightning_peft.cli")
    two = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "bootstrap=0")
    words = (*TINY, *two, "experiment=smoke", "method=linear_probe", "test=false")
    done = process([*start, *words, "hydra.run.dir=run"])
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 2
