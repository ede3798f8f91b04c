"""Files that earlier versions wrote are read, and mean what they meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import lightning_peft as lp
from tests.fixtures.backbone import METHODS, Tiny, TinyModule, example
from tests.support.trainers import quiet_trainer

FIXTURES = Path(__file__).parents[1] / "fixtures"
FORMATS = sorted(path.name for path in FIXTURES.glob("format_*"))


def stored(version: str) -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / version / "outputs.safetensors")


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_of_each_format_gives_the_outputs_that_it_gave(version: str, name: str) -> None:
    model = Tiny()
    plain = model.eval()(example())
    lp.load_adapter(model, FIXTURES / version / name)
    output = model.eval()(example())
    torch.testing.assert_close(output, stored(version)[name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(plain, output, atol=1e-2)


@pytest.mark.filterwarnings("ignore:The loaded checkpoint was produced with Lightning")
@pytest.mark.parametrize("version", FORMATS)
def test_a_checkpoint_of_each_format_is_loaded_and_gone_on_from(version: str) -> None:
    file = FIXTURES / version / "lightning.ckpt"
    module = lp.load_from_checkpoint(TinyModule, file)
    output = module.eval().model(example())
    torch.testing.assert_close(output, stored(version)["lightning"], rtol=1e-5, atol=1e-6)

    trainer = quiet_trainer(lp.PEFT("lora", rank=2), max_steps=4)
    data = DataLoader(TensorDataset(example()), batch_size=2)
    trainer.fit(TinyModule(), data, ckpt_path=str(file), weights_only=True)
    assert trainer.global_step == 4


def test_there_is_a_fixture_of_the_format_that_is_written_now(tmp_path: Path) -> None:
    lp.adapt(Tiny(), "ssf").save(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert f"format_{config['lightning_peft']['format_version']}" in FORMATS
