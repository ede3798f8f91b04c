"""Stop runs and sweeps with signals at random moments, and see what is left of them.

    python benchmarks/stop_runs.py --stops 40

Each run is a process of its own, in a session of its own, that gets one of the signals of a
scheduler or a terminal (SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2) or SIGKILL after a random time:
alone, or together with all processes of its group. Then it is checked

- whether the exit status is 128 and the number of the signal,
- whether the run, and every job of a sweep that had begun, says "interrupted" (or is complete),
- how many finished optimizer steps are not in the checkpoint,
- which processes of the session are still there, and for how long,
- whether the command that the process names at its end (after SIGKILL: the same command again)
  reaches the end, with the figures of a run that was never stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import lightning.pytorch as pl  # noqa: E402
import torch  # noqa: E402

from benchmarks.kill_sweep import TINY  # noqa: E402

WORDS = (
    *TINY,
    "data.labels_per_class=4",
    "data.steps_per_epoch=12",
    "data.batch_size=8",
    "method.dropout=0.1",
    "trainer.accelerator=cpu",
    "trainer.max_steps=48",
    "trainer.limit_test_batches=1",
    "bootstrap=0",
    "+callbacks.steps._target_=benchmarks.stop_runs.Steps",
)

KINDS: dict[str, tuple[str, ...]] = {
    "run": (),
    "accumulated": ("trainer.accumulate_grad_batches=3", "data.steps_per_epoch=36"),
    "basic": ("-m", "seed=0,1"),
    "fresh": ("-m", "seed=0,1", "hydra/launcher=fresh", "hydra.launcher.module=lightning_peft.cli"),
    "joblib": ("-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "two ranks": ("trainer=ddp", "trainer.devices=2"),
}
"""What is stopped: the words that are added."""

NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL")
OVER = ("completed",)
PATIENCE = 60.0
"""Seconds in which every process has to be gone."""


class Steps(pl.Callback):
    """Writes the number of the last finished optimizer step into a file of the run, at once."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Note the step that is done."""
        if trainer.is_global_zero:
            directory: Any = next(c.dirpath for c in trainer.checkpoint_callbacks)  # type: ignore[attr-defined]
            path = Path(directory).with_name("steps.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(trainer.global_step), encoding="utf-8")


@dataclass
class Stop:
    """One stop, and what was left.

    Attributes:
        kind: A key of ``KINDS``.
        signal: Its name.
        to: ``"process"`` or ``"group"``.
        after: Seconds from the start of the process.
        took: Seconds from the signal to the end of the process.
        status: The exit status as a shell has it.
        states: The states of the runs that had begun.
        lost: Finished steps that are not in a checkpoint.
        left: Processes that were still there when the first one had ended.
        gone: Seconds after which none was.
        wrong: What is not as it should be.
    """

    kind: str
    signal: str
    to: str
    after: float
    took: float = 0.0
    status: int = 0
    states: list[str] = field(default_factory=list)
    lost: int = 0
    left: int = 0
    gone: float = 0.0
    wrong: list[str] = field(default_factory=list)


def words_of(kind: str, directory: Path) -> list[str]:
    """Return the command line of a kind of run."""
    key = "hydra.sweep.dir" if "-m" in KINDS[kind] else "hydra.run.dir"
    more = KINDS[kind]
    own = {word.partition("=")[0] for word in more}
    return [
        *(word for word in WORDS if word.partition("=")[0] not in own),
        *more,
        f"{key}={directory}",
    ]


def start(words: Sequence[str], output: Path) -> int:
    """Run the command in a process that was forked: what it imports is imported already.

    Args:
        words: The words after ``lightning-peft``.
        output: Where its output goes.

    Returns:
        The process.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        for name in NAMES[:-1]:  # a shell lets what it starts in the background ignore SIGINT
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        # what the other ranks are started with
        sys.argv = [str(ROOT / "lightning_peft" / "cli" / "__main__.py"), *words]
        sys.modules["__main__"].__spec__ = None
        torch.set_num_threads(1)
        from lightning_peft.cli import main as command

        status = command(list(words))
    except SystemExit as stop:  # at the very start: the interpreter ends with its status
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def warm_up(directory: Path) -> None:
    """Run a sweep in this process: what it imports, no process has to import again."""
    from lightning_peft.cli import main as command

    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        status = command([*words_of("basic", directory), "trainer.max_steps=1"])
    if status:
        raise SystemExit(f"a sweep of one step ended with status {status}")


def ended(process: int) -> int:
    """Wait for a process, and return its exit status as a shell has it."""
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def session(leader: int) -> list[int]:
    """Return the processes of a session that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended by now
            continue
        if int(sid) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_until_gone(leader: int) -> float:
    """Wait for the rest of a session; what is left after a minute is killed."""
    began = time.perf_counter()
    while session(leader):
        if time.perf_counter() - began > PATIENCE:
            for process in session(leader):
                os.kill(process, signal.SIGKILL)
            break
        time.sleep(0.05)
    return time.perf_counter() - began


def figures(directory: Path) -> dict[str, Any]:
    """Return what the runs of a directory have measured, without times."""
    found = {}
    for path in sorted(directory.rglob("summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        found[str(path.parent.relative_to(directory))] = (
            summary["status"],
            summary.get("steps"),
            summary.get("metrics"),
        )
    return found


def look(stop: Stop, directory: Path) -> None:
    """Note the states of the runs, and the steps that no checkpoint has."""
    from lightning_peft.cli.comparing.runs import read_runs

    if directory.is_dir():
        stop.states += [run.status for run in read_runs([directory])[0]]
    for path in sorted(directory.rglob("steps.txt")):
        summary = path.with_name("summary.json")
        if summary.is_file() and json.loads(summary.read_text())["status"] in OVER:
            continue
        last = path.parent / "checkpoints" / "last.ckpt"
        kept = torch.load(last, weights_only=True)["global_step"] if last.is_file() else 0
        stop.lost += max(int(path.read_text() or 0) - kept, 0)


def next_words(words: list[str], output: Path, directory: Path) -> tuple[list[str], bool]:
    """Return the words that continue, and whether the process has named them."""
    for line in output.read_text(errors="replace").splitlines():
        told = line.partition("to resume the ")[2].partition(": lightning-peft ")[2]
        if told:  # the callback that counts steps is of this module
            trust = ["--trust"] if told.startswith("continue ") else []
            return [*shlex.split(told), *trust], True
    last = directory / "checkpoints" / "last.ckpt"
    return ([*words, f"resume={last}"] if last.is_file() else words), False


def stop_once(kind: str, name: str, to: str, after: float, whole: Any, place: Path) -> Stop | None:
    """Stop one run, look at what is left, and continue it.

    Returns:
        What was found; ``None`` if the run had ended before the signal.
    """
    directory, output = place / "run", place / "output.txt"
    words = words_of(kind, directory)
    stop = Stop(kind, name, to, round(after, 2))
    number = int(getattr(signal, name))
    process = start(words, output)
    time.sleep(after)
    if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        ended(process)
        wait_until_gone(process)
        return None
    began = time.perf_counter()
    (os.killpg if to == "group" else os.kill)(process, number)
    stop.status = ended(process)
    stop.took = round(time.perf_counter() - began, 2)
    stop.left = len(session(process))
    stop.gone = round(wait_until_gone(process), 2)
    look(stop, directory)
    if stop.status != 128 + number:
        stop.wrong.append(f"status {stop.status}")
    if stop.gone > PATIENCE:
        stop.wrong.append("processes left over")
    if set(stop.states) - {"interrupted", *OVER}:
        stop.wrong.append(f"states {stop.states}")
    if name != "SIGKILL" and stop.lost:
        stop.wrong.append(f"{stop.lost} steps lost")
    then, told = next_words(words, output, directory)
    if set(stop.states) - set(OVER) and name != "SIGKILL" and not told:
        stop.wrong.append("nothing said of how to continue")
    again = ended(start(then, place / "again.txt"))
    if again != 0:
        stop.wrong.append(f"continued: status {again}")
    elif (found := figures(directory)) != whole:
        stop.wrong.append(f"other figures: {found} instead of {whole}")
    if stop.wrong:
        print(f"{asdict(stop)}\n{output.read_text(errors='replace')[-2000:]}", file=sys.stderr)
        if again:
            print((place / "again.txt").read_text(errors="replace")[-2000:], file=sys.stderr)
    return stop


def main() -> int:
    """Stop runs, print the table; the exit status is 0 if all was as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stops", type=int, default=12, help="of all kinds (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no stop after that")
    parser.add_argument("--json", type=Path, help="write every stop there")
    args = parser.parse_args()
    from rich.console import Console

    rng = random.Random(args.seed)
    whole: dict[str, tuple[float, Any]] = {}
    found: list[Stop] = []
    with TemporaryDirectory() as temporary:
        end = time.monotonic() + 60 * args.minutes
        warm_up(Path(temporary, "warm"))
        for kind in dict.fromkeys(args.kinds):
            place = Path(temporary, kind.replace(" ", "_"))
            place.mkdir()
            began = time.perf_counter()
            status = ended(start(words_of(kind, place / "run"), place / "output.txt"))
            if status:
                print((place / "output.txt").read_text(errors="replace"), file=sys.stderr)
                raise SystemExit(f"{kind}: a run that nobody stopped ended with status {status}")
            whole[kind] = time.perf_counter() - began, figures(place / "run")
        number = 0
        while len(found) < args.stops and time.monotonic() < end:
            kind = args.kinds[number % len(args.kinds)]
            name = NAMES[(number // len(args.kinds) + number) % len(NAMES)]
            number += 1
            to = "process" if name == "SIGKILL" else rng.choice(("process", "group"))
            length, undisturbed = whole[kind]
            place = Path(temporary, f"stop{number}")
            place.mkdir()
            after = rng.uniform(0.0, length)
            stop = stop_once(kind, name, to, after, undisturbed, place)
            if stop is not None:
                found.append(stop)
                print(f"{len(found)}: {kind}, {name} after {after:.1f} s", file=sys.stderr)
    Console().print(_table(found, list(dict.fromkeys(args.kinds))))
    if args.json:
        args.json.write_text(json.dumps([asdict(stop) for stop in found], indent=2) + "\n")
    return int(any(stop.wrong for stop in found))


def _table(found: Sequence[Stop], kinds: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(
        *("stopped", "stops", "status and state right", "steps lost", "SIGKILL: steps lost"),
        *("processes left, longest", "went on to the same figures", "signal to end, longest"),
    )
    for label, stops in [
        *((kind, [stop for stop in found if stop.kind == kind]) for kind in kinds),
        ("all", list(found)),
    ]:
        killed = [stop for stop in stops if stop.signal == "SIGKILL"]
        asked = [stop for stop in stops if stop.signal != "SIGKILL"]
        wrong = {id(s): " ".join(s.wrong) for s in stops}
        right = sum("stat" not in wrong[id(s)].partition("continued")[0] for s in stops)
        same = sum("continued" not in wrong[id(s)] and "figures" not in wrong[id(s)] for s in stops)
        table.add_row(
            label,
            str(len(stops)),
            str(right),
            str(sum(stop.lost for stop in asked)),
            str(sum(stop.lost for stop in killed)),
            f"{sum(stop.gone > PATIENCE for stop in stops)}, "
            f"{max((stop.gone for stop in stops), default=0.0):.1f} s",
            str(same),
            f"{max((stop.took for stop in asked), default=0.0):.1f} s",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
