"""Read the config that a run recorded, with the present paths of what lies in its directory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.places import moved_words
from lightning_peft.cli.trust.recorded import MOST_BYTES, NoMappingError, check_config, parse_plain
from lightning_peft.cli.trust.words import NOBODY, Trust
from lightning_peft.files.plain_file import read_text

__all__ = ["LAST_KEY", "read_config", "recorded_config"]

CUT_OFF = "it is cut off"

LAST_KEY = "callbacks"
"""The last part of a recorded config (conf/config.yaml)."""


def read_config(path: Path, last_key: str | None = None) -> tuple[Any, str]:
    """Read a config that a job wrote, and say what is wrong if it is not whole.

    Args:
        path: The file.
        last_key: Its last key, if it must have one.

    Returns:
        The config, and ``""``; or what there is of it and the reason why it is none.
    """
    try:
        text = read_text(path, None, MOST_BYTES)
        config = parse_plain(text)
    except NoMappingError:
        return None, CUT_OFF
    except Exception as error:  # of the YAML parser too, which has no types
        return None, f"it cannot be read ({_of_yaml(error)})"
    as_json = text.startswith("{")  # of another program, and whole if it can be read
    ended = text.endswith("\n") and (last_key is None or last_key in config)
    return config, "" if as_json or ended else CUT_OFF


def _of_yaml(error: Exception) -> str:
    """Return an error of the YAML parser in one line, with the place and without a drawing."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None or mark is None:
        return " ".join(str(error).split()) or type(error).__name__
    return f"{problem}, in line {mark.line + 1}"


def recorded_config(directory: Path, trust: Trust = NOBODY) -> Any:
    """Return the config of a run, whose directory may have been moved or copied.

    Paths in the directory as it was are those in the directory as it is. A relative ``data.root``
    begins where the run was started, unless there is such a folder here.

    Args:
        directory: The directory of the run.
        trust: What the user vouches for.

    Raises:
        ConfigError: If the config cannot be read, is cut off, or asks for what a recorded run may
            not have.
    """
    from omegaconf import OmegaConf

    path = directory / "config.yaml"
    cfg, reason = read_config(path, LAST_KEY)
    if reason:
        raise ConfigError(
            [
                f"{path}: expected the whole config that a run wrote, got "
                f"{path.stat().st_size:,} bytes of one: {reason}. Copy the file again if you have "
                "it elsewhere; otherwise train the run again."
            ]
        )
    plain: Any = OmegaConf.to_container(cfg)
    check_config(path, plain, trust)
    before = plain.get("output_dir") if isinstance(plain, dict) else None
    if isinstance(before, str) and before not in ("", "."):
        cfg = OmegaConf.create(moved_words(plain, before, str(directory.absolute())))
    data: Any = cfg.get("data") if OmegaConf.is_dict(cfg) else None
    root = data.get("root") if OmegaConf.is_dict(data) else None
    if isinstance(root, str) and "://" not in root and not Path(root).exists():
        start = _started_in(directory)
        if start is not None and (start / root).exists():
            data.root = str(start / root)
    return cfg


def _started_in(directory: Path) -> Path | None:
    """Return the working directory in which a run was started, as Hydra recorded it."""
    from omegaconf import OmegaConf

    with suppress(Exception):  # a run of another program, or without Hydra's files
        found: Any = OmegaConf.load(directory / ".hydra" / "hydra.yaml")
        return Path(str(found.hydra.runtime.cwd))
    return None
