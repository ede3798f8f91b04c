"""What lies around the package says what is true of it."""

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import lightning_peft

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

MAY_WRITE = {
    "docs.yml": {"publish": {"contents": "write"}},
    # a token for the package index, in the job that does nothing but publish what another has built
    "release.yml": {"publish": {"id-token": "write"}},
}
"""The jobs of workflows that may do more than read."""


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", ["run", "sweep"])
def test_what_the_command_leaves_in_a_checkout_is_ignored(part):
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of git")
    directory = read("conf/config.yaml")["hydra"][part]["dir"].partition("/")[0]
    ignored = ["git", "check-ignore", "--quiet", f"{directory}/any"]
    assert subprocess.run(ignored, cwd=ROOT, check=False).returncode == 0
    inside = f"lightning_peft/{directory}/any.py"  # a folder of the package is none of it
    tracked = subprocess.run([*ignored[:3], inside], cwd=ROOT, check=False)
    assert tracked.returncode == 1


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")))
def test_a_workflow_pins_its_actions_and_may_only_read(path):
    text = path.read_text(encoding="utf-8")
    used = re.findall(r"uses: (.*)", text)
    assert used
    pinned = re.compile(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+")
    assert [line for line in used if not pinned.fullmatch(line)] == []
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    more = {n: job["permissions"] for n, job in workflow["jobs"].items() if "permissions" in job}
    assert more == MAY_WRITE.get(path.name, {})
    for name in more:  # nobody but who may push a tag starts it
        assert workflow["jobs"][name]["if"] == "startsWith(github.ref, 'refs/tags/v')"


def test_a_release_is_started_by_a_person():
    workflow = read(".github/workflows/release.yml")
    assert list(workflow[True]) == ["workflow_dispatch"]  # YAML reads `on` as a word for true
    assert workflow["jobs"]["publish"]["needs"] == "build"


def test_ci_runs_on_every_supported_python_what_the_makefile_has():
    cells = read(".github/workflows/tests.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    prefix = "Programming Language :: Python :: 3."
    supported = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith(prefix)}
    assert {cell["python"] for cell in cells if cell["make"] == "test"} == supported
    targets = {cell["make"] for cell in cells}
    assert targets == {"test", "test-oldest", "wheel"}
    assert all(re.search(rf"^{target}:", MAKEFILE, flags=re.M) for target in targets)


def test_the_hooks_run_what_make_lint_runs():
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    hooks = [hook["entry"].split()[:2] for hook in repository["hooks"]]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, flags=re.M)[1]
    tools = [line.replace("$(BIN)", ".venv/bin").split()[:2] for line in lint.splitlines()]
    assert [hook for hook in hooks if hook not in tools] == []


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert citation["version"] == lightning_peft.__version__
    assert version("lightning-peft") == lightning_peft.__version__
    assert citation["license"] == PROJECT["license"]
