"""The types of the settings that are mistyped most, known without importing what they are for.

`trainer.max_steps=two` is refused before Lightning is imported. Keys that are not here are checked
a little later, against the signatures of what the config builds; a test holds the two against each
other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from lightning_peft.cli.values import complaint

__all__ = ["SCHEMAS", "type_problems"]

Precision = Literal[
    64, 32, 16,
    "64", "32", "16", "bf16", "64-true", "32-true", "16-true", "bf16-true", "16-mixed",
    "bf16-mixed", "transformer-engine", "transformer-engine-float16",
]  # fmt: skip


@dataclass
class Run:
    """The top-level keys."""

    seed: int
    lr: float
    resume: str | None
    test: bool
    objective: str | None
    calibrate: Literal["temperature"] | None
    bootstrap: int
    allow_test_objective: bool
    baselines: list[Literal["nearest_neighbour", "logistic_regression"]]
    output_dir: str


@dataclass
class Trainer:
    """Of ``lightning.pytorch.Trainer``."""

    accelerator: str
    devices: list[int] | str | int
    num_nodes: int
    precision: Precision | None
    fast_dev_run: int | bool
    max_epochs: int | None
    max_steps: int
    max_time: str | dict[str, int] | None
    limit_train_batches: int | float | None
    limit_val_batches: int | float | None
    limit_test_batches: int | float | None
    val_check_interval: int | float | str | dict[str, int] | None
    check_val_every_n_epoch: int | None
    num_sanity_val_steps: int | None
    log_every_n_steps: int | None
    accumulate_grad_batches: int
    gradient_clip_val: float | None
    gradient_clip_algorithm: Literal["norm", "value"] | None
    deterministic: bool | Literal["warn"] | None
    detect_anomaly: bool


@dataclass
class Data:
    """Of the data modules."""

    labels_per_class: int | None
    batch_size: int
    steps_per_epoch: int | None
    num_workers: int | None
    seed: int


@dataclass
class Optimizer:
    """Of the optimizers of torch."""

    lr: float
    weight_decay: float
    momentum: float


SCHEMAS: dict[str, type] = {"": Run, "trainer": Trainer, "data": Data, "optimizer": Optimizer}


def type_problems(config: dict[str, Any]) -> list[str]:
    """Check the keys that a schema names.

    Args:
        config: The composed config, resolved, as plain types.

    Returns:
        A sentence for each value that does not fit.
    """
    found: dict[str, str] = {}
    for group, schema in SCHEMAS.items():
        values = config.get(group) if group else config
        if not isinstance(values, dict):
            continue
        for name, annotation in get_type_hints(schema).items():
            if name in values:
                problem = complaint(values[name], annotation)
                if problem is not None:  # seed, and data.seed that is interpolated from it: once
                    found.setdefault(problem, f"{group}.{name}" if group else name)
    return [f"{key}: {problem}" for problem, key in found.items()]
