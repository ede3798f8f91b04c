"""Fingerprints that distinguish one pretrained backbone from another, in milliseconds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.quantised import is_code, quantised_layers
from lightning_peft.errors import some

__all__ = ["backbone_fingerprint", "differences"]

_SAMPLES = 16  # values read from each tensor


def backbone_fingerprint(
    model: nn.Module, frozen: Collection[str], architecture: str | None = None
) -> dict[str, Any]:
    """Compute a fingerprint of the frozen parameters of a backbone.

    All names, shapes and dtypes enter it, and evenly spaced samples of each tensor's values. The
    values are hashed by group (a block, an embedding, a final norm), so that a mismatch has a name.

    Args:
        model: The backbone, not yet adapted.
        frozen: Names of the parameters that the method leaves as they are.
        architecture: The model's name, if it is known.

    Returns:
        Plain JSON types: ``architecture``, ``parameters`` (how many tensors), ``structure`` (a hash
        over names and shapes), ``dtypes`` (how many tensors of each) and ``values`` (one hash
        for each group; empty on the ``meta`` device, which has no values). Of a quantised backbone
        also ``quantisation`` (how many layers of each kind) and ``quantisation_values`` (hashes of
        the scales that the codes need).
    """
    names = set(frozen)
    parameters = [(n, p.detach()) for n, p in model.named_parameters() if n in names]
    structure = _digest(f"{name} {tuple(p.shape)}" for name, p in parameters)
    dtypes = Counter(str(p.dtype).removeprefix("torch.") for _, p in parameters)
    found = {
        "architecture": architecture,
        "parameters": len(parameters),
        "structure": structure,
        "dtypes": dict(sorted(dtypes.items())),
        "values": _value_digests([(n, p) for n, p in parameters if not _dequantises_itself(p)]),
    }
    quantised = [(name, layer, s) for name, layer, s in quantised_layers(model)]
    if quantised:
        state = [
            (f"{name}.{key}", tensor.detach())
            for name, layer, scheme in quantised
            for key, tensor in scheme.state(layer).items()
        ]
        kinds = Counter(scheme.name(layer) for _, layer, scheme in quantised)
        found["quantisation"] = dict(sorted(kinds.items()))
        found["quantisation_values"] = _value_digests(state)
    return found


def differences(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """List the differences between two fingerprints.

    Args:
        expected: The fingerprint of the backbone that an adapter was trained on.
        got: The fingerprint of the backbone that it is loaded into.

    Returns:
        A phrase for each difference; empty if the two are the same backbone. The architecture's
        name alone is not a difference: one backbone can be built under two names.
    """
    found = []
    kinds, kinds_now = expected.get("quantisation") or {}, got.get("quantisation") or {}
    same = expected.get("structure") == got.get("structure")
    # before 0.3 the same quantised backbone had a fingerprint that does not say how
    if kinds != kinds_now and (kinds or not same):
        found.append(f"quantisation ({_listed(kinds)}, got {_listed(kinds_now)})")
        return found
    if expected.get("structure") != got.get("structure"):
        found.append(
            f"names or shapes of the frozen parameters ({expected.get('architecture')} with "
            f"{expected.get('parameters')} tensors, got {got.get('architecture')} with "
            f"{got.get('parameters')})"
        )
        return found
    if expected.get("dtypes") != got.get("dtypes"):
        found.append(f"dtypes ({expected.get('dtypes')}, got {got.get('dtypes')})")
        return found
    for key, what in (
        ("values", "values of the frozen parameters"),
        ("quantisation_values", "scales of the quantised weights"),
    ):
        before, now = expected.get(key) or {}, got.get(key) or {}
        changed = [group for group in now if before.get(group) != now[group]]
        if before and now and changed:
            which = "all of them" if len(changed) == len(now) else some(changed)
            found.append(f"{what} ({which})")
    return found


def _listed(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "none"


def _dequantises_itself(tensor: Tensor) -> bool:
    """Whether a parameter is one of torchao or quanto, whose values are those of its parts."""
    return is_code(tensor) and (tensor.is_floating_point() or tensor.is_complex())


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _value_digests(parameters: list[tuple[str, Tensor]]) -> dict[str, str]:
    present = [(n, p) for n, p in parameters if p.numel() and not p.is_meta]
    if not present:
        return {}
    places: dict[tuple[int, torch.device], Tensor] = {}
    samples = [_samples(p, places) for _, p in present]
    # one transfer for all tensors: on a GPU one for each would cost a synchronisation each
    values = torch.cat([s.to(samples[0].device, torch.float32) for s in samples]).cpu().numpy()
    hashes: dict[str, Any] = {}
    start = 0
    for (name, _), sample in zip(present, samples, strict=True):
        group = hashes.setdefault(_group(name), hashlib.sha256())
        group.update(values[start : start + sample.numel()].tobytes())
        start += sample.numel()
    return {key: value.hexdigest()[:8] for key, value in hashes.items()}


def _samples(parameter: Tensor, places: dict[tuple[int, torch.device], Tensor]) -> Tensor:
    """Return evenly spaced values; the indices are kept, for tensors of the same size."""
    flat = parameter.reshape(-1)
    size = flat.numel()
    if (size, flat.device) not in places:
        count = min(_SAMPLES, size)
        index = [i * (size - 1) // max(count - 1, 1) for i in range(count)]
        places[size, flat.device] = torch.tensor(index, device=flat.device)
    return flat[places[size, flat.device]]


def _group(name: str) -> str:
    """Return a parameter's name up to its first number: a block, or a top-level module."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return parts[0]
