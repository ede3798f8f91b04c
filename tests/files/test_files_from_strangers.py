"""Files from a stranger: what they ask for is refused, by name, and the model is as it was."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lightning_peft as lp
from lightning_peft.adaptation.snapshot import restored_after_error
from lightning_peft.files.bounded import AllocationLimit
from lightning_peft.files.patterns import slow_patterns
from lightning_peft.files.writing import CONFIG_FILE, WEIGHTS_FILE
from tests.fixtures.backbone import Tiny, TinyModule

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format_1"


def written(directory: Path, method: object, peft_only: bool = False, **changes: object) -> Path:
    """Save an adapter of a tiny model and change its config, or what it says of the method."""
    lp.adapt(Tiny(), method).save(directory)
    config = json.loads((directory / CONFIG_FILE).read_text())
    tensors = load_file(directory / WEIGHTS_FILE)
    if peft_only:
        config.update(changes)
        metadata = {"format": "pt"}
    else:
        config["lightning_peft"]["method"].update(changes)
        metadata = {"lightning_peft": json.dumps(config["lightning_peft"])}
    save_file(tensors, directory / WEIGHTS_FILE, metadata=metadata)
    (directory / CONFIG_FILE).write_text(json.dumps(config))
    return directory


def refused(directory: Path, match: str) -> None:
    model = Tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = [set(module.__dict__) for module in model.modules()]
    with pytest.raises(lp.PEFTError, match=match):
        lp.load_adapter(model, directory)
    assert lp.find_adaptation(model) is None
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert [set(module.__dict__) for module in model.modules()] == attributes
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bottleneck": 10**9}, "far larger than them"),
        ({"bottleneck": "wide"}, "whole number"),
        ({"scale": [1]}, "positive number"),
        ({"exclude": "re:(a+)+$"}, "matched in a bounded time"),
        ({"_target_": "os.system"}, "has no setting '_target_'"),
    ],
)
def test_what_an_own_method_may_not_ask_for(changes, match, tmp_path: Path) -> None:
    refused(written(tmp_path, lp.create_method("pfeiffer", bottleneck=2), **changes), match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"target_modules": "(.*a){30}$"}, "matched in a bounded time"),
        ({"rank_pattern": {"(a+)+$": 4}}, "matched in a bounded time"),
        ({"megatron_config": {"a": 1}, "megatron_core": "this"}, "megatron_core names"),
        ({"layer_replication": [[0, 10**9]]}, "copies layers"),
        ({"init_lora_weights": "olora", "r": 1}, "of another shape"),
        ({"of_tomorrow": 1}, "settings that peft .* knows for LORA, got of_tomorrow"),
        ({"lora_alpha": 1e999}, "not a number in JSON|finite numbers"),
        ({"lora_alpha": "x"}, "refuses to adapt|carried out|cannot read"),
    ],
)
def test_what_a_config_of_peft_may_not_ask_for(changes, match, tmp_path: Path) -> None:
    method = lp.HF("lora", r=2, target_modules=["fc1"])
    refused(written(tmp_path, method, peft_only=True, **changes), match)


def test_what_names_other_models_or_code_is_not_looked_at(tmp_path: Path) -> None:
    method = lp.HF("lora", r=2, target_modules=["fc1"])
    directory = written(
        tmp_path,
        method,
        peft_only=True,
        base_model_name_or_path="https://example.com/model",
        auto_mapping={"parent_library": "nowhere_to_be_found", "base_model_class": "X"},
        revision="main",
        corda_config={"cache_file": "/x", "covariance_file": "/y"},
    )
    assert lp.find_adaptation(lp.load_adapter(Tiny(), directory)) is not None


def test_config_and_header_have_to_tell_the_same(tmp_path: Path) -> None:
    lp.adapt(Tiny(), "ssf").save(tmp_path)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    config["lightning_peft"]["method"]["layers"] = "last:1"
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    refused(tmp_path, "that describe two")


def test_two_entries_of_one_name_are_refused(tmp_path: Path) -> None:
    lp.adapt(Tiny(), lp.HF("lora", r=2, target_modules=["fc1"])).save(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / WEIGHTS_FILE, framework="pt") as file:
        about = file.metadata()
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name.removeprefix("base_model.model.")] = tensors[name] + 1
    save_file(tensors, tmp_path / WEIGHTS_FILE, metadata=about)
    refused(tmp_path, "expected each entry once")


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


def rewritten(source: Path, target: Path, content: bytes, compression: int = 0) -> Path:
    """Copy a checkpoint with another pickle in it."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w", compression) as after:
        for entry in before.infolist():
            inner = entry.filename.endswith("data.pkl")
            after.writestr(entry.filename, content if inner else before.read(entry))
    return target


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / "evil.ckpt"
    evil = pickle.dumps({"state_dict": Payload(canary)}, protocol=2)
    with pytest.raises(lp.CheckpointError, match="without running code"):
        lp.load_from_checkpoint(TinyModule, rewritten(FORMAT_1 / "lightning.ckpt", file, evil))
    file.write_bytes(evil)
    with pytest.raises(lp.CheckpointError, match="something else"):
        lp.load_from_checkpoint(TinyModule, file)
    assert not canary.exists()


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    bomb = b"\x00" * (1 << 20)
    source = FORMAT_1 / "lightning.ckpt"
    file = rewritten(source, tmp_path / "bomb.ckpt", bomb, zipfile.ZIP_DEFLATED)
    with pytest.raises(lp.CheckpointError, match="unpacks to more"):
        lp.load_from_checkpoint(TinyModule, file)
    huge = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R."
    with pytest.raises(lp.CheckpointError, match="got a bytearray"):
        lp.load_from_checkpoint(TinyModule, rewritten(source, tmp_path / "huge.ckpt", huge))


def no_mapping(checkpoint: dict) -> None:
    checkpoint["lightning_peft"]["adaptations"] = ["model"]


def of_tomorrow(checkpoint: dict) -> None:
    checkpoint["lightning_peft"]["format_version"] = 2


def no_tensor(checkpoint: dict) -> None:
    checkpoint["state_dict"]["model.head.bias"] = "x"


def no_values(checkpoint: dict) -> None:
    checkpoint["state_dict"]["model.head.bias"] = torch.empty(3, device="meta")


def complex_values(checkpoint: dict) -> None:
    checkpoint["state_dict"]["model.head.bias"] = torch.zeros(3, dtype=torch.complex64)


def odd_steppers(checkpoint: dict) -> None:
    checkpoint["lightning_peft"]["steppers"] = {"model": 3}


def odd_width(checkpoint: dict) -> None:
    checkpoint["hyper_parameters"]["width"] = "wide"


def huge_rank(checkpoint: dict) -> None:
    method = checkpoint["lightning_peft"]["adaptations"]["model"]["method"]
    method.clear()
    method.update(name="pfeiffer", bottleneck=10**9)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (no_mapping, "to name the adaptations"),
        (of_tomorrow, "format version 1 or older, got 2"),
        (no_tensor, r"tensors by name, got 'model\.head\.bias' \(str\)"),
        (no_values, r"without values: model\.head\.bias"),
        (complex_values, r"of another dtype: model\.head\.bias"),
        (odd_steppers, "steppers' states"),
        (odd_width, "TinyModule can be built"),
        (huge_rank, "far larger than them"),
    ],
)
def test_what_a_checkpoint_may_not_hold(change, match, tmp_path: Path) -> None:
    checkpoint = torch.load(FORMAT_1 / "lightning.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "odd.ckpt")
    with pytest.raises(lp.PEFTError, match=match):
        lp.load_from_checkpoint(TinyModule, tmp_path / "odd.ckpt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 100], ids=["empty", "zip", "text"])
def test_what_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "odd.ckpt").write_bytes(content)
    with pytest.raises(lp.CheckpointError, match="expected a checkpoint"):
        lp.load_from_checkpoint(TinyModule, tmp_path / "odd.ckpt")
    with pytest.raises(lp.CheckpointError, match="got no file"):
        lp.load_from_checkpoint(TinyModule, tmp_path / "absent.ckpt")
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    (tmp_path / "odd.ckpt").write_bytes(buffer.getvalue())
    with pytest.raises(lp.CheckpointError, match="got a list"):
        lp.load_from_checkpoint(TinyModule, tmp_path / "odd.ckpt")


def too_large() -> None:
    torch.empty(1 << 62, dtype=torch.uint8)  # no machine has that much


def too_large_a_product() -> None:
    torch.ones(1 << 14, 1) @ torch.ones(1, 1 << 14)


def too_many() -> None:
    for _ in range(10**6):
        torch.zeros(1)


@pytest.mark.parametrize("ask", [too_large, too_large_a_product, too_many])
def test_the_limit_refuses_before_it_allocates(ask) -> None:
    with (
        pytest.raises(lp.AdapterFileError, match="x: expected a config that fits the 5 elements"),
        AllocationLimit(Tiny(), 5, "x"),
    ):
        ask()
    with AllocationLimit(Tiny(), 5, "x"):
        nn.Linear(100, 100)


def test_expressions_are_slow_by_their_ways_and_not_by_their_length() -> None:
    slow = ["(a+)+$", "(a|a)*b", "(.*a){20}", "(x*)*", ".*" * 9, "(?=(a+)+)b", "(" * 5000 + "*"]
    quick = [
        r"(.*\.)?blocks\.(\d+)\.attn\.(q|v)",
        "|".join(f"blocks\\.{i}\\.fc1" for i in range(500)),
        "a{1000}",
        "[",
        "all-linear",
        r"(?:blocks|layers)\.[0-3]\..*",
    ]
    assert slow_patterns([*slow, *quick], names=200, length=60) == slow


def change_everything_and_fail(model: Tiny) -> None:
    model.head.weight.data -= 1
    model.head.bias.data = torch.ones(3)
    model.head.requires_grad_(False)
    model.blocks.add_module("more", nn.Identity())
    model.head.register_forward_hook(print)
    model.__class__ = nn.Module
    model.extra = 1
    raise ZeroDivisionError


def test_a_model_is_put_back_as_it_was() -> None:
    model = Tiny()
    weight, bias = model.head.weight, model.head.bias
    kept = weight.detach().clone()
    with pytest.raises(ZeroDivisionError), restored_after_error(model, ["head.weight"]):
        change_everything_and_fail(model)
    assert type(model) is Tiny
    assert not hasattr(model, "extra")
    assert len(model.blocks) == 2
    assert not model.head._forward_hooks
    assert model.head.weight is weight
    assert torch.equal(weight, kept)
    assert not torch.equal(bias, torch.ones(3))
    assert weight.requires_grad
