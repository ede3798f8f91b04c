"""Self-supervision: the modules of lightly's own examples."""

import copy

import lightning.pytorch as pl
import torch
from lightly import loss
from lightly.models import modules, utils
from torch import nn
from torchvision.models import resnet18

from tests.wild.case import Case, batches, worn

DISTRIBUTION = "lightly"


def _views():
    return batches(lambda i: (torch.rand(3, 32, 32), torch.rand(3, 32, 32)))


class _Lesson(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(*list(resnet18().children())[:-1])

    def validation_step(self, batch, index):
        self.log("loss", value := self.training_step(batch, index))
        return value

    def test_step(self, batch, index):
        return self.validation_step(batch, index)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class SimCLR(_Lesson):
    """As in lightly's examples/pytorch_lightning/simclr.py."""

    def __init__(self):
        super().__init__()
        self.projection_head = modules.SimCLRProjectionHead(512, 64, 32)
        self.criterion = loss.NTXentLoss()

    def forward(self, images):
        return self.projection_head(self.backbone(images).flatten(start_dim=1))

    def training_step(self, batch, index):
        one, other = batch
        return self.criterion(self(one), self(other))


class SimSiam(_Lesson):
    """As in lightly's examples/pytorch_lightning/simsiam.py."""

    def __init__(self):
        super().__init__()
        self.projection_head = modules.SimSiamProjectionHead(512, 64, 32)
        self.prediction_head = modules.SimSiamPredictionHead(32, 16, 32)
        self.criterion = loss.NegativeCosineSimilarity()

    def forward(self, images):
        found = self.projection_head(self.backbone(images).flatten(start_dim=1))
        return found.detach(), self.prediction_head(found)

    def training_step(self, batch, index):
        (z0, p0), (z1, p1) = map(self, batch)
        return 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))


class BYOL(_Lesson):
    """As in lightly's examples/pytorch_lightning/byol.py."""

    def __init__(self):
        super().__init__()
        self.projection_head = modules.BYOLProjectionHead(512, 64, 32)
        self.prediction_head = modules.BYOLPredictionHead(32, 64, 32)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        utils.deactivate_requires_grad(self.backbone_momentum)
        utils.deactivate_requires_grad(self.projection_head_momentum)
        self.criterion = loss.NegativeCosineSimilarity()

    def forward(self, images):
        return self.prediction_head(
            self.projection_head(self.backbone(images).flatten(start_dim=1))
        )

    def _momentum(self, images):
        found = self.backbone_momentum(images).flatten(start_dim=1)
        return self.projection_head_momentum(found).detach()

    def training_step(self, batch, index):
        if self.training:
            utils.update_momentum(self.backbone, self.backbone_momentum, m=0.9)
            utils.update_momentum(self.projection_head, self.projection_head_momentum, m=0.9)
        x0, x1 = batch
        p0, p1, z0, z1 = self(x0), self(x1), self._momentum(x0), self._momentum(x1)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class DINO(_Lesson):
    """As in lightly's examples/pytorch_lightning/dino.py."""

    def __init__(self):
        super().__init__()
        backbone = self.backbone
        del self.backbone
        self.student_backbone = backbone
        self.student_head = modules.DINOProjectionHead(512, 64, 32, 128, freeze_last_layer=1)
        self.teacher_backbone = copy.deepcopy(backbone)
        self.teacher_head = modules.DINOProjectionHead(512, 64, 32, 128)
        utils.deactivate_requires_grad(self.teacher_backbone)
        utils.deactivate_requires_grad(self.teacher_head)
        self.criterion = loss.DINOLoss(output_dim=128)

    def training_step(self, batch, index):
        if self.training:
            utils.update_momentum(self.student_backbone, self.teacher_backbone, m=0.9)
            utils.update_momentum(self.student_head, self.teacher_head, m=0.9)
        student = [self.student_head(self.student_backbone(x).flatten(1)) for x in batch]
        teacher = [self.teacher_head(self.teacher_backbone(x).flatten(1)) for x in batch]
        return self.criterion(teacher, student, epoch=self.current_epoch)


CASES = [
    Case("SimCLR", lambda: worn(SimCLR()), _views, ("backbone",), ("projection_head",), epochs=2),
    Case("SimSiam", lambda: worn(SimSiam()), _views, ("backbone",),
         ("projection_head", "prediction_head"), epochs=2),
    Case("BYOL", lambda: worn(BYOL()), _views, ("backbone",),
         ("projection_head", "prediction_head"), epochs=2),
    Case("DINO", lambda: worn(DINO()), _views, ("student_backbone",), ("student_head.layers",),
         epochs=2, falls="its temperature and its centre move"),
]  # fmt: skip
