"""Load thousands of damaged adapter directories and checkpoints.

Each is made from a good one by one of the mutations in ``fuzz_mutations.py``. It has to load, or be
refused with an error of lightning-peft that leaves the model unchanged, in bounded time and memory
and without running code from the file. Anything else is a finding, and the exit status is 1::

    python benchmarks/fuzz_files.py --files 10000 --seed 0
"""

import argparse
import copy
import json
import os
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from fuzz_mutations import ADAPTER, CANARY, CHECKPOINT, OFTEN, TIMES, WEIGHTS
from torch import Tensor, nn

import lightning_peft as lp

SECONDS = 20
"""After which a file is a hang."""
ROOM = 4 << 30
"""Bytes of address space beyond those at the start; more is a finding, not a dead machine."""
CHECKPOINTS = 0.3
"""The share of checkpoints among the files."""
_WATCHED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")


class Hang(BaseException):
    """A file that took too long; no ``except Exception`` stops it."""


class Net(L.LightningModule):
    """A module that knows nothing of lightning-peft."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = backbone(width)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.model(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


def backbone(width: int = 32) -> nn.Module:
    """Return a tiny ViT, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(
            "vit_tiny_patch16_224",
            num_classes=3,
            img_size=32,
            embed_dim=width,
            depth=2,
            num_heads=2,
        )


def good_adapters(directory: Path) -> dict[str, Path]:
    """Write one good directory of each kind."""
    made = {}
    methods = {name: name for name in lp.list_methods()}
    methods["lora + bitfit"] = lp.Union(("lora", "bitfit"))
    methods["peft's lora"] = lp.HF("lora", r=2, target_modules=["qkv", "fc1"])
    methods["peft's vera"] = lp.HF("vera", r=4, target_modules=["qkv"])
    methods["peft's loha"] = lp.HF("loha", r=2, target_modules=["qkv"])
    for name, method in methods.items():
        try:
            adaptation = lp.adapt(backbone(), method)
        except lp.PEFTError:  # it needs a word more, or another kind of backbone
            continue
        made[name] = directory / name.replace(" ", "_")
        adaptation.save(made[name])
        if name.startswith("peft"):  # as peft would have written it
            from safetensors.torch import load_file, save_file

            tensors = load_file(made[name] / WEIGHTS)
            save_file(tensors, made[name] / WEIGHTS, metadata={"format": "pt"})
    return made


def good_checkpoint(directory: Path) -> Path:
    """Write a checkpoint that a run could resume from."""
    trainer = _trainer(directory, lp.PEFT("lora", rank=2), max_steps=1)
    trainer.fit(Net(), _data())
    trainer.save_checkpoint(directory / "good.ckpt")
    return directory / "good.ckpt"


def _trainer(directory: Path, *callbacks: L.Callback, **settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_model_summary=False,
        default_root_dir=directory,
        **{**quiet, **settings},
    )


def _data() -> torch.utils.data.DataLoader:
    images = torch.utils.data.TensorDataset(torch.zeros(2, 3, 32, 32))
    return torch.utils.data.DataLoader(images, batch_size=2)


# --- one file -------------------------------------------------------------------------------------


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return everything about a model that a refused file must not change."""
    return {
        "tensors": {n: (id(t), t.detach().clone()) for n, t in _tensors(model)},
        "flags": [p.requires_grad for p in model.parameters()],
        "modules": [
            (n, id(m), type(m), m.training, sorted(m.__dict__), len(m._forward_hooks))
            for n, m in model.named_modules()
        ],
    }


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def changes(model: nn.Module, before: dict[str, Any]) -> list[str]:
    """Return the names of everything that differs from an earlier :func:`state_of`."""
    now = state_of(model)
    found = [key for key in ("flags", "modules") if now[key] != before[key]]
    same = now["tensors"].keys() == before["tensors"].keys() and all(
        now["tensors"][n][0] == i and torch.equal(now["tensors"][n][1], t)
        for n, (i, t) in before["tensors"].items()
    )
    return found if same else [*found, "tensors"]


@dataclass
class Fuzzer:
    """Loads damaged files and counts the results."""

    directory: Path
    seed: int
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    findings: list[dict[str, Any]] = field(default_factory=list)
    worst: tuple[float, str] = (0.0, "")
    memory: tuple[int, str] = (0, "")

    def __post_init__(self) -> None:
        self.canary = self.directory / "canary"
        os.environ[CANARY] = str(self.canary)
        self.adapters = good_adapters(self.directory)
        self.checkpoint = good_checkpoint(self.directory)
        self.model = backbone()
        self.before = state_of(self.model)
        for good in self.adapters.values():  # what is imported late counts to nobody
            lp.load_adapter(copy.deepcopy(self.model), good)
        lp.load_from_checkpoint(Net, self.checkpoint)

    def run(self, files: int, first: int) -> None:
        """Load a number of files; the n-th depends only on the seed and n."""
        for number in range(first, first + files):
            rng = random.Random(f"{self.seed}.{number}")
            if rng.random() < CHECKPOINTS:
                self._one_checkpoint(rng, number)
            else:
                self._one_adapter(rng, number)

    def _one_adapter(self, rng: random.Random, number: int) -> None:
        kind, mutation = rng.choice(list(self.adapters)), _draw(rng, ADAPTER)
        directory = self.directory / "now"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.adapters[kind], directory)
        ADAPTER[mutation](rng, directory)
        with self._watched(mutation, f"{number}: {mutation} of {kind}") as outcome:
            lp.load_adapter(self.model, directory)
        if outcome["is"] == "loaded":
            self.model = backbone()
            self.before = state_of(self.model)
        elif different := changes(self.model, self.before):
            self._find(f"{number}: {mutation} of {kind}", f"changed: {different}", "")
            self.model = backbone()
            self.before = state_of(self.model)

    def _one_checkpoint(self, rng: random.Random, number: int) -> None:
        mutation = _draw(rng, CHECKPOINT)
        file = self.directory / "now.ckpt"
        shutil.copyfile(self.checkpoint, file)
        CHECKPOINT[mutation](rng, file)
        by_fit = rng.random() < 0.05
        what = f"{number}: {mutation}, {'fit' if by_fit else 'load_from_checkpoint'}"
        group = f"{mutation} (fit)" if by_fit else mutation
        # Lightning reads the file before any hook of ours: its and torch's errors are no findings
        with self._watched(group, what, ours=not by_fit):
            if by_fit:
                trainer = _trainer(self.directory, lp.PEFT("lora", rank=2), max_steps=2)
                trainer.fit(Net(), _data(), ckpt_path=str(file))
            else:
                lp.load_from_checkpoint(Net, file)

    @contextmanager
    def _watched(self, group: str, what: str, ours: bool = True) -> Iterator[dict[str, str]]:
        outcome = {"is": "loaded"}
        peak = _peak()
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield outcome
        except lp.PEFTError as error:
            outcome["is"] = type(error).__name__
        except (Exception, Hang) as error:
            outcome["is"] = type(error).__name__
            if ours or isinstance(error, Hang):
                self._find(what, f"{type(error).__name__}: {error}", traceback.format_exc(limit=-4))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.outcomes[group][outcome["is"]] += 1
        self.worst = max(self.worst, (time.perf_counter() - start, what))
        self.memory = max(self.memory, (_peak() - peak, what))
        if self.canary.exists() or _ran:
            self._find(what, f"code was run: {_ran}", "")
            self.canary.unlink(missing_ok=True)
            _ran.clear()

    def _find(self, what: str, message: str, trace: str) -> None:
        self.findings.append({"file": what, "message": message[:300], "trace": trace})
        print(f"FINDING {what}: {message[:300]}\n{trace}", file=sys.stderr, flush=True)

    def report(self) -> dict[str, Any]:
        """Return the results as plain JSON types."""
        total: Counter[str] = sum(self.outcomes.values(), Counter())
        return {
            "seed": self.seed,
            "files": total.total(),
            "outcomes": dict(total.most_common()),
            "by_mutation": {key: dict(value) for key, value in sorted(self.outcomes.items())},
            "worst_seconds": round(self.worst[0], 3),
            "worst_file": self.worst[1],
            "peak_bytes": _peak(),
            "largest_rise_bytes": self.memory[0],
            "largest_rise_file": self.memory[1],
            "findings": self.findings,
        }


def _draw(rng: random.Random, mutations: dict[str, Any]) -> str:
    return rng.choices(list(mutations), [TIMES if m in OFTEN else 1 for m in mutations])[0]


_ran: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith(_WATCHED):
        _ran.append(f"{event} {arguments!r:.200}")


def _alarm(number: int, frame: Any) -> None:
    raise Hang(f"more than {SECONDS} s")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{report['files']:,} files, seed {report['seed']}"
    table = Table(title=title, title_justify="left")
    table.add_column("mutation")
    table.add_column("loaded", justify="right")
    table.add_column("refused", justify="right")
    table.add_column("with")
    for mutation, counts in {**report["by_mutation"], "all": report["outcomes"]}.items():
        errors = {kind: count for kind, count in counts.items() if kind != "loaded"}
        names = ", ".join(f"{kind} {count}" for kind, count in errors.items())
        table.add_row(mutation, str(counts.get("loaded", 0)), str(sum(errors.values())), names)
    console = Console(width=120)
    console.print(table)
    rise, peak = report["largest_rise_bytes"] / 2**20, report["peak_bytes"] / 2**20
    console.print(f"longest: {report['worst_seconds']} s ({report['worst_file']})")
    console.print(f"memory: peak {peak:.0f} MiB, by one file {rise:.0f} MiB")
    console.print(f"findings: {len(report['findings'])}")


def fuzz(files: int, seed: int, first: int = 0) -> dict[str, Any]:
    """Load a number of damaged files, starting at the first, and return the results."""
    before = signal.signal(signal.SIGALRM, _alarm)
    stop = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory() as directory:
            fuzzer = Fuzzer(Path(directory), seed)
            with suppress(KeyboardInterrupt):  # what was done until then is told
                fuzzer.run(files, first)
            return fuzzer.report()
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGTERM, stop)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="continue from this number")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, resource.RLIM_INFINITY))
    sys.addaudithook(_audit)
    report = fuzz(arguments.files, arguments.seed, arguments.first)
    _print_table(report)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=2))
    return 1 if report["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
