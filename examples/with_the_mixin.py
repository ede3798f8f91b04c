"""Adapt your own module with the mixin: the method is a part of the class.

With the mixin the module adapts itself under any trainer, and its own ``load_from_checkpoint``
reads a checkpoint that holds only the adapter and the head.

Run it with ``python examples/with_the_mixin.py``.
"""

import argparse
import tempfile
from pathlib import Path

import lightning as L
import timm
import torch
from torch.nn import functional as F

import lightning_peft as lp


class Digits(lp.PEFTMixin, L.LightningModule):
    """A module whose method is one of its hyperparameters."""

    def __init__(self, method: str = "lora", lr: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = timm.create_model("glyph_vit", pretrained=True, num_classes=10)

    def configure_peft(self):
        return self.hparams["method"]

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def test_step(self, batch, batch_idx):
        images, labels = batch
        self.log("test_accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        # no decay on biases, norms and other one-dimensional parameters
        groups = lp.parameter_groups(self, lr=self.hparams["lr"], weight_decay=0.01)
        return torch.optim.AdamW(groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="bitfit", help="one of lp.list_methods()")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    given = parser.parse_args()

    L.seed_everything(0)
    data = lp.DigitsDataModule(labels_per_class=10, augment="light")
    trainer = L.Trainer(
        max_steps=given.steps,
        callbacks=[lp.WarmupCosine(warmup=0.1)],
        logger=False,
        enable_checkpointing=False,
    )
    module = Digits(given.method)
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data)

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "digits.ckpt")
        trainer.save_checkpoint(path, weights_only=True)
        again = Digits.load_from_checkpoint(path)
        print(f"{path.stat().st_size:,} bytes, loaded as {type(again).__name__} again")


if __name__ == "__main__":
    main()
