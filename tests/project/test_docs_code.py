"""The Python of the documentation compiles, and what it types on a command line exists."""

import ast
import inspect
import re
import shlex
import textwrap
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

import lightning_peft as lp
from lightning_peft.cli.config.auto_rate import begun
from lightning_peft.cli.config.check import check_values
from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.known import experiment_in, known_keys
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.config.words import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path.parent.name != "reference"]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", flags=re.M | re.S)
INLINE = re.compile(r"`(lightning-peft [^`]+)`")
LP = re.compile(r"\blp\.(\w+)")
PLACES = ("COMMAND", "GROUP=", "KEY=", "...", "=position")
"""What a reader replaces: such a command cannot be checked."""


def named(path):
    return path.relative_to(DOCS).as_posix()


def python_blocks(text):
    return [textwrap.dedent(code) for _, kind, code in FENCE.findall(text) if kind == "python"]


def commands(path):
    """Yield the words of each command of a page, in blocks and within sentences."""
    text = path.read_text(encoding="utf-8").replace(" && ", "\n")
    code = [code for _, kind, code in FENCE.findall(text) if not kind]
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        if line.strip().startswith("lightning-peft "):
            yield shlex.split(line, comments=True)[1:]
    for line in INLINE.findall(FENCE.sub("", text)):
        yield shlex.split(" ".join(line.split()))[1:]


COMMAND_LINES = sorted(
    {
        (named(path), shlex.join(words))
        for path in PAGES
        for words in commands(path)
        if not any(word in typed for typed in words for word in PLACES)
    }
)


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_the_python_of_a_page_compiles(path):
    for block in python_blocks(path.read_text(encoding="utf-8")):
        compile(block, named(path), "exec")


def test_there_are_commands_of_all_kinds():
    first = {shlex.split(line)[0] for _, line in COMMAND_LINES}
    assert set(COMMANDS) - {"train"} <= first
    assert len(COMMAND_LINES) > 80


def flags_of(command):
    """Return the flags in the help of a command, which its page has."""
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    said = text.partition(f"## lightning-peft {command}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"(?<![\w-])-{1,2}[a-z][\w-]*", said))


def test_the_flags_of_every_command_exist():
    unknown = []
    for page, line in COMMAND_LINES:
        command, *words = shlex.split(line)
        flags = {word.partition("=")[0] for word in words if word.startswith("-")}
        if command in COMMANDS and not flags <= flags_of(command):
            unknown.append((page, line))
    assert unknown == []


def calls(block):
    """Yield the names that a block takes from ``lp``, and the keywords that it calls each with."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Call) and (name := LP.fullmatch(ast.unparse(node.func))):
            yield name[1], {word.arg for word in node.keywords if word.arg}


def test_the_names_and_keywords_of_every_page_exist():
    unknown = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        names = set(LP.findall(text))
        unknown += [(named(path), name) for name in names if name not in lp.__all__]
        for block in python_blocks(text):
            for name, keywords in calls(block):
                parameters = inspect.signature(getattr(lp, name)).parameters
                if inspect.Parameter.VAR_KEYWORD not in {p.kind for p in parameters.values()}:
                    unknown += [(named(path), name, word) for word in keywords - set(parameters)]
    assert unknown == []


def overrides(words):
    """Return the overrides that the command composes, with the first of the values of a sweep."""
    command = words[0] if words[0] in COMMANDS else "train"
    if command not in ("train", "plan", "show", "rank"):
        return []
    own = [word for word in words if re.match(r"[a-z][\w/.]*=(?!.*\$)", word)]
    own = [word for word in own if not word.startswith(("hydra", "models=", "max_"))]
    if command == "rank":  # which takes its backbones from models=
        own.append("model.backbone=resnet18")
    if "experiment=vtab" in " ".join(own):  # whose tasks are swept
        own.append("data.task=cifar")
    return [first_of(word) for word in own]


def first_of(word):
    """Return an override with the first of the values that a sweep would take."""
    key, _, value = word.partition("=")
    if value.startswith(("[", "{")):
        return word
    if drawn := re.match(r"(?:tag\(log,)?(?:choice|interval)\(([\w.-]+)", value):
        return f"{key}={drawn[1]}"
    return f"{key}={value.split(',')[0]}"


@pytest.mark.slow  # five seconds
def test_the_overrides_of_every_command_compose():
    problems = []
    for page, line in COMMAND_LINES:
        words = overrides(shlex.split(line))
        study = [f"hydra.searchpath=[file://{ROOT}/examples/habits]"] if "habits_" in line else []
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            try:
                cfg = compose("config", [*study, *words, "name=test", "output_dir=."])
                begun(cfg, words)  # lr=auto
                check_values(cfg, known_keys(experiment_in(words)))
            except (HydraException, ConfigError) as error:
                problems.append(f"{page}: {line}: {error}")
    assert problems == []
