"""The shipped experiments do what they say."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from lightning_peft.cli.help import help_text
from lightning_peft.cli.known import experiment_in, known_keys
from lightning_peft.cli.paths import conf_dir


def composed(*overrides, hydra=False):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = [*overrides, "name=test", "output_dir=."]
        return compose("config", words, return_hydra_config=hydra)


def split(*overrides):
    data = instantiate(composed("experiment=few_shot", *overrides).data, _convert_="all")
    data.setup()
    return data.indices


@pytest.mark.parametrize("seed", [0, 1])
def test_few_shot_draws_are_nested_and_the_test_set_is_always_the_same(seed):
    found = {shots: split(f"shots={shots}", f"seed={seed}") for shots in (1, 2, 4, 8, 16)}
    sizes = {shots: len(indices["train"]) for shots, indices in found.items()}
    assert sizes == {shots: 10 * shots for shots in (1, 2, 4, 8, 16)}
    for small, large in ((1, 2), (2, 4), (4, 8), (8, 16)):
        assert set(found[small]["train"]) < set(found[large]["train"])
    for indices in found.values():
        assert indices["val"] == []
        assert not set(indices["train"]) & set(indices["test"])
        assert indices["test"] == split("shots=1", "seed=5")["test"]
    assert found[1]["train"] != split("shots=1", "seed=5")["train"]


def test_few_shot_takes_a_folder_as_well():
    cfg = composed("experiment=few_shot", "data=folder", "data.root=images", "shots=4")
    data = instantiate(cfg.data, _convert_="all")
    assert (data.labels_per_class, data.val_per_class) == (4, 0)
    assert cfg.trainer.limit_val_batches == 0
    assert cfg.callbacks.best.monitor is None


def test_few_shot_lists_its_seeds_and_shots():
    params = composed("experiment=few_shot", hydra=True).hydra.sweeper.params
    assert params.shots == "1,2,4,8,16"
    assert params.seed == "0,1,2"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shots=4"], "'shots' is a key of experiment=few_shot: choose it, or leave shots out."),
        (["+shots=4"], "'shots' is a key of experiment=few_shot: choose it, or leave shots out."),
        (["experiment=few_shot", "shot=4"], "unknown key 'shot'. Did you mean 'shots'?"),
        (["experiment=few_shot", "shots=two"], "shots: expected a whole number or null, got 'two'"),
        (["experiment=few_shot", "+shotz=4"], "unknown key 'shotz'. Did you mean 'shots'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_shots_are_typed_right(command, words, message):
    status, out, err = command(*words)
    assert status == 2
    assert err.startswith(f"lightning-peft: {message}"), err
    assert len(err.splitlines()) == 1
    assert not out


def test_a_sweep_over_shots_ends_in_accuracy_by_shots(train, tmp_path):
    short = ("hydra.sweep.dir=sweep", "trainer.max_steps=2", "data.steps_per_epoch=1")
    words = ("shots=1,2", "method=linear_probe", "seed=0", "trainer.limit_test_batches=1")
    status, out, err = train("-m", "experiment=few_shot", *words, *short)
    assert status == 0, err
    assert "test accuracy by shots" in out
    names = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert names == ["0_linear_probe_shots1_seed0", "1_linear_probe_shots2_seed0"]


def test_the_keys_of_an_experiment_are_known_with_it_alone():
    assert "shots" in known_keys("few_shot")
    assert "shots" not in known_keys("smoke") | known_keys(None)
    assert experiment_in(["seed=1", "experiment=few_shot"]) == "few_shot"
    assert experiment_in(["+experiment=a", "experiment=b"]) == "b"
    assert experiment_in(["seed=1"]) is None
    assert "shots=1" in help_text()
