"""Networks of packages without a LightningModule of their own, in the one that a user writes."""

import lightning.pytorch as pl
import torch
from torch.nn import functional as F

__all__ = ["Plain"]


class Plain(pl.LightningModule):
    """One network, one loss."""

    def __init__(self, model, loss=F.mse_loss):
        super().__init__()
        self.model, self.loss = model, loss

    def _step(self, batch):
        inputs, target = batch
        return self.loss(self.model(inputs), target)

    def training_step(self, batch):
        return self._step(batch)

    def validation_step(self, batch):
        self.log("loss", loss := self._step(batch))
        return loss

    def test_step(self, batch):
        return self.validation_step(batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)
