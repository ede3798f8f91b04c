"""Choose the learning rate of each method in conf/method on validation digits.

    python benchmarks/choose_rates.py --method lora --rate 1e-3 3e-3 1e-2

Trains on ten labelled digits a class and measures on 90 others a class of the same pool; the 797
test digits are never read. Prints a table, and writes one line of JSON a run to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table


def accuracy(method: str, rate: float, seed: int, steps: int, more: list[str]) -> float:
    """Train once and return the validation accuracy."""
    import lightning.pytorch as pl
    from hydra import compose, initialize_config_dir

    from lightning_peft.cli.config.paths import conf_dir
    from lightning_peft.cli.config.quiet import quiet
    from lightning_peft.cli.jobs.parts import build

    words = [f"method={method}", f"lr={rate}", f"seed={seed}", "logger=none", "name=rates"]
    words += ["experiment=few_labels", "data.val_per_class=90", f"trainer.max_steps={steps}"]
    words += ["~callbacks.best", "~callbacks.last", "~callbacks.progress", "output_dir=."]
    words += ["+trainer.enable_progress_bar=false", "+trainer.enable_checkpointing=false"]
    words += ["trainer.limit_val_batches=0", "trainer.accelerator=cpu", *more]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", words)
    pl.seed_everything(seed, verbose=False)
    with quiet():
        parts = build(cfg)
        parts.trainer.fit(parts.module, parts.datamodule)
        parts.trainer.limit_val_batches = 1.0
        results = parts.trainer.validate(parts.module, parts.datamodule, verbose=False)
    return float(results[0]["val/accuracy"])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", nargs="+", required=True, help="names in conf/method")
    parser.add_argument("--rate", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, help="a file to which the runs are appended")
    parser.add_argument("--override", nargs="+", default=[], help="overrides of the command line")
    options = parser.parse_args()
    more = options.override
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    table = Table("method", *(f"{rate:g}" for rate in options.rate))
    for method in options.method:
        row = []
        for rate in options.rate:
            found = [accuracy(method, rate, seed, options.steps, more) for seed in options.seed]
            row.append(statistics.fmean(found))
            if options.out:
                with options.out.open("a") as file:
                    run = {"method": method, "rate": rate, "steps": options.steps, "more": more}
                    file.write(json.dumps({**run, "accuracy": found}) + "\n")
        best = max(row)
        table.add_row(method, *(f"[b]{v:.3f}[/b]" if v == best else f"{v:.3f}" for v in row))
    Console().print(table)


if __name__ == "__main__":
    main()
