"""Adapt, train, save, load and merge a model without Lightning.

Run it with ``python examples/plain_pytorch.py``.
"""

import argparse
import tempfile

import timm
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

import lightning_peft as lp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = (F.interpolate(images, size=24, mode="bilinear") - 0.5) / 0.5
    labels = torch.tensor(digits.target)

    model = timm.create_model("glyph_vit", pretrained=True, num_classes=10)
    adaptation = lp.adapt(model, lp.LoRA(rank=8, targets="attention", layers="last:4"))
    print(adaptation.report())

    optimizer = torch.optim.AdamW(lp.parameter_groups(model, lr=2e-3, weight_decay=0.01))
    model.train()
    for _ in range(steps):
        chosen = torch.randint(0, 1000, (32,))
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def accuracy(network: torch.nn.Module) -> float:
        network.eval()
        with torch.no_grad():
            return float((network(images[1000:]).argmax(1) == labels[1000:]).float().mean())

    print(f"adapted: {accuracy(model):.3f}")
    with adaptation.disabled():
        print(f"the backbone under the same head: {accuracy(model):.3f}")

    with tempfile.TemporaryDirectory() as directory:
        adaptation.save(directory)
        fresh = timm.create_model("glyph_vit", pretrained=True, num_classes=10)
        print(f"loaded into a fresh backbone: {accuracy(lp.load_adapter(fresh, directory)):.3f}")

    merged = adaptation.merge_and_unload()
    print(f"merged into a plain model: {accuracy(merged):.3f}")


if __name__ == "__main__":
    main()
