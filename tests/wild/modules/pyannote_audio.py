"""Speech: the networks of pyannote.audio in a module, since its tasks need a database of files."""

import lightning.pytorch as pl
import torch
from pyannote.audio.core.task import Problem, Resolution, Specifications
from pyannote.audio.models.embedding import XVectorSincNet
from pyannote.audio.models.segmentation import PyanNet
from torch.nn import functional as F

from tests.wild.case import Case, batches

DISTRIBUTION = "pyannote.audio"
SAMPLES = 8000


class Speech(pl.LightningModule):
    """What a user of the networks writes; the frames of a target are those of the scores."""

    def __init__(self, net, loss):
        super().__init__()
        self.net, self.loss = net, loss

    def training_step(self, batch):
        waveforms, target = batch
        return self.loss(self.net(waveforms), target)

    def validation_step(self, batch):
        self.log("loss", loss := self.training_step(batch))
        return loss

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def _segmentation():
    net = PyanNet(lstm={"hidden_size": 16, "num_layers": 2}, linear={"hidden_size": 16})
    net.specifications = Specifications(
        Problem.MULTI_LABEL_CLASSIFICATION, Resolution.FRAME, duration=0.5, classes=["a", "b", "c"]
    )
    net.build()
    return net


def _speakers(scores, target):
    return F.binary_cross_entropy(scores, target[:, None].expand_as(scores).float())


def _near(embeddings, target):
    return F.mse_loss(embeddings[:, :3], target.float())


def _voices():
    return batches(lambda i: (torch.randn(1, SAMPLES), (torch.rand(3) > 0.5).long()))


CASES = [
    Case(
        "PyanNet",
        lambda: Speech(_segmentation(), _speakers),
        _voices,
        new=("net.classifier",),
        load=lambda: {"net": _segmentation(), "loss": _speakers},
    ),
    Case(
        "XVectorSincNet",
        lambda: Speech(XVectorSincNet(dimension=16), _near),
        _voices,
        load=lambda: {"net": XVectorSincNet(dimension=16), "loss": _near},
    ),
]
