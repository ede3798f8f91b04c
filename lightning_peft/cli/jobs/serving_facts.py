"""The facts about its data that a finished run leaves for serving, in a file of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning_peft.cli.config.errors import ConfigError
from lightning_peft.cli.config.task import LANGUAGE
from lightning_peft.cli.jobs.task import task_of
from lightning_peft.cli.runs.summary import write_json
from lightning_peft.errors import shown
from lightning_peft.evaluation.outputs import Outputs
from lightning_peft.files.plain_file import NotPlainError, read_text

__all__ = ["FACTS", "outputs_of", "read_facts", "write_facts"]

FACTS = "serving.json"

MOST_CLASSES = 1_000_000
"""More would only ask for memory."""

FITS: Mapping[str, Callable[[Any], bool]] = {
    "num_classes": lambda n: isinstance(n, int) and 0 < n <= MOST_CLASSES,
    "class_names": lambda names: names is None or isinstance(names, list),
    "preprocessing": lambda config: config is None or isinstance(config, Mapping),
}
"""The keys that the file must have, and a check of each value."""


def write_facts(directory: Path, datamodule: Any, outputs: Outputs | None = None) -> None:
    """Write the facts about the data that serving needs, since the data may not be there then.

    Args:
        directory: The run's directory.
        datamodule: What the run was trained on.
        outputs: How the outputs of the module are read; for a user's own module a softmax turns
            logits into probabilities.
    """
    config = getattr(datamodule, "config", None)
    names = getattr(datamodule, "class_names", None)
    if (task := task_of(datamodule)) in LANGUAGE.values():
        write_json(directory / FACTS, {"task": task})
        return
    facts = {
        "task": task,
        "num_classes": datamodule.num_classes,
        "class_names": None if names is None else [str(name) for name in names],
        "preprocessing": None if config is None else asdict(config),
        "outputs": (outputs or Outputs()).to_dict(),
    }
    write_json(directory / FACTS, facts)


def read_facts(path: Path) -> Mapping[str, Any]:
    """Read the file of :func:`write_facts`.

    Raises:
        ConfigError: If the file is cut off, or written by another program.
    """
    try:
        found = json.loads(read_text(path))
        task = found.get("task") if isinstance(found, Mapping) else None
        if task in LANGUAGE.values():
            raise ConfigError(
                [f"{path.parent}: expected a run that predicts classes or numbers, got one on "
                 "language. lightning-peft predict and export serve it."]
            )  # fmt: skip
    except (NotPlainError, ConfigError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        found, wrong = {}, [f"it is not JSON ({error})"]
    else:
        found = found if isinstance(found, Mapping) else {}
        wrong = [
            f"{key} is {shown(found[key], 40)}" if key in found else f"it has no {key}"
            for key, fits in FITS.items()
            if key not in found or not fits(found[key])
        ]
        names = found.get("class_names")
        if not wrong and names is not None and len(names) != found["num_classes"]:
            wrong.append(f"there are {len(names)} class_names for {found['num_classes']} classes")
    if wrong:
        raise ConfigError(
            [
                f"{path}: expected the facts that a finished run leaves, but {', '.join(wrong)}. "
                "Restore the file, or train the run again."
            ]
        )
    return found


def outputs_of(found: Any, cfg: Any, directory: Path, calibrated: bool | None) -> Outputs:
    """Return how the outputs are read, with or without the temperature."""
    outputs = Outputs.from_dict(found)
    if calibrated is None:
        return outputs
    if not calibrated:
        return replace(outputs, temperature=1.0)
    if outputs.task == "regression":
        why = "it predicts numbers, which have no probabilities"
    elif cfg.get("calibrate") is None:
        why = (
            "it was trained without calibrate=temperature, which fits one on the validation "
            "images after training"
        )
    elif outputs.temperature == 1:
        why = f"its {FACTS} has none, so another version or another program wrote it"
    else:
        return outputs
    raise ConfigError([f"--calibrated: {directory} has no temperature: {why}. Leave it out."])
