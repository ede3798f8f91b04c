"""The bar of a whole run."""

from types import SimpleNamespace

import lightning.pytorch as L

from lightning_peft.cli.jobs.progress import StepProgress
from tests.support.scheduling import Net, StopAfter, trainer


class Total(L.Callback):
    def on_train_batch_end(self, trainer, *args):
        self.total = trainer.progress_bar_callback._progress.tasks[0].total


def test_the_bar_of_a_run_that_goes_on_is_as_long_as_the_run(tmp_path):
    """6 steps are done, and the second epoch makes 2 of 6 batches."""
    trainer(StopAfter(6, tmp_path / "a.ckpt")).fit(Net())
    options = {"enable_progress_bar": True, "accumulate_grad_batches": 3}
    bar, seen = StepProgress(), Total()
    trainer(bar, seen, **options).fit(Net(), ckpt_path=tmp_path / "a.ckpt")
    assert seen.total == 6 + 2


def test_the_bar_says_that_it_validates_and_how_far_it_is(monkeypatch):
    bar, shown = StepProgress(), []
    monkeypatch.setattr(bar, "_show", lambda figures, **more: shown.append(figures))
    trainer = SimpleNamespace(num_val_batches=[7])
    for batch in (0, 6):
        bar.on_validation_batch_start(trainer, None, None, batch)
    assert shown == ["validates 1/7", "validates 7/7"]
