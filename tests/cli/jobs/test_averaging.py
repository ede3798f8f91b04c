"""Averages of weights and early stopping, chosen on the command line, and resumed."""

import json

import pytest
import torch

EPOCHS = (
    "experiment=smoke", "test=false", "schedule=constant", "schedule.warmup=1 epoch",
    "trainer.max_steps=-1",
)  # fmt: skip
CHOICES = {
    "swa": ("callbacks/average=swa", "callbacks.average.swa_epoch_start=2"),
    "ema": ("callbacks/stop=early", "callbacks.stop.patience=9", "callbacks/average=ema"),
}


@pytest.mark.parametrize(
    "choice",
    [CHOICES["swa"], pytest.param(CHOICES["ema"], marks=pytest.mark.slow)],
    ids=["swa", "ema"],
)
def test_a_run_with_an_average_resumes_to_the_same_weights(train, tmp_path, choice):
    def run(name, *words):
        status, _, err = train(*EPOCHS, *choice, *words, f"hydra.run.dir={name}")
        assert status == 0, err
        assert "Warning" not in err
        # best.ckpt is the mean of SWA; with EMA it may be of an epoch that one of them lacks
        file = "best" if "callbacks/average=swa" in choice else "last"
        path = tmp_path / name / "checkpoints" / f"{file}.ckpt"
        return torch.load(path, weights_only=True)

    whole = run("whole", "trainer.max_epochs=4")
    run("part", "trainer.max_epochs=3")
    rest = run("rest", "trainer.max_epochs=4", "resume=part/checkpoints/last.ckpt")
    assert whole["global_step"] == rest["global_step"] == 8
    for table in whole.keys() & {"state_dict", "current_model_state"}:
        assert whole[table].keys() == rest[table].keys()
        for key, value in whole[table].items():
            assert torch.equal(value, rest[table][key]), (table, key)


def test_early_stopping_stops(train, tmp_path):
    words = ("callbacks/stop=early", "callbacks.stop.patience=1", "callbacks.stop.min_delta=1.0")
    status, _, err = train(*EPOCHS, *words, "trainer.max_epochs=6", "hydra.run.dir=run")
    assert status == 0, err
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2 * 2


def test_checkpoints_with_an_average_hold_what_is_trained_only(train, tmp_path):
    sizes = {}
    for choice in ("none", "ema"):
        words = (f"callbacks/average={choice}", "trainer.max_epochs=1", f"hydra.run.dir={choice}")
        status, _, err = train(*EPOCHS, *words)
        assert status == 0, err
        for name in ("best", "last"):
            content = torch.load(tmp_path / choice / "checkpoints" / f"{name}.ckpt",
                                 weights_only=True)  # fmt: skip
            tables = [content["state_dict"], content.get("current_model_state", {})]
            sizes[choice, name] = sum(t.numel() for table in tables for t in table.values())
    assert sizes["ema", "best"] == sizes["none", "best"]
    assert sizes["ema", "last"] == 2 * sizes["none", "last"]


def test_swa_without_epochs_is_refused_in_a_line(train):
    status, _, err = train("experiment=smoke", "callbacks/average=swa", "test=false")
    assert status != 0
    assert "max_epochs" in err
    assert "Traceback" not in err


def test_early_stopping_without_validation_is_refused(train):
    words = ("callbacks/stop=early", "callbacks=no_validation", "data.val_per_class=0")
    status, _, err = train(*EPOCHS, *words, "trainer.max_epochs=1")
    assert status == 2
    assert "EarlyStopping monitors val/accuracy, but this data has no validation split" in err
