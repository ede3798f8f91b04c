"""Measure the costs of a run outside its training steps: adapting, checkpoints, files, merging.

    python benchmarks/around.py                           # ViT-B/16
    python benchmarks/around.py --only merge --profile    # and where the time of one operation goes

LoRA on every linear layer and a trained head is compared with Lightning's full checkpoint of the
same network under full fine-tuning, and with ``peft`` alone. The variants of one operation take
turns in one process; a ratio is relative to the first of them in the same round. Restoring the
state between two rounds is not timed.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import gc
import logging
import pstats
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import peft
import timm
import torch
from figures import CLOCKS, interleaved, timed, write_figures
from peers import Classifier
from rich.console import Console
from rich.table import Table
from steps import CHOICES
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.anatomy.fingerprint import backbone_fingerprint

Timers = dict[str, Callable[[], float]]


class Around:
    """The operations, each in all of its variants.

    Args:
        options: ``backbone``, ``model_settings``, ``rank``, ``clock``.
        folder: Where files go.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.now = CLOCKS[options.clock]
        torch.manual_seed(0)
        settings = options.model_settings
        self.base = timm.create_model(options.backbone, num_classes=10, **settings)
        size = settings.get("img_size", self.base.pretrained_cfg["input_size"][-1])
        data = TensorDataset(torch.randn(2, 3, size, size), torch.tensor([0, 1]))
        self.loader = DataLoader(data, 2)
        self.by_peft = copy.deepcopy(self.base)

    def timer(self, step: Callable[[], Any], tidy: Callable[[], Any] = gc.collect) -> Any:
        """Return a function that runs a step, tidies up untimed and returns the step's seconds."""
        seconds = timed(step, self.now)

        def timer() -> float:
            gc.collect()  # what others left behind is not this step's to clear away
            taken = seconds()
            tidy()
            return taken

        return timer

    # --- the two ways to adapt --------------------------------------------------------------------

    def adapt(self) -> lp.Adaptation:
        """Adapt a backbone with this package."""
        return lp.adapt(self.base, lp.LoRA(rank=self.options.rank, targets="all-linear"))

    def adapt_by_peft(self) -> peft.PeftModel:
        """Adapt the same layers with ``peft``, which trains a copy of the head."""
        names = CHOICES["all-linear"]
        rank = self.options.rank
        config = peft.LoraConfig(
            r=rank, lora_alpha=rank, target_modules=names, modules_to_save=["head"]
        )
        return peft.get_peft_model(self.by_peft, config)

    def restore(self) -> None:
        """Take the adapters out of the backbones."""
        adaptation = lp.find_adaptation(self.base)
        if adaptation is not None:
            adaptation.unload()
        self.base.requires_grad_(True)

    # --- the operations ---------------------------------------------------------------------------

    def adapting(self) -> Timers:
        """Return timers of adapting a backbone, and of the fingerprint alone."""
        names = [name for name, _ in self.base.named_parameters()]

        def restore_peft() -> None:
            self.by_peft = self.adapted_by_peft.unload()

        def by_peft() -> None:
            self.adapted_by_peft = self.adapt_by_peft()

        return {
            "peft": self.timer(by_peft, restore_peft),
            "lightning-peft": self.timer(self.adapt, self.restore),
            "the fingerprint in it": self.timer(lambda: backbone_fingerprint(self.base, names)),
        }

    def adapter_files(self) -> dict[str, Timers]:
        """Return timers of writing an adapter and of reading it into a plain backbone."""
        mine, theirs = self.folder / "mine", self.folder / "theirs"
        adaptation, model = self.adapt(), self.adapt_by_peft()
        adaptation.save(mine)
        model.save_pretrained(theirs)
        plain, plain_for_peft = copy.deepcopy(self.base), copy.deepcopy(self.base)
        lp.find_adaptation(plain).unload()
        lp.find_adaptation(plain_for_peft).unload()
        loaded: dict[str, Any] = {}

        def by_peft() -> None:
            loaded["peft"] = peft.PeftModel.from_pretrained(plain_for_peft, theirs)

        return {
            "save the adapter": {
                "peft": self.timer(lambda: model.save_pretrained(theirs)),
                "lightning-peft": self.timer(lambda: adaptation.save(mine)),
            },
            "load the adapter": {
                "peft": self.timer(by_peft, lambda: loaded.pop("peft").unload()),
                "lightning-peft": self.timer(
                    lambda: lp.load_adapter(plain, mine),
                    lambda: lp.find_adaptation(plain).unload(),
                ),
            },
        }

    def merging(self) -> Timers:
        """Return timers of merging an adapter into the weights; ``safe_merge`` checks for NaN."""
        adaptation, model = self.adapt(), self.adapt_by_peft()
        return {
            "peft, safe": self.timer(
                lambda: model.merge_adapter(safe_merge=True), model.unmerge_adapter
            ),
            "peft": self.timer(model.merge_adapter, model.unmerge_adapter),
            "lightning-peft": self.timer(adaptation.merge, adaptation.unmerge),
        }

    def checkpoints(self) -> dict[str, Timers]:
        """Return timers of writing a checkpoint, loading its weights, and resuming a run."""
        plain = copy.deepcopy(self.base)
        ways: dict[str, tuple[nn.Module, list[L.Callback]]] = {
            "Lightning, full": (plain, []),
            "lightning-peft": (self.base, [lp.PEFT("lora", rank=self.options.rank)]),
        }
        groups: dict[str, Timers] = {"save": {}, "save weights": {}, "load": {}, "resume": {}}
        for name, (net, callbacks) in ways.items():
            whole, weights = self.folder / f"{name}.ckpt", self.folder / f"{name}.weights.ckpt"
            module = Classifier(net)
            trainer = self.trainer(callbacks)
            trainer.fit(module, self.loader)
            saves = {"save": (whole, False), "save weights": (weights, True)}
            for key, (path, weights_only) in saves.items():
                trainer.save_checkpoint(path, weights_only)
                groups[key][name] = self.timer(
                    lambda t=trainer, p=path, w=weights_only: t.save_checkpoint(p, w)
                )
            fresh = copy.deepcopy(net)
            adapted = lp.find_adaptation(fresh)
            load: Callable[..., Any] = Classifier.load_from_checkpoint
            if adapted is not None:
                adapted.unload()
                load = lambda path, net: lp.load_from_checkpoint(Classifier, path, net=net)  # noqa: E731
            tidy = lambda n=fresh: _plain_again(n)  # noqa: E731
            groups["load"][name] = self.timer(
                lambda load=load, p=weights, n=fresh: load(p, net=n), tidy
            )
            groups["resume"][name] = self.timer(
                lambda n=fresh, c=callbacks, p=whole: self.trainer(c).fit(
                    Classifier(n), self.loader, ckpt_path=p
                ),
                tidy,
            )
        return {
            "save a checkpoint": groups["save"],
            "save its weights": groups["save weights"],
            "load its weights": groups["load"],
            "resume": groups["resume"],
        }

    def trainer(self, callbacks: list[L.Callback]) -> L.Trainer:
        """Return a trainer for one step."""
        return L.Trainer(
            max_steps=1,
            callbacks=callbacks,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder,
        )


def _plain_again(net: nn.Module) -> None:
    adaptation = lp.find_adaptation(net)
    if adaptation is not None:
        adaptation.unload()
    net.requires_grad_(True)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Time every selected operation.

    Args:
        options: ``backbone``, ``model_settings``, ``rank``, ``rounds``, ``clock`` and ``only``.

    Returns:
        For each operation the figures of its variants, as :func:`interleaved` returns them.
    """
    parts: dict[str, Callable[[Around], dict[str, Timers]]] = {
        "adapt": lambda around: {"adapt": around.adapting()},
        "files": Around.adapter_files,
        "merge": lambda around: {"merge": around.merging()},
        "checkpoints": Around.checkpoints,
    }
    figures: dict[str, Any] = {}
    for part, make in parts.items():
        if options.only not in (None, part):
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about workers and such
            for operation, timers in make(Around(options, Path(folder))).items():
                figures[operation] = interleaved(timers, options.rounds, base=next(iter(timers)))
    return figures


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["adapt", "files", "merge", "checkpoints"])
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.model_settings = {}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    profiler = cProfile.Profile()
    figures = profiler.runcall(measured, options) if options.profile else measured(options)
    if options.profile:
        pstats.Stats(profiler).sort_stats("cumulative").print_stats("lightning_peft", 40)

    table = Table("operation", "by", "ms", "ratio", "spread")
    for operation, variants in figures.items():
        for name, found in variants.items():
            low, high = found["spread"]
            table.add_row(
                operation,
                name,
                f"{1e3 * found['seconds']:.1f}",
                f"{found['ratio']:.3f}",
                f"{low:.2f} - {high:.2f}",
            )
        table.add_section()
    Console().print(table)
    write_figures(options, operations=figures)


if __name__ == "__main__":
    main()
