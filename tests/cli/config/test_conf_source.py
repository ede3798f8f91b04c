"""Each config file is parsed once, and whoever reads it has a config of their own."""

import os

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from lightning_peft.cli.config.conf_source import ConfSource
from lightning_peft.cli.config.paths import conf_dir

FILES = sorted(
    str(path.relative_to(conf_dir()).with_suffix(""))
    for path in conf_dir().rglob("*.yaml")
    # completed, which test_conf.py compares with the classes and test_proposals.py with a choice
    if path.parent.name != "method" and path.stem != "auto"
)


@pytest.fixture
def loads(monkeypatch):
    """What is parsed from here on."""
    found = []
    real = OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda file: (found.append(file.name), real(file))[1])
    return found


def source_of(directory):
    return ConfSource("test", f"lightning-peft-conf://{directory}")


def written(directory, text):
    path = directory / "some.yaml"
    path.write_text(text)
    return path


def test_what_is_read_again_is_what_hydra_reads(loads):
    ours, hydras = source_of(conf_dir()), FileConfigSource("test", f"file://{conf_dir()}")
    assert len(FILES) > 50
    first = [ours.load_config(name) for name in FILES]
    assert len(loads) <= len(FILES)
    loads.clear()
    again = [ours.load_config(name) for name in FILES]
    assert loads == []
    for one, other, name in zip(first, again, FILES, strict=True):
        expected = hydras.load_config(name)
        for found in (one, other):
            assert found.config == expected.config
            assert list(found.config) == list(expected.config)
            assert OmegaConf.to_yaml(found.config) == OmegaConf.to_yaml(expected.config)
            assert (found.header, found.provider) == (expected.header, expected.provider)
            assert found.path == f"lightning-peft-conf://{conf_dir()}"
        assert one.config is not other.config


def test_no_reader_changes_it_for_the_next(tmp_path):
    written(tmp_path, "# @package _global_\ndefaults: [{a: b}]\nx: {y: [1, 2]}\n")
    found = source_of(tmp_path).load_config("some")
    found.config.pop("defaults")
    found.config.x.y.append(3)
    found.header["package"] = "other"
    OmegaConf.set_readonly(found.config, True)
    again = source_of(tmp_path).load_config("some.yaml")
    assert again.config == {"defaults": [{"a": "b"}], "x": {"y": [1, 2]}}
    assert again.header == {"package": "_global_"}
    again.config.x.z = 1  # may be changed


def test_a_file_that_changed_is_read_again(tmp_path, loads):
    source = source_of(tmp_path)
    path = written(tmp_path, "a: 1\n")
    assert [source.load_config("some").config.a for _ in range(2)] == [1, 1]
    assert len(loads) == 1
    before = path.stat()
    written(tmp_path, "a: 12\n")  # another size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.load_config("some").config.a == 12
    written(tmp_path, "a: 13\n")  # another time
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert source.load_config("some").config.a == 13
    stamp = path.stat()
    other = tmp_path / "other.yaml"  # another file in its place, as editors save
    other.write_text("a: 14\n")
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    other.replace(path)
    assert source.load_config("some").config.a == 14
    assert len(loads) == 4
    path.unlink()
    with pytest.raises(OSError, match="Config not found"):
        source.load_config("some")


def test_two_directories_hold_two_files_of_one_name(tmp_path):
    for number in (1, 2):
        place = tmp_path / str(number)
        place.mkdir()
        path = written(place, f"a: {number}\n")
        os.utime(path, ns=(0, 0))
    found = [source_of(tmp_path / str(number)).load_config("some").config.a for number in (1, 2)]
    assert found == [1, 2]


def test_composing_again_parses_nothing_and_gives_the_same(loads):
    words = ["method=bitfit", "callbacks/average=ema", "seed=3"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        first = compose("config", words, return_hydra_config=True)
        loads.clear()
        again = compose("config", words, return_hydra_config=True)
    assert loads == []
    assert OmegaConf.to_yaml(again) == OmegaConf.to_yaml(first)
    assert again.hydra.output_subdir == ".hydra"  # from a file of Hydra's own


def test_another_application_reads_hydras_configs_as_ever(tmp_path):
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        path = GlobalHydra.instance().config_loader().get_search_path().get_path()
    assert [e.path for e in path if e.provider in ("hydra", "main")] == [
        "pkg://hydra.conf",
        str(tmp_path),
    ]
