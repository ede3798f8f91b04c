"""``on_resume="keep"``: a resumed run follows the schedule of its checkpoint."""

import pytest
from torch.utils.data import DataLoader

from lightning_peft.errors import ScheduleError
from lightning_peft.lightning.callbacks.schedule import WarmupConstant, WarmupCosine, WarmupLinear
from tests.support.scheduling import BATCHES, Net, StopAfter, expected, trainer


@pytest.fixture
def begun(tmp_path):
    """Stop a run of 12 steps after 6, and give its checkpoint."""

    def begin(schedule, step=BATCHES):
        path = tmp_path / "begun.ckpt"
        trainer(*([] if schedule is None else [schedule]), StopAfter(step, path)).fit(Net())
        return path

    return begin


def resumed(schedule, path, net=None, **options):
    net = Net() if net is None else net
    trainer(schedule, **options).fit(net, ckpt_path=path)
    return net.used


def test_the_same_run_goes_on_without_a_word(begun):  # a warning would be an error
    path = begun(WarmupCosine(2))
    assert resumed(WarmupCosine(2, on_resume="keep"), path) == expected(12, 2)[6:]


def test_a_longer_run_follows_the_old_schedule_and_says_what_is_left_at_its_end(begun):
    path = begun(WarmupCosine(2, final=0.25))
    told = (
        r"schedule of 12 steps, of which 6 are done, and the run ends after 18 steps: from step 12 "
        r"on its rate is 0\.25 of the full"
    )
    with pytest.warns(UserWarning, match=told):
        used = resumed(WarmupCosine(2, final=0.25, on_resume="keep"), path, max_epochs=3)
    assert used == expected(12, 2, final=0.25, steps=18)[6:]


def test_with_larger_batches_the_old_schedule_does_not_come_to_its_end(begun):
    class Larger(Net):
        def train_dataloader(self):
            return DataLoader(super().train_dataloader().dataset, batch_size=2)

    path = begun(WarmupLinear(2))
    with pytest.warns(
        UserWarning, match=r"ends after 9 steps: in the last step its rate is 0\.4 of"
    ):
        used = resumed(WarmupLinear(2, on_resume="keep"), path, Larger())
    assert used == expected(12, 2, "linear")[6:9]


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_a_percentage_of_warm_up_stays_that_of_the_first_start(begun):
    path = begun(WarmupCosine("50%"), step=3)
    with pytest.warns(UserWarning, match="from step 12 on its rate is 0 of the full one"):
        used = resumed(WarmupCosine("50%", on_resume="keep"), path, max_epochs=4)
    assert used == expected(12, 6, steps=24)[3:]


def test_another_shape_has_the_old_length(begun):
    path = begun(WarmupCosine(2))
    with pytest.warns(UserWarning, match="schedule of 12 steps"):
        used = resumed(WarmupLinear(2, on_resume="keep"), path, max_epochs=3)
    assert used == expected(12, 2, "linear", steps=18)[6:]


def test_what_would_learn_nothing_is_refused(begun):
    path = begun(WarmupCosine(2), step=12)
    with pytest.raises(ScheduleError, match="keeps the schedule of 12 steps, which are all done "
                       ".* goes on to step 18: nothing would be learned"):  # fmt: skip
        resumed(WarmupCosine(2, on_resume="keep"), path, max_epochs=3)


def test_a_checkpoint_without_a_schedule_has_none_to_keep(begun):
    path = begun(None)
    with pytest.raises(ScheduleError, match="expects a checkpoint that was made with a schedule"):
        resumed(WarmupCosine(2, on_resume="keep"), path)


@pytest.mark.parametrize("schedule", [WarmupCosine, WarmupConstant])
def test_another_word_is_refused(schedule):
    with pytest.raises(ScheduleError, match="on_resume to be 'remaining' or 'keep', got 'stay'"):
        schedule(on_resume="stay")


def test_a_run_that_starts_anew_has_its_own_length():
    net = Net()
    trainer(WarmupCosine(2, on_resume="keep")).fit(net)
    assert net.used == expected(12, 2)
