"""Measure the cost of starting: imports, ``--help``, and everything up to a first step.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --only step --runs 3     # the cases with this word in their names

Each figure is the median of several fresh interpreters, run in turn so that a drift of the
machine's speed affects all of them. The first step is one of ViT-Ti/16 on random images in a
Lightning trainer; that of the command also reads the digits, checks its config and writes its
files.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

STEP = """
import lightning.pytorch as L, timm, torch
{imports}
class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = timm.create_model("vit_tiny_patch16_224", num_classes=10)
        {adapt}
    def training_step(self, batch, index):
        return self.net(batch).logsumexp(1).mean()
    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad])
data = torch.utils.data.DataLoader(torch.randn(8, 3, 224, 224), batch_size=8)
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False,
             enable_model_summary=False)
L.Trainer(accelerator="cpu", max_steps=1, callbacks=[{callback}], **quiet).fit(Net(), data)
"""
BY_HAND = (
    "self.net = peft.get_peft_model(self.net, peft.LoraConfig(r=8, target_modules=["
    "'qkv', 'proj', 'fc1', 'fc2'], modules_to_save=['head']))"
)
COMMAND = (
    *("trainer=cpu", "trainer.max_steps=1", "test=false", "data.labels_per_class=2"),
    *("callbacks=no_validation", "baselines=[]"),
)

CASES = {
    "python": ["-c", "pass"],
    "import lightning_peft": ["-c", "import lightning_peft"],
    "import torch": ["-c", "import torch"],
    "import lightning, torch": ["-c", "import lightning.pytorch, torch"],
    "the same, then lightning_peft.PEFT": [
        "-c",
        "import lightning.pytorch, torch, lightning_peft; lightning_peft.PEFT",
    ],
    "lightning-peft --help": ["-m", "lightning_peft.cli", "--help"],
    "a first step, full fine-tuning": ["-c", STEP.format(imports="", adapt="", callback="")],
    "a first step, peft by hand": [
        "-c",
        STEP.format(imports="import peft", adapt=BY_HAND, callback=""),
    ],
    "a first step, PEFT('lora')": [
        "-c",
        STEP.format(imports="import lightning_peft as lp", adapt="", callback="lp.PEFT('lora')"),
    ],
    "a first step, PEFT('ssf')": [
        "-c",
        STEP.format(imports="import lightning_peft as lp", adapt="", callback="lp.PEFT('ssf')"),
    ],
    "a first step, the command": ["-m", "lightning_peft.cli", *COMMAND],
}


def cpu_and_wall(arguments: list[str]) -> tuple[float, float]:
    """Run an interpreter in its own directory, and return its CPU seconds and wall seconds."""
    before, start = os.times(), time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        words = [sys.executable, *arguments]
        done = subprocess.run(words, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stderr}")
    wall, after = time.perf_counter() - start, os.times()
    used = (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )
    return used, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="fresh interpreters for each figure")
    parser.add_argument("--only", default="", metavar="WORD", help="cases with it in their names")
    options = parser.parse_args()
    cases = {name: words for name, words in CASES.items() if options.only in name}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(options.runs + 1):  # the first round warms the file cache up
        for name, arguments in cases.items():
            times[name].append(cpu_and_wall(arguments))
    print(f"{'':<40}{'CPU s':>8}{'wall s':>8}")
    for name, pairs in times.items():
        cpu, wall = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
        print(f"{name:<40}{cpu:>8.2f}{wall:>8.2f}")


if __name__ == "__main__":
    main()
