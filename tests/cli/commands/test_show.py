"""``lightning-peft show``, and its pictures."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from lightning_peft.cli.commands import show
from lightning_peft.cli.commands.label_tables import print_labels
from lightning_peft.cli.jobs import previews, rates
from lightning_peft.cli.jobs.rates import Rates
from lightning_peft.lightning.schedules import Multiplier


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name, count in {"cat": 5, "dog": 40, "a very long name of a class": 10}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "images" / "cat" / "notes.txt").touch()
    return tmp_path / "images"


def test_show_leaves_two_pictures_and_prints_the_label_budget(command, tmp_path):
    status, out, err = command("show", "data.labels_per_class=3", "augment=strong")
    assert status == 0, err
    for name in ("samples.png", "schedule.png"):
        with Image.open(tmp_path / "preview" / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 20  # not blank
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    assert rows["4"][1:3] == ["3", "10"]
    assert rows["all"][1:] == ["30", "100", "797"]
    assert "labels used: 130, those that choose the checkpoint included" in out
    assert "uneven" not in out


def test_show_a_folder_says_where_its_classes_are_uneven(command, folder, caplog):
    words = (f"data.root={folder}", "data.num_workers=0", "schedule=none")
    status, out, err = command("show", "data=folder", "model=glyph_vit", *words, "--variants", "2")
    assert status == 0, err
    assert "uneven: the largest class has 9.7 times the images of the smallest" in out
    assert "always answering 'dog'" in out
    assert "the learning rate is 0.003 at every step" in out
    assert "schedule.png" not in out
    assert "backbone: glyph_vit (1.29 M parameters, 24x24 gray)" in out
    assert caplog.messages == ["1 file not read: .txt 1"]


@pytest.mark.parametrize(
    ("words", "steps", "warmup"),
    [
        (["trainer.max_steps=40", "schedule.warmup=0.25"], 40, 10),
        (["trainer.max_steps=-1", "trainer.max_epochs=3", "schedule=linear"], 75, 8),
        (["trainer.max_epochs=2", "trainer.accumulate_grad_batches=4", "schedule.warmup=5"], 14, 5),
        (["trainer.limit_train_batches=0.2", "trainer.max_epochs=10", "schedule=wsd"], 50, 5),
        (["trainer.limit_train_batches=3", "trainer.max_epochs=2", "schedule.warmup=0"], 6, 0),
        (["+schedule.total_steps=90", "schedule=constant"], 90, 9),
        (["schedule.warmup=10%", "trainer.max_steps=40"], 40, 4),
        (["schedule.warmup=30 steps"], 250, 30),
        (["schedule=wsd", "schedule.warmup=2 epochs", "trainer.limit_train_batches=9"], 250, 18),
        (
            [
                "schedule=constant",
                "schedule.warmup=2 epochs",
                "trainer.max_steps=-1",
                "trainer.limit_train_batches=9",
            ],
            18,
            18,
        ),
    ],
)
def test_the_schedule_is_that_of_the_run(command, monkeypatch, words, steps, warmup):
    drawn = []
    monkeypatch.setattr(previews, "samples", lambda *args, **kwargs: "samples.png")
    monkeypatch.setattr(
        previews, "learning_rate", lambda *args, **kwargs: drawn.append(args) or "schedule.png"
    )
    status, _, err = command("show", "data.labels_per_class=1", "lr=0.5", *words)
    assert status == 0, err
    multiplier, rates, _ = drawn[0]
    assert (multiplier.total_steps, multiplier.warmup_steps) == (steps, warmup)
    assert rates == {"all": 0.5}


def test_groups_with_rates_of_their_own_are_lines_of_their_own(command, monkeypatch):
    figures = captured(monkeypatch)
    monkeypatch.setattr(previews, "samples", lambda *args, **kwargs: "samples.png")
    words = ("data.labels_per_class=1", "lr=0.5", "schedule=wsd")
    status, _, err = command("show", *words, "model.lora_plus=4")
    assert status == 0, err
    axes = figures.pop()
    assert [max(line.get_ydata()) for line in axes.lines] == [2.0, 0.5]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["lora_b: 2", "all: 0.5"]
    status, _, err = command("show", *words, "model.layer_decay=0.5")
    assert status == 0, err
    (axes,) = figures
    tops = [max(line.get_ydata()) for line in axes.lines]
    # LoRA sits in the blocks, and the head has the full rate
    assert tops == pytest.approx([0.5 * 0.5**depth for depth in range(len(tops))])
    assert len(tops) > 3
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[0].endswith(": 0.5")


@pytest.mark.parametrize("schedule", ["cosine", "none"])
def test_the_stages_of_a_freeze_begin_where_they_are_thawed(command, monkeypatch, schedule):
    figures = captured(monkeypatch)
    monkeypatch.setattr(previews, "samples", lambda *args, **kwargs: "samples.png")
    stages = "[{epoch: 2, layers: 'last:1', lr: 0.25}, {epoch: 3, lr: 0.1}, {epoch: 9, lr: 0.2}]"
    freeze = "{_target_: lightning_peft.BackboneFreeze, unfreeze: %s}"
    words = (
        *("data.labels_per_class=1", "trainer.limit_train_batches=5", "trainer.max_epochs=5"),
        *("trainer.max_steps=-1", "lr=0.5", f"schedule={schedule}", "callbacks.peft=null"),
    )
    stages = stages.replace("{epoch: 9, lr: 0.2}", "{epoch: 9, layers: '0', lr: 0.2}")
    early = stages.replace("{epoch: 3, lr: 0.1}", "{epoch: 3, layers: '1-4', lr: 0.1}")
    status, out, err = command("show", *words, f"+callbacks.freeze={freeze % early}")
    assert status == 0, err
    assert "from epoch 9: never begins, since the run ends after 25 steps" in out
    (axes,) = figures
    parts = Multiplier(25, 2, "cosine") if schedule == "cosine" else lambda step: 1.0
    drawn = {line.get_label().partition(":")[0]: line.get_data() for line in axes.lines}
    expected = {"all": (0, 0.5), "from epoch 2": (10, 0.25), "from epoch 3": (15, 0.1)}
    for name, (first, rate) in expected.items():
        steps, rates = drawn[name]
        assert list(steps) == list(range(first, 25))
        assert list(rates) == pytest.approx([rate * parts(step) for step in range(first, 25)])
    texts = [text.get_text() for text in axes.texts]
    assert {"step 10", "step 15"} <= set(texts)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "labels used: 20, those that validate included"),
        (["data.val_per_class=0"], "labels used: 10\n"),
    ],
)
def test_labels_choose_a_checkpoint_where_something_watches_them(command, monkeypatch, words, told):
    monkeypatch.setattr(show, "_pictures", lambda *args: [])
    words = ("callbacks=no_validation", "data.labels_per_class=1", "data.val_per_class=1", *words)
    status, out, err = command("show", *words)
    assert status == 0, err
    assert told in out


@pytest.mark.parametrize(
    ("task", "labels"), [("multiclass", [0, 1]), ("multilabel", [(1, 0), (0, 1)])]
)
def test_the_name_of_a_class_is_no_markup(task, labels, capsys):
    data = SimpleNamespace(
        task=task,
        class_names=["[/b]", "[red]"],
        images=lambda split: SimpleNamespace(labels=labels),
        class_counts=lambda split: [1, 1],
    )
    print_labels({}, data, Console())
    out = capsys.readouterr().out
    assert "[/b] " in out
    assert "[red] " in out


def test_a_run_that_ends_before_its_only_stage_has_no_picture(command, monkeypatch):
    monkeypatch.setattr(previews, "samples", lambda *args, **kwargs: "samples.png")
    late = Rates({"from epoch 9": 0.1}, {"from epoch 9": 9})
    monkeypatch.setattr(rates, "rates_of", lambda *args: late)
    status, out, err = command("show", "trainer.max_steps=4", "data.labels_per_class=1")
    assert status == 0, err
    assert "from epoch 9: never begins, since the run ends after 4 steps" in out
    assert "no picture of the learning rate: no step of the run trains anything" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.max_steps=-1"], "the run has no length: set trainer.max_steps"),
        (["augment=stong"], "there is no augment=stong. Did you mean 'strong'"),
        (["schedule.warmup=1.0"], "optimizer steps (500 or '500 steps') or epochs ('2 epochs')"),
        (["schedule.warmup='3'"], "epochs ('2 epochs'), got '3'"),
        (["schedule.warmup=300"], "the warm-up of 300 steps is longer than the run of 250 steps"),
        (["data=folder"], "data.root needs a value"),
        (["--classes", "0"], "expected --variants and --classes of at least 1"),
        (["--out", "file/x"], "--out: expected a directory to write to, got file/x, where file is"),
        (["data.labels_per_class=200"], "Expected 200 or more labelled training images"),
    ],
)
def test_what_cannot_be_shown_is_told_in_a_line(command, tmp_path, words, message):
    (tmp_path / "file").touch()
    status, _, err = command("show", *words)
    assert status == 2
    assert err.startswith("lightning-peft: ")
    assert message in err


def captured(monkeypatch):
    figures = []
    monkeypatch.setattr(
        previews, "save_figure", lambda figure, path: figures.append(figure.axes[0]) or path
    )
    return figures


def test_the_rows_hold_each_image_and_its_versions(monkeypatch, tmp_path):
    figures = captured(monkeypatch)
    before = torch.tensor([0.1, 0.6]).view(2, 1, 1, 1).expand(2, 1, 80, 90)
    after = torch.tensor([[0.2, 0.3, 1.7], [0.7, 0.8, -0.9]]).view(2, 3, 1, 1, 1)
    names = ["cat", "a very long name of a class"]
    previews.samples(before, after.expand(2, 3, 1, 80, 90), names, tmp_path / "x.png", title="t")
    canvas = figures[0].images[0].get_array()
    assert canvas.shape == (2 * 80 + 6, 4 * 90 + 3 * 6 + 12, 3)
    lefts = [0, 90 + 6 + 12, 2 * 96 + 12, 3 * 96 + 12]
    cells = [
        canvas[row * 86 : row * 86 + 80, left : left + 90]
        for row, left in itertools.product((0, 1), lefts)
    ]
    assert [float(cell.min()) for cell in cells] == [float(cell.max()) for cell in cells]
    expected = [0.1, 0.2, 0.3, 1.0, 0.6, 0.7, 0.8, 0.0]  # cut to [0, 1]
    assert [float(cell.min()) for cell in cells] == pytest.approx(expected)
    texts = [text.get_text() for text in figures[0].texts]
    assert texts == ["cat", "a very long nam…", "as it is", "t"]


def test_the_line_is_the_learning_rate_of_every_step(monkeypatch, tmp_path):
    figures = captured(monkeypatch)
    multiplier = Multiplier(50, 10, "cosine")
    previews.learning_rate(multiplier, {"all": 0.02}, tmp_path / "x.png", title="t")
    steps, rates = figures[0].lines[0].get_data()
    assert list(steps) == list(range(50))
    assert list(rates) == pytest.approx([0.02 * multiplier(step) for step in range(50)])
    assert [text.get_text() for text in figures[0].texts] == ["warm-up: 10 steps, 20 %"]
