"""The bar of a whole run."""

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
