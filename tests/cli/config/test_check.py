"""Targets and their arguments are checked before anything is built."""

import pytest

from lightning_peft.cli.config.check import check_targets, locate, target_problems
from lightning_peft.cli.config.errors import ConfigError

COUNTER = "collections.Counter"
PARSER = "argparse.ArgumentParser"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"_target_": "lightning_peft.LoRA", "rnk": 8},
            "method.rnk: lightning_peft.LoRA takes no 'rnk'. Did you mean 'rank'?",
        ),
        (
            {"_target_": "lightning_peft.LoRA", "rank": "two"},
            "method.rank: expected a whole number, got 'two'.",
        ),
        (
            {"_target_": "lightning_peft.BitFitt"},
            "method._target_: lightning_peft has no 'BitFitt'. Did you mean 'BitFit'?",
        ),
        (
            {"_target_": "lightning_pefd.LoRA"},
            "method._target_: there is no module 'lightning_pefd' to import lightning_pefd.LoRA",
        ),
        (
            {"_target_": "string.digits"},
            "method._target_: expected a class or a function, got string.digits, a str",
        ),
    ],
    ids=["argument", "value", "class", "module", "no callable"],
)
def test_problems(node, message):
    with pytest.raises(ConfigError) as caught:
        check_targets({"method": node})
    (problem,) = caught.value.problems
    assert problem.startswith(message)


def test_all_problems_come_at_once_and_each_once():
    method = {"_target_": "lightning_peft.LoRA", "rnk": 8}
    config = {
        "callbacks": {"peft": {"_target_": "lightning_peft.PEFT", "method": method, "head": 3}},
        "method": method,
        "list": [{"_target_": PARSER, "prgo": "x"}],
    }
    with pytest.raises(ConfigError) as caught:
        check_targets(config)
    keys = [problem.partition(":")[0] for problem in caught.value.problems]
    assert sorted(keys) == ["callbacks.peft.head", "list[0].prgo", "method.rnk"]


def test_what_takes_anything_is_left_alone():
    assert not list(target_problems({"a": {"_target_": "builtins.dict", "x": 1}}))
    tuner = {"_target_": "lightning_peft.HF", "tuner": "loha", "r": 4}
    assert not list(target_problems({"method": tuner}))


def test_a_node_that_builds_its_argument_is_no_value():
    inner = {"_target_": "lightning_peft.LoRA"}
    node = {"_target_": "lightning_peft.WarmupCosine", "warmup": inner}
    assert not list(target_problems({"schedule": node}))


def test_locate_finds_what_is_imported_lazily():
    import lightning_peft

    assert locate("lightning_peft.LoRA") is lightning_peft.LoRA
    assert locate("torch.optim.AdamW").__name__ == "AdamW"


def test_locate_names_what_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "needy.py").write_text("import not_there_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LookupError, match="needs 'not_there_at_all', which is not installed"):
        locate("needy.Thing")
