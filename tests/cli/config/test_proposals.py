"""A backbone for a person's own images: three are proposed, or one is chosen and said."""

import subprocess

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir

from lightning_peft.cli.config import proposals
from lightning_peft.cli.config.conf_source import ConfSource
from lightning_peft.cli.config.paths import conf_dir
from lightning_peft.cli.config.proposals import Machine, ask_for_backbone, choose

EVERY = {p.name: p for size in (None, 8.0, 80.0) for p in proposals.proposals(size)}


@pytest.mark.parametrize("name", sorted(EVERY))
def test_the_figures_are_those_of_timm(name):
    proposal = EVERY[name]
    config = timm.get_pretrained_cfg(name)
    assert config.hf_hub_id == f"timm/{name}"  # where the weights are looked for
    assert config.input_size == (3, proposal.pixels, proposal.pixels)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    assert sum(p.numel() for p in model.parameters()) == proposal.parameters


@pytest.mark.parametrize("size", [None, 8.0, 80.0])
def test_three_are_proposed_the_first_of_them_is_auto(monkeypatch, size):
    monkeypatch.setattr(proposals, "machine", lambda: Machine("a machine", size))
    monkeypatch.setattr(proposals, "is_here", lambda proposal: False)
    several = proposals.proposals(size)
    assert len(set(several)) == 3
    told = ask_for_backbone().splitlines()
    assert told[0] == (
        "model.backbone needs a value: which pretrained model? For a machine, for example"
    )
    assert [line.split()[0] for line in told[1:4]] == [f"model.backbone={p.name}" for p in several]
    assert "or model=auto" in told[4]
    chosen, why = choose()
    assert chosen == several[0]
    assert why == (
        f"model=auto: {chosen.name} ({chosen.parameters / 1e6:.1f} M parameters, 224 pixels), for "
        "a machine; its weights are downloaded once"
    )


def test_what_is_on_this_machine_comes_first(monkeypatch):
    monkeypatch.setattr(proposals, "machine", lambda: Machine("a machine", None))
    third = proposals.proposals(None)[2]
    monkeypatch.setattr(proposals, "is_here", lambda proposal: proposal == third)
    assert choose()[0] == third
    assert choose()[1].endswith("its weights are on this machine")
    assert ask_for_backbone().splitlines()[3].endswith("pixels, on this machine")


def test_weights_in_the_cache_of_the_hub_are_found(monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, name: asked.append(repo) or ("/a/path" if "resnet" in repo else None),
    )
    assert proposals.is_here(proposals.RESNET18)
    assert not proposals.is_here(proposals.TINY)
    assert set(asked) == {f"timm/{p.name}" for p in (proposals.RESNET18, proposals.TINY)}


@pytest.mark.parametrize(
    ("output", "machine"),
    [
        ("NVIDIA A10, 24564\n", Machine("NVIDIA A10, 24 GiB", 24564 / 1024)),
        ("No devices were found\n", None),
    ],
)
def test_a_gpu_is_seen_without_torch(monkeypatch, output, machine):
    proposals.machine.cache_clear()
    monkeypatch.setattr(proposals.shutil, "which", lambda name: name)
    monkeypatch.setattr(
        proposals.subprocess,
        "run",
        lambda *args, **options: subprocess.CompletedProcess(args, 0, output, ""),
    )
    found = proposals.machine()
    proposals.machine.cache_clear()
    assert found == machine if machine else found.gigabytes is None


def test_the_config_of_auto_has_the_name_of_what_was_chosen(monkeypatch):
    monkeypatch.setattr(proposals, "machine", lambda: Machine("a machine", 80.0))
    monkeypatch.setattr(proposals, "is_here", lambda proposal: False)
    found = ConfSource("test", f"lightning-peft-conf://{conf_dir()}").load_config("model/auto")
    assert found.config._get_node("backbone")._value() in EVERY
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = ["name=test", "output_dir=.", "data=folder", "data.root=x"]
        cfg = compose("config", ["model=auto", *words])
        assert cfg.model.backbone == cfg.data.backbone
        assert cfg.model.backbone in EVERY
        assert compose("config", ["model=glyph_vit", *words]).model.backbone == "glyph_vit"
