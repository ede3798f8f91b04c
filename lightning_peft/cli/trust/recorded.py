"""Read the config of a recorded run, and refuse what it may not build.

A run writes its config resolved: mappings, lists, texts and numbers, without tags, anchors and
interpolations. What is not written like that did not come from a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.trust.allowed import refusal
from lightning_peft.cli.trust.words import NOBODY, Trust, refuse
from lightning_peft.files.plain_file import NotPlainError, read_text

__all__ = [
    "MOST_BYTES",
    "REACHES_OUT",
    "NoMappingError",
    "check_config",
    "parse_plain",
    "problems_in",
    "read_config",
]

MOST_BYTES = 4 << 20
MOST_DEPTH = 60
MOST_NODES = 50_000
MOST_LAYERS = 1_000
MOST_SIZE = 100_000

PARTS = ("callbacks", "data", "logger", "method", "model", "optimizer", "schedule", "trainer")
"""Parts of a config that hold settings."""

TAGS = (None, *(f"tag:yaml.org,2002:python/object/apply:pathlib.{kind}" for kind in (
    "Path", "PosixPath", "WindowsPath")))  # fmt: skip
"""What OmegaConf writes: no tag, or that of a path, which it makes of the texts that follow."""

REACHES_OUT = {
    "checkpoint_path": "reads a file that it names",
    "pretrained_cfg": "reads a file or an address that it names",
    "pretrained_cfg_overlay": "reads a file or an address that it names",
    "trust_remote_code": "runs code of a model's repository",
    "code_revision": "runs code of a model's repository",
    "auto_map": "runs code of a model's repository",
    "megatron_config": "imports the module that megatron_core names",
    "megatron_core": "is imported",
    "custom_generate": "runs code of a model's repository",
    "corda_config": "reads a file that it names",
    "lora_ga_config": "reads a file that it names",
    "arrow_config": "works with other adapters",
}
"""Arguments that make an allowed class import, read or fetch what they name."""


class NoMappingError(ValueError):
    """YAML that is a text, a number or a list."""


def read_config(path: Path, root: Path | None = None, trust: Trust = NOBODY) -> Any:
    """Read the ``config.yaml`` of a run.

    Args:
        path: The file.
        root: The directory that it has to lie in; by default its own.
        trust: What the user vouches for.

    Returns:
        The config, as OmegaConf's.

    Raises:
        ConfigError: If it is not the config of a run, or asks for what it may not have; every
            problem is named.
    """
    from omegaconf import OmegaConf

    try:
        config: Any = parse_plain(read_text(path, root, MOST_BYTES))
        plain: Any = OmegaConf.to_container(config)
    except NotPlainError as error:
        raise ConfigError([str(error)]) from error
    except Exception as error:  # of the YAML parser and of OmegaConf, which have no common type
        told = " ".join(str(error).split())
        raise ConfigError(
            [
                f"{path}: expected the config that a run writes, got a file that is cut off, "
                f"tampered with or of another program ({type(error).__name__}: {told:.200})."
            ]
        ) from error
    check_config(path, plain, trust)
    return config


def check_config(path: Path, plain: Mapping[str, Any], trust: Trust = NOBODY) -> None:
    """Refuse a recorded config that asks for what it may not have.

    Args:
        path: Its file, for the error.
        plain: The config, as plain types, not resolved.
        trust: What the user vouches for.

    Raises:
        ConfigError: Naming every problem.
    """
    flat = [key for key in PARTS if not isinstance(plain.get(key), Mapping | None)]
    if flat:
        told = "; ".join(f"{key}: expected settings, got {plain[key]!r:.60}" for key in flat)
        raise ConfigError([f"{path}: {told}. Restore the file, or train the run again."])
    if not trust.all:
        refuse(path, list(problems_in(plain, trust.own)))


def parse_plain(text: str) -> Any:
    """Return YAML of mappings, lists, texts and numbers as a config of OmegaConf.

    Raises:
        ValueError: If it has tags, anchors, several documents or no mapping, or is nested too
            deeply or too large; a few lines of anchors may stand for billions of values.
        YAMLError: If it is no YAML.
    """
    import yaml  # type: ignore[import-untyped]
    from omegaconf import OmegaConf

    depth = nodes = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise ValueError("it has an anchor")
        if getattr(event, "tag", None) not in TAGS:
            raise ValueError(f"it has the tag {event.tag!r:.80}")
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        if depth > MOST_DEPTH or nodes > MOST_NODES or documents > 1:
            raise ValueError("it is nested more deeply, or is larger, than any config")
    config = OmegaConf.create(text)
    if not OmegaConf.is_dict(config):
        raise NoMappingError("it is no mapping")
    return config


def _is_too_large(key: str, value: Any) -> bool:
    """Whether a number of a backbone would only take time and memory, such as a billion layers."""
    if "backbone_kwargs." not in key:
        return False
    counts = any(word in key.lower() for word in ("block", "depth", "layer", "stage"))
    numbers = value if isinstance(value, list) else [value]
    most = MOST_LAYERS if counts else MOST_SIZE
    return any(isinstance(number, int | float) and abs(number) > most for number in numbers)


def problems_in(node: Any, own: frozenset[str] = frozenset(), key: str = "") -> Iterator[str]:
    """Yield every problem of a config: what it may not build, and what is not written by a run.

    Args:
        node: The config, as plain types, not resolved.
        own: The targets that the user's own configs name.
        key: The dotted key of the node.
    """
    if isinstance(node, list):
        for number, item in enumerate(node):
            yield from problems_in(item, own, f"{key}[{number}]")
    elif isinstance(node, Mapping):
        for name, item in node.items():
            dotted = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                why = refusal(item, own)
                if why is not None:
                    yield f"{dotted}: expected a class that a recorded run may build, {why}"
            elif name in REACHES_OUT and item not in (None, False, {}, []):
                why = REACHES_OUT[str(name)]
                yield f"{dotted}: expected no such setting in a recorded run: it {why}"
            else:
                if _is_too_large(dotted, item):
                    yield f"{dotted}: expected a size that a model has, got {item!r:.40}"
                yield from problems_in(item, own, dotted)
    elif isinstance(node, str) and "${" in node:
        yield f"{key}: expected a value as a run writes it, resolved, got {node!r:.80}"
