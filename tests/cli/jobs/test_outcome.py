"""What a run leaves of an adapted module."""

import pytest
import torch
from torch import nn

import lightning_peft as lp
from lightning_peft.cli.jobs.outcome import save_adapters
from lightning_peft.errors import PEFTError
from tests.support.zoo import build


def towers(*ranks):
    """A module whose backbones are adapted by itself."""
    module = nn.ModuleDict({f"tower{i}": build("vit") for i in range(len(ranks))})
    for tower, rank in zip(module.values(), ranks, strict=True):
        lp.adapt(tower, lp.LoRA(rank=rank))
    return module


def test_one_adapter_is_in_the_directory_itself(tmp_path):
    module = towers(2)
    method, parameters, size = save_adapters(module, tmp_path)
    assert method["config"]["rank"] == 2
    assert parameters["trained"] == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert size["adapter"] == sum(file.stat().st_size for file in tmp_path.iterdir())


def test_no_adapter_of_several_replaces_another(tmp_path):
    module = towers(2, 3)
    method, parameters, size = save_adapters(module, tmp_path)
    assert [method["configs"][f"tower{i}"]["rank"] for i in range(2)] == [2, 3]
    assert parameters["trained"] == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert size["adapter"] == sum(f.stat().st_size for f in tmp_path.glob("*/*"))
    for name, tower in module.items():
        found = lp.load_adapter(build("vit"), tmp_path / name)
        values = tower.state_dict()
        assert all(torch.equal(values[k], value) for k, value in found.state_dict().items())
    with pytest.raises(PEFTError, match="adapter_config.json"):
        lp.load_adapter(build("vit"), tmp_path)


def test_without_an_adapter_nothing_is_written(tmp_path):
    method, parameters, size = save_adapters(nn.Linear(3, 2), tmp_path / "adapter")
    assert (method, parameters["trained"], size) == ({}, 8, {})
    assert not list(tmp_path.iterdir())
