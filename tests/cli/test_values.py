"""Values against annotations, and the small schemas against the real signatures."""

import inspect
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Optional, Union, get_args, get_origin

import pytest

from lightning_peft.cli.schema import SCHEMAS, type_problems
from lightning_peft.cli.values import annotations_of, complaint, fits


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
    ],
    ids=["seed", "trainer", "optimizer", "baselines"],
)
def test_type_problems(config, expected):
    (problem,) = type_problems(config)
    assert problem.startswith(expected)


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
