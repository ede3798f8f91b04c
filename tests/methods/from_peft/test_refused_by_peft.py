"""What ``peft`` refuses is told in words with the layer's name, and what it serves is served."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor, nn

import lightning_peft as lp

CASES = {
    "one of both": ({"target_modules": ["a", "b"], "modules_to_save": ["b"]}, {"a"}),
    "inside": ({"target_modules": ["a", "c.0"], "modules_to_save": ["c"]}, {"a"}),
    "a pattern": ({"target_modules": r"a|c\.\d", "modules_to_save": ["c"]}, {"a"}),
    "all": ({"target_modules": "all-linear", "modules_to_save": ["c"]}, {"a", "b"}),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.c = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize("case", CASES)
def test_a_target_inside_of_modules_to_save_is_trained_whole_as_with_peft(case: str) -> None:
    settings, adapted = CASES[case]
    adaptation = lp.adapt(Net(), peft.LoraConfig(r=2, **settings), head=False)
    alone = peft.get_peft_model(Net(), peft.LoraConfig(r=2, **settings))
    assert {site.module for site in adaptation.sites if site.kind == "lora"} == adapted
    assert adaptation.report().trained == alone.get_nb_trainable_parameters()[0]


def test_a_target_that_is_only_saved_is_refused() -> None:
    both = {"target_modules": ["c"], "modules_to_save": ["c"]}
    with pytest.raises(lp.TargetError, match=r"targets outside of modules_to_save, got c\.0, c\.1"):
        lp.adapt(Net(), peft.LoraConfig(r=2, **{**both, "target_modules": ["c.0", "c.1"]}))
    parameter = {"target_modules": ["a"], "target_parameters": ["b.weight"]}
    with pytest.raises(lp.MethodError, match=r"outside of modules_to_save, got b\.weight"):
        lp.adapt(Net(), peft.LoraConfig(r=2, modules_to_save=["b"], **parameter))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.LayerNorm(7), nn.Conv3d(2, 4, 2)
        self.bilinear, self.last = nn.Bilinear(3, 4, 5), nn.Linear(7, 3)


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (lp.HF("tinylora", r=2, targets="norm"), r"at norm \(LayerNorm\): KeyError 'norm'"),
        (lp.AdaLoRA(rank=1, initial_rank=2, targets="conv"), r"at conv \(Conv3d\): Target module"),
        (lp.HF("glora", r=2, targets="bilinear"), r"at bilinear \(Bilinear\): Target module"),
        (lp.HF("road", targets="last"), r"at last \(Linear\): .* divisible by group_size"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_refusal_names_the_layer_and_changes_nothing(method: lp.Method, match: str) -> None:
    model = Odd()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(lp.MethodError, match=match):
        lp.adapt(model, method, head=False)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_ia3_adapts_a_model_whose_feedforward_layers_have_names_of_others() -> None:
    """As in SAM: the short names of all targets are not those of the feedforward layers."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(4, 4) for _ in range(3))
            self.mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(self.q_proj(x) + self.k_proj(x) + self.v_proj(x))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))
            self.neck = nn.ModuleList([nn.Identity(), nn.Identity(), nn.Linear(4, 4)])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return self.neck[2](x)

    model, x = Model(), torch.randn(2, 4)
    before = model(x)
    method = lp.create_method("ia3", targets=["q_proj", "neck.2"], feedforward="*.mlp.2")
    adaptation = lp.adapt(model, method, head=False)
    assert {site.module for site in adaptation.sites} == {
        "neck.2", *(f"blocks.{i}.{name}" for i in range(2) for name in ("q_proj", "mlp.2"))
    }  # fmt: skip
    torch.testing.assert_close(model(x), before)
    scales = {
        n.partition(".ia3_l")[0]: p.shape for n, p in model.named_parameters() if p.requires_grad
    }
    assert scales["blocks.0.mlp.2"] == (1, 8), "the input of a feedforward layer"
    assert scales["neck.2"] == (4, 1), "the output of any other"
