"""When a run validates by default, and what is said about it."""

import json

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader

from lightning_peft.cli.jobs.validating import interval, of_the_last_weights, when_to_validate


@pytest.mark.parametrize("total", [None, 20, 97, 100, 250, 251, 1000])
@pytest.mark.parametrize(("trained", "validated"), [(20, 207), (29, 207), (32, 100), (7.5, 3)])
def test_validation_takes_less_than_a_fifth_of_the_images(trained, validated, total):
    batches = interval(trained, validated, total)
    count = 1 if total is None else total // batches
    if total is None or total * trained > 5 * validated:
        assert validated < batches * trained / 5
        assert validated * count < (total or batches) * trained / 5
    else:
        assert batches == total, "one validation, at the end of a short run"
    if total is not None:
        assert batches <= total
        left = total - batches * count
        assert left < max(count, 2), "what follows the last validation"
        # twice as many validations would be too many
        assert 2 * 2 * (count + 1) * validated > total * trained / 5 or batches * 2 > total


def test_the_run_of_the_issue_validates_four_times_and_at_its_end():
    assert interval(20, 207, 248) == 62
    assert interval(20, 207, 250) == 62  # no fewer validations only to be at the very end
    assert interval(20, 207, 251) == 62


class Data:
    """A data module of so many samples."""

    def __init__(self, train, val, steps_per_epoch=None):
        self.train, self.val, self.steps_per_epoch = train, val, steps_per_epoch

    def train_dataloader(self):
        return DataLoader(range(self.train), batch_size=10)

    def val_dataloader(self):
        return DataLoader(range(self.val), batch_size=20)


TRAINER = {
    "max_steps": 100, "max_epochs": None, "accumulate_grad_batches": 1,
    "limit_train_batches": None, "limit_val_batches": None,
    "check_val_every_n_epoch": None, "val_check_interval": None,
}  # fmt: skip
EACH = {"check_val_every_n_epoch": 1}


@pytest.mark.parametrize(
    ("data", "trainer", "expected"),
    [
        (Data(600, 100), {}, EACH),  # 60 batches; 51 would do
        (Data(500, 100), {}, 100),  # 50 batches: two validations would be a fifth
        (Data(20, 20), {}, 20),  # 11 would do, and does not divide the run
        (Data(20, 20), {"accumulate_grad_batches": 2}, 20),
        (Data(20, 20), {"max_steps": -1, "max_epochs": 60}, 12),
        (Data(20, 20), {"max_steps": -1}, 11),
        (Data(20, 100), {"limit_val_batches": 1}, 20),
        (Data(20, 100), {"limit_val_batches": 0.2}, 20),
        (Data(600, 100), {"limit_train_batches": 2}, 100),
        (Data(20, 20, steps_per_epoch=2), {}, EACH),
        (Data(20, 20), {"val_check_interval": 0.5}, EACH),
        (Data(20, 20), {"check_val_every_n_epoch": 3}, {}),
        (object(), {}, EACH),
    ],
)
def test_what_the_trainer_is_told(data, trainer, expected):
    found = when_to_validate(OmegaConf.create({"trainer": TRAINER | trainer}), data)
    if isinstance(expected, int):
        expected = {"check_val_every_n_epoch": None, "val_check_interval": expected}
    assert found == expected


def test_a_run_says_what_it_trains_and_when_it_validates(train, tmp_path):
    random = np.random.default_rng(0)
    for name, count in (("cat", 12), ("dog", 20)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (24, 24), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    words = (
        *("data=folder", "data.root=images", "data.labels_per_class=1", "data.num_workers=0"),
        *("data.val_per_class=3", "trainer.max_steps=37", "data.flip_safe=true"),
    )
    status, out, err = train(*words, "hydra.run.dir=run")
    assert status == 0, err
    lines = err.splitlines()
    start = lines.index("lora on vit_tiny_patch16_224 (7.84 k parameters, 24x24 gray)")
    assert lines[start + 1] == (
        "images: 2 to train, 6 to validate, 6 to test; validates every 18 steps"
    )
    rows = [line.split() for line in out.splitlines()]
    assert ["backbone", "vit_tiny_patch16_224"] in rows
    assert "7.84 k parameters, 24x24 gray" in out
    assert "of it validation" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["backbone"]["input"] == "24x24 gray"
    assert 0 < summary["seconds"]["validation"] < summary["seconds"]["fit"]
    # the last validation was at step 36, and the last weights are those of the end
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)
    assert last["global_step"] == 37


@pytest.mark.parametrize(
    ("node", "when", "expected"),
    [
        ({"monitor": None}, {"check_val_every_n_epoch": None}, {"save_on_train_epoch_end": True}),
        ({"monitor": "val/accuracy"}, {"check_val_every_n_epoch": None}, {}),
        ({"every_n_train_steps": 5}, {"check_val_every_n_epoch": None}, {}),
        ({"save_on_train_epoch_end": False}, {"check_val_every_n_epoch": None}, {}),
        ({}, EACH, {}),
        ({}, {}, {}),
    ],
)
def test_a_checkpoint_without_a_metric_is_of_the_last_weights(node, when, expected):
    target = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"}
    assert of_the_last_weights(target | node, when) == expected
    assert of_the_last_weights({"_target_": "lightning_peft.L2SP"} | node, when) == {}
