"""The shipped configs compose, and say what the code says."""

import dataclasses
import inspect

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lightning_peft as lp
from lightning_peft.cli.config.check import check_targets, check_values
from lightning_peft.cli.config.help import default_choices, settings
from lightning_peft.cli.config.known import experiment_in, known_keys
from lightning_peft.cli.config.paths import conf_dir

ROOT = conf_dir()
METHODS = sorted(path.stem for path in (ROOT / "method").glob("*.yaml"))
CHOICES = sorted(
    f"{group}={path.stem}"
    for group in default_choices(ROOT)
    for path in (ROOT / group).glob("*.yaml")
)
NEEDED = {  # what has no default, and what is interpolated from Hydra's own part
    "model=timm": ["model.backbone=vit_tiny_patch16_224"],
    "method=hf": ["method.tuner=loha"],
    "method=union": ["method.methods=[lora,bitfit]"],
    "data=folder": ["data.root=images", "model.backbone=vit_tiny_patch16_224"],
    "data=text": ["model.backbone=some-encoder", "data.root=reviews.csv"],
    "data=chat": ["data.root=chats.jsonl"],
    "data=tokens": ["model.backbone=some-encoder", "data.root=words.jsonl"],
    "data=seq2seq": ["model.backbone=some-t5", "data.root=articles.jsonl"],
    "model=text": ["model.backbone=some-encoder"],
    "model=token_classifier": ["model.backbone=some-encoder"],
    "model=seq2seq": ["model.backbone=some-t5"],
    "data=vtab": ["data.root=vtab-1k", "data.task=cifar"],
}
for path in (ROOT / "experiment").glob("vtab*.yaml"):
    rate = ["tuned_lr=0.5"] if "tuned_lr: ???" in path.read_text() else []
    NEEDED[f"experiment={path.stem}"] = [*NEEDED["data=vtab"], *rate]
OPTIONAL = ("wandb", "mlflow")


def composed(*overrides):
    needed = [word for name in overrides for word in NEEDED.get(name, [])]
    with initialize_config_dir(str(ROOT), version_base="1.3"):
        return compose("config", [*needed, *overrides, "name=test", "output_dir=."])


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_into_something_that_can_be_called(choice):
    plain = check_values(composed(choice), known_keys(experiment_in([choice])))
    for name in OPTIONAL:  # not installed here; Lightning's classes for them are all the same
        if plain["logger"]:
            plain["logger"].pop(name, None)
    check_targets(plain)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_instantiated_with_its_own_defaults(name):
    cfg = composed(f"method={name}")
    method = instantiate(cfg.method, _convert_="all")
    assert isinstance(method, lp.Method)
    if name == "hf":
        assert method == lp.HF("loha")
        return
    if name == "union":
        assert method == lp.LoRA() + lp.BitFit()
        return
    written = dict(OmegaConf.load(ROOT / "method" / f"{name}.yaml").method)
    del written["_target_"]
    defaults = type(method)()
    assert method == dataclasses.replace(defaults, **written)
    restated = [key for key, value in written.items() if value == getattr(defaults, key)]
    assert not restated, "the YAML says what the class says already"
    fields = [field.name for field in dataclasses.fields(method)]
    assert [key for key in cfg.method if key != "_target_"] == fields
    assert "lr" in OmegaConf.load(ROOT / "method" / f"{name}.yaml")


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"hf"}))
def test_every_field_of_a_method_can_be_typed(name):
    plain = OmegaConf.to_container(composed(f"method={name}").method)
    words = [f"method.{key}=0.75" for key in plain if key != "_target_"]
    changed = OmegaConf.to_container(composed(f"method={name}", *words).method)
    assert changed == {key: plain[key] if key == "_target_" else 0.75 for key in plain}


def test_a_choice_of_ones_own_goes_on_from_a_shipped_one(tmp_path):
    own = tmp_path / "method" / "mine.yaml"
    own.parent.mkdir()
    own.write_text("# @package _global_\ndefaults: [lora, _self_]\nlr: 0.5\nmethod: {rank: 2}\n")
    cfg = composed(f"hydra.searchpath=[file://{tmp_path}]", "method=mine", "method.alpha=4")
    assert instantiate(cfg.method, _convert_="all") == lp.LoRA(rank=2, alpha=4)
    assert cfg.lr == 0.5


def test_every_registered_method_has_a_choice():
    assert set(lp.list_methods()) <= set(METHODS)


def test_scratch_is_full_from_random_weights():
    assert composed("method=scratch").model.pretrained is False
    assert composed("method=full").model.pretrained is True
    both = composed("method=scratch", "model=timm")
    assert both.model.pretrained is False


@pytest.mark.parametrize("name", ["light", "strong", "colour", "randaugment"])
def test_augmentations_are_the_presets(name):
    from lightning_peft.data.augment import PRESETS

    assert instantiate(composed(f"augment={name}").augment, _convert_="all") == PRESETS[name]


def test_mixing_is_light_augmentation_and_mixed_batches():
    cfg = composed("augment=mix", "model=timm", "model.backbone=resnet18")
    assert cfg.augment == composed("augment=light").augment
    assert (cfg.model.mixup, cfg.model.cutmix) == (0.2, 1.0)
    cfg = composed("augment=mix", "model.cutmix=0", "augment.rotation=3")
    assert (cfg.model.mixup, cfg.model.cutmix, cfg.augment.rotation) == (0.2, 0, 3)
    assert composed("augment=strong").model.mixup == 0


def test_the_learning_rate_of_the_method_reaches_the_optimizer_and_can_be_overridden():
    cfg = composed("method=linear_probe")
    assert cfg.optimizer.lr == cfg.model.lr == cfg.lr
    assert composed("method=full").lr != cfg.lr
    cfg = composed("method=full", "lr=0.5")
    assert cfg.model.lr == cfg.optimizer.lr == 0.5
    cfg = composed("method=full", "optimizer.lr=0.25")
    assert cfg.model.lr == 0.25


def test_the_data_is_prepared_for_the_backbone_of_the_model():
    cfg = composed("model=timm", "model.backbone=resnet18")
    assert cfg.data.backbone == "resnet18"


def test_settings_are_all_top_level_keys():
    keys = set(OmegaConf.load(ROOT / "config.yaml")) - {"defaults", "hydra"}
    assert {setting.key for setting in settings(ROOT)} == keys


def test_the_schedules_take_what_their_configs_say():
    for name in ("cosine", "linear", "constant", "wsd"):
        schedule = instantiate(composed(f"schedule={name}").schedule, _convert_="all")
        parameters = inspect.signature(type(schedule)).parameters
        assert set(composed(f"schedule={name}").schedule) - {"_target_"} <= set(parameters)
    assert composed("schedule=none").callbacks.schedule is None


def test_the_demo_is_a_sweep_without_being_told():
    with initialize_config_dir(str(ROOT), version_base="1.3"):
        hydra = compose("config", ["experiment=demo"], return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    assert hydra.sweeper.params.method == "lora,linear_probe,full,scratch"


@pytest.mark.parametrize("words", [(), ("experiment=smoke",), ("experiment=few_shot",)])
def test_the_flags_say_whether_other_commands_are_sweeps(words):
    with initialize_config_dir(str(ROOT), version_base="1.3"):
        assert compose("config", list(words), return_hydra_config=True).hydra.mode is None


def test_norm_keeps_statistics_and_a_word_changes_them_for_every_callback():
    cfg = composed("method=norm")
    assert cfg.callbacks.peft.batchnorm == "held"
    assert composed().callbacks.peft.batchnorm == "frozen"
    cfg = composed("method=lp_ft", "batchnorm=held")
    assert [cfg.callbacks[name].batchnorm for name in ("peft", "freeze")] == ["held", "held"]
