"""An Optuna study in a file goes on where it was; needs the extra ``sweep``."""

import pytest
from omegaconf import OmegaConf

from lightning_peft.cli.optuna_study import go_on_with_study

SUBDIR = "${hydra:job.num}_x"


def sweep(**sweeper):
    sweep = {"dir": "d", "subdir": SUBDIR}
    return OmegaConf.create({"hydra": {"sweeper": sweeper, "sweep": sweep}})


@pytest.mark.parametrize(
    "sweeper", [{"params": {}}, {"n_trials": 3, "storage": None, "study_name": None}]
)
def test_other_sweeps_are_left_alone(sweeper):
    config = sweep(**sweeper)
    before = config.copy()
    assert go_on_with_study(config) == 0
    assert config == before


# optuna 2.10 and its SQLAlchemy are old: they use what Python and others have deprecated since
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_done_trials_are_counted_and_one_that_was_killed_is_told_as_failed(tmp_path):
    optuna = pytest.importorskip("optuna")
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    for value in (0.1, 0.2):
        study.tell(study.ask(), value)
    killed = study.ask()
    config = sweep(n_trials=5, storage=storage, study_name="s", sampler={"seed": 7})
    assert go_on_with_study(config) == 2
    assert config.hydra.sweeper.n_trials == 3
    assert config.hydra.sweeper.sampler.seed == 7 + 3
    subdir = OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"]
    assert subdir == f"after3_{SUBDIR}"
    study = optuna.load_study(study_name="s", storage=storage)
    assert study.trials[killed.number].state is optuna.trial.TrialState.FAIL
    assert go_on_with_study(sweep(n_trials=5, storage=storage, study_name="new")) == 0
