"""The callback in a project of ashleve/lightning-hydra-template: one file more, none changed."""

import shutil
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import DictConfig

import lightning_peft as lp

ADDED = Path(__file__).parents[3] / "examples" / "lightning_hydra_template" / "configs"
CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
# the layout at commit bddbc24: groups, and callbacks that are made of one file each
LAYOUT = {
    "train": {
        "defaults": [
            "_self_", {"model": "net"}, {"callbacks": "default"}, {"trainer": "default"},
            {"experiment": None},
        ],
        "seed": None,
    },
    "callbacks/model_checkpoint": {"model_checkpoint": {"_target_": CHECKPOINT, "monitor": None}},
    "callbacks/default": {
        "defaults": ["model_checkpoint", "_self_"],
        "model_checkpoint": {"monitor": "val/acc", "mode": "max"},
    },
    "model/net": {
        "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.001},
        "net": {"_target_": "timm.create_model", "model_name": "glyph_vit", "num_classes": 10},
    },
    "trainer/default": {"_target_": "lightning.pytorch.Trainer", "max_epochs": 10},
}  # fmt: skip


@pytest.fixture
def project(tmp_path):
    for name, content in LAYOUT.items():
        path = tmp_path / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        # the template's train.yaml is the primary config, its @package directive changes nothing
        path.write_text(("# @package _global_\n" if name == "train" else "") + yaml.dump(content))
    shutil.copytree(ADDED, tmp_path / "configs", dirs_exist_ok=True)
    with initialize_config_dir(version_base="1.3", config_dir=str(tmp_path / "configs")):
        yield lambda *words: compose("train.yaml", list(words))


def callbacks_of(cfg):
    """As ``instantiate_callbacks`` of the template: what is a node with a ``_target_``."""
    nodes = cfg.callbacks.values()
    return [instantiate(n) for n in nodes if isinstance(n, DictConfig) and "_target_" in n]


def test_one_file_adds_the_callback(project):
    assert [type(c).__name__ for c in callbacks_of(project())] == ["ModelCheckpoint"]
    cfg = project("callbacks=peft")
    checkpoint, peft = callbacks_of(cfg)
    assert checkpoint.monitor == "val/acc"
    assert isinstance(peft, lp.PEFT)
    assert instantiate(cfg.callbacks.peft.method, _convert_="all") == lp.LoRA()
    assert set(cfg) == {"seed", "model", "callbacks", "trainer"}


def test_method_and_rank_are_chosen_on_the_command_line(project):
    cfg = project("callbacks=peft", "lightning_peft/method@callbacks.adapter=ssf")
    assert instantiate(cfg.callbacks.peft.method, _convert_="all") == lp.SSF()
    cfg = project("callbacks=peft", "callbacks.adapter.method.rank=4")
    assert cfg.callbacks.peft.method.rank == 4
    cfg = project("callbacks=peft", "model.optimizer.lr=${callbacks.adapter.lr}")
    assert cfg.model.optimizer.lr == 3e-3


def test_a_mistyped_key_is_refused(project):
    with pytest.raises(ConfigCompositionException) as caught:
        project("callbacks=peft", "callbacks.adapter.method.rnak=4")
    assert "keys: rank" in f"{caught.value} {caught.value.__cause__}"


def test_what_it_adds_trains(project, tmp_path):
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    cfg = project("callbacks=peft")

    class Lit(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = instantiate(cfg.model.net)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):  # all of them, as the template does
            return instantiate(cfg.model.optimizer)(params=self.trainer.model.parameters())

    data = TensorDataset(torch.randn(8, 1, 24, 24), torch.arange(8))
    module = Lit()
    before = module.net.patch_embed.proj[0].weight.clone()
    trainer = instantiate(
        cfg.trainer, callbacks=[c for c in callbacks_of(cfg) if isinstance(c, lp.PEFT)],
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        default_root_dir=str(tmp_path), enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=4))
    assert torch.equal(module.net.patch_embed.proj[0].weight, before)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert any("lora_A" in name for name in trained)
