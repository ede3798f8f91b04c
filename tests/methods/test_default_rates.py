"""Every method learns at the rate of its file in ``conf/method``, in evaluation as in training.

The recipe is the command line's: AdamW, a warm-up and a cosine, gradients clipped at 1.
"""

import statistics

import lightning.pytorch as pl
import pytest
import timm
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from lightning_peft.cli.config.paths import conf_dir

CONVOLUTIONAL = ("adalora", "bitfit", "conv_adapter", "dora", "full", "last_blocks", "linear_probe",
                 "lora", "lora_fa", "norm", "ssf")  # fmt: skip
BACKBONES = {
    "glyph_vit": sorted({*lp.list_methods()} - {"conv_adapter", "hf", "union"}),
    "test_efficientnet": CONVOLUTIONAL,
}
QUICK = {("test_efficientnet", "norm")}


def pairs():
    for backbone, methods in BACKBONES.items():
        for method in methods:
            slow = () if (backbone, method) in QUICK else pytest.mark.slow
            yield pytest.param(backbone, method, marks=slow, id=f"{method}-{backbone}")


class Losses(pl.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *args):
        self.values.append(float(outputs["loss"]))


def images(channels, pixels, count=64, classes=4):
    """Return noise around an image of each class."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    typical = torch.randn(classes, channels, pixels, pixels, generator=random)
    noise = torch.randn(count, channels, pixels, pixels, generator=random)
    return 0.6 * typical[labels] + noise, labels


@pytest.mark.parametrize(("backbone", "method"), [*pairs()])
def test_the_loss_falls_at_the_default_rate(tmp_path, backbone, method):
    config = OmegaConf.load(conf_dir() / "method" / f"{method}.yaml")
    glyphs = backbone == "glyph_vit"
    torch.manual_seed(0)
    model = timm.create_model(backbone, pretrained=glyphs, num_classes=4)
    module = lp.ImageClassifier(model, 4, lr=config.lr)
    inputs, labels = images(1, 24) if glyphs else images(3, 48)
    losses = Losses()
    peft = lp.PEFT(method, batchnorm=config.get("batchnorm", "frozen"))
    trainer = pl.Trainer(
        max_steps=40, accelerator="cpu", gradient_clip_val=1.0, logger=False, limit_val_batches=0,
        callbacks=[peft, lp.WarmupCosine(warmup=0.1), losses], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(inputs, labels), batch_size=16, shuffle=True))
    first, last = statistics.fmean(losses.values[:5]), statistics.fmean(losses.values[-5:])
    module.eval()
    with torch.no_grad():
        evaluated = float(F.cross_entropy(module(inputs), labels))
    most = 0.9 * first if glyphs else first  # what a method trains of random features is little
    assert last < most
    assert evaluated < most  # the network that was trained is the one that is used
