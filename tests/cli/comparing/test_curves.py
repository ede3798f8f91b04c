"""The log of a run becomes curves, and several runs' curves one band."""

import pytest

from lightning_peft.cli.comparing.curves import band, thin
from lightning_peft.cli.runs.log import read_log, set_aside


def write(directory, text, name="csv/metrics.csv"):
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_each_name_is_a_curve_over_its_own_steps(tmp_path):
    write(
        tmp_path,
        "epoch,lr-AdamW/pg1,lr-AdamW/pg2,lr-SGD-momentum,step,train/loss,val/accuracy\n"
        ",0.1,0.2,0.9,0,,\n0,,,,0,2.5,\n0,,,,1,nan,0.5\n,0.3,0.1,0.9,1,,\n0,,,,1,1.5,\n",
    )
    assert read_log(tmp_path) == {
        "lr": ((0.0, 0.2), (1.0, 0.3)),
        "lr-SGD-momentum": ((0.0, 0.9), (1.0, 0.9)),
        "train/loss": ((0.0, 2.5), (1.0, 1.5)),
        "val/accuracy": ((1.0, 0.5),),
    }


@pytest.mark.parametrize(
    "text",
    ["", "step\n", "\x00\n\x00", "a,b\n1,2\n", "step,a\nx,1\n1,inf\n1,,,,,\n"],
    ids=["empty", "header", "binary", "no step", "no numbers"],
)
def test_what_is_no_log_has_no_curves(tmp_path, text):
    write(tmp_path, text)
    assert read_log(tmp_path) == {}


def test_half_a_line_does_not_take_the_lines_before_it(tmp_path):
    write(tmp_path, "step,train/loss\n0,2.0\n1,1.")
    assert read_log(tmp_path)["train/loss"][0] == (0.0, 2.0)


def test_a_log_in_another_folder_is_found(tmp_path):
    assert read_log(tmp_path) == {}
    write(tmp_path, "step,a\n3,4\n", "lightning_logs/version_0/metrics.csv")
    assert read_log(tmp_path) == {"a": ((3.0, 4.0),)}


def test_the_log_of_a_run_that_goes_on_is_whole(tmp_path):
    path = tmp_path / "csv" / "metrics.csv"
    path.parent.mkdir()
    (path.parent / "metrics.old.csv").write_text("step,val/accuracy\n9,9\n")  # somebody's own
    set_aside(tmp_path)  # nothing there: nothing to do
    for text in ("1,0.1\n2,0.2\n3,9", "3,0.3\n4,9", "4,0.4"):
        path.write_text(f"step,val/accuracy\n{text}\n")
        expected = path.read_bytes()
        if text != "4,0.4":
            set_aside(tmp_path)
            assert not path.exists()
            assert expected in [each.read_bytes() for each in path.parent.iterdir()]
    # the steps that were done again after the last checkpoint are those that count
    assert read_log(tmp_path)["val/accuracy"] == ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4))


def test_a_band_has_the_steps_that_all_runs_have():
    found = band([((0, 1.0), (1, 2.0), (2, 9.0)), (), ((0, 3.0), (1, 6.0))])
    assert found.mean == ((0, 2.0), (1, 4.0))
    assert found.low == ((0, 1.0), (1, 2.0))
    assert found.high == ((0, 3.0), (1, 6.0))
    assert band([(), ()]) is None
    assert band([((0, 1.0),), ((1, 1.0),)]) is None


def test_a_long_curve_is_thinned_between_its_ends():
    curve = tuple((float(i), 0.0) for i in range(1001))
    thinned = thin(curve, 11)
    assert [x for x, _ in thinned] == [100.0 * i for i in range(11)]
    assert thin(curve[:11], 11) == curve[:11]
