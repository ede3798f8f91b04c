"""Measure a sweep of linear probes whose jobs share the features of their frozen backbone.

    python benchmarks/shared_features.py                       # ViT-S/16, 20 jobs, 20 epochs
    python benchmarks/shared_features.py --model vit_tiny_patch16_224 --jobs 8

The jobs are linear probes of one backbone (random weights, one seed) at different learning rates,
on digits enlarged to its input size. The sweep runs with its features shared; then as many jobs of
the same sweep as ``--without`` says compute them by themselves, in each epoch. The time of a job is
that in its summary: from the building of its parts to its files, without the start of the process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def sweep(directory: Path, options: argparse.Namespace, jobs: int, *, shared: bool) -> list[dict]:
    """Run a sweep, and return the summaries of its jobs in their order."""
    rates = ",".join(f"{1e-3 * 1.3**n:.3g}" for n in range(jobs))
    words = [
        *("method=linear_probe", "augment=none", "model=timm", f"model.backbone={options.model}"),
        *("model.pretrained=false", f"data.labels_per_class={options.labels}", f"lr={rates}"),
        *(f"data.val_per_class={options.labels}", f"trainer.max_epochs={options.epochs}"),
        *("trainer=cpu", f"trainer.limit_test_batches={options.test_batches}", "bootstrap=0"),
        *(f"hydra.sweep.dir={directory}", f"shared_features_gb={4 if shared else 0}"),
    ]
    command = [sys.executable, "-m", "lightning_peft.cli", "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    places = sorted(
        directory.glob("*/summary.json"), key=lambda at: int(at.parent.name.split("_")[0])
    )
    return [json.loads(place.read_text()) for place in places]


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
        shared = sweep(Path(place) / "shared", options, options.jobs, shared=True)
        alone = sweep(Path(place) / "alone", options, options.without, shared=False)
    seconds = [[job["seconds"]["total"] for job in jobs] for jobs in (shared, alone)]
    total, each = sum(seconds[0]), sum(seconds[1]) / len(seconds[1])
    print(
        f"{options.jobs} jobs that share features   {total:8.1f} s, the first {seconds[0][0]:.1f} s"
    )
    alone_all = each * options.jobs
    print(f"a job without               {each:8.1f} s, {options.jobs} would take {alone_all:.0f} s")
    print(f"ratio                       {alone_all / total:8.1f}")
    pairs = zip(shared, alone, strict=False)
    differences = [
        abs(mine["metrics"][name] - other["metrics"][name])
        for mine, other in pairs
        for name in other["metrics"]
    ]
    print(f"largest difference of a metric of the same job: {max(differences):.2g}")


if __name__ == "__main__":
    main()
