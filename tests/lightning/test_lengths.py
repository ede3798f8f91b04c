import pytest

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.lengths import Length, as_length


@pytest.mark.parametrize(
    ("value", "length", "steps"),
    [
        (0.1, Length(0.1, "part"), 25),
        ("10%", Length(0.1, "part"), 25),
        ("12.5 %", Length(0.125, "part"), 31),
        ("100%", Length(1.0, "part"), 250),
        (0, Length(0, "steps"), 0),
        (500, Length(500, "steps"), 500),
        (" 500 Steps ", Length(500, "steps"), 500),
        ("1 step", Length(1, "steps"), 1),
        ("2 epochs", Length(2, "epochs"), 20),
        ("2epochs", Length(2, "epochs"), 20),
        ("0.5 epochs", Length(0.5, "epochs"), 5),
    ],
)
def test_the_unit_is_said(value, length, steps):
    found = as_length(value, "warmup")
    assert found == length
    assert found.steps(250, 10) == steps
    assert as_length(str(found), "warmup") == found


def test_epochs_of_different_lengths_are_added_up():
    length = as_length("3.5 epochs", "warmup")
    assert length.steps(None, [4, 6]) == 4 + 6 + 6 + 3
    assert as_length("1 epoch", "warmup").steps(None, [4, 6]) == 4


@pytest.mark.parametrize(
    "value", [1.0, 2.5, -0.1, float("nan"), "3", "0.1", "", "two epochs", "2 hours", "-1 steps",
              "1e3 steps", True, None, [3]],
)  # fmt: skip
def test_what_could_be_two_things_is_refused_with_the_three_ways(value):
    with pytest.raises(ScheduleError, match=r"warmup as .*'10%'.*'500 steps'.*'2 epochs'.* got"):
        as_length(value, "warmup")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "expected warmup to be from 0, got -1"),
        ("120%", "at most '100%' of the run, got '120%'"),
        ("2.5 steps", "expected warmup in whole steps, got '2.5 steps'"),
    ],
)
def test_amounts_out_of_range_are_refused(value, message):
    with pytest.raises(ScheduleError, match=message):
        as_length(value, "warmup")


def test_what_is_not_known_is_said():
    with pytest.raises(ScheduleError, match=r"\(10%\) needs a run of known length"):
        as_length(0.1, "warmup").steps(None, 10)
    with pytest.raises(ScheduleError, match=r"\(2 epochs\) needs epochs of known length"):
        as_length("2 epochs", "warmup").steps(250)
