"""Linear methods against dense algebra: the plain backbone with `W + dW` put in by hand."""

from __future__ import annotations

import pytest
import torch

import lightning_peft as lp
from tests.contract.cases import CASES, REFUSED, Case
from tests.contract.references import NO_WEIGHT, REFERENCES, TOLERANCE, difference_from_dense
from tests.contract.tuners import READ
from tests.support.outside import OUTSIDE
from tests.support.zoo import build


def _ways() -> list:
    """Leave all but one dtype and mode to the slow tests, and most of what is usual."""
    quick = [(torch.float64, True)]
    unusual = (*OUTSIDE, *READ)
    labels, backbones = (
        list(dict.fromkeys(getattr(case, name) for case in REFERENCES))
        for name in ("label", "backbone")
    )

    def is_quick(case: Case, dtype: torch.dtype, training: bool) -> bool:
        if case.backbone in unusual:
            return (dtype, training) in quick
        turn = labels.index(case.label) + backbones.index(case.backbone)
        return (dtype, training) in quick and turn % 3 == 0

    return [
        pytest.param(
            case,
            dtype,
            training,
            id=f"{case}-{str(dtype).removeprefix('torch.')}-{'train' if training else 'eval'}",
            marks=() if is_quick(case, dtype, training) else pytest.mark.slow,
        )
        for case in REFERENCES
        for dtype in TOLERANCE
        for training in (False, True)
    ]


# in training a spectral norm changes with each forward, so that no weight stands for it
@pytest.mark.parametrize(("case", "dtype", "training"), _ways())
def test_it_is_the_backbone_with_the_dense_weights(
    case: Case, dtype: torch.dtype, training: bool
) -> None:
    if training and case.backbone == "spectral_normed":
        return
    found = difference_from_dense(case, dtype, training)
    assert found.output < TOLERANCE[dtype]
    assert found.gradient < TOLERANCE[dtype]


assert set(OUTSIDE) <= {case.backbone for case in CASES}


@pytest.mark.parametrize("case", [c for c in CASES if (c.label, c.backbone) in NO_WEIGHT], ids=str)
def test_what_no_weight_can_hold_is_not_merged(case: Case) -> None:
    if (case.label, case.backbone) in REFUSED:
        return
    adaptation = lp.adapt(build(case.backbone), case.method)
    with torch.no_grad():
        for parameter in adaptation.trained_parameters():
            parameter.add_(0.1)
    with pytest.raises(lp.MethodError, match="cannot be merged"):
        adaptation.merge()
    assert not adaptation.merged
