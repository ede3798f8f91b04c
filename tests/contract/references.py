"""How far a linear method on a backbone is from the plain backbone with the dense weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

import lightning_peft as lp
from tests.contract.cases import CASES, REFUSED, Case
from tests.contract.dense import FORMULAS, dense_tensors, plain_copy
from tests.support.zoo import build, example_input, output_of

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

NO_WEIGHT: dict[tuple[str, str], str] = {
    **{
        (method, backbone): "the change is after the layer's own forward"
        for method in ("ssf", "hydra", "repadapter")
        for backbone in ("own_forward", "spectral_normed", "standardised")
    },
    **{
        (
            "repadapter",
            backbone,
        ): "the change is before the attention, and q_bias is beside the weight"
        for backbone in ("swinv2", "beit", "eva")
    },
    **{
        (method, backbone): "it shifts the output of layers that have no bias"
        for method in ("ssf", "hydra", "repadapter")
        for backbone in ("llama", "t5", "tied_llama", "mixture")
    },
    ("repadapter", "attention_kv"): "query, key and value have weights of their own, and no bias",
    **{
        ("ssf", backbone): "it shifts the output of layers that have no bias"
        for backbone in ("swinv2", "resnet", "tv_resnet", "efficientnet")
    },
}
"""Where no weight of the backbone has the method's effect; then it is not merged either."""

REFERENCES = [
    case
    for case in CASES
    if case.label in FORMULAS
    and (case.label, case.backbone) not in REFUSED
    and (case.label, case.backbone) not in NO_WEIGHT
]


@dataclass(frozen=True)
class Difference:
    """The largest relative differences from the reference."""

    output: float
    gradient: float


def difference_from_dense(case: Case, dtype: torch.dtype, training: bool) -> Difference:
    """Compare an adapted backbone whose parameters were moved with its dense reference."""
    plain = plain_copy(case.backbone, dtype)
    model = build(case.backbone).to(dtype)
    method = case.method
    if getattr(method, "dropout", 0.0):
        method = replace(method, dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adaptation = lp.adapt(model, method)
    model.to(dtype)
    generator = torch.Generator().manual_seed(2)
    trained = adaptation.trained_parameters()
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(dtype))
    inputs = _cast(example_input(case.backbone), dtype)
    for module in (*model.modules(), *plain.modules()):
        module.training = training and not _is_random(module)
        if isinstance(module, nn.Dropout):  # some read its probability only
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):  # of transformers' attention
            module.dropout = module.attention_dropout = 0.0
    got = output_of(model, case.backbone, inputs)
    values = dense_tensors(case.label, adaptation, plain)
    expected = _call(plain, values, case.backbone, inputs)
    return Difference(_relative([got], [expected]), _gradients(got, expected, trained))


def _is_random(module: nn.Module) -> bool:
    """Whether a module draws random numbers while training, or has frozen statistics."""
    kinds = ("Dropout", "DropPath", "StochasticDepth")
    return isinstance(module, _NormBase) or type(module).__name__ in kinds


class _Named(nn.Module):
    """The output of a backbone, for `functional_call`."""

    def __init__(self, backbone: nn.Module, name: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.name = name

    def forward(self, inputs: Any) -> Tensor:
        return output_of(self.backbone, self.name, inputs)


def _call(plain: nn.Module, values: dict[str, Tensor], name: str, inputs: Any) -> Tensor:
    placed = {f"backbone.{key}": value for key, value in values.items()}
    return functional_call(_Named(plain, name), placed, (inputs,), tie_weights=False)


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    return inputs.to(dtype) if isinstance(inputs, Tensor) else inputs


def _gradients(got: Tensor, expected: Tensor, trained: list[nn.Parameter]) -> float:
    mine = torch.autograd.grad(got.square().mean(), trained, allow_unused=True)
    theirs = torch.autograd.grad(expected.square().mean(), trained, allow_unused=True)
    pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if b is not None]
    assert pairs
    assert all(a is not None for a, _ in pairs)
    assert all(a is None or not a.any() for a, b in zip(mine, theirs, strict=True) if b is None)
    return _relative([a for a, _ in pairs], [b for _, b in pairs])


def _relative(got: list[Any], expected: list[Any]) -> float:
    largest = max(float(b.detach().abs().max()) for b in expected)
    return (
        max(float((a - b).detach().abs().max()) for a, b in zip(got, expected, strict=True))
        / largest
    )
