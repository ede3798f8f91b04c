"""Build the pages of the public names, the commands, the configs, and of the notebooks."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).parents[2]
STUB = ROOT / "lightning_peft" / "__init__.pyi"
IMPORT = re.compile(r"^from (\S+) import (?:\(\s*)?(\w+) as \2\b", flags=re.M)
GENERATED = "(`python docs/make_pages.py` generates this page"


class Page(NamedTuple):
    """A page of public names: its title, its first sentence, and the modules the names are from."""

    title: str
    about: str
    modules: tuple[str, ...]


NAMES = {
    "adapting": Page(
        "Adapting a model",
        "What works on any `nn.Module`, with or without Lightning: [how to](../pytorch.md).",
        ("adaptation.", "kernels"),
    ),
    "methods": Page(
        "Methods",
        "Each method is a frozen dataclass; its fields are its settings. [The table of methods]"
        "(../methods.md) has formulas, papers and costs.",
        ("methods",),
    ),
    "callbacks": Page(
        "Callbacks and checkpoints",
        "What goes into a `Trainer`, and what loads what it wrote: [how to](../callback.md).",
        (
            "lightning.callbacks.",
            "lightning.rates.",
            "lightning.checkpoint_io",
            "lightning.mixin",
            "lightning.without_trainer",
        ),
    ),
    "modules": Page(
        "Modules",
        "LightningModules for a backbone and its task. A module of your own needs none of them.",
        ("lightning.modules.",),
    ),
    "data": Page(
        "Data",
        "Data modules and augmentation, for [images](../images.md) and [texts](../text.md).",
        ("lightning.datamodules.", "data.", "caching."),
    ),
    "plots": Page(
        "Comparisons and pictures",
        "What `lightning-peft compare` and `show` print and draw, in Python; a notebook shows it.",
        ("cli.",),
    ),
    "errors": Page(
        "Errors",
        "The package refuses bad input with one of these errors, before anything has changed. The "
        "message says what was expected, what was given and what to do.",
        ("errors",),
    ),
}
MEMBERS = {"Adaptation", "AdaptationPlan", "AdapterSwitch", "Method"}
"""The classes whose methods a user calls; the others are built and handed over."""


def page_of(module: str) -> str | None:
    """Return the page on which the names of a module are."""
    inner = module.removeprefix("lightning_peft.")
    for name, page in NAMES.items():
        if any(inner == part.rstrip(".") or inner.startswith(part) for part in page.modules):
            return name
    return None


def names_page(name: str) -> str:
    """Build a page of public names, whose text mkdocstrings takes from the docstrings."""
    page = NAMES[name]
    public = IMPORT.findall(STUB.read_text(encoding="utf-8"))
    here = sorted((public for module, public in public if page_of(module) == name), key=str.lower)
    lines = [
        f"# {page.title}",
        "",
        page.about,
        "",
        f"{GENERATED} from `lightning_peft/__init__.pyi`.)",
    ]
    for public_name in here:
        lines += ["", f"::: lightning_peft.{public_name}"]
        if public_name in MEMBERS:
            lines += ["    options:", "      members: null"]
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Build the page of the commands, from what each prints for ``--help``."""
    return "\n".join(_commands()) + "\n"


def _commands() -> Iterator[str]:
    from lightning_peft.cli import main
    from lightning_peft.cli.config.words import COMMANDS

    yield "# Commands"
    yield ""
    yield "What each command prints for `--help`. [The command line](../command-line.md) shows"
    yield "when to use which, and [Configs](configs.md) has the groups, choices and settings of"
    yield f"training. {GENERATED}.)"
    for name, command in COMMANDS.items():
        if name == "train":
            continue
        said = io.StringIO()
        with mock.patch.dict(os.environ, COLUMNS="90"), contextlib.redirect_stdout(said):
            main([name, "--help"])
        yield ""
        yield f"## lightning-peft {name}"
        yield ""
        yield f"{command.summary.capitalize()}."
        yield ""
        yield "```text"
        yield said.getvalue().strip("\n")
        yield "```"


def configs_page() -> str:
    """Build the page of the configs, from ``conf/``."""
    return "\n".join(_configs()) + "\n"


def _configs() -> Iterator[str]:
    from lightning_peft.cli.config import help as helps

    root = ROOT / "conf"
    defaults = helps.default_choices(root)
    yield "# Configs"
    yield ""
    yield "Every group, choice and setting of a training. [The command"
    yield "line](../command-line.md) shows how to use them. Every choice below is a file"
    yield f"`conf/GROUP/CHOICE.yaml`, and **bold** is the default. {GENERATED} from `conf/`.)"
    yield ""
    yield "## Settings"
    yield ""
    yield "| key | default | what |"
    yield "|---|---|---|"
    for key, default, comment in helps.settings(root):
        yield f"| `{key}` | `{default}` | {_cell(comment)} |"
    for experiment, (key, default, comment) in helps.experiment_settings(root):
        yield f"| `{key}` | `{default}` | with `experiment={experiment}`: {_cell(comment)} |"
    for group in helps.all_groups([root], defaults):
        yield ""
        yield f"## {group}"
        yield ""
        yield f"| `{group}=` | what |"
        yield "|---|---|"
        for choice, comment in helps.choices([root], group).items():
            shown = f"**`{choice}`**" if defaults.get(group) == choice else f"`{choice}`"
            yield f"| {shown} | {_cell(comment)} |"
    yield ""
    yield "## Settings of the methods"
    yield ""
    yield "| key | default | what |"
    yield "|---|---|---|"
    for path in sorted((root / "method").glob("*.yaml")):
        for key, default, text in helps.method_settings(path):
            yield f"| `method={path.stem} {key}=` | `{default}` | {_cell(text)} |"
    yield ""
    yield "## Regularisation"
    yield ""
    yield "The keys, their defaults and sources are in [Regularisation and"
    yield "schedules](../regularisation.md)."
    yield ""
    yield "## Flags"
    yield ""
    yield "| flag | what |"
    yield "|---|---|"
    for flag, text in helps.FLAGS.items():
        yield f"| `{flag}` | {_cell(text)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def tutorial_page(path: Path) -> str:
    """Build a page from a notebook: its text, and its code."""
    told = f"(This page is the notebook `{path.relative_to(ROOT).as_posix()}`, which a test runs.)"
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
        if told and cell["cell_type"] == "markdown":
            parts.append(told)
            told = ""
    return "\n\n".join(parts) + "\n"


NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))

PAGES: dict[str, Callable[[], str]] = {
    f"reference/{name}.md": partial(names_page, name) for name in NAMES
} | {
    "reference/commands.md": commands_page,
    "reference/configs.md": configs_page,
}
PAGES |= {f"tutorials/{path.stem}.md": partial(tutorial_page, path) for path in NOTEBOOKS}
