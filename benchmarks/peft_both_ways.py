"""Exchange adapters between two environments: one writes, the other reads and compares outputs.

``make test-oldest`` runs it both ways between the oldest and the newest supported release of peft::

    one/bin/python benchmarks/peft_both_ways.py write DIRECTORY
    other/bin/python benchmarks/peft_both_ways.py read DIRECTORY

Each directory is written by lightning-peft and by peft alone, and read by both.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lightning_peft as lp

TUNERS = {
    "lora": peft.LoraConfig(r=2, target_modules=["0", "2"]),
    "loha": peft.LoHaConfig(r=2, target_modules=["0", "2"]),
    "ia3": peft.IA3Config(target_modules=["0", "2"], feedforward_modules=[]),
    "vera": peft.VeraConfig(r=4, target_modules=["2"]),
}


def backbone() -> nn.Module:
    """Return a network whose weights come from a formula."""
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    _fill(model.parameters())
    return model.eval()


def _fill(tensors: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for i, tensor in enumerate(tensors):
            steps = torch.arange(tensor.numel(), dtype=torch.float64) * 0.7 + i
            tensor.copy_((torch.sin(steps * steps) * 0.3).reshape(tensor.shape))


def inputs() -> Tensor:
    return torch.linspace(-1, 1, 24).reshape(4, 6)


def write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    outputs = {}
    for name, config in TUNERS.items():
        adaptation = lp.adapt(backbone(), config, head=False)
        _fill(adaptation.trained_parameters())
        adaptation.save(directory / f"{name}-ours")
        outputs[f"{name}-ours"] = adaptation.model.eval()(inputs()).detach()
        theirs = peft.get_peft_model(backbone(), config).eval()
        _fill(p for p in theirs.parameters() if p.requires_grad)
        theirs.save_pretrained(str(directory / f"{name}-peft"))
        outputs[f"{name}-peft"] = theirs(inputs()).detach()
    save_file(outputs, directory / "outputs.safetensors")
    print(f"peft {peft.__version__}, torch {torch.__version__}: wrote {', '.join(outputs)}")


def read(directory: Path) -> None:
    for name, expected in load_file(directory / "outputs.safetensors").items():
        ours = lp.load_adapter(backbone(), directory / name).eval()
        torch.testing.assert_close(ours(inputs()), expected, rtol=1e-5, atol=1e-6)
        theirs = peft.PeftModel.from_pretrained(backbone(), str(directory / name)).eval()
        torch.testing.assert_close(theirs(inputs()), expected, rtol=1e-5, atol=1e-6)
        print(f"peft {peft.__version__}, torch {torch.__version__}: read {name}")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
