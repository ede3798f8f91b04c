"""The configs in other people's Hydra applications: below one prefix, and nowhere else."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_peft.cli.config.mount import GROUPS, MountedConfigSource
from lightning_peft.cli.config.paths import conf_dir

APP = Path(__file__).parents[3] / "examples" / "hydra_app" / "conf"


@pytest.fixture
def app():
    with initialize_config_dir(version_base="1.3", config_dir=str(APP)):
        yield lambda *overrides: compose("config", list(overrides))


@pytest.fixture
def source():
    return MountedConfigSource("lightning-peft", "lightning-peft://conf")


def test_a_method_is_chosen_below_the_prefix_and_keeps_to_its_package(app):
    cfg = app("lightning_peft/method@peft=bitfit")
    assert cfg.peft.method._target_ == "lightning_peft.BitFit"
    assert cfg.trainer.callbacks[0].method == cfg.peft.method
    assert set(cfg) == {"peft", "lr", "trainer"}
    assert cfg.lr == 2.0e-3


@pytest.mark.parametrize("name", sorted(p.stem for p in (conf_dir() / "method").glob("*.yaml")))
def test_every_method_is_there(app, name):
    assert "_target_" in app(f"lightning_peft/method@peft={name}").peft.method


def test_nothing_else_of_ours_is_seen(app):
    cfg = app("+model=glyph_vit", "+method=lora")
    assert (cfg.model, cfg.method) == (
        "glyph_vit",
        "lora",
    )  # plain values, no groups
    with pytest.raises(MissingConfigException, match="find 'lightning_peft/method/lorra'"):
        app("lightning_peft/method@peft=lorra")


def test_the_listing_that_help_and_completion_use(source):
    assert source.list("", None) == source.list("", ObjectType.GROUP) == ["lightning_peft"]
    assert source.list("", ObjectType.CONFIG) == []
    assert source.list("lightning_peft", None) == list(GROUPS)
    assert "lora" in source.list("lightning_peft/method", ObjectType.CONFIG)
    assert source.list("method", None) == source.list("elsewhere", None) == []
    assert not source.is_config("config")
    assert not source.is_config("lightning_peft/config")
    assert not source.is_group("method")


def test_the_search_path_of_an_application_ends_with_ours():
    from hydra._internal.utils import create_config_search_path

    path: ConfigSearchPath = create_config_search_path(None)
    ours = [e for e in path.get_path() if e.provider == "lightning-peft"]
    assert [element.path for element in ours] == ["lightning-peft://conf"]


def test_a_mistyped_key_is_refused_with_the_keys_that_exist(app):
    with pytest.raises(ConfigCompositionException) as caught:
        app("peft.method.rnak=8")
    told = f"{caught.value} {caught.value.__cause__}"
    assert "Key 'rnak' not in 'LoRA (keys: rank, alpha, dropout, targets" in told


def test_a_value_of_another_type_is_refused_where_the_config_is_composed(app):
    with pytest.raises(HydraException, match="peft.method.rank") as caught:
        app("peft.method.rank=two")
    assert "'two' of type 'str' could not be converted to Integer" in str(caught.value.__cause__)
    assert app("peft.method.alpha=null").peft.method.alpha is None
    assert app("peft.method.rank=4").peft.method.rank == 4
    assert app("peft.method.layers=[0,1]").peft.method.layers == [0, 1]
    assert app("peft.method.layers=last:4").peft.method.layers == "last:4"


def test_another_choice_has_another_schema_and_hf_has_none(app):
    word = "lightning_peft/method@peft=vpt_deep"
    assert app(word, "peft.method.prompt_length=5").peft.method.prompt_length == 5
    with pytest.raises(ConfigCompositionException) as caught:
        app(word, "peft.method.rank=8")
    assert "not in 'VPTDeep (keys: prompt_length" in f"{caught.value} {caught.value.__cause__}"
    cfg = app("lightning_peft/method@peft=hf", "peft.method.tuner=loha", "+peft.method.r=4")
    assert cfg.peft.method.r == 4
    with pytest.raises(ConfigCompositionException) as caught:
        app("lightning_peft/method@peft=full", "peft.method.rank=8")
    assert "not in 'Full (no keys)'" in f"{caught.value} {caught.value.__cause__}"


def test_a_schedule_has_a_schema_too(app):
    word = "+lightning_peft/schedule@trainer.schedule=cosine"
    cfg = app(word, "trainer.schedule.warmup=100")
    assert cfg.trainer.schedule == {
        "_target_": "lightning_peft.WarmupCosine",
        "warmup": 100,
        "final": 0.0,
        "on_resume": "remaining",
        "replace": False,
    }
    with pytest.raises(ConfigCompositionException) as caught:
        app(word, "trainer.schedule.warmpu=0.2")
    assert "not in 'WarmupCosine (keys: warmup" in f"{caught.value} {caught.value.__cause__}"


def test_what_has_a_schema_is_instantiated_as_before(app):
    import lightning_peft as lp

    cfg = app("peft.method.rank=4", "peft.method.targets=[qkv,proj]")
    method = instantiate(cfg.peft.method, _convert_="all")
    assert method == lp.LoRA(rank=4, targets=["qkv", "proj"])
    assert isinstance(instantiate(cfg.trainer.callbacks[0]), lp.PEFT)
    assert OmegaConf.to_container(cfg.peft.method)["rank"] == 4
