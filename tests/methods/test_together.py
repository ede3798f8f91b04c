"""Several methods on one backbone: the promises hold, and the order does not matter."""

import itertools

import pytest
import torch

import lightning_peft as lp
from tests.contract import test_promises as promises
from tests.contract.cases import Case
from tests.support.zoo import build, example_input

UNIONS = {
    "lora + adaptformer": lp.LoRA(rank=2, targets="attention") + lp.AdaptFormer(bottleneck=4),
    "vpt + adaptformer": lp.VPTDeep(prompt_length=2) + lp.AdaptFormer(bottleneck=8),
    "ssf + houlsby": lp.SSF() + lp.Houlsby(bottleneck=4),
    "fact + bitfit": lp.FacTTK(rank=2) + lp.BitFit(),
    "layers": lp.LoRA(rank=2, layers="first:1") + lp.Convpass(bottleneck=4, layers="last:1"),
}
PROMISES = {
    name.removeprefix("test_"): promise
    for name, promise in vars(promises).items()
    if name.startswith("test_")
    and name != "test_refused_before_anything_is_changed"
    and not name.startswith("test_step_0")
}


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("union", UNIONS)
def test_a_union_keeps_the_promise(union, promise, tmp_path):
    case = Case("vit", UNIONS[union], "union of ours")
    arguments = {"tmp_path": tmp_path} if promise.startswith("saved") else {}
    PROMISES[promise](case, **arguments)


@torch.no_grad()
@pytest.mark.parametrize("other", [lp.AdaptFormer(bottleneck=4), lp.AdapterPlus(bottleneck=4)])
def test_the_order_of_the_parts_does_not_matter(other):
    outputs = []
    for parts in itertools.permutations([lp.VPTDeep(prompt_length=2), other]):
        model = build("vit")
        adaptation = lp.adapt(model, list(parts))
        for name in sorted(adaptation.adapter_names()):
            generator = torch.Generator().manual_seed(len(name))
            parameter = model.get_parameter(name)
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        outputs.append(model.eval()(example_input("vit")))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    "parts",
    [
        [lp.LoRA(rank=2), lp.SSF(targets="attention")],
        [lp.VPTDeep(), lp.LadderSideTuning()],
        [lp.Houlsby(), lp.Houlsby(bottleneck=4)],
    ],
    ids=["peft takes the place of the module", "a ladder is alone", "twice the same"],
)
def test_parts_that_do_not_get_along_are_refused(parts):
    with pytest.raises(lp.MethodError, match="each module to be injected into once"):
        lp.adapt(build("vit"), parts)
