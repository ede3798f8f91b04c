"""Where a backbone is found in a LightningModule."""

from __future__ import annotations

import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

import lightning_peft as lp
from lightning_peft.anatomy.backbone import backbone_of
from tests.support.zoo import build


class Holder(BoringModel):
    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        del self.layer
        for name, child in children.items():
            setattr(self, name, child)


def test_the_one_backbone_is_found_beside_other_layers() -> None:
    vit = build("vit")
    path, found = backbone_of(Holder(projection=nn.Linear(2, 2), encoder=vit))
    assert (path, found) == ("encoder", vit)


def test_a_plain_network_is_found_or_the_module_is_its_own_backbone() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert backbone_of(Holder(net=net)) == ("net", net)
    own = BoringModel()
    assert backbone_of(own) == ("", own)
    two = Holder(encoder=nn.Sequential(nn.Linear(2, 2)), decoder=nn.Sequential(nn.Linear(2, 2)))
    assert backbone_of(two) == ("", two)


def test_of_two_backbones_the_larger_is_proposed_first() -> None:
    module = Holder(student=build("resnet"), teacher=build("vit"))
    expected = (
        r"2 backbones: 'teacher' \(.*'student' \(.*backbone='teacher', or backbone='' for the"
    )
    with pytest.raises(lp.TargetError, match=expected):
        backbone_of(module)
    assert backbone_of(module, "student")[1] is module.student
    assert backbone_of(module, "") == ("", module)


def test_a_name_that_is_not_there_lists_near_ones() -> None:
    with pytest.raises(lp.TargetError, match="has no module 'encodr'.*Did you mean 'encoder'"):
        backbone_of(Holder(encoder=build("vit")), "encodr")


def test_no_parameters_at_all() -> None:
    with pytest.raises(lp.TargetError, match="has no parameters when configure_model ends"):
        backbone_of(Holder(act=nn.ReLU()))
