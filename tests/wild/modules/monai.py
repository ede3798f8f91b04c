"""Medical images: MONAI's networks."""

import torch
from monai import losses
from monai.networks import nets

from tests.wild.case import Case, batches
from tests.wild.plain import Plain

DISTRIBUTION = "monai"
DICE = losses.DiceCELoss(to_onehot_y=True, softmax=True)


def _slices(size=64):
    return batches(
        lambda i: (torch.randn(1, size, size), torch.randint(2, (1, size, size))), count=4, size=2
    )


def _unetr():
    return nets.UNETR(
        1,
        2,
        img_size=(64, 64),
        feature_size=8,
        hidden_size=48,
        mlp_dim=96,
        num_heads=4,
        spatial_dims=2,
    )


def _swin():
    return nets.SwinUNETR(
        1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), spatial_dims=2
    )


def _unet():
    return nets.UNet(2, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=1)


def _densenet():
    return nets.DenseNet(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2))


def _vit():
    return nets.ViT(
        1, (64, 64), (16, 16), hidden_size=48, mlp_dim=96, num_layers=3, num_heads=4,
        classification=True, num_classes=3, post_activation="", spatial_dims=2,
    )  # fmt: skip


class _First(torch.nn.Module):
    """MONAI's ViT gives its hidden states beside the logits."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, volume):
        return self.net(volume)[0]


def _classes():
    return batches(lambda i: (torch.randn(1, 64, 64), i % 3), count=4, size=2)


def _case(name, build, data, loss, backbone, new):
    return Case(
        name, lambda: Plain(build(), loss), data, backbone, new,
        load=lambda: {"model": build(), "loss": loss}, epochs=2,
    )  # fmt: skip


ENTROPY = torch.nn.functional.cross_entropy
CASES = [
    _case(
        "UNETR", _unetr, _slices, DICE, ("model.vit",),
        ("model.encoder1", "model.decoder5", "model.decoder2", "model.out"),
    ),
    _case(
        "SwinUNETR", _swin, _slices, DICE, ("model.swinViT",),
        ("model.encoder1", "model.decoder5", "model.decoder1", "model.out"),
    ),
    _case("UNet", _unet, _slices, DICE, ("",), ()),
    _case("DenseNet", _densenet, _classes, ENTROPY, ("",), ("model.class_layers",)),
    _case("ViT", lambda: _First(_vit()), _classes, ENTROPY, ("",), (
        "model.net.classification_head",)),
]  # fmt: skip
