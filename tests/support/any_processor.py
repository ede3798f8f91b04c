"""A processor whose rounding depends on everything that a real one's may depend on.

Which kernel computes a matrix product depends on the processor, the shapes, the strides and the
number of threads, and another kernel adds up the same numbers in another order. So a test that
demands equal bits may hold on one machine by luck. With ``ANY_PROCESSOR=1`` every product,
convolution and attention is off by up to one unit in the last place, by amounts that the shapes and
strides of the operands and the place in the output decide: the same call gives the same bits; in
another batch, at another place in it or in another layout it does not. Zeros stay zeros.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["install"]

_PRODUCTS = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "mv",
    "addmv",
    "convolution",
    "convolution_backward",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)
_installed: list[torch.library.Library] = []


def _layout(arguments: Any) -> list[Any]:
    """Describe the tensors among arguments; the stride of a dimension of size 1 says nothing."""
    return [
        (
            str(leaf.dtype),
            [(n, n > 1 and step) for n, step in zip(leaf.shape, leaf.stride(), strict=True)],
        )
        for leaf in tree_leaves(arguments)
        if isinstance(leaf, Tensor)
    ]


@functools.lru_cache(maxsize=4096)
def _noise(key: str, shape: tuple[int, ...]) -> Tensor:
    """Draw a whole number from -1 to 1 for each place of an output, without torch's generators."""
    draw = np.random.default_rng(zlib.crc32(key.encode()))
    return torch.from_numpy(draw.integers(-1, 2, shape, dtype=np.int8))


def _rounded(key: str, output: Any) -> Any:
    if isinstance(output, list | tuple):
        return tuple(_rounded(f"{key}{i}", part) for i, part in enumerate(output))
    if isinstance(output, Tensor) and output.is_floating_point():
        noise = _noise(key, tuple(output.shape)).to(output.dtype)
        output.add_(output * noise * torch.finfo(output.dtype).eps)
    return output


def install() -> None:
    """Let the products of this process, and of those it forks, round in that way."""
    if _installed:
        return
    library = torch.library.Library("aten", "IMPL")
    for name in _PRODUCTS:
        kernel = torch.library.get_kernel(f"aten::{name}", "CPU")

        rounding = functools.partial(_called, name, kernel)
        library.impl(name, rounding, "CPU", with_keyset=True, allow_override=True)
    _installed.append(library)  # the kernels are there as long as it is


def _called(name: str, kernel: Any, keys: Any, *args: Any, **more: Any) -> Any:
    output = kernel.call_boxed(keys, *args, **more)
    return _rounded(f"{name}{_layout((args, more))}", output)
