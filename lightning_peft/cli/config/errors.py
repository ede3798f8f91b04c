"""Explain a mistyped command line in one readable line.

Hydra says where a composition failed. The names that exist, and among them the one that was meant,
are in its exceptions: the options of a group, the keys of the node that lacks one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from io import IOBase
from typing import Any

from lightning_peft.cli.config.help import default_choices, experiment_settings
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.errors import PEFTError, near
from lightning_peft.system.atomic import lacks_room

__all__ = [
    "ConfigError",
    "cause_of",
    "dotted_keys",
    "explain",
    "missing_value",
    "nodes",
    "of_a_file",
    "of_an_experiment",
    "unknown_key",
]


OF_AN_EXTRA = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
}
"""Launchers of Hydra's plugins, and what they come with."""

LISTS = ("Available options in", "Config search path:")
"""From such a line on, an error of Hydra lists what there is."""

NO_SENTENCE = (
    "full_key:",
    "object_type=",
    "reference_type=",
    "See https://hydra.cc",
    "Set the env",
)
"""Lines of an error that are for whoever writes the program."""


class ConfigError(PEFTError, ValueError):
    """A config that composes but cannot be run.

    Attributes:
        problems: One sentence for each problem.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def explain(error: BaseException) -> str | None:
    """Return what is wrong with the command line, one line for each problem.

    Args:
        error: The error of composing a config, or of building what it describes.

    Returns:
        The text, or ``None`` if the command line did not cause the error.
    """
    chain = list(_chain(error))
    for link in chain:  # an error of this package says by itself what was expected
        if isinstance(link, PEFTError):
            return str(link)
    for link in chain:
        if isinstance(link, OSError) and lacks_room(link) is not None:
            what = link.filename or _open_file(link) or "a file"
            return f"{what}: it cannot be written ({link.strerror}). Make room, and start again."
    from hydra.errors import HydraException, InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    for link in chain:
        text = _known(link)
        if text is not None:
            return text
    if isinstance(error, InstantiationException):  # its own first line names only what was called
        key = re.search(r"full_key: (\S+)", str(error))
        cause = cause_of(error)
        told = _whole(error) if cause is error else f"{type(cause).__name__}: {cause}"
        return f"{f'{key[1]}: ' if key else ''}{' '.join(told.split())}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _whole(error)
    if isinstance(error, ValueError) and _raised_in(error).startswith("hydra."):
        # -m with --cfg, method=null: Hydra lets these through as they are
        return _whole(error)
    return None


def cause_of(error: BaseException) -> BaseException:
    """Return the error inside Hydra's ``instantiate``; otherwise the error itself."""
    cause = error
    while cause.__cause__ is not None and type(cause).__module__.startswith("hydra."):
        cause = cause.__cause__
    return cause


def of_a_file(error: Exception) -> Exception:
    """Return an error of a file that stands in the way, such as a directory, in words.

    Args:
        error: Any error; others than those of named files are returned as they are.
    """
    if not isinstance(error, OSError) or error.filename is None:
        return error
    if explain(error) is not None or lacks_room(error) is not None:
        return error
    name = error.filename2 or error.filename  # of a renaming, the new name
    told = f"{name}: cannot be written ({error.strerror}). Remove what is in its place."
    return ConfigError([told]).with_traceback(error.__traceback__)


def unknown_key(key: str, options: Sequence[str], everywhere: Sequence[str] = ()) -> str:
    """Return the error for a key that does not exist, with the key that may have been meant.

    Args:
        key: The dotted key that was typed.
        options: The keys that exist in the same group.
        everywhere: Every dotted key of the config, to find one that was typed without its group.

    Returns:
        One sentence.
    """
    leaf = key.rpartition(".")[2]
    elsewhere = [known for known in everywhere if known.rpartition(".")[2] == leaf]
    if elsewhere:
        names = " or ".join(f"'{known}'" for known in elsewhere[:3])
        return f"unknown key '{key}'. Did you mean {names}?"
    return f"unknown key '{key}'. {near(leaf, options)}"


def of_an_experiment(key: str) -> str | None:
    """Return a hint at the experiments that define a top-level key; ``None`` if none does."""
    names = [name for name, setting in experiment_settings(conf_dir()) if setting.key == key]
    if not names:
        return None
    choices = " or ".join(f"experiment={name}" for name in names)
    return f"'{key}' is a key of {choices}: choose it, or leave {key} out."


def dotted_keys(config: Any) -> list[str]:
    """Return every key of a nested config as ``group.key``."""
    return [key for key, _ in nodes(config)]


def nodes(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted key, node)`` for everything in a nested config; nothing is resolved."""
    from omegaconf import OmegaConf

    if not OmegaConf.is_dict(config) or config._is_none() or config._is_missing():
        return
    if config._is_interpolation():
        return
    for key in config:
        name, node = f"{prefix}{key}", config._get_node(key)
        if name == "hydra" or str(key).startswith("_"):
            continue
        yield name, node
        yield from nodes(node, f"{name}.")


def _open_file(error: OSError) -> str | None:
    """Return the file that was open where an error was raised; those of writing do not name it."""
    found: str | None = None
    trace = error.__traceback__
    while trace is not None:
        for value in trace.tb_frame.f_locals.values():
            name = getattr(value, "name", None) if isinstance(value, IOBase) else None
            found = name if isinstance(name, str) else found
        trace = trace.tb_next
    return found


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _known(error: BaseException) -> str | None:
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import (
        ConfigAttributeError,
        ConfigKeyError,
        InterpolationResolutionError,
        MissingMandatoryValue,
        ValidationError,
    )

    # Lightning's own word for settings that cannot be trained with
    if type(error).__name__ == "MisconfigurationException":
        return " ".join(str(error).split())
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        options = [str(option).rpartition("/")[2] for option in error.options or ()]
        if choice in OF_AN_EXTRA and group.strip("/").startswith("hydra/"):
            text = f"{group.strip('/')}={choice} needs {OF_AN_EXTRA[choice]}"
            return f"{text}. It comes with: pip install 'lightning-peft[sweep]'"
        if options:
            return f"there is no {group.strip('/')}={choice}. {near(choice, options, most=20)}"
    if isinstance(error, OverrideParseException):
        return _override(str(error.override), error)
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        if error.parent_node is None or error.full_key is None:
            return None
        node: Any = error.parent_node
        options = [str(key) for key in node] if OmegaConf.is_dict(node) else []
        if node._get_parent() is None:  # a group without a choice, such as experiment, is no key
            options = [*options, *default_choices(conf_dir())]
            if told := of_an_experiment(str(error.full_key)):
                return told
        options = [name for name in options if not name.startswith("_") and name != "hydra"]
        everywhere = dotted_keys(node._get_root())
        text = unknown_key(str(error.full_key), options, everywhere)
        if OmegaConf.is_dict(node) and "_target_" in node and "Did you mean" not in text:
            text += f" To pass it all the same: +{error.full_key}=..."
        return text
    if isinstance(error, MissingMandatoryValue):
        match = re.search(r"full_key: (\S+)", str(error)) or re.search(r"value: (\S+)", str(error))
        return missing_value(match[1]) if match else _whole(error)
    if isinstance(error, InterpolationResolutionError | ValidationError):
        where = f"{error.full_key}: " if error.full_key else ""
        return f"{where}{_whole(error)}"
    return None


def _raised_in(error: BaseException) -> str:
    """Return the module of the innermost frame."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))


def missing_value(key: str) -> str:
    """Return the error for a mandatory key that was left out."""
    return f"{key} needs a value: add {key}=... to the command line."


def _override(text: str, error: BaseException) -> str:
    if "=" not in text:
        from lightning_peft.cli.config.words import COMMANDS

        hint = f" A command comes first: lightning-peft {text} ..." if text in COMMANDS else ""
        return f"'{text}' is not an override: expected key=value.{hint}"
    told = _whole(error)
    if told.startswith("LexerNoViableAltException"):
        told = "a quote is not closed, or a character has to be in quotes"
    return f"cannot read the override '{text}': {told}"


def _whole(error: BaseException) -> str:
    """Return an error of Hydra or OmegaConf in one line.

    Its further lines say what to do; those left out here say where it was found and what exists.
    """
    found: list[str] = []
    for line in map(str.strip, str(error).splitlines()):
        if line.startswith(LISTS):
            break
        if line.strip("^") and not line.startswith(NO_SENTENCE):
            found.append(line)
    text = ""
    for line in found:
        text += (" " if text.endswith((".", ":", "?", "!", ",")) else "; " if text else "") + line
    return text or repr(error)
