"""Images and texts: open_clip in a module with its contrastive loss."""

import lightning.pytorch as pl
import open_clip
import torch

from tests.wild.case import Case, batches

DISTRIBUTION = "open_clip_torch"
VISION = {"layers": 3, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 32}
TEXT = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 2, "layers": 3}


class Contrastive(pl.LightningModule):
    """What a user of open_clip writes."""

    def __init__(self, model):
        super().__init__()
        self.model, self.loss = model, open_clip.ClipLoss()

    def training_step(self, batch):
        images, texts = batch
        return self.loss(*self.model(images, texts)[:3])

    def validation_step(self, batch):
        self.log("loss", loss := self.training_step(batch))
        return loss

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def _clip(kind=open_clip.CLIP):
    return kind(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT)


def _pairs():
    return batches(lambda i: (torch.randn(3, 32, 32), torch.randint(1, 100, (16,))))


CASES = [
    Case(
        kind.__name__,
        lambda kind=kind: Contrastive(_clip(kind)),
        _pairs,
        load=lambda kind=kind: {"model": _clip(kind)},
    )
    for kind in (open_clip.CLIP, open_clip.CustomTextCLIP)
]
