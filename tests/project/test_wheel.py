"""The wheel is whole: it runs from another directory, with the configs that came with it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = "hydra_plugins"
PACKED = ("lightning_peft", PLUGINS, "conf")
LEFT_OUT = ("tools", "examples", "benchmarks")
BUILT_FROM = ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", *PACKED, *LEFT_OUT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")  # a build leaves traces where it is made
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target)]
    quiet = ["--quiet", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [*install, *quiet, str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def run(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run_command(*words):
        command = [sys.executable, str(installed / "bin" / "lightning-peft"), *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run_command


def test_the_wheel_holds_every_config_and_data_file_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {
        f"lightning_peft/conf/{path.relative_to(ROOT / 'conf').as_posix()}"
        for path in (ROOT / "conf").rglob("*.yaml")
    }
    package = {
        path.relative_to(ROOT).as_posix()
        for part in ("lightning_peft", PLUGINS)
        for path in (ROOT / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert configs
    assert names >= configs | package
    assert {name.partition("/")[0] for name in names} == {
        "lightning_peft",
        PLUGINS,
        next(name for name in names if ".dist-info/" in name).partition("/")[0],
    }


def test_the_command_composes_the_configs_of_the_wheel(run, installed):
    helped = run("--help")
    assert helped.returncode == 0, helped.stderr
    assert "experiment=" in helped.stdout
    searched = run("--info", "searchpath")
    assert str(installed / "lightning_peft" / "conf") in searched.stdout, searched.stderr
    assert str(ROOT / "conf") not in searched.stdout
    composed = run("method=lora", "method.rank=4", "--cfg", "job", "--package", "method")
    assert composed.returncode == 0, composed.stderr
    assert "_target_: lightning_peft.LoRA" in composed.stdout
    assert "rank: 4" in composed.stdout


def test_the_plugins_of_the_wheel_are_found_by_hydra(run, installed):
    # from the installation: a namespace package has no __init__.py that another plugin could hide
    assert not (installed / PLUGINS / "__init__.py").exists()
    composed = run("hydra/launcher=fresh", "--cfg", "hydra", "--package", "hydra.launcher")
    assert composed.returncode == 0, composed.stderr
    assert "FreshLauncher" in composed.stdout
    searched = run("--info", "searchpath")
    assert "lightning-peft://" in searched.stdout
