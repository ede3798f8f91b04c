"""The suite of foreign modules itself, on a module of ours: what is wrong is found."""

import os

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from tests.wild.case import Case, batches
from tests.wild.page import main as page
from tests.wild.parts import changed_although_frozen, misplaced
from tests.wild.record import Record
from tests.wild.results import read
from tests.wild.run import run_cases
from tests.wild.trainers import advice


class Blocks(pl.LightningModule):
    def __init__(self, crashes=False):
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)) for _ in range(3))
        )
        self.head = nn.Linear(16, 1)
        self.crashes = crashes

    def training_step(self, batch, index):
        if self.crashes:
            os._exit(7)
        return nn.functional.mse_loss(self.head(self.encoder(batch)), batch[:, :1])

    def validation_step(self, batch, index):
        self.log(
            "loss", value := nn.functional.mse_loss(self.head(self.encoder(batch)), batch[:, :1])
        )
        return value

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def _case(name, new=("head",), **settings):
    return Case(
        name,
        lambda: Blocks(**settings),
        lambda: batches(lambda i: torch.randn(16)),
        ("encoder",),
        new,
        epochs=2,
    )


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    out = tmp_path_factory.mktemp("wild") / "results.jsonl"
    run_cases([_case("good"), _case("crashes", crashes=True)], "ours", "1.0", out, limit=120)
    return read(out)


def test_a_module_that_is_served_passes_every_check(lines):
    line = lines["ours/good"]
    assert line["status"] == "one line", line
    assert line["checks"]["new parts"].startswith("ok")
    assert line["checks"]["resume"] == line["checks"]["frozen"] == "ok"


def test_a_crash_costs_one_line(lines):
    assert lines["ours/crashes"]["status"] == "wrong"
    assert "exit 7" in lines["ours/crashes"]["message"]


def _record(**trains):
    record = Record()
    for name, trained in trains.items():
        name = name.replace("_", ".")
        record.before[name], record.after[name] = torch.zeros(3), torch.full((3,), float(trained))
        record.trains[name] = trained
    return record


def test_what_was_trained_is_told_from_what_was_not():
    plain = _record(net_weight=True, head_weight=True)
    good = _record(net_weight=False, net_added=True, head_weight=True)
    assert list(misplaced(plain, good, ["net"], ["head"])) == []
    assert list(changed_although_frozen(plain, good)) == []
    assert "new, but not trained: 1 parameters (3 numbers), such as head.weight" in "".join(
        misplaced(
            plain, _record(net_weight=False, net_added=True, head_weight=False), ["net"], ["head"]
        )
    )
    bare = _record(net_weight=True, head_weight=True)
    assert "no adapter in 'net'" in "".join(misplaced(plain, bare, ["net"], ["head"]))
    good.trains["head.weight"] = False
    assert list(changed_although_frozen(plain, good)) == ["head.weight is frozen and changed"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            "Say which one is meant, for example backbone='net', or backbone='' for",
            {"backbone": "net"},
        ),
        (
            "Leave that layer out (exclude=...), or give check_identity=False.",
            {"check_identity": False},
        ),
        ("Give also_train=['decoder', 'head'].", {"also_train": ["decoder", "head"]}),
        ("expected lr='x', got nothing", {}),
    ],
)
def test_the_words_of_a_message_are_taken_literally(message, words):
    assert advice(message) == words


def test_the_page_is_current():
    assert page(["--check"]) == 0
