"""The configs in other people's Hydra applications: below one prefix, and nowhere else."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.errors import MissingConfigException

from lightning_peft.cli.mount import GROUPS, MountedConfigSource
from lightning_peft.cli.paths import conf_dir

APP = Path(__file__).parents[2] / "examples" / "hydra_app" / "conf"


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
