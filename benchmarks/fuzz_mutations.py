"""Mutations of an adapter directory or a checkpoint, one function for each.

A mutation takes a random generator and the file or directory, and changes it in place.
"""

import copy
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
CANARY = "FUZZ_CANARY"
"""The environment variable with the path of a file that only code from a file would write."""

Mutation = Callable[[random.Random, Path], None]
Json = Any


class Payload:
    """Pickles to a call of ``os.system``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{os.environ[CANARY]}'",)


def deep(levels: int) -> Json:
    """Return lists nested in each other."""
    value: Json = []
    for _ in range(levels):
        value = [value]
    return value


HOSTILE: list[Json] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 10**9, 10**30, -(10**9), 0.5, 1e-300, 1e308),
    *(
        "",
        "x",
        "auto",
        "all-linear",
        "a" * 100_000,
        "\x00",
        "../../../../etc/passwd",
        "/etc/passwd",
    ),
    *("re:(a+)+$", "re:(.*)*(.*)*x", "(.*a){30}$", "re:(", "*" * 500, "[" * 200, "re:" + "(" * 900),
    *("__import__('os').system('true')", "os.system", "https://example.com/x", "lora", "union"),
    *([], {}, [None], [[]], [1, 2], ["qkv"], ["x"] * 2000, [10**9] * 3, {"a": 1}, {"qkv": 10**9}),
    {"_target_": "os.system", "_args_": ["true"]},
    {"name": "lora", "rank": 10**9},
    {"name": "union", "methods": [{"name": "ssf"}, {"name": "bitfit"}] * 40},
    deep(30),
]
"""Values that stand where another kind was expected, or that ask for too much."""

KEYS = [
    *("_target_", "__class__", "auto_mapping", "trust_remote_code", "base_model_name_or_path"),
    *("megatron_config", "megatron_core", "corda_config", "layer_replication", "custom_modules"),
    *("rank_pattern", "alpha_pattern", "exclude_modules", "layers_pattern", "target_parameters"),
    *("use_dora", "init_lora_weights", "modules_to_save", "runtime_config", "loftq_config"),
    *("lora_ga_config", "eva_config", "arrow_config", "lora_bias", "methods", "options", "rank"),
]
OPTIONS: list[Json] = [
    *HOSTILE,
    *("olora", "pissa", "pissa_niter_1000000000", "loftq", "eva", "corda", "lora_ga", "gaussian"),
    {"(a+)+$": 4},
    {"cache_file": "/etc/passwd", "covariance_file": "/etc/passwd"},
    {"loftq_bits": 4, "loftq_iter": 10**9},
    {"parent_library": "os", "base_model_class": "system"},
]


def places(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything inside plain data."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def spoil(rng: random.Random, value: Json, extra: list[Json]) -> None:
    """Put a hostile value somewhere, take something away, or add a key; in place."""
    found = list(places(value))
    path = rng.choice(found) if found else ()
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    what = rng.random()
    if path and what < 0.7:
        inside[path[-1]] = copy.deepcopy(rng.choice([*HOSTILE, *extra]))
    elif path and what < 0.8:
        del inside[path[-1]]
    elif isinstance(inside, dict):
        inside[rng.choice(KEYS)] = copy.deepcopy(rng.choice([*OPTIONS, *extra]))


# --- bytes ----------------------------------------------------------------------------------------


def truncate(rng: random.Random, file: Path) -> None:
    """Cut off the end of a file."""
    os.truncate(file, rng.randrange(file.stat().st_size))


def flip_bits(rng: random.Random, file: Path) -> None:
    """Flip some bits, in half of the cases among the first bytes."""
    content = bytearray(file.read_bytes())
    reach = len(content) if rng.random() < 0.5 else min(len(content), 600)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(reach)] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def overwrite(rng: random.Random, file: Path) -> None:
    """Overwrite a part of the file."""
    content = rng.choice((b"", b"\x00" * 64, rng.randbytes(300), b"PK\x03\x04" * 30, b"\x80\x02."))
    start = rng.randrange(file.stat().st_size)
    kept = file.read_bytes()
    file.write_bytes(content if rng.random() < 0.5 else kept[:start] + content + kept[start:])


def a_pickle(rng: random.Random, file: Path) -> None:
    """Replace the file by a pickle that runs a command."""
    if rng.random() < 0.5:
        file.write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=rng.choice((0, 2, 4))))
    else:
        torch.save({"state_dict": {}, "lightning_peft": Payload()}, file)


BYTES: dict[str, Mutation] = {
    "truncated": truncate,
    "bits flipped": flip_bits,
    "overwritten": overwrite,
    "a pickle": a_pickle,
}

# --- adapter directories --------------------------------------------------------------------------


def read_tensors(file: Path) -> tuple[dict[str, Json], bytes]:
    """Return the header and the data of a safetensors file."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_tensors(file: Path, header: dict[str, Json] | str, data: bytes) -> None:
    """Write a safetensors file without any checks."""
    text = header if isinstance(header, str) else json.dumps(header)
    head = text.encode("utf-8", "surrogatepass")
    file.write_bytes(struct.pack("<Q", len(head)) + head + data)


def config_value(rng: random.Random, directory: Path) -> None:
    """Damage the config; in this package's own format the header is changed to match."""
    config = json.loads((directory / CONFIG).read_text())
    for _ in range(rng.choice((1, 1, 2))):
        spoil(rng, config, [])
    (directory / CONFIG).write_text(json.dumps(config))
    if "lightning_peft" in config and rng.random() < 0.9:
        header, data = read_tensors(directory / WEIGHTS)
        header["__metadata__"]["lightning_peft"] = json.dumps(config["lightning_peft"])
        write_tensors(directory / WEIGHTS, header, data)


def config_text(rng: random.Random, directory: Path) -> None:
    """Write a config that is odd as JSON."""
    text = (directory / CONFIG).read_text()
    odd = (
        "[" * 200_000,
        '{"a":' * 50_000,
        text.replace("{", '{"peft_type": "IA3", ', 1),
        text.replace("{", '{"r": NaN, "lora_alpha": Infinity, ', 1),
        text.replace("{", '{"r": 1' + "0" * 5000 + ", ", 1),
        text.replace("{", '{"lora_alpha": 1e999, ', 1),
        "[]",
        "null",
        text.encode("utf-16").decode("latin-1"),
    )
    (directory / CONFIG).write_text(rng.choice(odd))


def header_value(rng: random.Random, directory: Path) -> None:
    """Damage the entry of lightning-peft in the header, or add one to a file of peft."""
    header, data = read_tensors(directory / WEIGHTS)
    about = json.loads(header["__metadata__"].get("lightning_peft", '{"method": {"name": "lora"}}'))
    for _ in range(rng.choice((1, 1, 2))):
        spoil(rng, about, [])
    _tell(directory, header, data, about)


def version(rng: random.Random, directory: Path) -> None:
    """Claim another format version."""
    header, data = read_tensors(directory / WEIGHTS)
    about = json.loads(header["__metadata__"].get("lightning_peft", "{}"))
    about["format_version"] = rng.choice((0, -1, 2, 99, "1", 1.0, True, None, [1], 10**40))
    _tell(directory, header, data, about)


def _tell(directory: Path, header: dict[str, Json], data: bytes, about: Json) -> None:
    """Write a description into the header, and into the config where it stands there too."""
    header["__metadata__"]["lightning_peft"] = json.dumps(about)
    write_tensors(directory / WEIGHTS, header, data)
    config = json.loads((directory / CONFIG).read_text())
    if "lightning_peft" in config:
        (directory / CONFIG).write_text(json.dumps({**config, "lightning_peft": about}))


def tensor_header(rng: random.Random, directory: Path) -> None:
    """Lie about a tensor: its shape, its dtype, where it lies, its name."""
    header, data = read_tensors(directory / WEIGHTS)
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    what = rng.randrange(6)
    if what == 0:
        entry["shape"] = rng.choice(
            ([2**40, 2**20], [2**63], [-1], [0], [], [1] * 5000, "2,3", [1.5], [2**32, 2**32])
        )
    elif what == 1:
        entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "BOOL", "U8", "C64", "X", 3))
    elif what == 2:
        entry["data_offsets"] = rng.choice(([0, 2**62], [5, 1], [-4, 4], [0, 0], "0", [0]))
    elif what == 3:
        names = (
            f"../../{name}",
            "/etc/passwd",
            "a" * 50_000,
            "",
            "\x00",
            f"{name}.weight",
            "\ud800",
        )
        header[rng.choice(names)] = header.pop(name)
    elif what == 4:
        header["__metadata__"] = rng.choice(([], {"a": 1}, "x", {"lightning_peft": "[" * 10_000}))
    else:
        text = json.dumps(header)
        write_tensors(directory / WEIGHTS, text[:-1] + f", {json.dumps(name)}: " + "{}}", data)
        return
    write_tensors(directory / WEIGHTS, header, data)


def header_length(rng: random.Random, directory: Path) -> None:
    """Write a wrong length of the header."""
    content = (directory / WEIGHTS).read_bytes()
    length = rng.choice((0, 1, 7, len(content), 2**31, 2**40, 2**63, 2**64 - 1, 100_000_001))
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", length) + content[8:])


def entries(rng: random.Random, directory: Path) -> None:
    """Write valid files with wrong entries: missing, added, of other types, not finite."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(directory / WEIGHTS, framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = rng.choice(list(tensors))
    tensor = tensors[name]
    what = rng.randrange(6)
    if what == 0:
        del tensors[name]
    elif what == 1:
        other = rng.choice((f"{name}x", name.removeprefix("base_model.model."), f"../{name}", "x"))
        tensors[other] = tensor.clone()
    elif what == 2:
        dtypes = (torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64)
        tensors[name] = tensor.to(rng.choice((*dtypes, torch.float8_e4m3fn, torch.uint8)))
    elif what == 3:
        tensors[name] = torch.full_like(tensor, rng.choice((float("nan"), float("inf"))))
    elif what == 4:
        tensors[name] = torch.full_like(tensor, 1e300, dtype=torch.float64)
    else:
        shape = rng.choice(((), (0,), (1, *tensor.shape), (*tensor.shape, 1), (7,)))
        tensors[name] = torch.zeros(shape)
    save_file(tensors, directory / WEIGHTS, metadata=about)


def exchange(rng: random.Random, directory: Path) -> None:
    """Delete a file, or replace it by something that is not a file."""
    file = directory / rng.choice((WEIGHTS, CONFIG))
    content = file.read_bytes()
    file.unlink()
    what = rng.randrange(4)
    if what == 0:
        file.mkdir()
    elif what == 1:
        file.symlink_to("/dev/null")
    elif what == 2:
        (directory / rng.choice((WEIGHTS, CONFIG))).write_bytes(content)


def _on(name: str, change: Mutation) -> Mutation:
    def mutation(rng: random.Random, directory: Path) -> None:
        change(rng, directory / name)

    return mutation


ADAPTER: dict[str, Mutation] = {
    **{f"weights {name}": _on(WEIGHTS, change) for name, change in BYTES.items()},
    **{f"config {name}": _on(CONFIG, change) for name, change in BYTES.items()},
    "config value": config_value,
    "config text": config_text,
    "header value": header_value,
    "format version": version,
    "tensor header": tensor_header,
    "header length": header_length,
    "entries": entries,
    "files exchanged": exchange,
}
"""What is done to an adapter directory."""
OFTEN = ("config value", "header value", "checkpoint value", "checkpoint state")
"""Mutations with more ways than the others: they are drawn this many times as often."""
TIMES = 5

# --- checkpoints ----------------------------------------------------------------------------------


def checkpoint_value(rng: random.Random, file: Path) -> None:
    """Damage an entry of a checkpoint."""
    checkpoint = torch.load(file, weights_only=True)
    section = rng.choice((None, "lightning_peft", "lightning_peft", "hyper_parameters"))
    tensors = [
        torch.zeros(1).expand(10**12),
        torch.empty(3, device="meta"),
        torch.eye(3).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
    ]
    spoil(rng, checkpoint if section is None else checkpoint[section], tensors)
    torch.save(checkpoint, file)


def checkpoint_state(rng: random.Random, file: Path) -> None:
    """Damage the weights of a checkpoint."""
    checkpoint = torch.load(file, weights_only=True)
    state = checkpoint["state_dict"]
    name = rng.choice(list(state))
    tensor = state[name]
    odd = (
        torch.zeros(1).expand(tensor.shape),
        torch.zeros(1).expand(10**12),
        tensor.to("meta"),
        torch.zeros(tensor.shape).to_sparse(),
        tensor.to(torch.complex64),
        tensor.to(torch.int8),
        tensor[None],
        None,
        "x",
        {"_target_": "os.system"},
    )
    if rng.random() < 0.3:
        other = rng.choice((f"{name}x", f"../{name}", "", 5, None, (1, 2), name.upper()))
        state[other] = state.pop(name)
    else:
        state[name] = rng.choice(odd)
    torch.save(checkpoint, file)


def archive(rng: random.Random, file: Path) -> None:
    """Rewrite the archive: compressed, with a zip bomb, with names that point outside of it."""
    with zipfile.ZipFile(file) as before:
        content = {entry.filename: before.read(entry) for entry in before.infolist()}
    bomb = rng.random() < 0.5
    kind = zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", kind) as out:
        warnings.simplefilter("ignore")  # two entries of one name are meant
        for name, value in content.items():
            if name.endswith("/data/0") and bomb:
                value = b"\x00" * (64 << 20)
            elif not bomb and rng.random() < 0.2:
                name = rng.choice((f"../../{name}", f"/tmp/{name}", name.upper(), "data.pkl"))
            out.writestr(name, value)


def inner_pickle(rng: random.Random, file: Path) -> None:
    """Put another pickle into the archive: a call, a huge bytearray, deep nesting."""
    with zipfile.ZipFile(file) as before:
        content = {entry.filename: before.read(entry) for entry in before.infolist()}
    name = next(name for name in content if name.endswith("data.pkl"))
    huge = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."
    made = b"\x80\x02ctorch\nFloatStorage\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R."
    content[name] = rng.choice(
        (
            pickle.dumps(Payload(), protocol=2),
            pickle.dumps({"state_dict": {}, "lightning_peft": Payload()}, protocol=2),
            huge,
            made,
            b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
            b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
            b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
            b"\x80\x02}q\x00.",
            b"\x80\x02K\x05.",
        )
    )
    with zipfile.ZipFile(file, "w") as out:
        for entry, value in content.items():
            out.writestr(entry, value)


CHECKPOINT: dict[str, Mutation] = {
    **{f"checkpoint {name}": change for name, change in BYTES.items()},
    "checkpoint value": checkpoint_value,
    "checkpoint state": checkpoint_state,
    "archive": archive,
    "inner pickle": inner_pickle,
}
"""What is done to a Lightning checkpoint."""
