"""Mutations of the directory of a sweep and of the runs in it, one function for each.

A mutation takes a random generator, the directory of the sweep and a file outside of it, which
nobody may write to. It changes the directory in place.
"""

import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzz_mutations import ADAPTER as OF_ADAPTERS
from fuzz_mutations import BYTES, CANARY, Payload
from fuzz_mutations import CHECKPOINT as OF_CHECKPOINTS

Mutation = Callable[[random.Random, Path, Path], None]
Json = Any

RUN = "0_lora_seed0"
"""The run whose files are damaged."""

HOSTILE: list[Json] = [
    *(None, True, False, 0, 1, -1, 7, 10**9, 10**30, 0.5, -1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "null",
        "a" * 20_000,
        "\x00",
        "\x1b[2J\x1b]0;x\x07",
        "\u202egnp",
        "\ud800",
        "é\n\nb",
    ),
    *("../../../../etc/passwd", "/etc/passwd", "/dev/zero", "~/.ssh/id", "file:///etc/passwd"),
    *("=cmd()", "@SUM(A1)", "<script>alert(1)</script>", "'\"><img src=x onerror=y>", "{{7*7}}"),
    *("${oc.env:HOME}", "${x}", "${oc.create:'{_target_: os.system}'}", "%s%n", "lora", "auto"),
    *([], {}, [None], [[]], {"a": {"b": []}}, ["x"] * 3000, [10**30] * 3, {"": 1}, {"x": "y"}),
]


def targets(victim: Path) -> list[Json]:
    """Return nodes of a config that would run code, or touch a file, if they were built."""
    canary = os.environ[CANARY]
    touch = f"touch '{canary}'"
    pickled = str(victim.parent / "payload.pkl")
    copy = [str(victim), canary]
    return [
        {"_target_": "os.system", "_args_": [touch]},
        {"_target_": "posix.system", "_args_": [touch]},
        {"_target_": "subprocess.Popen", "_args_": [["touch", canary]]},
        {"_target_": "subprocess.run", "args": touch, "shell": True, "_partial_": False},
        {"_target_": "shutil.copyfile", "src": copy[0], "dst": copy[1]},
        {"_target_": "builtins.eval", "_args_": [f"open({canary!r}, 'w')"]},
        {"_target_": "builtins.open", "_args_": [canary, "w"]},
        {
            "_target_": "pathlib.Path.touch",
            "_args_": [{"_target_": "pathlib.Path", "_args_": [canary]}],
        },
        {"_target_": "joblib.load", "filename": pickled},
        {"_target_": "numpy.load", "file": pickled, "allow_pickle": True},
        {"_target_": "torch.load", "f": pickled, "weights_only": False},
        {
            "_target_": "pickle.load",
            "_args_": [{"_target_": "builtins.open", "_args_": [pickled, "rb"]}],
        },
        {
            "_target_": "torch.hub.load",
            "repo_or_dir": str(victim.parent),
            "model": "m",
            "source": "local",
        },
        {"_target_": "hydra.utils.get_method", "path": "os.system"},
        {
            "_target_": "hydra.utils.instantiate",
            "config": {"_target_": "os.system", "_args_": [touch]},
        },
        {
            "_target_": "functools.partial",
            "_args_": [{"_target_": "hydra.utils.get_object", "path": "os.system"}, touch],
        },
        {"_target_": "canary_module.run"},
        {"_target_": "canary_module"},
        {"_target_": "importlib.import_module", "name": "canary_module"},
        {"_target_": "runpy.run_path", "_args_": [str(victim.parent / "canary_module.py")]},
        {"_target_": "timm.models.load_checkpoint", "_args_": [None, pickled]},
        {"_target_": "timm.create_model", "model_name": "resnet18", "checkpoint_path": pickled},
        {
            "_target_": "torchvision.datasets.DatasetFolder",
            "root": str(victim.parent),
            "loader": {"_target_": "hydra.utils.get_method", "path": "os.system"},
        },
        {"_target_": "lightning.pytorch.cli.LightningCLI", "args": ["--config", copy[0]]},
        {
            "_target_": "lightning.pytorch.callbacks.LambdaCallback",
            "setup": {"_target_": "hydra.utils.get_method", "path": "os.system"},
        },
        {"_target_": "lightning_peft.load_from_checkpoint", "path": pickled, "weights_only": False},
        {"_target_": "lightning_peft.cli.main", "argv": [f"output_dir={canary}"]},
        {"_target_": ["os.system"], "_args_": [touch]},
        {"_target_": {"_target_": "os.system", "_args_": [touch]}},
        {
            "_target_": "lightning_peft.LoRA",
            "_args_": [{"_target_": "os.system", "_args_": [touch]}],
        },
        {
            "_target_": "lightning_peft.Union",
            "_recursive_": False,
            "methods": [{"_target_": "os.system", "_args_": [touch]}],
        },
    ]


def words(victim: Path) -> list[str]:
    """Return overrides that would run code, or write elsewhere, if Hydra saw them."""
    canary = os.environ[CANARY]
    outside = str(victim.parent)
    call = "{_target_: os.system, _args_: [\"touch '" + canary + "'\"]}"
    return [
        "model._target_=os.system", f"+callbacks.x={call}", f"+callbacks.x=choice({call},{call})",
        f"+hydra.callbacks.x={call}", "hydra.sweeper._target_=canary_module.run",
        "+hydra.callbacks.x._target_=canary_module.run",
        "hydra.launcher._target_=canary_module.run",
        f"hydra.searchpath=[{outside}]", f"hydra.searchpath=[file://{outside}]",
        f"hydra.job_logging.handlers.file.filename={victim}", f"hydra.run.dir={outside}",
        f"hydra.sweep.dir={outside}", "hydra.sweep.subdir=../../out",
        f"hydra.sweep.subdir={outside}",
        "seed='0/../../../out'", f"output_dir={outside}", f"callbacks.best.dirpath={outside}",
        f"callbacks.last.dirpath={outside}", f"logger.csv.save_dir={outside}",
        "++hydra.job.env_set.LD_PRELOAD=/tmp/x.so", "hydra/launcher=joblib", "hydra/launcher=fresh",
        "hydra.launcher.setup=[touch]", "hydra.sweeper.params.model._target_=os.system",
        f"+hydra.sweeper.params={{output_dir: '{outside}'}}", "model=../../../../etc/passwd",
        "method=../../x", "lr=${oc.env:HOME}", "data='${oc.create:\"{_target_: os.system}\"}'",
        f"model.backbone_kwargs={{checkpoint_path: '{outside}/payload.pkl'}}",
        "seed=range(0,10**9)",
        "seed=range(0,100000000)", f"resume={outside}/payload.pkl", "hydra/job_logging=none",
        "model@hydra.callbacks.x=timm", "+trainer.plugins=" + call, "hydra.verbose=true", "--cfg",
        "-m", "=", "", "~method", "method=", "seed=0,1", "trainer.max_steps=one", "name=\x1b[2J",
        "hydra.job.name=../../../x", "hydra.output_subdir=../../x", "data.cache=" + outside,
        "+data.root=" + outside, "trainer.devices=2", "trainer.num_nodes=3", "objective=[x,y]",
    ]  # fmt: skip


# --- texts ----------------------------------------------------------------------------------------


def _bytes(name: str, change: Any) -> Mutation:
    def mutate(rng: random.Random, sweep: Path, victim: Path) -> None:
        change(rng, sweep / name)

    return mutate


def _places(node: Json, key: str = "") -> list[tuple[Json, Any]]:
    """Return every place of a value in nested data."""
    found: list[tuple[Json, Any]] = []
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for name, item in list(items):
        found += [(node, name), *_places(item)]
    return found


def _spoil(rng: random.Random, data: Json, values: list[Json]) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = _places(data)
        if not places:
            return
        holder, name = rng.choice(places)
        way = rng.random()
        if way < 0.75 or not isinstance(holder, dict):
            holder[name] = rng.choice(values)
        elif way < 0.9:
            del holder[name]
        else:
            holder[rng.choice(["_target_", "x", "", "a.b", "../x", "_args_", "\x1b[2J"])] = (
                holder.pop(name)
            )


def json_value(name: str) -> Mutation:
    """Damage a value of a JSON file."""

    def mutate(rng: random.Random, sweep: Path, victim: Path) -> None:
        data = json.loads((sweep / name).read_text())
        _spoil(rng, data, HOSTILE)
        (sweep / name).write_text(json.dumps(data), encoding="utf-8", errors="surrogatepass")

    return mutate


def _yaml(sweep: Path) -> tuple[Path, Json]:
    import yaml

    path = sweep / RUN / "config.yaml"
    return path, yaml.safe_load(path.read_text())


def _write(path: Path, data: Json) -> None:
    import yaml

    path.write_text(yaml.safe_dump(data), encoding="utf-8", errors="surrogatepass")


def config_value(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Damage a value of a config."""
    path, data = _yaml(sweep)
    _spoil(rng, data, HOSTILE)
    _write(path, data)


def config_target(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Put a node that runs code somewhere in a config, also in the parts that are always built."""
    path, data = _yaml(sweep)
    holder, name = rng.choice(_places(data))
    if rng.random() < 0.6:
        parts = [(data, "data"), (data, "model"), (data["data"], "augment"),
                 (data["model"], "optimizer"), (data["callbacks"], "peft")]  # fmt: skip
        holder, name = rng.choice(parts)
    node = rng.choice(targets(victim))
    if rng.random() < 0.3 and isinstance(holder[name], dict):
        holder[name] = {**holder[name], "extra": [node]}
    elif rng.random() < 0.3 and isinstance(holder[name], dict):
        holder[name] = {**holder[name], **node}
    else:
        holder[name] = node
    _write(path, data)


def config_yaml(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Write what YAML can express and a run never writes."""
    path = sweep / RUN / "config.yaml"
    text = path.read_text()
    canary = os.environ[CANARY]
    laughs = "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(12)
    )
    path.write_text(
        rng.choice(
            [
                f"{text}x: !!python/object/apply:os.system [\"touch '{canary}'\"]\n",
                f"{text}x: !!python/name:os.system\n",
                f"{text}x: !!python/object/new:subprocess.Popen [[touch, '{canary}']]\n",
                f"{text}x: !!python/module:canary_module\n",
                f"{text}x: !!binary AAAA\n",
                f"{text}{laughs}",
                f"{text}x: &x [*x]\n",
                f"{text}<<: {{seed: 1}}\n",
                f"{text}seed: 1\nseed: 2\n",
                f"{text}x: {'[' * 5000}\n",
                f"{text}x: {'{a: ' * 200}1{'}' * 200}\n",
                f"{text}x: {'9' * 6000}\n",
                f"{text}x: 0x{'f' * 6000}\n",
                f"{text}x: 1:2:3:4:5\n",
                f"{text}---\n{text}",
                f"{text}? [a, b]\n: c\n",
                f"{text}1: 2\nnull: 3\n",
                text.replace("seed: 0", "seed: ${oc.env:HOME}"),
                text.replace("seed: 0", "seed: ${seed}"),
                f"data: ${{x}}\n{text.replace('data:', 'x:', 1)}",
                "- a\n- b\n",
                "just a text\n",
                text.replace("\n", "\r\n"),
                "\ufeff" + text,
                text + "x: |\n" + " y\n" * 20_000,
            ]
        ),
        encoding="utf-8",
    )


def facts(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Give classes names that mean something elsewhere."""
    path = sweep / RUN / "serving.json"
    data = json.loads(path.read_text())
    names = [value for value in HOSTILE if isinstance(value, str)]
    data["class_names"] = [rng.choice(names) for _ in range(rng.choice((10, 10, 10, 3, 1000)))]
    path.write_text(json.dumps(data))


def table(name: str) -> Mutation:
    """Damage a table of a run."""

    def mutate(rng: random.Random, sweep: Path, victim: Path) -> None:
        path = sweep / RUN / name
        rows = (
            [line.split(",") for line in path.read_text().splitlines()]
            if path.is_file()
            else [["x"]]
        )
        for _ in range(rng.choice((1, 3, 30))):
            row = rng.choice(rows)
            value = str(rng.choice(HOSTILE)).encode("utf-8", "replace").decode()
            row[rng.randrange(len(row))] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(map(",".join, rows)))

    return mutate


def sweep_words(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Record a command line that does something else."""
    path = sweep / "sweep.json"
    record = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 2))):
        part = rng.choice(("overrides", "hydra", "hydra"))
        record[part].insert(rng.randrange(len(record[part]) + 1), rng.choice(words(victim)))
    path.write_text(json.dumps(record))


def sweep_flags(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Record flags of Hydra's."""
    path = sweep / "sweep.json"
    record = json.loads(path.read_text())
    outside = str(victim.parent)
    flags = ["--config-dir", outside, "--config-name", "evil", "--config-path", "--cfg", "job", "x",
             "--experimental-rerun", f"{outside}/payload.pkl", "--info",
             "--shell-completion", "-cd"]  # fmt: skip
    record["flags"] = [rng.choice(flags) for _ in range(rng.choice((1, 2, 2, 4)))]
    if rng.random() < 0.3:
        record["overrides"].append("+experiment=evil")
    path.write_text(json.dumps(record))


# --- files ----------------------------------------------------------------------------------------


def _any(rng: random.Random, sweep: Path) -> Path:
    files = [path for path in sorted(sweep.rglob("*")) if path.is_file()]
    chosen = [path for path in files if path.parent == sweep or RUN in path.parts]
    return rng.choice(chosen)


def link(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Put a link in the place of a file."""
    path = _any(rng, sweep)
    path.unlink()
    others = [victim, "/etc/passwd", "/dev/zero", "/dev/null", "/proc/self/mem", path, "nowhere",
              sweep / "1_lora_seed0" / path.name, victim.parent]  # fmt: skip
    path.symlink_to(rng.choice(others))


def folder_link(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Put a link in the place of a directory."""
    folders = [sweep / RUN / name for name in ("", "checkpoints", "adapter", "csv", ".hydra")]
    path = rng.choice([folder for folder in folders if folder.is_dir()])
    shutil.rmtree(path)
    path.symlink_to(
        rng.choice([victim.parent, "/", sweep, sweep / "1_lora_seed0", "/proc/self/fd"])
    )


def planted(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Leave a link where a command writes a file of its own."""
    names = [
        *("comparison.json", "comparison.csv", "report.html", ".comparison.png.partial.png"),
        *("comparison.png", ".in_use", ".in_use.lock", "study.journal", f"{RUN}/run.log"),
        *(f"{RUN}/.in_use", f"{RUN}/.in_use.lock", f"{RUN}/.hydra/config.yaml", "multirun.yaml"),
        *(f"{RUN}/checkpoints/last.ckpt", f"{RUN}/.result.json", f"{RUN}/csv/metrics.csv"),
    ]
    path = sweep / rng.choice(names)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    if rng.random() < 0.5:  # a job that is not finished writes more
        (sweep / RUN / "summary.json").unlink(missing_ok=True)


def pipe(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Put a named pipe in the place of a file: who opens it to read waits forever."""
    path = _any(rng, sweep)
    path.unlink()
    os.mkfifo(path)


def folder(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Put a directory in the place of a file, or nothing."""
    path = _any(rng, sweep)
    path.unlink()
    if rng.random() < 0.6:
        path.mkdir()


def exchanged(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Exchange two files."""
    one, two = _any(rng, sweep), _any(rng, sweep)
    content = two.read_bytes()
    two.write_bytes(one.read_bytes())
    one.write_bytes(content)


def pickled(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Put a pickle that runs a command in the place of a file."""
    path = _any(rng, sweep)
    if rng.random() < 0.5:
        path = sweep / RUN / "checkpoints" / "best.ckpt"
        shutil.rmtree(sweep / RUN / "adapter", ignore_errors=True)
    if rng.random() < 0.5:
        path.write_bytes(pickle.dumps(Payload()))
    else:
        import torch

        torch.save({"state_dict": Payload(), "hyper_parameters": {}}, path)


def named(rng: random.Random, sweep: Path, victim: Path) -> None:
    """Give a run a name that means something elsewhere."""
    names = ["\x1b[2J", "=cmd()", "<b>x", "a\nb", "-m", "x" * 200, "[red]", "é\u202e", "~", "$HOME"]
    with suppress(OSError):
        (sweep / RUN).rename(sweep / rng.choice(names))


def _of_checkpoint(change: Any) -> Mutation:
    def mutate(rng: random.Random, sweep: Path, victim: Path) -> None:
        name = rng.choice(("best.ckpt", "last.ckpt"))
        if rng.random() < 0.5:  # export reads the checkpoint of a run without an adapter
            shutil.rmtree(sweep / RUN / "adapter", ignore_errors=True)
        if name == "last.ckpt":  # which is read where the job did not finish
            (sweep / RUN / "summary.json").unlink()
        change(rng, sweep / RUN / "checkpoints" / name)

    return mutate


def _of_adapter(change: Any) -> Mutation:
    return lambda rng, sweep, victim: change(rng, sweep / RUN / "adapter")


SERVE, READ = ("export", "predict", "soup", "against"), ("compare", "continue")
EVERY = (*SERVE, *READ)

RUNS: dict[str, tuple[Mutation, tuple[str, ...]]] = {
    **{f"config {name}": (_bytes(f"{RUN}/config.yaml", change), (*SERVE, "continue"))
       for name, change in BYTES.items()},
    **{f"summary {name}": (_bytes(f"{RUN}/summary.json", change), (*READ, "soup"))
       for name, change in BYTES.items()},
    **{f"facts {name}": (_bytes(f"{RUN}/serving.json", change), ("export", "predict"))
       for name, change in BYTES.items()},
    **{f"sweep {name}": (_bytes("sweep.json", change), ("continue",))
       for name, change in BYTES.items()},
    "config value": (config_value, (*SERVE, "continue")),
    "config target": (config_target, (*SERVE, "continue")),
    "config yaml": (config_yaml, (*SERVE, "continue")),
    "summary value": (json_value(f"{RUN}/summary.json"), (*READ, "soup", "against")),
    "facts value": (json_value(f"{RUN}/serving.json"), ("export", "predict")),
    "facts names": (facts, ("export", "predict")),
    "sweep value": (json_value("sweep.json"), ("continue",)),
    "sweep words": (sweep_words, ("continue",)),
    "sweep flags": (sweep_flags, ("continue",)),
    "confusion": (table("confusion.csv"), ("compare",)),
    "reliability": (table("reliability.csv"), ("compare",)),
    "log": (table("csv/metrics.csv"), READ),
    "link": (link, EVERY),
    "link of a directory": (folder_link, EVERY),
    "link planted": (planted, READ),
    "pipe": (pipe, EVERY),
    "directory or nothing": (folder, EVERY),
    "files exchanged": (exchanged, EVERY),
    "pickle": (pickled, EVERY),
    "name of a run": (named, EVERY),
    **{name: (_of_checkpoint(change), ("export", "soup", "continue"))
       for name, change in OF_CHECKPOINTS.items()},
    **{f"adapter: {name}": (_of_adapter(change), ("export",))
       for name, change in OF_ADAPTERS.items()},
}  # fmt: skip
"""What is done to a directory, and the commands that read what was changed."""

OFTEN = ("config value", "config target", "config yaml", "sweep words", "sweep flags",
         "sweep value", "summary value", "link", "link planted", "pipe")  # fmt: skip
"""Mutations with more ways than the others: they are drawn this many times as often."""
TIMES = 8

assert re.fullmatch(r"\d+_\w+", RUN)
