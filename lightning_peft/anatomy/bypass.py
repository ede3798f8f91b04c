"""Modules whose forward never runs, because the code around them reads their weight instead.

timm's BEiT, EVA and SwinV2 call `F.linear(x, self.qkv.weight, bias)`, torchvision's Swin hands
`self.qkv.weight` to a function, `nn.MultiheadAttention` does so with `out_proj.weight`. An adapter
around such a module has no effect and gets no gradient: a change has to be in the weight.

The source is read, no forward is run. From each module's `forward` on, the statements are followed
through the methods that it calls, with `self` as the module: a condition that its attributes decide
(`if self.q_bias is None`) leaves one branch, any other leaves both. A module is bypassed if its
weight is read as a tensor somewhere and nothing calls the module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_peft.anatomy.source import Reader, mentions
from lightning_peft.anatomy.tree import Node, grow, is_container, plain_name, unwrap

__all__ = ["bypassed"]


def bypassed(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Find the modules whose forward is bypassed by the code around them.

    A module whose source is not available counts as reading nothing: the returned modules are
    certainly bypassed, others may be. The eval fast path of `nn.TransformerEncoderLayer` is not a
    bypass (in training the modules are called); see `fast_path`.

    Args:
        model: The model, before any injection.
        names: The modules to check, as in `model.named_modules()`.

    Returns:
        The reason for each bypassed module, with the class that reads its weight.
    """
    root = grow(model)
    nodes = {node.name: node for node in root.walk()}
    wanted = {name: nodes[name] for name in names if name in nodes}
    targets = {id(unwrap(node.module)) for node in wanted.values()}
    readers: dict[int, Reader] = {}

    def read(node: Node) -> Reader:
        module = unwrap(node.module)
        if id(module) not in readers:
            readers[id(module)] = Reader(module)
        return readers[id(module)]

    kinds = frozenset(type(unwrap(node.module)) for node in nodes.values())
    weights = {name for node in wanted.values() for name in unwrap(node.module)._parameters}

    def may_read(node: Node) -> bool:
        kind: Any = type(unwrap(node.module))  # mypy takes no class of modules for hashable
        named = mentions(kind, kinds)
        return named is None or not weights.isdisjoint(named)

    read_by: dict[int, tuple[Node, str]] = {}
    for node in root.walk() if targets else ():
        if node.children and node is node.inner() and may_read(node):
            for target, attribute in read(node).reads.items():
                if target in targets:
                    read_by[target] = (node, attribute)  # the nearest ancestor comes last

    result = {}
    for name, node in wanted.items():
        target = id(unwrap(node.module))
        if target not in read_by:
            continue
        by, attribute = read_by[target]
        around = [above for above in (by, *node.ancestors()) if not is_container(above.module)]
        if any(target in read(above).calls for above in around):
            continue
        who = f"`{by.plain}` ({by.kind.__name__})" if by.plain else by.kind.__name__
        result[name] = (
            f"`{plain_name(name)}` is never called: {who} reads `{node.key}.{attribute}` in its "
            "own forward"
        )
    return result
