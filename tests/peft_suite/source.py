"""The tests of ``peft`` itself: fetched from the package index, imported for their lists."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

__all__ = ["fetch", "load"]

KEPT = Path(__file__).parents[2] / "build" / "peft-suite"
# the test files import these, and read data from a hub with them; none of the lists needs them
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
    if _PACKAGE not in sys.modules:  # they import each other as parts of one package
        package = ModuleType(_PACKAGE)
        package.__path__ = [str(fetch())]
        sys.modules[_PACKAGE] = package
    with _stand_ins():
        return importlib.import_module(f"{_PACKAGE}.{name}")


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Put an empty module in the place of each that is not needed, installed or not."""
    before = {name: sys.modules.get(name) for name in _NOT_NEEDED}
    for name in _NOT_NEEDED:
        stand_in = MagicMock()
        stand_in.__spec__ = ModuleSpec(name, None)
        stand_in.__path__ = []
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
