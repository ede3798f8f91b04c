"""The types of the settings that are mistyped most often, known without importing their classes.

`trainer.max_steps=two` is refused before Lightning is imported. Keys that are not here are checked
a little later, against the signatures of what the config builds; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from lightning_peft.cli.config.values import complaint
from lightning_peft.data.vtab_tasks import TaskName

__all__ = ["CALLBACKS", "SCHEMAS", "Method", "Schedule", "is_ours", "type_problems"]

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
    objective: str | list[str] | None
    calibrate: Literal["temperature"] | None
    bootstrap: int
    grace: float
    shared_features_gb: float
    allow_test_objective: bool
    baselines: list[Literal["nearest_neighbour", "logistic_regression"]]
    output_dir: str
    shots: int | None  # with experiment=few_shot
    tuned_lr: float  # with recipes whose rate is chosen for each task


@dataclass
class Trainer:
    """The keys of ``lightning.pytorch.Trainer``."""

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
    """The keys of the data modules."""

    labels_per_class: int | None
    val_per_class: int | None
    batch_size: int
    steps_per_epoch: int | None
    num_workers: int | None
    seed: int


@dataclass
class VTAB:
    """The keys of ``VTABDataModule``, whose tasks differ from those of other data modules."""

    task: TaskName
    phase: Literal["choose", "final"]


@dataclass
class Chat:
    """The keys of ``ChatDataModule``."""

    train_on: Literal["answers", "all"]
    packing: bool
    max_length: int | None
    val_fraction: float
    test_fraction: float


@dataclass
class Optimizer:
    """The keys of torch's optimizers."""

    lr: float
    weight_decay: float
    momentum: float


@dataclass
class Method:
    """The keys of the methods of this package; a key means the same in every method."""

    rank: int
    initial_rank: int
    alpha: float | None
    dropout: float
    targets: str | list[str] | None
    layers: str | int | list[int] | None
    exclude: str | list[str] | None
    bottleneck: int
    reduction: int
    scale: float
    drop_path: float
    activation: str
    attention_only: bool
    rslora: bool
    feedforward: str | list[str] | None
    n: int
    groups: int
    init_std: float
    prompt_length: int
    warmup: float
    final: float
    interval: int
    orthogonality: float


@dataclass
class Schedule:
    """The keys of the schedules of this package."""

    warmup: float | int | str
    final: float
    decay: float | int | str
    total_steps: int | None
    on_resume: Literal["remaining", "keep"]
    replace: bool


@dataclass
class PEFT:
    """The keys of ``lightning_peft.PEFT``."""

    backbone: str | None
    also_train: str | list[str]
    batchnorm: Literal["frozen", "held", "train"]
    backbone_dropout: Literal["train", "eval"]
    add_to_optimizer: bool | float
    checkpoints: Literal["slim", "full", "merged"]


@dataclass
class Checkpoint:
    """The keys of Lightning's ``ModelCheckpoint``."""

    monitor: str | None
    mode: str
    save_top_k: int
    save_last: bool | Literal["link"] | None
    save_weights_only: bool
    every_n_train_steps: int | None
    every_n_epochs: int | None


@dataclass
class Stopping:
    """The keys of Lightning's ``EarlyStopping``."""

    monitor: str
    mode: str
    patience: int
    min_delta: float


OURS = "lightning_peft."
"""What the ``_target_`` of this package's own classes begins with."""

OPEN = "lightning_peft.HF"
"""Takes whatever the tuner takes."""

CALLBACKS: dict[str, type] = {
    "lightning_peft.PEFT": PEFT,
    "lightning.pytorch.callbacks.ModelCheckpoint": Checkpoint,
    "lightning.pytorch.callbacks.EarlyStopping": Stopping,
}
"""By the ``_target_`` of a callback."""

DATA: dict[str, type] = {
    "lightning_peft.ChatDataModule": Chat,
    "lightning_peft.VTABDataModule": VTAB,
}
"""By the ``_target_`` of a data module."""

SCHEMAS: dict[str, type] = {"": Run, "trainer": Trainer, "data": Data, "optimizer": Optimizer}


def type_problems(config: dict[str, Any]) -> list[str]:
    """Check the keys that a schema names.

    Args:
        config: The composed config, resolved, as plain types.

    Returns:
        A sentence for each value that does not fit.
    """
    found: dict[str, str] = {}
    for group, schema, values in _checked(config):
        for name, annotation in get_type_hints(schema).items():
            if name in values:
                problem = complaint(values[name], annotation)
                if problem is not None:  # seed, and data.seed that is interpolated from it: once
                    found.setdefault(problem, f"{group}.{name}" if group else name)
    return [f"{key}: {problem}" for problem, key in found.items()]


def _checked(config: dict[str, Any]) -> Iterator[tuple[str, type, dict[str, Any]]]:
    """Yield the key, the schema and the values of each part that has a schema."""
    parts = [(group, schema, config.get(group) if group else config) for group, schema in
             SCHEMAS.items()]  # fmt: skip
    for group, own in (("method", Method), ("schedule", Schedule)):
        values = config.get(group)
        if isinstance(values, dict) and is_ours(values.get("_target_")):
            parts.append((group, own, values))
    data = config.get("data")
    if isinstance(data, dict) and data.get("_target_") in DATA:
        parts.append(("data", DATA[data["_target_"]], data))
    callbacks = config.get("callbacks")
    for name, values in (callbacks if isinstance(callbacks, dict) else {}).items():
        if isinstance(values, dict) and values.get("_target_") in CALLBACKS:
            parts.append((f"callbacks.{name}", CALLBACKS[values["_target_"]], values))
    yield from ((group, schema, values) for group, schema, values in parts
                if isinstance(values, dict))  # fmt: skip


def is_ours(target: Any) -> bool:
    """Whether a ``_target_`` is a class of this package with known keys."""
    return isinstance(target, str) and target.startswith(OURS) and target != OPEN
