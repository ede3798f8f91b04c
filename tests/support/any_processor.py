"""A processor whose rounding depends on everything that a real one's may depend on.

Which kernel a matrix product runs in depends on the processor, the shapes, the strides and the number
of threads, and another kernel adds the same numbers up in another order. So a test which demands equal
bits may hold on one machine by luck. With ``ANY_PROCESSOR=1`` every product, convolution and attention
is off by up to one unit in the last place, by amounts that the shapes and strides of the operands and
the place in the output decide: the same call gives the same bits, in another batch, at another place in
it or in another layout it does not. What is exact on every processor stays so: zero, and a product in
which each sum has one term is left alone only if that term is zero.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import torch
from torch import Tensor

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


def _layout(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (*value.shape, *value.stride(), str(value.dtype))
    if isinstance(value, list | tuple):
        return tuple(map(_layout, value))
    return value


@functools.lru_cache(maxsize=4096)
def _noise(key: str, shape: tuple[int, ...]) -> Tensor:
    """Draw a whole number from -1 to 1 for each place of an output."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)


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

        def rounding(keys: Any, *args: Any, _name: str = name, _kernel: Any = kernel, **more: Any) -> Any:
            output = _kernel.call_boxed(keys, *args, **more)
            return _rounded(f"{_name}{_layout((*args, *more.values()))}", output)

        library.impl(name, rounding, "CPU", with_keyset=True, allow_override=True)
    _installed.append(library)
