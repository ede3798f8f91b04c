"""``hydra.job.chdir=true``: what was typed begins where it was typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from lightning_peft.cli.config import typed_paths

SHORT = (
    *("data=folder", "data.root=images", "data.labels=images/table.csv", "data.num_workers=0"),
    *("data.cache=kept", "data.batch_size=8", "data.flip_safe=true", "trainer=cpu", "test=false"),
    *("bootstrap=0", "callbacks.progress=null", "schedule=none", "hydra.job.chdir=true"),
)


def test_every_path_that_a_job_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, there = tmp_path / "typed", tmp_path / "run"
    for folder in (start / "images", start / "weights", there):
        folder.mkdir(parents=True)
    monkeypatch.chdir(there)
    monkeypatch.setattr(typed_paths, "typed_in", lambda: start)
    cfg = OmegaConf.create(
        {
            "resume": "old/last.ckpt", "output_dir": "out", "name": "images", "none": None,
            "data": {"root": "images", "labels": "below.csv", "cache": True, "limit": "???"},
            "model": {"backbone": "weights"}, "callbacks": {"cache": {"directory": "kept"}},
            "mine": [{"data_dir": "images"}, {"dir": "absent", "dirpath": "${output_dir}/ckpt"}],
        }
    )  # fmt: skip
    typed_paths.from_where_it_was_typed(cfg)
    OmegaConf.update(cfg, "data.limit", 1)
    assert OmegaConf.to_container(cfg, resolve=True) == {
        "resume": f"{start}/old/last.ckpt", "output_dir": f"{start}/out", "name": "images",
        "none": None, "model": {"backbone": f"{start}/weights"},
        "data": {"root": f"{start}/images", "labels": "below.csv", "cache": True, "limit": 1},
        "callbacks": {"cache": {"directory": f"{start}/kept"}},
        "mine": [
            {"data_dir": f"{start}/images"}, {"dir": "absent", "dirpath": f"{start}/out/ckpt"},
        ],
    }  # fmt: skip
    again = OmegaConf.create({"resume": "last", "root": "https://x/y", "cache": "/kept"})
    typed_paths.from_where_it_was_typed(again)
    assert again == {"resume": "last", "root": "https://x/y", "cache": "/kept"}


def test_a_run_in_its_own_directory_and_one_that_goes_on(train, undrawn, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(24):
        pixels = 90 * (i % 2) + random.integers(0, 60, (24, 24), dtype=np.uint8)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / f"{i}.png")
    lines = ["file,label", *(f"{i}.png,{'ab'[i % 2]}" for i in range(24))]
    (tmp_path / "images" / "table.csv").write_text("\n".join(lines))
    status, _, err = train(*SHORT, "trainer.max_steps=2", "hydra.run.dir=run")
    assert status == 0, err
    assert Path.cwd() == tmp_path
    assert (tmp_path / "kept").is_dir()
    assert not (tmp_path / "run" / "kept").exists()
    recorded = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert recorded.data.root == str(tmp_path / "images")
    words = ("resume=run/checkpoints/last.ckpt", "trainer.max_steps=4", "hydra.sweep.dir=sweep")
    status, _, err = train(*SHORT, *words, "-m")
    assert status == 0, err
    (place,) = (tmp_path / "sweep").glob("0_*")
    assert json.loads((place / "summary.json").read_text())["steps"] == 4
    assert (tmp_path / "sweep" / "sweep.json").is_file(), "which 'continue' reads"
    assert not (place / "sweep").exists()
