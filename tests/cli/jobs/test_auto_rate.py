"""``lr=auto``: found once, recorded, kept by what goes on, and refused where it cannot be."""

import json
import re

import pytest
import torch
from omegaconf import OmegaConf

import lightning_peft as lp
from lightning_peft.cli.config.auto_rate import AUTO, found_in, problems_of_a_search, start_of
from lightning_peft.lightning.rates.search import grid
from tests.cli.conftest import TINY
from tests.cli.jobs import test_language as language
from tests.cli.jobs import test_tasks as tasks
from tests.cli.jobs import test_text_tasks as text_tasks
from tests.support.language import chats, pairs

SHORT = (
    *TINY,
    "trainer.max_steps=3",
    "trainer.accelerator=cpu",
    "test=false",
    "data.labels_per_class=4",
    "data.val_per_class=2",
)


def read(directory):
    return OmegaConf.load(directory / "config.yaml"), json.loads(
        (directory / "rate.json").read_text()
    )


def test_a_rate_is_found_on_the_training_data_and_recorded(command, tmp_path, one_thread):
    status, _, err = command("lr=auto", *SHORT, "hydra.run.dir=run")
    assert status == 0, err
    cfg, found = read(tmp_path / "run")
    assert cfg.lr == cfg.optimizer.lr == cfg.model.lr == found["rate"]
    assert (found["asked"], found["steps"], found["folds"]) == (AUTO, 3, 2)
    tried = [trial["rate"] for trial in found["trials"]]
    assert {start_of("lora"), found["rate"]} <= set(tried) <= set(grid(1e-3)[0])
    for line in (
        "lr=auto: each rate is tried on two halves of the training data, 3 steps each",
        "  rate 0.003: held-out loss ",
        f"lr=auto: {found['rate']:g}, found in ",
    ):
        assert line in err
    # the run is the one with that rate as a number
    status, _, err = command(f"lr={found['rate']}", *SHORT, "hydra.run.dir=number")
    assert status == 0, err
    summaries = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("run", "number")]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    status, _, err = command("lr=auto", *SHORT, "hydra.run.dir=run", "optimizer.weight_decay=0.3")
    assert status != 0
    assert "optimizer.weight_decay was 0.01, now 0.3. Choose another" in err
    assert "lr was" not in err  # it is the one that was found
    # what the command does is what the function does with the same parts
    data = lp.DigitsDataModule(4, 2, backbone="glyph_vit", augment="light", steps_per_epoch=25)
    data.setup("fit")
    same = {"drop_path": 0.0, "weight_decay": 0.01, "pretrained": False}
    kwargs = OmegaConf.to_container(cfg.model.backbone_kwargs)

    def build(rate):
        module = lp.ImageClassifier(
            "vit_tiny_patch16_224", 10, lr=rate, backbone_kwargs=kwargs, **same
        )
        return module, [lp.PEFT("lora"), lp.WarmupCosine(0.1)]

    options = {"accelerator": "cpu", "gradient_clip_val": 1.0}
    again = lp.find_rate(build, data, start=3e-3, steps=3, trainer=options)
    assert [trial.loss for trial in again.trials] == pytest.approx(
        [trial["loss"] for trial in found["trials"]], rel=1e-4
    )


def test_a_sweep_that_goes_on_keeps_the_rates_that_were_found(command, tmp_path, undrawn):
    words = ("-m", "lr=auto", "seed=0,1", *SHORT, "method=linear_probe", "hydra.sweep.dir=sweep")
    status, out, err = command(*words)
    assert status == 0, err
    first, second = sorted((tmp_path / "sweep").glob("*_seed*"))
    before = read(first)[1]
    # the second job was killed before its first checkpoint, after its search
    kept = {**read(second)[1], "rate": 0.5}
    (second / "rate.json").write_text(json.dumps(kept))
    cfg = read(second)[0]
    text = (second / "config.yaml").read_text().replace(f"lr: {cfg.lr}", "lr: 0.5")
    (second / "config.yaml").write_text(text)
    summary = json.loads((second / "summary.json").read_text())
    (second / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    for name in ("last", "best"):
        (second / "checkpoints" / f"{name}.ckpt").unlink()
    status, out, err = command(*words)
    assert status == 0, err
    assert read(first)[1] == before
    assert read(second)[1]["rate"] == read(second)[0].lr == 0.5
    assert json.loads((second / "summary.json").read_text())["status"] == "completed"
    # one row for both, whatever their rates are
    status, out, err = command("compare", "sweep", "--json")
    (row,) = json.loads(out)["rows"]
    assert row["seeds"] == [0, 1]


def test_what_cannot_be_found_is_refused_at_once(command, tmp_path):
    status, _, err = command(
        "lr=auto", *SHORT, "optimizer.lr=0.1", "trainer.devices=2", "method=lp_ft"
    )
    assert status != 0
    assert "lr=auto: expected optimizer.lr to follow lr, got 0.1" in err
    assert "lr=auto: expected one device, got trainer.devices=2" in err
    assert "lr=auto: expected a run without stages, got callbacks.freeze.unfreeze" in err
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    status, _, err = command("lr=auto", *SHORT, "resume=other.ckpt")
    assert status != 0
    assert re.search(r"lr=auto: expected a run from its start, got resume=\S*other.ckpt", err)
    assert [
        *problems_of_a_search({"lr": 1, "optimizer": {"lr": 1}, "trainer": {"devices": [3]}})
    ] == []
    status, _, err = command("lr=fast", *SHORT)
    assert status != 0
    assert "lr: expected a number, got 'fast'" in err


def test_commands_that_train_nothing_show_where_the_search_begins(command):
    status, out, err = command("show", "lr=auto", "method=linear_probe")
    assert status == 0, err
    assert "lr=auto: found when the run begins; shown with 0.01, which its search tries" in out
    status, out, err = command("plan", "lr=auto", "method=bitfit")
    assert status == 0, err
    assert "bitfit" in out.lower()


def test_a_file_that_is_none_of_ours_is_no_rate(tmp_path):
    assert found_in(tmp_path) is None
    for text in ("", "[]", '{"rate": null}', '{"rate": -1}', '{"rate": Infinity}', '{"other": 1}'):
        (tmp_path / "rate.json").write_text(text)
        assert found_in(tmp_path) is None
    (tmp_path / "rate.json").write_text('{"rate": 0.003}')
    assert found_in(tmp_path) == 0.003
    assert (start_of("full"), start_of("no_such_method")) == (3e-4, 1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("job", ["pairs", "numbers", "words", "targets"])
def test_every_job_on_texts_finds_a_rate(command, tmp_path, one_thread, job):
    rows = text_tasks.JOBS[job][1]
    (tmp_path / f"{job}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = command(*text_tasks.words_of(job, tmp_path), "lr=auto")
    assert status == 0, err
    cfg, found = read(tmp_path / "run")
    assert cfg.lr == found["rate"]
    # no two rates come to the same loss: what is measured depends on what was trained
    assert len({trial["loss"] for trial in found["trials"]}) == len(found["trials"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("model", ["causal_lm", "preference"])
def test_language_models_find_a_rate(command, tmp_path, one_thread, model):
    rows = chats() if model == "causal_lm" else pairs()
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    written = ("model.samples", "model.max_new_tokens")  # a preference is not written
    words = [w for w in language.SHORT if model == "causal_lm" or not w.startswith(written)]
    status, _, err = command(*words, f"model={model}", "lr=auto")
    assert status == 0, err
    cfg, found = read(tmp_path / "run")
    assert cfg.lr == found["rate"]
    assert len({trial["loss"] for trial in found["trials"]}) == len(found["trials"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_other_labels_find_a_rate(command, tmp_path, one_thread, kind):
    tasks.images.__wrapped__(tmp_path)
    words = (f"data.labels=images/{kind}.csv", "data.root=images", "data.val_fraction=0.2")
    status, _, err = command(*TINY, *tasks.SHORT, *words, "hydra.run.dir=run", "lr=auto")
    assert status == 0, err
    cfg, found = read(tmp_path / "run")
    assert cfg.lr == found["rate"]
