"""The tests of ``peft`` itself: fetched from the package index, imported for their lists."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import tarfile
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

__all__ = ["fetch", "load"]

KEPT = Path(__file__).parents[2] / "build" / "peft-suite"
# the test files import these; none of the lists needs them
_NOT_NEEDED = ("datasets", "diffusers", "parameterized")
_PACKAGE = "tests_of_peft"


def fetch() -> Path:
    """Return the folder of the tests of the installed ``peft``; downloaded once.

    The source release on the package index holds them, so that no access to GitHub is needed.
    """
    release = version("peft")
    tests = KEPT / f"peft-{release}" / "tests"
    if tests.is_dir():
        return tests
    KEPT.mkdir(parents=True, exist_ok=True)
    archive = KEPT / f"peft-{release}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--no-binary", "peft", "--dest", str(KEPT)]
        subprocess.run([*command, f"peft=={release}"], check=True)
    with tarfile.open(archive) as opened:
        inside = f"peft-{release}/tests/"
        wanted = [member for member in opened.getmembers() if member.name.startswith(inside)]
        if not wanted:
            raise FileNotFoundError(f"{archive} holds no tests of peft.")
        opened.extractall(KEPT, members=wanted, filter="data")
    return tests


def load(name: str) -> ModuleType:
    """Import one file of peft's tests, such as ``"test_custom_models"``."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing else is downloaded
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    for missing in _NOT_NEEDED:
        if missing not in sys.modules and importlib.util.find_spec(missing) is None:
            stand_in = MagicMock()
            stand_in.__spec__ = ModuleSpec(missing, None)
            stand_in.__path__ = []
            sys.modules[missing] = stand_in
    if _PACKAGE not in sys.modules:  # they import each other as parts of one package
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(fetch())]
        sys.modules[_PACKAGE] = package
    return importlib.import_module(f"{_PACKAGE}.{name}")
