"""Modules whose forward never runs, because the code around them reads their weight instead.

timm's BEiT, EVA and SwinV2 call `F.linear(x, self.qkv.weight, bias)`, torchvision's Swin hands
`self.qkv.weight` to a function, `nn.MultiheadAttention` does so with `out_proj.weight`. An adapter
on such a module is there in name only: it changes nothing and gets no gradient.

The source is read, no forward is run. From each module's `forward` on, its statements are followed
through the methods it calls, with `self` being the module at hand: a condition that can be told from
its attributes (`if self.q_bias is None`) leaves one branch, any other leaves both. A module is
bypassed if its weight is read as a tensor somewhere and nothing calls the module anywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import CodeType, FunctionType

from torch import nn

from lightning_peft.anatomy.reading import Reader, code_of, method_of
from lightning_peft.anatomy.tree import Node, grow, is_container, plain_name

__all__ = ["bypassed"]

_DEPTH = 6


def bypassed(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Find the modules whose forward is bypassed by the code around them.

    A module whose source is not available counts as one that reads nothing: what is returned is
    known, what is not returned is only not known to be bypassed.

    Args:
        model: The model.
        names: The modules in question, as in `model.named_modules()`.

    Returns:
        For each that is bypassed, the reason in words, naming the class that reads its weight.
    """
    root = grow(model)
    nodes = {node.name: node for node in root.walk()}
    for node in root.walk():
        nodes.setdefault(node.plain, node)
    wanted = {name: nodes[name] for name in names if name in nodes}
    if not wanted:
        return {}
    targets = {id(node.inner().module) for node in wanted.values()}
    readers: dict[int, Reader] = {}

    def read(node: Node) -> Reader:
        module = node.inner().module
        if id(module) not in readers:
            readers[id(module)] = Reader(module)
        return readers[id(module)]

    read_by: dict[int, tuple[Node, str]] = {}
    for node in root.walk():
        if node is not node.inner() or not _touches_weights(type(node.module)):
            continue
        for module, attribute in read(node).reads.items():
            if module in targets:
                read_by.setdefault(module, (node, attribute))
    result = {}
    for name, node in wanted.items():
        module = node.inner().module
        if id(module) not in read_by:
            continue
        reader, attribute = read_by[id(module)]
        around = [above for above in (*node.ancestors(), reader) if not is_container(above.module)]
        if any(id(module) in read(above).calls for above in around):
            continue
        where = (
            f"`{reader.plain}` ({reader.kind.__name__})" if reader.plain else reader.kind.__name__
        )
        result[name] = (
            f"`{plain_name(name)}` is never called: {where} reads `{node.key}.{attribute}` in its "
            "own forward, so an adapter on it would change nothing."
        )
    return result


_TOUCHES: dict[type, bool] = {}


def _touches_weights(kind: type[nn.Module]) -> bool:
    """Say whether a class's forward may read a weight of another module (cheap, from bytecode)."""
    if kind not in _TOUCHES:
        _TOUCHES[kind] = _search(kind, code_of(method_of(kind, "forward")), set(), _DEPTH)
    return _TOUCHES[kind]


def _search(
    kind: type, start: tuple[CodeType, dict] | None, seen: set[CodeType], depth: int
) -> bool:
    if start is None or depth == 0:
        return False
    code, scope = start
    if code in seen:
        return False
    seen.add(code)
    if _PARAMETERS & set(code.co_names):
        return True
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and _search(kind, (constant, scope), seen, depth):
            return True
    for name in code.co_names:
        for found in (method_of(kind, name), scope.get(name)):
            if isinstance(found, (FunctionType, property)) and _search(
                kind, code_of(found), seen, depth - 1
            ):
                return True
    return False


_PARAMETERS = {"weight", "bias", "in_proj_weight", "in_proj_bias"}
