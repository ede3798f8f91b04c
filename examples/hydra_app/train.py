"""An existing Hydra application, adapted by three lines of its YAML.

The configs of lightning-peft are on the search path of every Hydra application, below
``lightning_peft/``::

    python examples/hydra_app/train.py
    python examples/hydra_app/train.py lightning_peft/method@peft=bitfit lr=1e-2
    python examples/hydra_app/train.py -m lightning_peft/method@peft=lora,ssf hydra/launcher=fresh
"""

import hydra
import lightning as L
import timm
import torch
from hydra.utils import instantiate
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft  # noqa: F401  the network of this example comes with it


class Digits(L.LightningModule):
    """An ordinary module that knows nothing about adapters."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.net = timm.create_model("glyph_vit", pretrained=True, num_classes=10)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = F.cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr)


def loader() -> DataLoader:
    """Return a loader of a thousand digits."""
    digits = load_digits()
    images = torch.tensor(digits.images[:1000], dtype=torch.float32)[:, None] / 16
    images = (F.interpolate(images, size=24, mode="bilinear") - 0.5) / 0.5
    return DataLoader(
        TensorDataset(images, torch.tensor(digits.target[:1000])), batch_size=20, shuffle=True
    )


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg) -> float:
    """Train, and return the loss to the sweeper."""
    L.seed_everything(0, verbose=False)
    trainer = instantiate(cfg.trainer)
    module = Digits(cfg.lr)
    trainer.fit(module, loader())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    print(f"{cfg.peft.method._target_}: {trained:,} parameters trained")
    return float(trainer.callback_metrics["loss"])


if __name__ == "__main__":
    main()
