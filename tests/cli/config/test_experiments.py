"""The shipped experiments do what they say."""

import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import lightning_peft as lp
from lightning_peft.anatomy.backbone import backbone_of
from lightning_peft.cli.config.check import check_values
from lightning_peft.cli.config.help import help_text
from lightning_peft.cli.config.known import experiment_in, known_keys
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.jobs.task import build_module
from lightning_peft.data.vtab_tasks import TASKS


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
    words = ("data=folder", "data.root=images", "model=glyph_vit", "shots=4")
    cfg = composed("experiment=few_shot", *words)
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


RECIPES = sorted(path.stem for path in (conf_dir() / "experiment").glob("vtab_*.yaml"))
CHOSEN = ("vtab_full", "vtab_linear", "vtab_vpt_deep", "vtab_vpt_shallow")

STATED = {  # millions of trained parameters without the head, as the tables round them
    "vtab_adaptformer": 0.16,
    "vtab_bitfit": 0.10,
    "vtab_full": 85.8,
    "vtab_linear": 0.0,
    "vtab_lora": 0.29,
    "vtab_ssf": 0.21,
}
WIDTH, DEPTH, CLASSES = 768, 12, 100
COUNTED = {  # from the formulas of the papers, where the number is another for each task
    "vtab_convpass": 2 * DEPTH * (2 * 8 * WIDTH + WIDTH + 8 + 9 * 8**2 + 8),
    "vtab_fact_tk": 2 * WIDTH * 32 + 12 * DEPTH * 32 + 32**3,
    "vtab_fact_tt": 2 * WIDTH * 8 + 12 * DEPTH * 8**2,
    "vtab_repadapter": 2 * DEPTH * (WIDTH * 8 + 8 + 8 // 2 * WIDTH + WIDTH),
    "vtab_vpt_deep": DEPTH * 10 * WIDTH,
    "vtab_vpt_shallow": 10 * WIDTH,
}


def of_recipe(name, task="cifar", *more):
    rate = ["tuned_lr=0.5"] if name in CHOSEN else []
    return [f"experiment={name}", "data.root=vtab-1k", f"data.task={task}", *rate, *more]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_as_many_parameters_as_its_paper(name):
    cfg = composed(*of_recipe(name))
    with torch.device("meta"):
        module = build_module(cfg.model, CLASSES, pretrained=False)
    report = lp.plan(backbone_of(module)[1], instantiate(cfg.method, _convert_="all")).report
    assert report.head == CLASSES * (WIDTH + 1)
    without_head = report.trained - report.head
    if name in STATED:
        digits = 1 if name == "vtab_full" else 2
        assert round(without_head / 1e6, digits) == STATED[name]
    else:
        assert without_head == COUNTED[name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_what_it_needs_for_every_task(name):
    cfg = composed(*of_recipe(name))
    for task in TASKS:
        cfg.data.task = task
        plain = check_values(cfg, known_keys(name))
        assert plain["lr"] > 0
        assert cfg.trainer.max_epochs == 100
        assert cfg.callbacks.best.monitor is None
        assert cfg.augment is None
        assert cfg.data.phase == "final"
    params = composed(*of_recipe(name), hydra=True).hydra.sweeper.params
    assert params["data.task"].split(",") == list(TASKS)


def test_recipes_differ_by_task_where_the_papers_do():
    def of(name, task):
        return composed(*of_recipe(name, task))

    assert of("vtab_convpass", "svhn").method.scale == 100
    assert of("vtab_fact_tk", "dtd").method.rank == 16
    assert of("vtab_ssf", "clevr_dist").lr == of("vtab_ssf", "clevr_dist").model.lr == 0.05
    assert of("vtab_ssf", "eurosat").model.drop_path == 0.2
    assert of("vtab_ssf", "eurosat").data.mean is None
    assert of("vtab_vpt_deep", "svhn").optimizer._target_ == "torch.optim.SGD"


@pytest.mark.parametrize("name", CHOSEN)
def test_a_rate_that_the_repository_keeps_to_itself_is_asked_for(command, name):
    status, _, err = command(f"experiment={name}", "data.root=a", "data.task=cifar")
    assert status == 2
    assert err.startswith("lightning-peft: tuned_lr needs a value: add tuned_lr=... to the command")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_where_it_is_from_and_that_it_was_not_run(name):
    text = (conf_dir() / "experiment" / f"{name}.yaml").read_text()
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "Not run here." in comment
    assert re.search(r"at [0-9a-f]{7}", comment)
    assert re.search(r"\d\d\.\d\d|No figure", comment)
