"""Tensors that ``peft`` writes though the injection computes them; no state dict has them here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_peft.methods.from_peft.inject import ADAPTER_NAME

__all__ = ["derived_entries", "is_derived"]

_FROD = ("frod_V", "frod_s_indices", "frod_s_size")


def derived_entries(model: nn.Module) -> dict[str, Tensor]:
    """Return them by the names in a file of ``peft`` (without ``base_model.model.``).

    They are SHiRA's indices, and FRoD's projections for each kind of layer, which a config with
    ``save_projection=False`` leaves out.
    """
    found: dict[str, Tensor] = {}
    configs = getattr(model, "peft_config", {})
    projections = getattr(configs.get(ADAPTER_NAME), "save_projection", True)
    for name, module in model.named_modules():
        if ADAPTER_NAME in getattr(module, "shira_indices", ()):
            found[f"{name}.shira_indices"] = module.shira_indices[ADAPTER_NAME].cpu()
        if projections and ADAPTER_NAME in (getattr(module, "frod_V", None) or ()):
            kind = _kind_by_frod(name)
            for key in _FROD:
                found[f"base_model.{key}.{kind}"] = getattr(module, key)[ADAPTER_NAME].cpu()
    return found


def is_derived(key: str, tensor: Tensor, known: Mapping[str, Tensor]) -> bool:
    """Whether an entry of a file is what the injection has computed.

    Args:
        key: Its name in the file.
        tensor: Its value in the file; another machine rounds in another way.
        known: As :func:`derived_entries`.
    """
    own = known.get(key)
    if own is None or own.shape != tensor.shape:
        return False
    if not own.is_floating_point():
        return torch.equal(own.to(tensor.dtype), tensor)
    return torch.allclose(own.float(), tensor.float(), rtol=1e-3, atol=1e-5)


def _kind_by_frod(name: str) -> str:
    from peft.tuners.frod.model import _category_from_key

    found: str = _category_from_key(name)
    return found
