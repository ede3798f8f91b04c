"""Values against annotations, and the small schemas against the real signatures."""

import inspect
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin, get_type_hints

import pytest

from lightning_peft.cli.config.schema import CALLBACKS, SCHEMAS, Method, Schedule, type_problems
from lightning_peft.cli.config.values import annotations_of, complaint, fits


class Own:
    pass


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, int, True),
        (True, int, False),
        (3.0, int, False),
        ("3", int, False),
        (3, float, True),
        ("fast", float, False),
        (None, float, False),
        (None, Optional[float], True),  # noqa: UP045
        (None, int | None, True),
        ("a", Union[int, str], True),  # noqa: UP007
        ([1], Union[int, str], False),  # noqa: UP007
        (True, bool, True),
        (1, bool, True),
        ("yes", bool, False),
        ("norm", Literal["norm", "value"], True),
        ("nrom", Literal["norm", "value"], False),
        ([1, 2], list[int], True),
        ([1, "b"], list[int], False),
        ("ab", list[str], False),
        ("ab", Sequence[str], True),
        ([0.9, 1.1], tuple[float, float], True),
        ([0.9], tuple[float, float], False),
        ([1, 2, 3], tuple[int, ...], True),
        ({"a": 1}, dict[str, int], True),
        (1, dict, False),
        ("here", Path, True),
        (1, str | Path, False),
        ("anything", Own, True),
        ("anything", Any, True),
    ],
)
def test_fits(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_complaint_names_the_nearest_word():
    text = complaint("nrom", Literal["norm", "value"] | None)
    assert text == "expected 'norm' or 'value' or null, got 'nrom'. Did you mean 'norm'?"


def test_an_annotation_that_cannot_be_evaluated_hides_no_other():
    def build(a: "Nowhere", b: "int", c=1):  # noqa: F821
        pass

    assert annotations_of(build) == {"b": int}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"seed": "abc"}, "seed: expected a whole number, got 'abc'."),
        (
            {"trainer": {"max_steps": "two"}},
            "trainer.max_steps: expected a whole number, got 'two'.",
        ),
        ({"optimizer": {"lr": "high"}}, "optimizer.lr: expected a number, got 'high'."),
        (
            {"baselines": ["nearest_neigbour"]},
            "baselines: expected a list, got ['nearest_neigbour'].",
        ),
        (
            {"method": {"_target_": "lightning_peft.LoRA", "rank": "two"}},
            "method.rank: expected a whole number, got 'two'.",
        ),
        (
            {"schedule": {"_target_": "lightning_peft.WarmupCosine", "final": "low"}},
            "schedule.final: expected a number, got 'low'.",
        ),
        (
            {"callbacks": {"peft": {"_target_": "lightning_peft.PEFT", "batchnorm": "frozn"}}},
            "callbacks.peft.batchnorm: expected 'frozen' or 'held' or 'train', got 'fro",
        ),
    ],
    ids=["seed", "trainer", "optimizer", "baselines", "method", "schedule", "callback"],
)
def test_type_problems(config, expected):
    (problem,) = type_problems(config)
    assert problem.startswith(expected)


@pytest.mark.parametrize("target", ["mine.Method", "lightning_peft.HF", None])
def test_methods_of_others_are_left_alone(target):
    assert type_problems({"method": {"_target_": target, "rank": "two"}}) == []


def test_what_is_interpolated_is_reported_once():
    assert len(type_problems({"seed": "abc", "data": {"seed": "abc"}})) == 1


def test_schemas_agree_with_what_they_stand_for():
    import torch
    from lightning.pytorch import Trainer

    import lightning_peft as lp

    targets = {
        "trainer": [Trainer],
        "data": [lp.DigitsDataModule, lp.ImageFolderDataModule, lp.VTABDataModule],
        "optimizer": [torch.optim.AdamW, torch.optim.SGD],
    }
    for group, classes in targets.items():
        known = {name for cls in classes for name in inspect.signature(cls).parameters}
        assert {field.name for field in fields(SCHEMAS[group])} <= known
    parameters = inspect.signature(Trainer).parameters
    defaults = {field.name: parameters[field.name].default for field in fields(SCHEMAS["trainer"])}
    assert type_problems({"trainer": defaults}) == []
    for key, value in (("devices", [0, 1]), ("fast_dev_run", 3), ("val_check_interval", 0.5)):
        assert type_problems({"trainer": {key: value}}) == []
    words = [word for word in literals(annotations_of(Trainer)["precision"]) if word is not None]
    assert words
    assert [word for word in words if type_problems({"trainer": {"precision": word}})] == []


def literals(annotation):
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in literals(part)]


def test_the_schemas_of_methods_schedules_and_callbacks_agree_with_the_classes():
    import dataclasses
    from importlib import import_module

    import lightning_peft as lp

    hints = get_type_hints(Method)
    for name in set(lp.list_methods()) - {"union", "hf"}:
        method = lp.create_method(name)
        own = {field.name for field in dataclasses.fields(method)}
        assert own <= hints.keys(), f"{name} has keys that the schema lacks"
        config = {key: getattr(method, key) for key in own}
        target = f"lightning_peft.{type(method).__name__}"
        assert type_problems({"method": {"_target_": target, **config}}) == []
        for key, annotation in annotations_of(type(method)).items():
            for value in ("two", 1.5, 3, True, None, [1], ["a"]):
                assert fits(value, hints[key]) == fits(value, annotation), (name, key, value)
    own = set(get_type_hints(Schedule))
    assert own == set(annotations_of(lp.WarmupCosine)) | set(annotations_of(lp.WarmupStableDecay))
    for target, schema in CALLBACKS.items():
        module, _, name = target.rpartition(".")
        known = annotations_of(getattr(import_module(module), name))
        for key, annotation in get_type_hints(schema).items():
            for value in ("two", 1.5, 3, None, ["a"]):
                assert fits(value, annotation) == fits(value, known[key]), (target, key, value)
