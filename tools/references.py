"""Count the cells in which a linear method is held against dense algebra, and how far it is off.

python tools/references.py                # every method, backbone, dtype and mode
python tools/references.py --backbone eva
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.contract.references import REFERENCES, TOLERANCE, difference_from_dense


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", help="only this one")
    only = parser.parse_args().backbone
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console = Console()
    cases = [case for case in REFERENCES if only in (None, case.backbone)]
    table = Table("dtype", "mode", "cells", "largest of outputs", "of gradients", "where")
    for dtype in TOLERANCE:
        for training in (False, True):
            counted = [c for c in cases if not (training and c.backbone == "spectral_normed")]
            found = {
                str(case): difference_from_dense(case, dtype, training)
                for case in track(counted, f"{dtype}", console=console, transient=True)
            }
            worst = max(found, key=lambda case: max(found[case].output, found[case].gradient))
            table.add_row(
                str(dtype).removeprefix("torch."),
                "training" if training else "evaluation",
                str(len(found)),
                f"{max(d.output for d in found.values()):.1e}",
                f"{max(d.gradient for d in found.values()):.1e}",
                worst,
            )
    console.print(table)


if __name__ == "__main__":
    main()
