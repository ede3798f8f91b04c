"""Kill a sweep with SIGKILL in the middle of a job, run it again, and compare the results.

python benchmarks/kill_sweep.py                       # 4 jobs of 2 ranks each, on the CPU
python benchmarks/kill_sweep.py --jobs 2 --ranks 1    # a minute
python benchmarks/kill_sweep.py --launcher joblib     # two jobs at once, two ranks each
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TINY = (
    "model=timm",
    "model.backbone=vit_tiny_patch16_224",
    "model.pretrained=false",
    "model.backbone_kwargs={img_size: 24, patch_size: 8, in_chans: 1, embed_dim: 16, depth: 2,"
    " num_heads: 2}",
    "data.backbone=glyph_vit",
)
SHORT = ("data.labels_per_class=4", "data.steps_per_epoch=4", "data.batch_size=8")
TIMES = ("step_seconds", "total_seconds", "memory_bytes")


def words(arguments: argparse.Namespace, directory: Path) -> list[str]:
    """Return the command line of the sweep."""
    methods = "lora,bitfit" if arguments.jobs > 2 else "lora"
    seeds = ",".join(map(str, range(arguments.jobs // (2 if arguments.jobs > 2 else 1))))
    ranks = ("trainer=ddp", f"trainer.devices={arguments.ranks}") if arguments.ranks > 1 else ()
    return [
        *("-m", f"method={methods}", f"seed={seeds}", f"hydra.sweep.dir={directory}"),
        *(*TINY, *SHORT, *ranks, "trainer.accelerator=cpu", f"trainer.max_steps={arguments.steps}"),
        f"hydra/launcher={arguments.launcher}",
        *(("hydra.launcher.n_jobs=2",) if arguments.launcher == "joblib" else ()),
        *arguments.overrides,
    ]


def start(arguments: argparse.Namespace, directory: Path) -> subprocess.Popen[bytes]:
    """Start the sweep, with all of its processes in a group of their own."""
    command = [sys.executable, "-m", "lightning_peft.cli", *words(arguments, directory)]
    return subprocess.Popen(command, start_new_session=True)


def kill_in_the_middle(arguments: argparse.Namespace, directory: Path) -> str:
    """Start the sweep, and kill all of it as soon as the chosen job has a checkpoint."""
    process = start(arguments, directory)
    pattern = f"{arguments.jobs // 2}_*/checkpoints/last.ckpt"
    while process.poll() is None and not list(directory.glob(pattern)):
        time.sleep(0.02)
    if process.poll() is not None:
        raise SystemExit(f"the sweep ended by itself with status {process.returncode}")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    import torch

    (last,) = directory.glob(pattern)
    step = torch.load(last, weights_only=True)["global_step"]
    summaries = [json.loads(path.read_text()) for path in directory.glob("*/summary.json")]
    done = sum(summary["status"] == "completed" for summary in summaries)
    return f"killed: {done} of {arguments.jobs} jobs done, the next at step {step}"


def table(directory: Path) -> list[dict[str, str]]:
    """Return the comparison that a sweep leaves, without the times."""
    with (directory / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{key: row[key] for key in row if key not in TIMES} for row in rows]


def different_weights(one: Path, other: Path) -> list[str]:
    """Return the checkpoints whose weights are not the same bit for bit."""
    import torch

    found = []
    for path in sorted(one.glob("*/checkpoints/*.ckpt")):
        name = path.relative_to(one)
        a, b = (torch.load(d / name, weights_only=True)["state_dict"] for d in (one, other))
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            found.append(str(name))
    return found


def main() -> int:
    """Run the sweep twice, once interrupted; the exit status is 0 if the tables are equal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=4, choices=(2, 4, 6, 8))
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--launcher", default="basic", choices=("basic", "fresh", "joblib"))
    parser.add_argument("overrides", nargs="*", help="further overrides of the sweep")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary, "whole"), Path(temporary, "killed")
        status = start(arguments, whole).wait()
        told = kill_in_the_middle(arguments, killed)
        again = start(arguments, killed).wait()
        if status or again:
            print(f"the sweep failed: status {status}, and {again} when it went on")
            return 1
        tables = table(whole), table(killed)
        different = different_weights(whole, killed)
    print(f"\n{told}")
    for name, rows in zip(("uninterrupted", "killed and continued"), tables, strict=True):
        print(f"\n{name}")
        for row in rows:
            print("  " + "  ".join(f"{key}={value}" for key, value in row.items()))
    equal = tables[0] == tables[1]
    print(f"\ntables equal: {'yes' if equal else 'NO'}")
    told = "yes" if not different else f"NO: {', '.join(different)}"
    print(f"weights equal, bit for bit: {told}")
    return 0 if equal and not different else 1


if __name__ == "__main__":
    sys.exit(main())
