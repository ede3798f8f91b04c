"""Read a checkpoint of a run to resume from, and give its paths their present place.

``ModelCheckpoint`` keeps absolute paths in the checkpoint, and forgets its best one if they are
those of another directory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.runs.places import moved_path

__all__ = [
    "best_of",
    "check_moved",
    "check_whole",
    "is_of_checkpoints",
    "missing_best",
    "read_checkpoint",
    "rerooted",
]

PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")
"""The keys of a ModelCheckpoint's state that hold a path."""


def check_whole(path: Path) -> None:
    """Refuse a checkpoint from which nothing can be resumed.

    Args:
        path: The checkpoint.

    Raises:
        ConfigError: If there is none, only a part of one, or one of weights alone.
    """
    if not path.exists():
        told = f"expected a checkpoint to resume from, got no file {path}."
    elif path.is_file() and not zipfile.is_zipfile(path):
        told = (
            f"expected a whole checkpoint to resume from, got {path}, whose end is missing or "
            f"which is none ({path.stat().st_size:,} bytes). Resume from an earlier one, or start "
            "again."
        )
    elif path.is_file() and _is_of_weights(read_checkpoint(path)):
        told = (
            f"expected a checkpoint to resume from, got {path}, which holds weights and no state "
            f"of the optimizer. Resume from {path.with_name('last.ckpt')}."
        )
    else:
        return
    raise ConfigError([f"resume: {told}"])


def _is_of_weights(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint of an adapted model has no more than weights.

    Weights of a run without an adapter are something to start from.
    """
    return "lightning_peft" in checkpoint and "optimizer_states" not in checkpoint


def check_moved(path: Path) -> None:
    """Refuse a checkpoint whose run was moved without its best checkpoint.

    Args:
        path: A checkpoint in the directory of the run that goes on.

    Raises:
        ConfigError: If the best checkpoint is not beside it.
    """
    problems: list[str] = []
    for state in (read_checkpoint(path).get("callbacks") or {}).values():
        # the directories of other callbacks are known when they are built
        if is_of_checkpoints(state) and Path(state["dirpath"]).name == path.parent.name:
            problems += missing_best(state, path.parent.resolve(), path)
    if problems:
        raise ConfigError(problems)


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """Return the content of a checkpoint, its tensors unread; ``{}`` if it cannot be read.

    A checkpoint that cannot be read is refused by what loads it, with its own words.
    """
    import torch

    try:
        found = torch.load(
            path / "meta.pt" if path.is_dir() else path,
            map_location="cpu", weights_only=True, mmap=True,
        )  # fmt: skip
    except Exception:
        return {}
    return found if isinstance(found, Mapping) else {}


def missing_best(state: Mapping[str, Any], place: Path, path: Path) -> Iterator[str]:
    """Yield what is missing if the best checkpoints of a callback are not in its directory.

    Args:
        state: The state of the callback.
        place: The directory of its checkpoints now.
        path: The checkpoint that holds the state.
    """
    if state.get("monitor") is None:
        return  # nothing was chosen, so nothing is lost
    lost = [name for name in _best(state) if not _now(name, state, place).exists()]
    if not lost or _was_replaced(state, place):
        return
    told = ", ".join(
        f"{_now(name, state, place)} ({state['monitor']} {_best(state)[name]:.6g})" for name in lost
    )
    was = "" if state["dirpath"] == str(place) else f"; they were in {state['dirpath']} before"
    yield (
        f"{path}: expected the best checkpoints of the run so far beside it, got no file {told}"
        f"{was}. Copy them there. Without them, resume in a directory of its own, which keeps the "
        f"best of what it finds itself (resume={path} and another hydra.run.dir), or remove "
        f"{place.parent} to start again."
    )


def _best(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of the checkpoints that were chosen, by the paths of before."""
    found = {str(name): float(score) for name, score in state["best_k_models"].items()}
    if state["best_model_path"] and state.get("best_model_score") is not None:
        found.setdefault(str(state["best_model_path"]), float(state["best_model_score"]))
    return found


def best_of(checkpoint: Mapping[str, Any], place: Path) -> list[str]:
    """Return the best checkpoint of each callback that chose by a metric, in words.

    Args:
        checkpoint: The content of a checkpoint.
        place: The directory where it lies.
    """
    return [
        f"{state['monitor']} {float(state['best_model_score']):.6g} in "
        f"{_now(state['best_model_path'], state, place)}"
        for state in (checkpoint.get("callbacks") or {}).values()
        if is_of_checkpoints(state)
        and state.get("monitor") is not None
        and state.get("best_model_score") is not None
    ]


def _now(name: str, state: Mapping[str, Any], place: Path) -> Path:
    return Path(moved_path(name, state["dirpath"], place))


def _was_replaced(state: Mapping[str, Any], place: Path) -> bool:
    """Whether a better one, of another name, was written after the checkpoint that is resumed.

    A run that is killed between the two does the steps again, and finds it again.
    """
    known = {Path(name).name for name in _best(state)}
    others = {path.name for path in place.glob("*.ckpt")} - known
    return not {_stem(name) for name in others}.isdisjoint(map(_stem, known))


def _stem(name: str) -> str:
    """Return what the names of a callback's checkpoints have in common (``best-epoch=3.ckpt``)."""
    return name.removesuffix(".ckpt").partition("-")[0].partition("=")[0]


def rerooted(state: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Return the state of a checkpoint callback whose directory is now elsewhere.

    Args:
        state: The state.
        place: The directory of its checkpoints now.
    """
    now: dict[str, Any] = {**state, "dirpath": str(place)}
    for key in PATHS:
        if now.get(key):
            now[key] = str(_now(now[key], state, place))
    models = {
        str(_now(name, state, place)): score for name, score in state["best_k_models"].items()
    }
    # one that was replaced by a better one, which is found again
    now["best_k_models"] = {name: score for name, score in models.items() if Path(name).exists()}
    if state.get("monitor") is not None and not Path(now["best_model_path"]).exists():
        now["best_model_path"], now["best_model_score"] = "", None
    return now


def is_of_checkpoints(state: Any) -> bool:
    """Whether a callback's state is that of a ``ModelCheckpoint``."""
    keys = ("dirpath", "best_model_path", "best_k_models")
    return isinstance(state, Mapping) and all(key in state for key in keys)
