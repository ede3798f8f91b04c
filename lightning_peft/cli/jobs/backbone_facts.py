"""The backbone of a job in words: its name, its size, and what it reads."""

from __future__ import annotations

from typing import Any

__all__ = ["BackboneFacts", "backbone_facts", "input_of", "told"]

BackboneFacts = dict[str, Any]
"""``name``, ``parameters`` and ``input`` of a backbone, as far as they are known."""


def backbone_facts(cfg: Any, module: Any, datamodule: Any) -> BackboneFacts:
    """Return what is known about the backbone of a job.

    Args:
        cfg: The composed config of the job.
        module: The module, before an adapter is in it.
        datamodule: The data.
    """
    from lightning_peft.anatomy.backbone import backbone_of
    from lightning_peft.errors import PEFTError
    from lightning_peft.evaluation.efficiency import count_parameters

    try:
        peft = (cfg.get("callbacks") or {}).get("peft") or {}
        backbone = backbone_of(module, peft.get("backbone"))[1]
    except PEFTError:  # the callback says it better
        backbone = module
    name = cfg.model.get("backbone")
    return {
        "name": name if isinstance(name, str) else type(backbone).__name__,
        "parameters": count_parameters(backbone).total,
        "input": input_of(datamodule),
    }


def input_of(datamodule: Any) -> str:
    """Return what a data module feeds, such as ``"224x224 RGB"``; ``""`` if it does not say."""
    shape = getattr(getattr(datamodule, "config", None), "input_size", None)
    if shape is not None:
        channels, height, width = shape
        kind = {1: "gray", 3: "RGB"}.get(channels, f"{channels} channels")
        return f"{height}x{width} {kind}"
    length = getattr(datamodule, "max_length", None)
    return f"at most {length:,} tokens" if isinstance(length, int) else ""


def told(facts: BackboneFacts) -> str:
    """Return the size and the input of a backbone, such as ``"5.5 M parameters, 224x224 RGB"``."""
    parts = [f"{short(facts['parameters'])} parameters"] if facts.get("parameters") else []
    return ", ".join([*parts, *([facts["input"]] if facts.get("input") else [])])


def short(count: int) -> str:
    """Return a number of parameters in words.

    >>> short(5_524_416), short(1_290)
    ('5.52 M', '1.29 k')
    """
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return str(count)
