"""What the record of a sweep may say, before Hydra sees it."""

import json

import pytest

from lightning_peft.cli.trust.sweep_words import problems_of_sweep
from lightning_peft.cli.trust.words import NOBODY, Trust, checked_jobs, trust_of_jobs

CALL = "{_target_: os.system, _args_: [id]}"


def problems(overrides=(), hydra=(), flags=(), trust=NOBODY):
    record = {"flags": list(flags), "overrides": list(overrides), "hydra": list(hydra)}
    return list(problems_of_sweep(record, trust))


def test_what_people_sweep_over_is_taken():
    task = (
        *("method=lora,ssf", "seed=range(0,3)", "lr=1e-3,3e-4", "lr=tag(log,interval(1e-5,1e-1))"),
        *(
            "data=folder",
            "data.root=/data/my images",
            "data.labels=../labels.csv",
            "data.cache=true",
        ),
        *("experiment=demo", "~callbacks.best", "+callbacks.x={monitor: val/f1}", "test=false"),
        *("model.backbone_kwargs={img_size: 24, depth: 2}", "name='a b'", "callbacks/stop=early"),
        *(
            "model.backbone=hf-hub:timm/vit_tiny",
            "objective=[val/accuracy,trained]",
            "logger=glob(*)",
        ),
        *(
            "model.optimizer._target_=torch.optim.SGD",
            "data.seed=${seed}",
            "method=choice(lora,ssf)",
        ),
        "resume=/runs/a/checkpoints/last.ckpt",
    )
    hydra = (
        *("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra/launcher=submitit_slurm"),
        *(
            "hydra.launcher.partition=gpu-long",
            "hydra.launcher.timeout_min=60",
            "hydra/sweeper=search",
        ),
        *(
            "hydra.sweeper.n_trials=3",
            "hydra.sweeper.params={lr: 'interval(1e-5,1)'}",
            "hydra.verbose=1",
        ),
        *(
            "+hydra.sweeper.params.seed='1,2'",
            "hydra.sweeper.sampler.seed=1",
            "hydra/sweeper/pruner=median",
        ),
        *(
            "hydra.sweeper.direction=[maximize,minimize]",
            "hydra.sweep.subdir=${hydra:job.num}_lr${lr}",
        ),
        "hydra.sweeper.storage=sqlite:///${hydra.sweep.dir}/study.db",
    )
    assert problems(task, hydra, ("--config-name", "other")) == []


@pytest.mark.parametrize(
    "word",
    [
        *("model._target_=os.system", "model._target_=os.system,lightning_peft.ImageClassifier"),
        *(f"+callbacks.x={CALL}", f"+callbacks.x=[[{CALL}]]", f"+a=choice({CALL},1)"),
        f"a=shuffle({CALL},1)",
        *(f"+a={{b: {CALL}}}", "+data._target_='torch.hub.load'", "+data={_target_: [os.system]}"),
        *("+hydra.callbacks.x._target_=a.b", "model@hydra.callbacks.x=timm"),
        "hydra/launcher=joblib",
        *("lr=${oc.env:HOME}", "data='${oc.create:\"{_target_: os.system}\"}'", "lr='${a:${b}}'"),
        *("output_dir=elsewhere", "callbacks.best.dirpath=x", "logger.csv.save_dir=/x"),
        "data.cache=/x",
        *("logger.mlflow.tracking_uri=http://x", "name=http://x", "name=/etc"),
        *("name=a/../../b", "name=~/x"),
        *("method=../../x", "seed='0/../../x'", "seed=a", "+experiment=/tmp/x"),
        "shots='1/../../..'",
        *("model.backbone_kwargs={checkpoint_path: x}", "+method.megatron_core=os"),
        *("+model.backbone_kwargs.trust_remote_code=true", "seed=range(0,1000000000)"),
        *("-m", "--cfg", "", "a=[", "a" * 30_000 + "=1"),
    ],
)  # fmt: skip
def test_what_a_job_may_not_be_told_is_refused(word):
    assert ": expected" in problems([word])[0]


@pytest.mark.parametrize(
    "word",
    [
        *("hydra.job.env_set.LD_PRELOAD=x", f"+hydra.callbacks.x={CALL}"),
        "hydra.launcher.setup=[id]",
        *("hydra.launcher._target_=a.b", "hydra.launcher.module=os", "hydra.launcher.python=sh"),
        *("hydra.launcher.partition='a\nid'", "hydra.job_logging.handlers.file.filename=/x"),
        *("hydra.hydra_logging={x: {(): os.system}}", "hydra.sweep.subdir=../../x"),
        "hydra.sweep.dir=/x",
        *("hydra.sweep.subdir=/x", "hydra.sweep.subdir=${data.root}"),
        *("hydra.sweep.subdir=~", "hydra.run.dir=x"),
        "hydra.sweep.subdir=x${hydra:job.override_dirname}",
        "hydra.sweep.subdir=x${oc.env:HOME}",
        *("hydra.searchpath=[/x]", "hydra.searchpath=[pkg://x]", "hydra.searchpath=/x"),
        *("hydra.sweeper._target_=x.y", f"hydra.sweeper.sampler={CALL}"),
        "hydra.sweeper.sampler._target_=x",
        *("hydra.sweeper.storage=sqlite:////etc/x", "hydra.sweeper.storage=mysql://x"),
        "hydra.job.name=../x",
        "hydra.sweeper.params={model._target_: os.system}",
        "+hydra.sweeper.params.output_dir=/x",
        *("+hydra.sweeper.params.a='${evil}'", "hydra.output_subdir=../x", "hydra.mode=RUN"),
        *("hydra/launcher=../x", "hydra/callbacks=x", "hydra.runtime.output_dir=/x"),
        *("seed=range(0,9)", "~hydra.callbacks.sweep"),
    ],
)  # fmt: skip
def test_what_hydra_may_not_be_told_is_refused(word):
    (found,) = problems(hydra=[word])
    assert ": expected" in found


def test_flags_are_those_that_a_sweep_records_and_its_configs_are_given_again(tmp_path):
    assert len(problems(flags=("--experimental-rerun", "x.pkl", "--cfg", "job"))) == 2
    assert problems(flags=("--config-name", "../x"))
    assert problems(flags=("--config-dir",))
    flags, search = ("--config-dir", str(tmp_path)), f"hydra.searchpath=['file://{tmp_path}']"
    (told,) = problems(flags=flags)
    assert "which you have not given" in told
    assert len(problems(hydra=[search], flags=flags)) == 2
    (tmp_path / "x.yaml").write_text("_target_: mine.Net\n")
    trust = Trust(config_dirs=(tmp_path,), own=frozenset({"mine.Net"}))
    assert problems(["model._target_=mine.Net"], [search], flags, trust) == []


def test_the_jobs_hear_of_it_in_whatever_process(tmp_path):
    (tmp_path / "x.yaml").write_text("_target_: mine.Net\n")
    assert trust_of_jobs() is None
    with checked_jobs(Trust(config_dirs=(tmp_path,))):
        assert trust_of_jobs().own == {"mine.Net"}
    with checked_jobs(Trust(all=True)):
        assert trust_of_jobs() is None
    assert trust_of_jobs() is None


def record(directory, **parts):
    directory.mkdir(exist_ok=True)
    whole = {
        "format": 1,
        "flags": [],
        "overrides": ["method=lora"],
        "hydra": [],
        "params": {},
        **parts,
    }
    (directory / "sweep.json").write_text(json.dumps(whole))


@pytest.mark.parametrize("parts", [
    {"overrides": [f"+callbacks.x={CALL}", "seed=0,1"]}, {"hydra": [f"+hydra.callbacks.x={CALL}"]},
    {"flags": ["--config-dir", "evil"]},
])  # fmt: skip
def test_continue_refuses_the_record_of_a_stranger(command, tmp_path, parts, monkeypatch):
    record(tmp_path / "sweep", **parts)
    seen = []
    monkeypatch.setattr("lightning_peft.cli.app.main", lambda words: seen.append(words) or 0)
    status, _, err = command("continue", "sweep")
    assert status == 2
    assert "sweep/sweep.json: " in err
    assert "--trust" in err
    assert not seen
    assert command("continue", "sweep", "--trust")[0] == 0
    assert seen
    assert next(iter(parts.values()))[0] in seen[0]


def test_continue_goes_into_no_directory_that_leads_out(command, tmp_path, monkeypatch):
    record(tmp_path / "sweep")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sweep" / "0_lora_seed0").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr("lightning_peft.cli.app.main", lambda words: 0)
    status, _, err = command("continue", "sweep")
    assert status == 2
    assert "0_lora_seed0: expected a file of sweep, got a link to" in err
    (tmp_path / "sweep" / "0_lora_seed0").unlink()
    assert command("continue", "sweep")[0] == 0


def test_continue_names_what_hydra_could_not_open(command, tmp_path, monkeypatch):
    record(tmp_path / "sweep")
    (tmp_path / "sweep" / "0_lora_seed0" / "run.log").mkdir(parents=True)
    (tmp_path / "sweep" / "1_lora_seed1").mkdir()
    (tmp_path / "sweep" / "1_lora_seed1" / ".hydra").touch()
    monkeypatch.setattr("lightning_peft.cli.app.main", lambda words: 0)
    for trust in ([], ["--trust"]):
        status, _, err = command("continue", "sweep", *trust)
        assert status == 2
        assert "0_lora_seed0/run.log: expected a file, got a directory" in err
        assert "1_lora_seed1/.hydra: expected a directory, got a file" in err
        assert "Remove what is listed" in err


@pytest.mark.parametrize("parts", [{"flags": "abc"}, {"hydra": [3]}, {"overrides": None}])
def test_a_record_of_other_types_is_no_record(command, tmp_path, parts):
    record(tmp_path / "sweep", **parts)
    status, _, err = command("continue", "sweep")
    assert status == 2
    assert "expected the directory of a sweep with a sweep.json, got sweep (TypeError)" in err


def test_the_hint_names_the_configs_that_continue_asks_for(tmp_path):
    from lightning_peft.cli.sweeps.record import to_continue

    record(tmp_path / "a b", flags=["--config-dir", "/my conf", "--config-name", "x"])
    assert to_continue(tmp_path / "a b") == (
        f"lightning-peft continue '{tmp_path / 'a b'}' --config-dir '/my conf'"
    )
    assert to_continue(tmp_path) == f"lightning-peft continue {tmp_path}"


def test_a_directory_in_the_place_of_a_file_of_hydra_is_one_line(tmp_path):
    from lightning_peft.cli.config.errors import of_a_file

    with pytest.raises(IsADirectoryError) as info:
        tmp_path.open("w")
    told = str(of_a_file(info.value))
    assert told == f"{tmp_path}: cannot be written (Is a directory). Remove what is in its place."
    other = OSError("of a user's own code")
    assert of_a_file(other) is other
