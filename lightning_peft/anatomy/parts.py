"""Weights that are parameters of a module without a layer of their own, under the name of a part.

`nn.MultiheadAttention` holds `in_proj_weight`, a recurrent layer `weight_ih_l0` and its like, a
cell `weight_ih`, and a transposed convolution has its output channels in the second dimension. An
adapter sees each of them as a linear layer, which is called `<module>.<part>`. A part exists from
the injection on.
"""

from __future__ import annotations

import re

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["has_parts", "parts_of"]

_RECURRENT = re.compile(r"weight_(ih|hh|hr)_l\d+(_reverse)?")


def has_parts(module: nn.Module) -> bool:
    """Whether a module's weights are adapted as parts, and not as the module itself."""
    return bool(parts_of(module))


def parts_of(module: nn.Module) -> dict[str, str]:
    """Return the name of each part of a module, with the parameter that it stands for.

    Args:
        module: Any module.

    Returns:
        Parameters by the names of the parts; empty for a layer that is adapted as a whole.

    >>> parts_of(nn.MultiheadAttention(8, 2))
    {'in_proj': 'in_proj_weight'}
    >>> list(parts_of(nn.LSTM(4, 8)))
    ['ih_l0', 'hh_l0']
    """
    own = [name for name, parameter in module._parameters.items() if parameter is not None]
    if isinstance(module, nn.MultiheadAttention):
        wanted = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return {name.removesuffix("_weight"): name for name in wanted if name in own}
    if isinstance(module, nn.RNNBase):
        return {n.removeprefix("weight_"): n for n in own if _RECURRENT.fullmatch(n)}
    if isinstance(module, nn.RNNCellBase):
        return {n.removeprefix("weight_"): n for n in own if n in ("weight_ih", "weight_hh")}
    if isinstance(module, _ConvNd) and "weight" in own and _is_crooked(module):
        return {"matrix": "weight"}
    return {}


def _is_crooked(module: _ConvNd) -> bool:
    """Whether no update of the shape of the kernel itself is known for a convolution."""
    grouped = module.groups > 1
    odd = any(step > 1 for step in module.dilation) or isinstance(module.padding, str)
    return isinstance(module, _ConvTransposeNd) or (
        grouped and (odd or module.padding_mode != "zeros")
    )
