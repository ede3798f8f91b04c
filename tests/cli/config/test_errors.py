"""A mistyped command line: one readable line with the nearest right name, and exit status 2."""

import os
import re
import subprocess
import sys

import pytest

from lightning_peft.cli.config.errors import ConfigError, explain, unknown_key
from lightning_peft.errors import MethodError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["methd=lora"], "unknown key 'methd'. Did you mean 'method'?"),
        (["experimen=demo"], "unknown key 'experimen'. Did you mean 'experiment'?"),
        (["method=lorra"], "there is no method=lorra. Did you mean 'lora'"),
        (["experiment=smok"], "there is no experiment=smok. Did you mean 'smoke'?"),
        (["data=digitz"], "there is no data=digitz. Did you mean 'digits'?"),
        (["-m", "method=lora,fulll"], "there is no method=fulll. Did you mean 'full'?"),
        (["method.rnk=8"], "unknown key 'method.rnk'. Did you mean 'rank'?"),
        (["rank=8"], "unknown key 'rank'. Did you mean 'method.rank'?"),
        (["trainer.max_stepz=8"], "unknown key 'trainer.max_stepz'. Did you mean 'max_steps'"),
        (["+optimzer=sgd"], "unknown key 'optimzer'. Did you mean 'optimizer'?"),
        (["trainer.max_steps=two"], "trainer.max_steps: expected a whole number, got 'two'."),
        (["trainer.max_steps=1.5"], "trainer.max_steps: expected a whole number, got 1.5."),
        (["seed=abc"], "seed: expected a whole number, got 'abc'."),
        (
            ["trainer.precision=16-mxied"],
            "trainer.precision: expected one of 15 words or null, got '16-mxied'. "
            "Did you mean '16-mixed'",
        ),
        (
            ["model=text"],
            "model.backbone needs a value: add model.backbone=... to the command line.",
        ),
        (["method=hf"], "method.tuner needs a value: add method.tuner=... to the command line."),
        (["trainer.devices=[1"], "cannot read the override 'trainer.devices=[1': no viable"),
        (["method.rank=${lorra}"], "method.rank: Interpolation key 'lorra' not found"),
        (["method=null"], "Config group override must be a string or a list. Got NoneType"),
        # what Hydra says in several lines is told whole, with what to do
        (
            ["method=lora,dora"],
            "Ambiguous value for argument 'method=lora,dora'; 1. To use it as a list, use "
            "key=[value1,value2]; 2. To use it as string, quote the value: "
            "key=\\'value1,value2\\'; 3. To sweep over it, add --multirun to your command line",
        ),
        (
            ["+lr=3"],
            "Could not append to config. An item is already at 'lr'. Either remove + prefix: "
            "'lr=3'; Or add a second + to add or override 'lr': '++lr=3'",
        ),
        (["method@foo=lora"], "Could not override 'method@foo'. Did you mean to override method?"),
        (["lr='x"], "cannot read the override 'lr='x': a quote is not closed, or a character"),
        (["-m", "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
        (["method=lora", "--multirum"], "unknown flag '--multirum'. Did you mean '--multirun'?"),
        (["--config-dir", "nowhere"], "Additional config directory"),
        (["trian"], "unknown command 'trian', and an override is written key=value. Did you mean"),
        (
            ["method=lora", "compare"],
            "'compare' is not an override: expected key=value. A command comes",
        ),
        (["methods", "lorra"], "there is no method 'lorra'. Did you mean 'lora'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_and_status_2(command, words, message):
    status, out, err = command(*words)
    assert status == 2
    assert err.startswith(f"lightning-peft: {message}"), err
    assert len(err.splitlines()) == 1
    assert not out


def test_flags_may_stand_anywhere(command):
    for words in (
        ["method=lora", "--cfg", "job", "method.rank=3", "--package", "method"],
        ["--package=method", "method=lora", "method.rank=3", "-c", "job"],
    ):
        status, out, _ = command(*words)
        assert status == 0
        assert "rank: 3" in out


def test_every_problem_is_told_at_once(command):
    status, _, err = command("seed=a", "trainer.max_steps=b", "optimizer.lr=c")
    assert status == 2
    assert [line.split(":")[1].strip() for line in err.splitlines()] == [
        "seed",
        "trainer.max_steps",
        "optimizer.lr",
    ]


def test_full_error_shows_the_rest(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    status, _, err = command("method=lorra")
    assert status == 2
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("lightning-peft: there is no method=lorra.")


def test_a_mistyped_word_imports_nothing_heavy():
    code = (
        "import sys; from lightning_peft.cli import main; status = main(['method.rnk=8']); "
        "print(status, [m for m in ('torch', 'lightning', 'timm', 'peft') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []"


def test_explain_finds_the_refusal_below_what_wraps_it():
    error = RuntimeError("Error in call to target 'lightning_peft.LoRA'")
    error.__cause__ = MethodError("expected rank from 1, got 0")
    assert explain(error) == "expected rank from 1, got 0"


def test_explain_leaves_the_errors_of_a_job_alone():
    assert explain(RuntimeError("out of memory")) is None
    assert explain(ValueError("of the user's own code")) is None


def test_config_error_keeps_its_problems():
    error = ConfigError(["one", "two"])
    assert error.problems == ("one", "two")
    assert str(error) == "one\ntwo"


def test_unknown_key_without_anything_near_lists_what_there_is():
    assert unknown_key("method.xyz", ["rank", "alpha"]) == (
        "unknown key 'method.xyz'. Known: alpha, rank."
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_that_another_library_meets_is_told_with_its_file():
    def write():  # as Hydra writes .hydra/config.yaml; its error has no file name
        with open("/dev/full", "w") as file:
            file.write("x")
            file.flush()

    with pytest.raises(OSError, match="No space left") as caught:
        write()
    match = r"^/dev/full: it cannot be written \(No space left on device\)\. Make room"
    assert re.match(match, explain(caught.value))
    assert explain(OSError(2, "No such file")) is None
