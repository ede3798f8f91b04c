"""An existing Lightning script with one line added.

The line is marked. Without it, the script fine-tunes the whole network. With it, the script trains
low-rank adapters and the head, and its checkpoints hold nothing else. ``git diff`` of the change::

     trainer = L.Trainer(
         max_epochs=40,
    +    callbacks=[lp.PEFT("lora", rank=8)],
     )

Run it with ``python examples/one_callback.py``.
"""

import argparse

import lightning as L
import timm
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp


class Digits(L.LightningModule):
    """An ordinary module that knows nothing about adapters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = timm.create_model("glyph_vit", pretrained=True, num_classes=10)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def test_step(self, batch, batch_idx):
        images, labels = batch
        self.log("test_accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.01)


def loaders() -> tuple[DataLoader, DataLoader]:
    """Return loaders of ten labelled digits a class for training and 797 digits for testing."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = (F.interpolate(images, size=24, mode="bilinear") - 0.5) / 0.5
    labels = torch.tensor(digits.target)
    train = torch.cat([(labels[:1000] == digit).nonzero()[:10, 0] for digit in range(10)])
    return (
        DataLoader(TensorDataset(images[train], labels[train]), batch_size=20, shuffle=True),
        DataLoader(TensorDataset(images[1000:], labels[1000:]), batch_size=256),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40, help="passes over the 100 images")
    epochs = parser.parse_args().epochs

    L.seed_everything(0)
    train, test = loaders()
    trainer = L.Trainer(
        max_epochs=epochs,
        callbacks=[lp.PEFT("lora", rank=8)],  # <- the line
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    module = Digits()
    trainer.fit(module, train)
    trainer.test(module, test)
    trainer.save_checkpoint("digits.ckpt")


if __name__ == "__main__":
    main()
