import copy
import pickle

import torch
from torch import nn

from lightning_peft.adaptation.modes import hold_in_eval, is_held, release


def test_held_batchnorm_keeps_its_statistics_through_train() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    hold_in_eval([model[1]])
    before = model[1].running_mean.clone()
    model.train()
    model(torch.randn(4, 1, 8, 8))
    assert model[2].training
    assert not model[1].training
    assert torch.equal(model[1].running_mean, before)

    release([model[1]])
    model.train()
    model(torch.randn(4, 1, 8, 8))
    assert not torch.equal(model[1].running_mean, before)


def test_held_with_everything_below_or_by_itself() -> None:
    model = nn.Sequential(nn.Sequential(nn.Dropout(), nn.Dropout()))
    hold_in_eval([model[0]])
    model.train()
    assert [m.training for m in model.modules()] == [True, False, False, False]
    hold_in_eval([model[0]], recurse=False)
    model.train()
    assert [m.training for m in model.modules()] == [True, False, True, True]
    model.eval()
    assert not any(m.training for m in model.modules())


def test_a_copy_holds_its_own_modules() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    hold_in_eval([model[0]])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.train()
        assert is_held(twin[0])
        assert not is_held(twin[1])
        assert [m.training for m in twin.modules()] == [True, False, True]
        release([twin[0]])
        assert is_held(model[0])
