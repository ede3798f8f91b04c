import os
import subprocess
import sys
from pathlib import Path

import lightning_peft

SCRIPT = """
import json
import sys
from pathlib import Path

import pytorch_lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_peft.lightning.callbacks.efficiency import EfficiencyMonitor
from lightning_peft.lightning.callbacks.freeze import BackboneFreeze, Stage
from lightning_peft.lightning.callbacks.schedule import WarmupCosine


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        parts = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)) for _ in "ab"]
        self.blocks = nn.Sequential(*parts)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(self.blocks(inputs))


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Body()
        self.rates = []

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)

    def train_dataloader(self):
        data = TensorDataset(torch.ones(6, 4), torch.tensor([0, 1] * 3))
        return DataLoader(data, batch_size=2)

    def on_before_optimizer_step(self, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


class Stop(L.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0:
            trainer.save_checkpoint("half.ckpt")


def run(*more, path=None):
    L.seed_everything(0, verbose=False)
    net = Net()
    stages = [Stage(1, "all", lr=0.01)]
    callbacks = [WarmupCosine(2), BackboneFreeze(unfreeze=stages), EfficiencyMonitor(), *more]
    trainer = L.Trainer(
        callbacks=callbacks, accelerator="cpu", max_epochs=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(net, ckpt_path=path)
    (config,) = trainer.lr_scheduler_configs
    assert type(config).__module__ == "pytorch_lightning.utilities.types", type(config)
    return net


whole, rest = run(Stop()), run(path="half.ckpt")
assert whole.rates[3:] == rest.rates
assert len(whole.rates) == 6
assert all(map(torch.equal, whole.state_dict().values(), rest.state_dict().values()))
assert json.loads(Path("efficiency.json").read_text())["step_flops"] > 0
assert not any(name == "lightning" or name.startswith("lightning.") for name in sys.modules)
print("as in lightning.pytorch")
"""


def test_the_callbacks_run_in_a_trainer_of_pytorch_lightning(tmp_path):
    root = str(Path(lightning_peft.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "as in lightning.pytorch" in done.stdout
