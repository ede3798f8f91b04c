"""The processor whose rounding depends on everything, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

INSIDE = """
import warnings
import torch
from torch import nn
from tests.support.any_processor import install

warnings.simplefilter("error")
torch.manual_seed(0)
x, image = torch.randn(8, 16), torch.randn(4, 3, 8, 8)
layers = {nn.Linear(16, 16): x, nn.Conv2d(3, 8, 3): image}
before = [layer(value) for layer, value in layers.items()]
install()
for exact, (layer, value) in zip(before, layers.items()):
    got = layer(value)
    torch.testing.assert_close(got, exact)
    assert not torch.equal(got, exact)
    assert torch.equal(layer(value), got), "the same operation"
    assert not torch.equal(layer(value[1:]), got[1:]), "another batch"
    assert not torch.equal(layer(value.flip(0)).flip(0), got), "another place in the batch"
    assert not layer.weight.new_zeros(2, 16).mm(x.T).any()
x.requires_grad_()
(x @ x.T).sum().backward()
assert x.grad is not None
"""


def test_the_same_operation_gives_the_same_bits_and_another_one_does_not():
    done = subprocess.run(
        [sys.executable, "-c", INSIDE],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
