"""Backbones to propose for a person's own images, by this machine and what is on it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["AUTO", "Proposal", "ask_for_backbone", "choose", "machine", "proposals"]

AUTO = "auto"
"""The choice of the group ``model`` that stands for a proposal."""


class Proposal(NamedTuple):
    """A pretrained model of timm.

    Attributes:
        name: As for ``timm.create_model``, with its weights.
        parameters: Without the head.
        pixels: Height and width of its images.
    """

    name: str
    parameters: int
    pixels: int


TINY = Proposal("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 5_524_416, 224)
SMALL = Proposal("vit_small_patch16_224.augreg_in21k_ft_in1k", 21_665_664, 224)
BASE = Proposal("vit_base_patch16_224.augreg2_in21k_ft_in1k", 85_798_656, 224)
LARGE = Proposal("vit_large_patch16_224.augreg_in21k_ft_in1k", 303_301_632, 224)
RESNET18 = Proposal("resnet18.a1_in1k", 11_176_512, 224)
CONVNEXT = Proposal("convnext_tiny.in12k_ft_in1k", 27_820_128, 224)

_LARGE_GPU = 20.0
"""GiB from which a ViT-L trains with room to spare."""


class Machine(NamedTuple):
    """What decides how large a model may be.

    Attributes:
        told: In words.
        gigabytes: Memory of the accelerator in GiB; ``None`` if there is none.
    """

    told: str
    gigabytes: float | None


@functools.cache
def machine() -> Machine:
    """Look at this machine without importing torch."""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
        try:
            found = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
            name, _, mebibytes = found.stdout.splitlines()[0].rpartition(",")
            size = float(mebibytes) / 1024
        except (OSError, ValueError, IndexError, subprocess.SubprocessError):
            pass
        else:
            return Machine(f"{name.strip()}, {size:.0f} GiB", size)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = f"{cores} CPU core{'s' if cores != 1 else ''}"
    if sys.platform == "darwin" and os.uname().machine == "arm64":
        return Machine(f"an Apple GPU, {told}", 8.0)
    return Machine(f"{told}, no GPU", None)


def proposals(gigabytes: float | None) -> Sequence[Proposal]:
    """Return three models, the one that suits a machine best first.

    Args:
        gigabytes: As in :class:`Machine`.
    """
    if gigabytes is None:
        return TINY, RESNET18, SMALL
    if gigabytes < _LARGE_GPU:
        return SMALL, CONVNEXT, BASE
    return BASE, SMALL, LARGE


def is_here(proposal: Proposal) -> bool:
    """Whether the weights are in the cache of the Hugging Face hub, from which timm loads them."""
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    found = (try_to_load_from_cache(f"timm/{proposal.name}", name) for name in names)
    return any(isinstance(path, str) for path in found)


def choose() -> tuple[Proposal, str]:
    """Return the backbone of ``model=auto``, and a sentence that says why.

    It is the first proposal whose weights are on this machine, otherwise the first.
    """
    found = machine()
    several = proposals(found.gigabytes)
    here = [proposal for proposal in several if is_here(proposal)]
    chosen = (here or several)[0]
    where = "its weights are on this machine" if here else "its weights are downloaded once"
    return chosen, f"model=auto: {_told(chosen)}, for {found.told}; {where}"


def ask_for_backbone() -> str:
    """Return the error for images of a person's own without a model, with three proposals."""
    found = machine()
    several = proposals(found.gigabytes)
    width = max(len(proposal.name) for proposal in several)
    lines = [
        f"  model.backbone={proposal.name:<{width}}  {_sizes(proposal)}"
        + (", on this machine" if is_here(proposal) else "")
        for proposal in several
    ]
    return (
        f"model.backbone needs a value: which pretrained model? For {found.told}, for example\n"
        + "\n".join(lines)
        + "\nor model=auto, which takes the first that is on this machine, or model=glyph_vit for "
        "small gray images; lightning-peft rank compares models on your images."
    )


def _told(proposal: Proposal) -> str:
    return f"{proposal.name} ({_sizes(proposal)})"


def _sizes(proposal: Proposal) -> str:
    return f"{proposal.parameters / 1e6:.1f} M parameters, {proposal.pixels} pixels"
