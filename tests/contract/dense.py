"""The weights that linear methods stand for, by the formulas of their papers.

Nothing here comes from the package: an adapted model is read as a table of named tensors. From them
and from the plain backbone's own weights follows `W + dW` of each adapted layer, which is put into
the plain backbone with `torch.func.functional_call`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.support.outside import OUTSIDE
from tests.support.zoo import build

Tensors = Mapping[str, Tensor]
Layer = tuple[Tensor, Tensor | None]  # weight and bias

PARTS = {
    "in_proj": ("in_proj_weight", "in_proj_bias"),
    "q_proj": ("q_proj_weight", None),
    "k_proj": ("k_proj_weight", None),
    "v_proj": ("v_proj_weight", None),
    "matrix": ("weight", "bias"),
    **{
        f"{kind}_l{layer}{way}": (f"weight_{kind}_l{layer}{way}", f"bias_{kind}_l{layer}{way}")
        for kind in ("ih", "hh")
        for layer in (0, 1)
        for way in ("", "_reverse")
    },
}
"""The parameters of torch's modules that a part stands for."""


def lora(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`W + s B A`."""
    up, down = p[f"{at}.lora_B.default.weight"], p[f"{at}.lora_A.default.weight"]
    return weight + (scale * up.flatten(1) @ down.flatten(1)).reshape(weight.shape), bias


def dora(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`m (W + s B A) / |W + s B A|` for each row, with the norm as a constant."""
    new, _ = lora(p, weight, bias, at, scale)
    norm = new.detach().flatten(1).norm(dim=1)
    magnitude = p[f"{at}.lora_magnitude_vector.default.weight"].flatten()
    return (magnitude / norm).reshape(-1, *(1,) * (new.ndim - 1)) * new, bias


def adalora(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`W + s P diag(E) Q`."""
    q, e, left = (p[f"{at}.lora_{x}.default"] for x in "AEB")
    change = scale / (len(e) + 1e-5) * (left @ (q * e))
    return weight + change.reshape(weight.shape), bias


def loha(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`W + s (A1 B1) * (A2 B2)`."""
    one, two = (p[f"{at}.hada_w{n}_a.default"] @ p[f"{at}.hada_w{n}_b.default"] for n in (1, 2))
    return weight + scale * (one * two).reshape(weight.shape), bias


def lokr(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`W + s W1 (x) W2`, each of which may be a product."""
    factors = []
    for n in (1, 2):
        whole = p.get(f"{at}.lokr_w{n}.default")
        if whole is None:
            whole = p[f"{at}.lokr_w{n}_a.default"] @ p[f"{at}.lokr_w{n}_b.default"]
        factors.append(whole)
    if factors[1].ndim > 2:
        factors[0] = factors[0].reshape(*factors[0].shape, *(1,) * (factors[1].ndim - 2))
    return weight + scale * torch.kron(*factors).reshape(weight.shape), bias


def ia3(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`l * (W x + b)`, or `W (l * x) + b` in front of an MLP's last layer."""
    factors = p[f"{at}.ia3_l.default"]
    if factors.shape[0] == 1:
        return weight * factors, bias
    return weight * factors, None if bias is None else bias * factors.flatten()


def ssf(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`gamma * (W x + b) + beta`."""
    gamma, beta = p[f"{at}.adapter_ssf.scale"], p.get(f"{at}.adapter_ssf.shift")
    new = weight * gamma.reshape(-1, *(1,) * (weight.ndim - 1))
    if beta is None:
        return new, bias
    assert bias is not None
    return new, bias * gamma + beta


def lora_qv(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`W + s B A` in the rows of query and value."""
    a, b = p[f"{at}.adapter_lora_qv.a"], p[f"{at}.adapter_lora_qv.b"]
    changes = [scale * up @ down for up, down in zip(b, a, strict=True)]
    if len(changes) == 2:
        keys = len(weight) - 2 * len(changes[0])
        changes.insert(1, changes[0].new_zeros(keys, changes[0].shape[1]))
    return weight + torch.cat(changes), bias


def fact_tt(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`W_j + s V S_j U` for each block j of D x D."""
    u, v = p["adapter_fact_tt.u.weight"], p["adapter_fact_tt.v.weight"]
    blocks = [scale * v @ inner @ u for inner in p[f"{at}.adapter_fact_tt.inner"]]
    return weight + torch.cat(blocks, 0 if len(weight) >= weight.shape[1] else 1), bias


def repadapter(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`W (x + s (B (A x + a) + b))`."""
    name = f"{at}.adapter_repadapter"
    up = torch.block_diag(*p[f"{name}.up_weight"])
    matrix = scale * up @ p[f"{name}.down.weight"]
    shift = weight @ (scale * (up @ p[f"{name}.down.bias"] + p[f"{name}.up_bias"]))
    return weight + weight @ matrix, shift if bias is None else bias + shift


def hydra(p: Tensors, weight: Tensor, bias: Tensor | None, at: str, scale: float) -> Layer:
    """`z + B A x + D C z` for `z = W x + b`."""
    name = f"{at}.adapter_hydra"

    def affine(part: str) -> tuple[Tensor, Tensor]:
        up, down = p[f"{name}.{part}.up.weight"], p[f"{name}.{part}.down.weight"]
        shift = up @ p[f"{name}.{part}.down.bias"] + p[f"{name}.{part}.up.bias"]
        return scale * up @ down, scale * shift

    (beside, b), (behind, d) = affine("beside"), affine("behind")
    new = weight + behind @ weight + beside
    return new, b + d if bias is None else bias + behind @ bias + b + d


FORMULAS: dict[str, tuple[Callable[..., Layer], float]] = {
    "lora": (lora, 1.0),
    "lora_fa": (lora, 1.0),
    "hf:lora": (lora, 1.0),
    "dora": (dora, 1.0),
    "adalora": (adalora, 2.0),
    "hf:adalora": (adalora, 8.0),
    "hf:loha": (loha, 4.0),
    "hf:lokr": (lokr, 1.0),
    "ia3": (ia3, 1.0),
    "ssf": (ssf, 1.0),
    "lora_qv": (lora_qv, 1.0),
    "fact_tt": (fact_tt, 1.0),
    "repadapter": (repadapter, 1.0),
    "hydra": (hydra, 1.0),
}
"""The formula of each linear method, with the factor that its settings give."""


def plain_copy(name: str, dtype: torch.dtype) -> nn.Module:
    """Build a backbone, with the weights that parametrizations compute as parameters.

    It is not a deep copy: torch takes the property of a parametrization from the class, which a
    deep copy shares.
    """
    plain = build(name).to(dtype)
    if any(hasattr(module, "parametrizations") for module in plain.modules()):
        own, plain = plain, OUTSIDE[name]().eval().to(dtype)
        plain.load_state_dict(own.state_dict())
        for module in plain.modules():
            for key in list(getattr(module, "parametrizations", {})):
                parametrize.remove_parametrizations(module, key, leave_parametrized=True)
    return plain


def dense_tensors(label: str, adaptation: Any, plain: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of the plain backbone that the adapted model stands for.

    Args:
        label: The method's name in `FORMULAS`.
        adaptation: What the package returned; its model, its sites and its names are read.
        plain: The copy of the backbone; its own values are the frozen ones.
    """
    formula, scale = FORMULAS[label]
    now = dict(adaptation.model.named_parameters(remove_duplicate=False))
    own = dict(plain.named_parameters(remove_duplicate=False))
    values = {
        before: now[name]
        for before, name in adaptation.base_names.items()
        if before in own and name in now
    }
    modules = dict(plain.named_modules())
    for site in adaptation.sites:
        names, matrix = _names_of(modules, site.module)
        weight, bias = own[names[0]].detach(), own.get(names[1])
        transposed = type(modules.get(site.module)).__name__ == "Conv1D"
        rows = weight.flatten(1) if matrix else weight.T if transposed else weight
        new, moved = formula(
            now, rows, None if bias is None or matrix else bias.detach(), site.module, scale
        )
        values[names[0]] = new.T if transposed else new.reshape(weight.shape)
        if moved is not None and bias is not None:
            values[names[1]] = moved
    for name, tensor in own.items():  # a module under two names has its tensors twice
        first = next(key for key, other in own.items() if other is tensor)
        if first in values:
            values[name] = values[first]
    return values


def _names_of(modules: Mapping[str, nn.Module], site: str) -> tuple[tuple[str, str], bool]:
    """Return the names of the weight and the bias at a site; whether it is read as a matrix."""
    holder, _, key = site.rpartition(".")
    if site not in modules:
        weight, bias = PARTS[key]
        return (f"{holder}.{weight}", f"{holder}.{bias}"), key == "matrix"
    if isinstance(modules[site], nn.MultiheadAttention):
        return (f"{site}.in_proj_weight", f"{site}.in_proj_bias"), False
    return (f"{site}.weight", f"{site}.bias"), False
