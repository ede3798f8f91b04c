"""Kill sweeps at random moments, move their directories, continue them, and compare the results.

    python benchmarks/move_sweeps.py --sweeps 100

Each sweep is a process of its own that is sent SIGKILL, a quarter of them after a random time, the
others shortly after a job has written its first checkpoint. Then its directory is
moved, copied, renamed with what is above it, or moved and reached by a link, and is continued there
(``lightning-peft continue``), from another working directory. At its end the figures of every job,
its best checkpoint and its last one are compared, bit for bit, with those of a sweep that was left
alone; the original of a copy must not have changed.

In one kind of sweep the first validation is the best, so that nothing that follows replaces the
best checkpoint: if it is forgotten, another one is tested.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.kill_sweep import TINY  # noqa: E402
from lightning_peft.errors import MissingExtraError  # noqa: E402

SHORT = (
    *TINY,
    "experiment=smoke",
    "trainer.accelerator=cpu",
    "trainer.max_steps=12",
    "bootstrap=0",
)

SEARCH = ("hydra/sweeper=search", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=2")

SWEEPS: dict[str, tuple[str, ...]] = {
    "the first validation is the best": (
        *("method=linear_probe", "lr=0.03", "seed=0,1", "callbacks.best.mode=min"),
    ),
    "lora, rising": ("method=lora", "method.rank=2", "lr=0.01", "seed=0,1"),
    "the three best are kept": ("method=ssf", "lr=0.01", "seed=0,1", "callbacks/average=soup"),
    "a search": (*SEARCH, "method=bitfit", "lr=choice(0.01,0.03)"),
}
"""What is killed and moved: the words of a sweep of two jobs."""

WAYS = ("moved", "copied", "renamed above", "linked")

FIGURES = ("status", "metrics", "objective", "parameters", "steps", "monitor")


def run(words: list[str], cwd: Path, log: Path) -> multiprocessing.process.BaseProcess:
    """Start the command in a process of its own, which has imported everything already."""
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(words, cwd, log))
    process.start()
    return process


def _serve(words: list[str], cwd: Path, log: Path) -> None:
    from lightning_peft.cli import main
    from lightning_peft.cli.comparing import figures

    figures.require = _undrawn  # pictures take longer than the training
    torch.set_num_threads(1)
    os.chdir(cwd)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["lightning-peft", *words]
    os._exit(main(words))


def _undrawn(module: str, extra: str) -> None:
    raise MissingExtraError(f"no {module} here")


def content(directory: Path) -> dict[str, bytes]:
    """Return a digest of every file below a directory."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).digest()
        for path in files
    }


def result(directory: Path) -> dict[str, Any]:
    """Return what each job of a sweep measured, and the weights of its checkpoints."""
    found: dict[str, Any] = {}
    for path in sorted(directory.glob("*/summary.json")):
        summary, job = json.loads(path.read_text()), path.parent.name
        found |= {f"{job}: {key}": summary.get(key) for key in FIGURES}
        for checkpoint in sorted((path.parent / "checkpoints").glob("*.ckpt")):
            content = torch.load(checkpoint, weights_only=True)
            name = f"{job}: {checkpoint.name}"
            found[f"{name}: step"] = content["global_step"]
            found |= {f"{name}: {key}": tensor.tolist()
                      for key, tensor in content["state_dict"].items()}  # fmt: skip
    return found


@dataclass
class Outcome:
    """The result of one kind of sweep.

    Attributes:
        sweeps: Sweeps that were killed, moved and continued to their end.
        resumed: Of these, those in which a job went on from a checkpoint.
        ways: How many were moved in which way.
        equal: Of all, those with the figures and weights of the sweep that was left alone.
        changed: Originals of copies in which a file changed.
        unequal: What differed.
    """

    sweeps: int = 0
    resumed: int = 0
    ways: Counter[str] = field(default_factory=Counter)
    equal: int = 0
    changed: int = 0
    unequal: list[str] = field(default_factory=list)


def move(sweep: Path, way: str) -> Path:
    """Move a sweep that lies in ``.../project/sweeps/NAME``, and return where it is reached."""
    top = sweep.parents[2]
    if way == "copied":
        return Path(shutil.copytree(sweep, top / "copies" / sweep.name))
    if way == "renamed above":
        sweep.parents[1].rename(top / "renamed")
        return top / "renamed" / "sweeps" / sweep.name
    (top / "elsewhere").mkdir()
    place = Path(shutil.move(sweep, top / "elsewhere" / "it"))
    if way == "moved":
        return place
    link = top / "link"
    link.symlink_to(place)
    return link


def kill_and_move(
    words: tuple[str, ...],
    sweeps: int,
    rng: random.Random,
    top: Path,
    seconds: float = math.inf,
) -> Outcome:
    """Kill, move and continue sweeps, and compare each with one that was left alone.

    Args:
        words: The words of the sweep.
        sweeps: How many of them.
        rng: Chooses the moments.
        top: Where they leave their files.
        seconds: After this time no more are started.

    Returns:
        The result of all.
    """
    outcome = Outcome()
    typed = ["-m", *SHORT, *words, "hydra.sweep.dir=sweeps/it"]
    alone = top / "alone" / "project"
    alone.mkdir(parents=True)
    started = time.perf_counter()
    process = run(typed, alone, top / "log")
    process.join()
    length = time.perf_counter() - started
    if process.exitcode:
        raise RuntimeError(f"the sweep failed by itself:\n{(top / 'log').read_text()}")
    reference = result(alone / "sweeps" / "it")
    number = 0
    end = started + seconds
    while outcome.sweeps < sweeps and time.perf_counter() < end:
        number += 1
        way, place = WAYS[outcome.sweeps % len(WAYS)], top / str(number)
        project, away = place / "project", place / "away"
        project.mkdir(parents=True)
        away.mkdir()
        log = place / "log"
        process = run(typed, project, log)
        sweep = project / "sweeps" / "it"
        if rng.random() < 0.25:
            process.join(timeout=rng.uniform(0.15, 1.0) * length)
        else:  # in the middle of a job that has a checkpoint
            _until_a_checkpoint(process, sweep, rng.choice((0, 1)))
            process.join(timeout=rng.uniform(0.0, 0.05) * length)
        if not process.is_alive() or not (sweep / "sweep.json").is_file():
            _end(process)
            shutil.rmtree(place)
            continue
        _end(process)
        before = content(sweep)
        reached = move(sweep, way)
        process = run(["continue", os.path.relpath(reached, away)], away, log)
        process.join()
        told = log.read_text()
        outcome.sweeps += 1
        outcome.ways[way] += 1
        outcome.resumed += "from its last checkpoint" in told
        found = {} if process.exitcode else result(reached)
        unlike = [key for key in {*reference, *found} if reference.get(key) != found.get(key)]
        if way == "copied" and content(sweep) != before:
            outcome.changed += 1
        outcome.equal += not unlike
        if unlike:
            outcome.unequal.append(f"{way}: {sorted(unlike)[:3]} ... {told[-400:]}")
        shutil.rmtree(place)
    return outcome


def _until_a_checkpoint(
    process: multiprocessing.process.BaseProcess, sweep: Path, job: int
) -> None:
    while process.is_alive() and not list(sweep.glob(f"{job}_*/checkpoints/last.ckpt")):
        time.sleep(0.005)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def main() -> int:
    """Kill and move sweeps of every kind; the exit status is 0 if all ended as if left alone."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sweeps", type=int, default=100, help="of all kinds together")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no more after that")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--kind", choices=[*SWEEPS], help="only sweeps of this kind")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    import lightning_peft.cli.app
    import lightning_peft.cli.jobs.outcome
    import lightning_peft.cli.jobs.train  # noqa: F401  what it imports, no process imports again

    rng = random.Random(args.seed)
    names = [args.kind] if args.kind else [*SWEEPS]
    table = Table("sweep", "moved", "from a checkpoint", "equal", "originals changed")
    found: dict[str, Any] = {}
    total: Counter[str] = Counter()
    for name in names:
        with TemporaryDirectory() as directory:
            share = -(-args.sweeps // len(names))
            seconds = 60 * args.minutes / len(names)
            outcome = kill_and_move(SWEEPS[name], share, rng, Path(directory), seconds)
        found[name] = vars(outcome)
        keys = ("sweeps", "resumed", "equal", "changed")
        figures = {key: getattr(outcome, key) for key in keys}
        total.update(figures)
        table.add_row(name, *map(str, figures.values()))
        for text in outcome.unequal:
            print(text, file=sys.stderr)
    table.add_row("all", *(str(total[key]) for key in keys))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({**found, "all": dict(total)}, indent=2) + "\n")
    return 0 if total["equal"] == total["sweeps"] and not total["changed"] else 1


if __name__ == "__main__":
    sys.exit(main())
