"""Give thousands of damaged run and sweep directories to the commands that read them.

Each directory is made from a good one by one of the mutations in ``fuzz_run_mutations.py``. It goes
through every command that reads what was changed: ``export``, ``predict``, ``soup``, ``compare``,
``continue``, and what ``rank --against`` reads. Each has to end with exit status 0, 1 or 2 and
without a traceback, in bounded time and memory, without running code from the directory and without
writing elsewhere. Anything else is a finding, and the exit status is 1::

    python benchmarks/fuzz_runs.py --directories 5000 --seed 0
"""

import argparse
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from fuzz_mutations import CANARY, Payload
from fuzz_run_mutations import OFTEN, RUN, RUNS, TIMES

from lightning_peft.cli import main as lightning_peft
from lightning_peft.errors import MissingExtraError, PEFTError

SECONDS, WAITING = 30, 120
"""Seconds of computing, and of any kind, after which a command hangs."""
ROOM = 4 << 30
"""Bytes of address space beyond those at the start; more is a finding, not a dead machine."""
DRAWN = 0.1
"""The share of comparisons with pictures, which take longer than everything else."""

WATCHED = (
    *("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect"),
    *("os.putenv", "ctypes.dlopen"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

TINY = (
    "experiment=smoke", "model=timm", "model.backbone=vit_tiny_patch16_224",
    "model.pretrained=false", "data.seed=0", "data.backbone=glyph_vit",
    "trainer.max_steps=1", "bootstrap=0",
    "model.backbone_kwargs={img_size: 24, patch_size: 8, in_chans: 1, embed_dim: 16, depth: 1,"
    " num_heads: 2}", "callbacks.efficiency=null",
)  # fmt: skip


COMMANDS = ("export", "predict", "soup", "compare", "against", "continue")
"""The commands, in the order in which they get a directory: the last writes there."""


class Hang(BaseException):
    """A command that took too long; no ``except Exception`` stops it."""


class Stopped(BaseException):
    """SIGTERM: what was done until then is told. A command takes Ctrl-C for its own."""


def good_sweep(directory: Path, runs: int = 2) -> Path:
    """Write the directory of a sweep of one run or two."""
    sweep = directory / "good"
    status, told = _quietly(
        "-m",
        *TINY,
        "method=lora",
        f"lr={','.join(('1e-3', '1e-2')[:runs])}",
        f"hydra.sweep.dir={sweep}",
    )
    if status != 0:
        raise SystemExit(told)
    return sweep


def outside_of(directory: Path) -> Path:
    """Write files that nothing in a directory may reach, and return one of them."""
    folder = directory / "outside"
    folder.mkdir()
    call = "import os, pathlib; pathlib.Path(os.environ['FUZZ_CANARY']).touch()\n"
    (folder / "canary_module.py").write_text(f"{call}def run(*a, **k): pass\n")
    (folder / "hubconf.py").write_text(f"{call}def m(): pass\n")
    (folder / "evil.yaml").write_text(
        "# @package _global_\nmodel:\n  _target_: canary_module.run\n"
    )
    (folder / "experiment").mkdir()
    shutil.copy(folder / "evil.yaml", folder / "experiment" / "evil.yaml")
    (folder / "payload.pkl").write_bytes(pickle.dumps(Payload()))
    (folder / "victim.txt").write_text("as it was\n")
    sys.path.append(str(folder))
    return folder / "victim.txt"


def pictures(directory: Path) -> Path:
    """Write two images to predict."""
    from PIL import Image

    folder = directory / "images"
    folder.mkdir()
    for number in range(2):
        Image.new("L", (24, 24), 100 * number).save(folder / f"{number}.png")
    return folder


def _quietly(*words: str) -> tuple[int, str]:
    """Run the command, and return its status and what it printed."""
    out = StringIO()
    with redirect_stdout(out), redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        status = lightning_peft(list(words))
    return status, out.getvalue()


@dataclass
class Fuzzer:
    """Gives damaged directories to the commands, and counts the results."""

    directory: Path
    seed: int
    only: Sequence[str] = COMMANDS
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    findings: list[dict[str, Any]] = field(default_factory=list)
    directories: int = 0
    worst: tuple[float, str] = (0.0, "")

    def __post_init__(self) -> None:
        self.canary = self.directory / "canary"
        os.environ[CANARY] = str(self.canary)
        self.victim = outside_of(self.directory)
        self.images = pictures(self.directory)
        self.good = good_sweep(self.directory, 2 if "soup" in self.only else 1)
        self.now = self.directory / "now"
        self.before = _content(self.victim.parent)
        self._renew()
        for command in self.only:  # what is imported late counts to nobody
            status, told = self.commands[command](self.only == COMMANDS)
            if status != 0:
                raise SystemExit(f"{command} of the good directory ended with {status}:\n{told}")

    def _renew(self) -> None:
        if self.now.exists():
            shutil.rmtree(self.now)
        self.now.mkdir()
        shutil.copytree(self.good, self.now / "sweep")
        (self.now / "tmp").mkdir()
        tempfile.tempdir = str(self.now / "tmp")
        text = (self.now / "sweep" / RUN / "config.yaml").read_text()
        place = str(self.now / "sweep")
        for path in sorted((self.now / "sweep").glob("*/config.yaml")):
            path.write_text(path.read_text().replace(str(self.good), place))
        assert str(self.good) in text

    @property
    def commands(self) -> dict[str, Callable[[bool], tuple[int, str]]]:
        """Each command; the argument says whether pictures are drawn."""
        sweep, run = str(self.now / "sweep"), str(self.now / "sweep" / RUN)
        out = self.now / "out"
        return {
            "export": lambda _: _quietly("export", run, "--out", str(out / "a.safetensors")),
            "predict": lambda _: _quietly(
                "predict", run, str(self.images), "--out", str(out / "p.csv")
            ),
            "soup": lambda _: _quietly("soup", sweep, "--out", str(out / "soup")),
            "compare": lambda drawn: self._drawn(drawn, "compare", sweep),
            "continue": lambda drawn: self._drawn(drawn, "continue", sweep),
            "against": lambda _: self._against(sweep),
        }

    def _drawn(self, drawn: bool, *words: str) -> tuple[int, str]:
        from lightning_peft.cli.comparing import figures

        def missing(module: str, extra: str) -> Any:
            raise MissingExtraError("no pictures here")

        real = figures.require
        figures.require = real if drawn else missing
        try:
            return _quietly(*words)
        finally:
            figures.require = real

    def _against(self, sweep: str) -> tuple[int, str]:
        """Do what ``rank --against`` does with the directory; the scores would take a minute."""
        from lightning_peft.cli.comparing.agreement import fine_tuned

        try:
            fine_tuned(Path(sweep))
        except PEFTError as error:
            return 2, f"lightning-peft: {error}"
        return 0, ""

    def run(self, directories: int, first: int) -> None:
        """Give out a number of directories; the n-th depends only on the seed and n."""
        names = list(RUNS)
        weights = [TIMES if name in OFTEN else 1 for name in names]
        for number in range(first, first + directories):
            rng = random.Random(f"{self.seed}.{number}")
            name = rng.choices(names, weights)[0]
            mutate, commands = RUNS[name]
            self._renew()
            mutate(rng, self.now / "sweep", self.victim)
            drawn = rng.random() < DRAWN and self.only == COMMANDS
            for command in (each for each in self.only if each in commands):
                with self._watched(name, f"{number}: {name}, {command}"):
                    status, told = self.commands[command](drawn)
                    self._judge(name, f"{number}: {name}, {command}", command, status, told)
            self.directories += 1

    def _judge(self, group: str, what: str, command: str, status: int, told: str) -> None:
        self.outcomes[group][f"{command} {status}"] += 1
        if status not in (0, 1, 2):
            self._find(what, f"exit status {status}", told[-2000:])
        elif "Traceback (most recent" in told:
            self._find(what, "a traceback", told[-2000:])
        elif status == 2 and "lightning-peft: " not in told:
            self._find(what, "refused without a word", told[-2000:])
        elif "\x1b[2J" in told:
            self._find(what, "a control character is printed", "")

    @contextmanager
    def _watched(self, group: str, what: str) -> Iterator[None]:
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WAITING)
        _seen.clear()
        _inside.append(str(self.now))
        try:
            yield
        except (Exception, SystemExit, Hang) as error:
            self.outcomes[group][type(error).__name__] += 1
            self._find(what, f"{type(error).__name__}: {error}", traceback.format_exc(limit=-6))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _inside.clear()
        self.worst = max(self.worst, (time.perf_counter() - start, what))
        if self.canary.exists() or _seen:
            self._find(what, f"code was run, or written elsewhere: {_seen[:3]}", "")
            self.canary.unlink(missing_ok=True)
        if "canary_module" in sys.modules:
            self._find(what, "a module of the directory was imported", "")
            del sys.modules["canary_module"]
        if _content(self.victim.parent) != self.before:
            self._find(what, "a file outside of the directory has changed", "")
            self.before = _content(self.victim.parent)

    def _find(self, what: str, message: str, trace: str) -> None:
        self.findings.append({"directory": what, "message": message[:300], "trace": trace})
        print(f"FINDING {what}: {message[:300]}\n{trace}", file=sys.stderr, flush=True)

    def report(self) -> dict[str, Any]:
        """Return the results as plain JSON types."""
        total: Counter[str] = sum(self.outcomes.values(), Counter())
        return {
            "seed": self.seed,
            "directories": self.directories,
            "commands": total.total(),
            "outcomes": dict(sorted(total.items())),
            "by_mutation": {key: dict(value) for key, value in sorted(self.outcomes.items())},
            "worst_seconds": round(self.worst[0], 3),
            "worst_directory": self.worst[1],
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "findings": self.findings,
        }


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts}  # fmt: skip


_seen: list[str] = []
_inside: list[str] = []
"""Where the command of the moment may write; nothing is watched between commands."""

ELSEWHERE = ("/dev/null", "/dev/tty", "/proc/self/", "/dev/shm")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _inside:
        return
    if event.startswith(WATCHED) and not _is_harmless(event, arguments):
        _seen.append(f"{event} {arguments!r:.200}")
    elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path, mode, flags = arguments
        writes = set(mode or "") & set("wax+") or (mode is None and (flags or 0) & WRITING)
        real = os.path.realpath(os.fsdecode(path))
        if writes and not real.startswith((*_inside, *ELSEWHERE)):
            _seen.append(f"written {real}")


def _is_harmless(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an event is one of the ordinary ones: a variable of Lightning's, a library."""
    if event == "os.putenv":
        return b"LD_" not in bytes(arguments[0]) and b"PYTHON" not in bytes(arguments[0])
    return event == "ctypes.dlopen" and not str(arguments[0]).startswith(tuple(_inside))


def _alarm(number: int, frame: Any) -> None:
    raise Hang("a command takes too long")


def _stopped(number: int, frame: Any) -> None:
    raise Stopped


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{report['directories']:,} directories, seed {report['seed']}"
    table = Table(title=title, title_justify="left")
    for column in ("mutation", "done", "failed", "refused", "of"):
        table.add_column(column, justify="left" if column in ("mutation", "of") else "right")
    for mutation, counts in {**report["by_mutation"], "all": report["outcomes"]}.items():
        ends = [sum(n for key, n in counts.items() if key.endswith(f" {status}")) for status in
                (0, 1, 2)]  # fmt: skip
        commands = sorted({key.partition(" ")[0] for key in counts})
        table.add_row(mutation, *(f"{end:,}" for end in ends), ", ".join(commands))
    console = Console(width=120)
    console.print(table)
    console.print(f"longest: {report['worst_seconds']} s ({report['worst_directory']})")
    console.print(f"memory: peak {report['peak_bytes'] / 2**20:.0f} MiB")
    console.print(f"findings: {len(report['findings'])}")


def fuzz(
    directories: int, seed: int, first: int = 0, only: Sequence[str] = COMMANDS
) -> dict[str, Any]:
    """Give out a number of damaged directories, starting at the first, and return the results."""
    global _hooked
    if not _hooked:  # a hook stays until the process ends
        sys.addaudithook(_audit)
        _hooked = True
    before = [signal.signal(name, _alarm) for name in (signal.SIGALRM, signal.SIGPROF)]
    stop = signal.signal(signal.SIGTERM, _stopped)
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    path, place = list(sys.path), Path.cwd()
    try:
        with tempfile.TemporaryDirectory() as directory:
            os.chdir(directory)
            fuzzer = Fuzzer(Path(directory).resolve(), seed, only)
            with suppress(KeyboardInterrupt, Stopped):  # what was done until then is told
                fuzzer.run(directories, first)
            return fuzzer.report()
    finally:
        os.chdir(place)
        tempfile.tempdir = None
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGPROF, before[1])
        signal.signal(signal.SIGTERM, stop)


_hooked = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directories", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="continue from this number")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = (
        "1"  # a config may name a pretrained model: no download is waited for
    )
    target = None if arguments.json is None else arguments.json.absolute()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, resource.RLIM_INFINITY))
    report = fuzz(arguments.directories, arguments.seed, arguments.first)
    _print_table(report)
    if target is not None:
        target.write_text(json.dumps(report, indent=2))
    return 1 if report["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
