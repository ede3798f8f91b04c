"""The adapter directory: what is written, what is refused, and that nothing is lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lightning_peft as lp
from lightning_peft.files.writing import CONFIG_FILE, WEIGHTS_FILE
from tests.support.zoo import build, example_input, output_of


def saved(
    tmp_path: Path, method: object = None, backbone: str = "vit"
) -> tuple[Path, torch.Tensor]:
    model = build(backbone)
    adaptation = lp.adapt(model, method or lp.LoRA(rank=2))
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    adaptation.save(tmp_path / "adapter")
    return tmp_path / "adapter", output_of(model.eval(), backbone).detach()


def test_peft_loads_what_we_wrote_and_we_load_what_peft_wrote(tmp_path: Path) -> None:
    directory, expected = saved(tmp_path)
    theirs = peft.PeftModel.from_pretrained(build("vit"), str(directory)).eval()
    # peft's own forward adds up the same numbers in another order than ours
    torch.testing.assert_close(theirs(example_input("vit")), expected, rtol=1e-5, atol=1e-6)

    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = lp.load_adapter(build("vit"), tmp_path / "theirs").eval()
    assert torch.equal(ours(example_input("vit")), expected)
    adaptation = lp.find_adaptation(ours)
    assert adaptation is not None
    assert adaptation.head == ("head",)


def test_the_files_are_peft_format_only_where_peft_has_words_for_it(tmp_path: Path) -> None:
    directory, _ = saved(tmp_path / "lora")
    config = json.loads((directory / CONFIG_FILE).read_text())
    assert config["peft_type"] == "LORA"
    assert config["modules_to_save"] == ["head"]
    assert "lightning_peft" not in config
    assert all(key.startswith("base_model.model.") for key in load_file(directory / WEIGHTS_FILE))

    for method in (lp.BitFit(), lp.Union(("lora", "bitfit"))):
        directory, _ = saved(tmp_path / method.name, method)
        config = json.loads((directory / CONFIG_FILE).read_text())
        assert "peft_type" not in config
        assert config["lightning_peft"]["method"]["name"] == method.name


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        pytest.param(lambda d: os.truncate(d / WEIGHTS_FILE, 200), "truncated", id="truncated"),
        pytest.param(
            lambda d: (d / WEIGHTS_FILE).write_bytes(b"PK\x03\x04" * 50), "truncated", id="zip"
        ),
        pytest.param(lambda d: (d / WEIGHTS_FILE).write_bytes(b""), "truncated", id="empty"),
        pytest.param(
            lambda d: (d / WEIGHTS_FILE).unlink(), "without adapter_model", id="no weights"
        ),
        pytest.param(
            lambda d: (d / CONFIG_FILE).unlink(), "without adapter_config", id="no config"
        ),
        pytest.param(lambda d: (d / CONFIG_FILE).write_text("{"), "expected JSON", id="half json"),
        pytest.param(
            lambda d: (d / CONFIG_FILE).write_text("[1]"), "expected a JSON object", id="list"
        ),
    ],
)
def test_a_broken_file_is_refused_and_the_model_is_as_before(break_it, message, tmp_path) -> None:
    directory, _ = saved(tmp_path)
    break_it(directory)
    model = build("vit")
    keys = set(model.state_dict())
    with pytest.raises(lp.AdapterFileError, match=message):
        lp.load_adapter(model, directory)
    assert set(model.state_dict()) == keys
    assert all(parameter.requires_grad for parameter in model.parameters())


def rewrite(directory: Path, change) -> None:
    with safe_open(directory / WEIGHTS_FILE, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = change(tensors, header) or header
    save_file(tensors, directory / WEIGHTS_FILE, metadata=header)


def drop_one(tensors, header):
    del tensors["base_model.model.blocks.0.attn.qkv.lora_A.weight"]


def add_one(tensors, header):
    tensors["base_model.model.blocks.9.attn.qkv.lora_A.weight"] = torch.zeros(2)


def reshape_one(tensors, header):
    tensors["base_model.model.blocks.0.attn.qkv.lora_A.weight"] = torch.zeros(3, 32)


def spoil_one(tensors, header):
    tensors["base_model.model.blocks.0.attn.qkv.lora_A.weight"].fill_(float("nan"))


def drop_and_add(tensors, header):
    drop_one(tensors, header)
    add_one(tensors, header)


def of_the_future(tensors, header):
    about = json.loads(header["lightning_peft"])
    return {**header, "lightning_peft": json.dumps({**about, "format_version": 99})}


def of_nothing(tensors, header):
    return {**header, "lightning_peft": "[]"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_one, r"1 missing: blocks\.0\.attn\.qkv\.lora_A\.default\.weight"),
        (add_one, r"1 unknown: blocks\.9\.attn\.qkv\.lora_A\.weight"),
        (reshape_one, r"1 of another shape: .*\(expected \(2, 32\), got \(3, 32\)\)"),
        (spoil_one, r"not finite: blocks\.0\.attn\.qkv"),
        (drop_and_add, r"1 missing: .*; 1 unknown: "),
        (of_the_future, "format version 1 or older, got 99"),
        (of_nothing, "to be a JSON object"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_tampered_entries_are_named(change, message, tmp_path) -> None:
    directory, _ = saved(tmp_path)
    rewrite(directory, change)
    model = build("vit")
    keys = set(model.state_dict())
    with pytest.raises(lp.AdapterFileError, match=message):
        lp.load_adapter(model, directory)
    assert set(model.state_dict()) == keys


def test_another_backbone_is_named_and_can_be_a_warning(tmp_path: Path) -> None:
    directory, _ = saved(tmp_path)
    other = build("vit")
    with torch.no_grad():
        other.blocks[1].mlp.fc1.weight.add_(1)
    with pytest.raises(lp.BackboneMismatchError, match=r"values of the frozen.*\(blocks\.1\)"):
        lp.load_adapter(other, directory)
    with pytest.warns(UserWarning, match="trained on another backbone"):
        lp.load_adapter(other, directory, strict_backbone=False)
    with pytest.raises(lp.BackboneMismatchError, match="dtypes"):
        lp.load_adapter(build("vit").bfloat16(), directory)


def test_a_model_adapted_in_another_way_is_refused(tmp_path: Path) -> None:
    directory, expected = saved(tmp_path)
    model = build("vit")
    lp.adapt(model, lp.LoRA(rank=3))
    with pytest.raises(lp.AdapterFileError, match="not adapted"):
        lp.load_adapter(model, directory)
    same = build("vit")
    lp.adapt(same, lp.LoRA(rank=2))
    lp.load_adapter(same, directory)
    assert torch.equal(output_of(same.eval(), "vit"), expected)


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    adaptation = lp.adapt(build("vit"), lp.LoRA(rank=2))
    with pytest.raises(lp.AdapterFileError, match="cannot write the adapter"):
        adaptation.save(tmp_path / "file" / "adapter")


def content_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def full_after(monkeypatch: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """Let one call of the operating system fail as on a full disk, after some that succeed."""
    real, left = getattr(os, name), [calls + 1]

    def fails(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, fails)


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("calls", [0, 1], ids=["first file", "second file"])
def test_a_full_disk_leaves_both_files_as_they_were(name, calls, tmp_path, monkeypatch) -> None:
    directory, _ = saved(tmp_path)
    before = content_of(directory)
    adaptation = lp.adapt(build("vit"), lp.LoRA(rank=3))
    with monkeypatch.context() as patch:
        full_after(patch, name, calls)
        with pytest.raises(
            lp.AdapterFileError, match=rf"to {directory}: .*No space left"
        ) as raised:
            adaptation.save(directory)
    assert isinstance(raised.value.__cause__, OSError)
    assert content_of(directory) == before
    lp.load_adapter(build("vit"), directory)
    adaptation.save(directory)
    assert content_of(directory) != before
    assert len(content_of(directory)) == 2


def test_a_full_disk_leaves_an_empty_directory_empty(tmp_path, monkeypatch) -> None:
    full_after(monkeypatch, "fsync", 1)
    with pytest.raises(lp.AdapterFileError, match="The previous files are unchanged"):
        lp.adapt(build("vit"), lp.LoRA(rank=2)).save(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_a_directory_in_the_place_of_a_file_is_left(tmp_path: Path) -> None:
    directory, _ = saved(tmp_path)
    (directory / CONFIG_FILE).unlink()
    (directory / CONFIG_FILE).mkdir()
    weights = (directory / WEIGHTS_FILE).read_bytes()
    with pytest.raises(lp.AdapterFileError, match="cannot write the adapter"):
        lp.adapt(build("vit"), lp.LoRA(rank=3)).save(directory)
    assert (directory / WEIGHTS_FILE).read_bytes() == weights
    assert sorted(path.name for path in directory.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    directory, _ = saved(tmp_path)
    before = content_of(directory)
    directory.chmod(0o500)
    with pytest.raises(lp.AdapterFileError, match=f"to {directory}: .*Permission denied"):
        lp.adapt(build("vit"), lp.LoRA(rank=3)).save(directory)
    directory.chmod(0o700)
    assert content_of(directory) == before


def test_saving_again_replaces_whole_files_and_leaves_nothing_else(tmp_path: Path) -> None:
    directory, _ = saved(tmp_path)
    saved(tmp_path)
    assert sorted(p.name for p in directory.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_merged_adapter_is_not_saved(tmp_path: Path) -> None:
    adaptation = lp.adapt(build("vit"), lp.LoRA(rank=2))
    adaptation.merge()
    with pytest.raises(lp.AdapterFileError, match="merged into them"):
        adaptation.save(tmp_path)
