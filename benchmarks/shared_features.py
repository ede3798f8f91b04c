"""Measure a sweep of linear probes whose jobs share the features of their frozen backbone.

    python benchmarks/shared_features.py                       # ViT-S/16, 20 jobs, 20 epochs
    python benchmarks/shared_features.py --model vit_tiny_patch16_224 --jobs 8

The jobs are linear probes of one backbone (random weights, one seed) at different learning rates,
on digits enlarged to its input size. The sweep runs with its features shared; then as many jobs of
the same sweep as ``--without`` says compute them by themselves, in each epoch. The seconds are of
the processor, of all threads, so that other processes change them little; the start of the process,
which is that of a sweep of one step, is counted once for each sweep.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def sweep(directory: Path, options: argparse.Namespace, jobs: int, *more: str) -> float:
    """Run a sweep, and return the seconds of the processor that it took."""
    rates = ",".join(f"{1e-3 * 1.3**n:.3g}" for n in range(jobs))
    words = [
        *("method=linear_probe", "augment=none", "model=timm", f"model.backbone={options.model}"),
        *("model.pretrained=false", f"data.labels_per_class={options.labels}", f"lr={rates}"),
        *(f"data.val_per_class={options.labels}", f"trainer.max_epochs={options.epochs}"),
        *("trainer=cpu", f"trainer.limit_test_batches={options.test_batches}", "bootstrap=0"),
        *(f"hydra.sweep.dir={directory}", *more),
    ]
    command = [sys.executable, "-m", "lightning_peft.cli", "-m", *words]
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def metrics(directory: Path) -> dict[str, dict[str, float]]:
    """Return the metrics of each job by its name."""
    return {
        place.parent.name: json.loads(place.read_text())["metrics"]
        for place in directory.glob("*/summary.json")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_small_patch16_224", help="a model of timm")
    parser.add_argument("--jobs", type=int, default=20, help="jobs with shared features")
    parser.add_argument("--without", type=int, default=2, help="jobs without")
    parser.add_argument(
        "--labels", type=int, default=5, help="images a class, to train and to choose"
    )
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--test-batches", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        none = Path(place) / "start"
        start = sweep(none, options, 1, "shared_features_gb=0", "test=false", "trainer.max_steps=1")
        together, apart = Path(place) / "together", Path(place) / "apart"
        shared = sweep(together, options, options.jobs)
        alone = sweep(apart, options, options.without, "shared_features_gb=0")
        mine, other = metrics(together), metrics(apart)
    each = (alone - start) / options.without
    every = start + options.jobs * each
    print(f"start of the process          {start:8.1f} s")
    print(f"{options.jobs:>3} jobs that share features  {shared:8.1f} s")
    print(f"a job without                 {each:8.1f} s; {options.jobs} would take {every:.0f} s")
    print(f"ratio                         {every / shared:8.1f}")
    differences = [
        abs(mine[job][name] - value)
        for job, found in other.items()
        for name, value in found.items()
    ]
    print(f"largest difference of a metric of the same job: {max(differences):.2g}")


if __name__ == "__main__":
    main()
