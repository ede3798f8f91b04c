"""Compose ``lightning-peft --help``: every command, group and choice, with a line each.

The text comes from the first comment line of each config file, which is read as plain text:
importing Hydra or a YAML parser would take longer than everything else here. The settings of a
chosen method (``method=lora --help``) are read from the source of its class.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_peft.cli.config.method_fields import REQUIRED, fields_of
from lightning_peft.cli.config.paths import conf_dir

__all__ = [
    "all_groups",
    "choices",
    "default_choices",
    "experiment_settings",
    "groups",
    "help_text",
    "method_settings",
    "settings",
]

NAME_WIDTH = 22

INTRODUCTION = """\
Adapt a pretrained backbone to a task by training a small part of it.

usage: lightning-peft [GROUP=CHOICE | KEY=VALUE ...]     train once
       lightning-peft -m GROUP=A,B KEY=1,2 [...]         train every combination, and compare
       lightning-peft COMMAND [--help | ...]
"""

REGULARISERS = {
    "method.dropout": "dropout on the adapter's input, if the method has it",
    "model.head_dropout": "dropout on the features before the head",
    "model.drop_path": "stochastic depth: how often the last block skips its residual branches",
    "model.label_smoothing": "fraction of the target that is spread over all classes",
    "model.mixup": "alpha of mixup; model.cutmix is that of CutMix",
    "optimizer.weight_decay": "weight decay of everything but biases, norms and tokens",
    "model.adapter_weight_decay": "weight decay of the adapters, if different",
    "model.head_weight_decay": "weight decay of the head, if different",
    "model.head_lr": "learning rate of the head, if different",
    "model.layer_decay": "factor of the learning rate from each block to the one before it",
    "model.lora_plus": "LoRA+: factor of the learning rate of B over that of A",
    "callbacks.l2sp.strength": "decay of weights trained in place towards their pretrained values",
    "callbacks.average.decay": "with callbacks/average=ema: decay of the moving average per step",
    "callbacks.stop.patience": "with callbacks/stop=early: validations without improvement",
    "schedule.warmup": "0.1 or 10% of the run, 500 or '500 steps', '2 epochs'",
}
"""The keys of regularisation, with what each sets."""

FLAGS = {
    "-m": "sweep over comma-separated choices and values",
    "hydra.sweep.dir=DIR": "the directory of the sweep; the same command again resumes it without "
    "running finished jobs again (like lightning-peft continue DIR)",
    "hydra/launcher=fresh": "run each job of a sweep in its own process; for long sweeps, and DDP",
    "hydra/launcher=joblib": "run jobs in parallel: hydra.launcher.n_jobs=2 (also submitit_local; "
    "extra: sweep)",
    "hydra/sweeper=search": "let Optuna choose the values: lr='tag(log,interval(1e-4,1e-2))' "
    "(extra: sweep; as in experiment=optuna)",
    "hydra/sweeper/sampler=random": "with hydra/sweeper=search: how values are proposed "
    "(tpe, cmaes, nsgaii, random, grid)",
    "hydra/sweeper/pruner=median": "with hydra/sweeper=search: stop trials that fall behind",
    "--cfg job": "show the composed config and stop (--resolve, --package KEY)",
    "--info defaults": "show where each part of the config comes from",
    "--config-dir DIR": "add a directory of your own groups and choices",
    "--version": "show the version",
    "--hydra-help": "show the flags of Hydra, which composes the config",
}

EXAMPLES = """\
  lightning-peft method=lora data.labels_per_class=10
  lightning-peft method=lora method.rank=4 lr=1e-3 trainer.max_steps=500
  lightning-peft -m method=lora,bitfit,full seed=0,1,2
  lightning-peft -m method=lora,bitfit seed=0,1 hydra.sweep.dir=sweeps/a
  lightning-peft -m experiment=few_shot shots=1,2,4,8,16 method=lora,linear_probe
"""


class Setting(NamedTuple):
    """A top-level key of the config, its default as written, and its comment."""

    key: str
    default: str
    comment: str


def groups(root: Path) -> list[str]:
    """Return the config groups in the order of the defaults list."""
    return list(default_choices(root))


def default_choices(root: Path) -> dict[str, str]:
    """Return ``group -> choice`` of the defaults list of ``config.yaml``; no choice is ``""``."""
    found: dict[str, str] = {}
    lines = (root / "config.yaml").read_text(encoding="utf-8").splitlines()
    start = lines.index("defaults:") + 1
    for line in lines[start:]:
        if line.strip() and not line.startswith((" ", "#")):
            break
        if match := re.match(r"\s+- ([\w/]+): (\w+)", line):
            group, choice = match.groups()
            found[group] = "" if choice == "null" else choice
    return found


def choices(roots: Sequence[Path], group: str) -> dict[str, str]:
    """Return the first comment line of each choice of a group."""
    files = {path.stem: path for root in reversed(roots) for path in (root / group).glob("*.yaml")}
    return {name: _first_comment(files[name]) for name in sorted(files)}


def settings(root: Path) -> Iterator[Setting]:
    """Yield the scalar top-level keys of ``config.yaml`` with the comment above each."""
    return _scalars(root / "config.yaml")


def experiment_settings(root: Path) -> Iterator[tuple[str, Setting]]:
    """Yield ``(experiment, setting)`` for each top-level key that an experiment defines."""
    everywhere = {setting.key for setting in settings(root)}
    for path in sorted((root / "experiment").glob("*.yaml")):
        for setting in _scalars(path):
            if setting.key not in everywhere:
                yield path.stem, setting


def _scalars(path: Path) -> Iterator[Setting]:
    comment = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            comment = f"{comment} {line.lstrip('# ')}".strip()
        elif match := re.match(r"(\w+): (.+)$", line):
            yield Setting(match[1], match[2], comment)
            comment = ""
        else:
            comment = ""


def method_settings(path: Path) -> Iterator[Setting]:
    """Yield the settings of a method, from its config or else from the defaults of its class.

    Args:
        path: The config of the method, such as ``conf/method/lora.yaml``.
    """
    text = path.read_text(encoding="utf-8")
    for rate in re.findall(r"^lr: (\S+)", text, flags=re.M):
        yield Setting("lr", rate, "the learning rate that suits the method")
    block = re.split(r"^(?! )", text.partition("\nmethod:\n")[2], maxsplit=1, flags=re.M)[0]
    written = dict(re.findall(r"^  (\w+): (\S+)", block, flags=re.M))
    fields = fields_of(written.pop("_target_", "").removeprefix("lightning_peft."))
    defaults = {field.name: _plain(field.default) for field in fields if field.default != REQUIRED}
    texts = {field.name: field.text.replace("``None``", "null") for field in fields}
    for name, default in {**defaults, **written}.items():
        yield Setting(f"method.{name}", default, texts.get(name, "").replace("``", ""))


def _plain(value: Any) -> str:
    """Return a default as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def help_text(args: Sequence[str] = (), root: Path | None = None) -> str:
    """Compose the help.

    Args:
        args: The command line; a ``--config-dir`` in it adds its choices.
        root: The directory of the configs; the installed ones by default.

    Returns:
        The text, ending in a newline.
    """
    from lightning_peft.cli.config.words import COMMANDS

    root = conf_dir() if root is None else root
    roots = [*_own_directories(args), root]
    defaults = default_choices(root)
    parts = [INTRODUCTION, "\nCommands\n"]
    parts += [_entry(name, command.summary) for name, command in COMMANDS.items()]
    parts.append("\nGroups (* marks the default)\n")
    for group in all_groups(roots, defaults):
        parts.append(f"  {group}=\n")
        for name, comment in choices(roots, group).items():
            mark = "*" if defaults.get(group) == name else " "
            parts.append(_entry(f"{mark} {name}", comment))
    parts.append(
        "\nSettings (also each key of a group, such as method.rank=4; to list those of a method:\n"
        "lightning-peft method=lora --help)\n"
    )
    parts += [_entry(f"{key}={default}", comment) for key, default, comment in settings(root)]
    parts += [
        _entry(f"{key}={default}", f"with experiment={name}: {comment}")
        for name, (key, default, comment) in experiment_settings(root)
    ]
    parts += _chosen_methods(args, roots)
    parts.append("\nRegularisation (docs/regularisation.md)\n")
    parts += [_entry(key, text) for key, text in REGULARISERS.items()]
    parts.append("\nFlags and sweeps\n")
    parts += [_entry(flag, text) for flag, text in FLAGS.items()]
    parts += ["\nExamples\n", EXAMPLES]
    return "".join(parts)


def _chosen_methods(args: Sequence[str], roots: Sequence[Path]) -> Iterator[str]:
    words = [word.removeprefix("method=") for word in args if word.startswith("method=")]
    for name in ",".join(words).split(","):
        paths = [root / "method" / f"{name}.yaml" for root in roots]
        for path in [path for path in paths if path.is_file()][:1]:
            yield f"\nSettings of method={name}\n"
            for key, default, text in method_settings(path):
                yield _entry(f"{key}={default}", text)


def _entry(name: str, text: str) -> str:
    indent = " " * (NAME_WIDTH + 6)
    label = f"    {name:<{NAME_WIDTH}}  "
    if len(name) > NAME_WIDTH:
        label = f"    {name}\n{indent}"
    width = min(110, max(70, _columns()))
    lines = textwrap.wrap(text, width - len(indent)) or [""]
    return label + f"\n{indent}".join(lines) + "\n"


def _columns() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 100


def _first_comment(path: Path) -> str:
    """Return the first comment that is not a Hydra directive (``# @package ...``)."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("#") and not re.match(r"#\s*@", line):
                return line.lstrip("# ").strip()
    return ""


def all_groups(roots: Sequence[Path], defaults: dict[str, str]) -> list[str]:
    """Return the config groups, those of other directories after those of the defaults list."""
    named = {path.name for root in roots for path in root.iterdir() if any(path.glob("*.yaml"))}
    return [*defaults, *sorted(named - set(defaults) - {"hydra"})]


def _own_directories(args: Sequence[str]) -> Iterator[Path]:
    for position, word in enumerate(args):
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            directory = Path(value or (args[position + 1] if position + 1 < len(args) else ""))
            if directory.is_dir():
                yield directory
