"""The study of the five habits: recipes outside of the package, run by the commands of the page."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_peft.cli.config.check import check_values
from lightning_peft.cli.config.known import known_keys
from lightning_peft.cli.config.paths import conf_dir

ROOT = Path(__file__).parents[3]
STUDY = ROOT / "examples" / "habits"
NAMES = sorted(path.stem for path in (STUDY / "experiment").glob("*.yaml"))

HABITS = {  # the settings that make up each
    "model": ("model.pretrained",),
    "augment": ("augment",),
    "regular": (
        *("model.head_dropout", "model.label_smoothing"),
        *("method.dropout", "optimizer.weight_decay"),
    ),
    "schedule": ("schedule",),
    "evaluate": ("callbacks.best.monitor",),
}


def composed(name):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = [f"hydra.searchpath=[file://{STUDY}]", f"experiment={name}"]
        return compose("config", [*words, "name=test", "output_dir=."])


def _taken(plain, key):
    *groups, leaf = key.split(".")
    for group in groups:
        plain = plain[group]
    return plain.pop(leaf)


def split(cfg):
    """Take the settings of each habit out of a config: the habits, and what is left."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    habits = {habit: [_taken(plain, key) for key in keys] for habit, keys in HABITS.items()}
    return habits, plain


@pytest.fixture(scope="module")
def ends():
    """The study's two ends: with none of the habits, and with all."""
    return {name: split(composed(f"habits_{name}")) for name in ("none", "all")}


def test_the_page_names_every_recipe_in_a_command():
    text = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    lists = re.findall(r"--config-dir examples/habits -m experiment=([\w,]+)", text)
    assert sorted(name for names in lists for name in names.split(",")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_differs_in_its_habits_alone(name, ends):
    wanted = name.removeprefix("habits_")
    if wanted.startswith("not_"):
        on = set(HABITS) - {wanted.removeprefix("not_")}
    else:
        on = {"none": set(), "all": set(HABITS)}.get(wanted, {wanted})
    cfg = composed(name)
    check_values(cfg, known_keys(name))
    habits, rest = split(cfg)
    for habit, settings in habits.items():
        assert ends["none"][0][habit] != ends["all"][0][habit]
        assert settings == ends["all" if habit in on else "none"][0][habit], habit
    assert rest == ends["none"][1] == ends["all"][1]


@pytest.mark.slow
def test_a_sweep_over_recipes_runs_as_the_page_says(train, tmp_path):
    words = ("-m", "experiment=habits_none,habits_schedule", "seed=0", "hydra.sweep.dir=sweep")
    short = ("trainer.max_steps=2", "data.steps_per_epoch=1", "trainer.limit_test_batches=1")
    status, out, err = train("--config-dir", str(STUDY), *words, *short)
    assert status == 0, err
    assert "experiment=habits_schedule" in out
    names = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert names == ["0_lora_seed0", "1_lora_seed0"]
