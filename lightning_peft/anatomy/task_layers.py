"""The task's own layers in a module of no known library, by the structure of the module.

What repeats is the backbone. What follows it is the task's: the output layers behind the last
block, or whole networks (a decoder, a neck) beside the one that holds the first blocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from lightning_peft.anatomy.blocks import find_blocks
from lightning_peft.anatomy.order import in_order
from lightning_peft.anatomy.tree import (
    Node,
    has_weights,
    is_container,
    is_conv,
    is_linear,
    is_norm,
)

__all__ = ["TaskLayers", "computes", "leading_networks", "narrow", "task_layers"]

_ATTENTION = re.compile(r"att(entio)?n", re.IGNORECASE)
_EMBEDDING = re.compile(r"\w*embed\w*|(\w*_)?tokens?|(\w*_)?pos(ition)?(al)?(_enc\w*)?", re.I)
_POOLING = re.compile(r"\w*pool(er|ing)?\w*", re.IGNORECASE)
_OUTPUT = re.compile(
    r"(output|out|final|last|predict(ion|or)?|decoder|logits?|to_logits|regressor|readout|outc"
    r"|distribution)(_?(layer|proj(ection|ector)?|lin(ear)?|conv|fc|dense))?"
    r"|(proj|fc|conv|linear|lin)_?out",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TaskLayers:
    """The task's own layers, as the structure of a module tells them.

    Attributes:
        nodes: Their nodes, in the order that decided.
        how: The reason, for a person.
        doubt: What may be wrong about it; empty if nothing.
    """

    nodes: tuple[Node, ...] = ()
    how: str = ""
    doubt: str = ""


def task_layers(root: Node) -> TaskLayers:
    """Find the layers of a module that follow its repeated blocks.

    - Networks with blocks of their own stand beside each other (an encoder, a decoder): the first
      in the order of the forward is the backbone, with those that are built of the same blocks
      or, like it, of attention (a sequence-to-sequence model); all that follows is the task's.
    - Otherwise: the layers behind the last block. Norms, embeddings, pooling layers and a
      convolution whose norm follows belong to the backbone, as they do in every library.
    - Without repeated blocks: the last layers, if their name is one of an output.

    Args:
        root: The module.

    Returns:
        The layers; a weight that is shared with the backbone (a tied output) is not among them.
    """
    blocks = find_blocks(root)
    here = root.inner()
    if not blocks:
        return _output(here)
    holding, inside = _around(blocks), {id(block) for block in blocks}
    while True:
        children, forward = in_order(here)
        trunk, doubt = _trunk([c for c in children if id(c) in holding], blocks, inside)
        if not trunk:
            return TaskLayers()
        last = max(children.index(node) for node in trunk)
        later = [node for node in children[last + 1 :] if _is_of_the_task(node, here)]
        later = _without_features(children, later)
        order = "in the order of the forward" if forward else "in the order of definition"
        if later:
            what = (
                "the layers behind the last block"
                if _flat(trunk, inside)
                else (f"what follows '{trunk[-1].plain}'")
            )
            if not forward:
                doubt = doubt or "the order of definition may not be that of the forward"
            return TaskLayers(tuple(map(narrow, later)), f"{what}, {order}", doubt)
        if len(trunk) > 1 or _flat(trunk, inside):
            return TaskLayers(doubt=doubt)
        here = trunk[0].inner()


def leading_networks(root: Node) -> list[str]:
    """Return the names of the children of a module that hold the blocks of its backbone.

    Args:
        root: The module.

    Returns:
        The first in the order of the forward, and those that belong to it: see :func:`task_layers`.
    """
    blocks = find_blocks(root)
    holding = _around(blocks)
    children = [child for child in in_order(root.inner())[0] if id(child) in holding]
    return [node.key for node in _trunk(children, blocks, {id(block) for block in blocks})[0]]


def _around(blocks: list[Node]) -> set[int]:
    """Return the identities of blocks and of all that holds them."""
    return {id(node) for block in blocks for node in (block, *block.ancestors())}


def narrow(node: Node) -> Node:
    """Return the only layer with parameters of a Sequential; any other node as it is."""
    while isinstance(node.inner().module, nn.Sequential):
        full = [child for child in node.inner().children if has_weights(child.module)]
        if len(full) != 1:
            break
        node = full[0]
    return node


def _flat(trunk: list[Node], inside: set[int]) -> bool:
    """Whether the blocks are in lists (or numbered) at this level, and not in a network in it."""
    return any(id(node) in inside or is_container(node.inner().module) for node in trunk)


def _trunk(holding: list[Node], blocks: list[Node], inside: set[int]) -> tuple[list[Node], str]:
    """Return the children that are the backbone, of those that hold blocks, in their order."""
    trunk: list[Node] = []
    doubt = ""
    kinds: set[type] = set()
    attends = False
    for node in filter(computes, holding):
        own = [block for block in blocks if block is node or node in block.ancestors()]
        own_kinds: set[type] = {block.kind for block in own}
        own_attends = any(map(_attends, own))
        lists = id(node) in inside or is_container(node.inner().module)
        stages = any(_stem(n) == _stem(node) for n in trunk)
        if trunk and not lists and not stages and not (own_kinds & kinds):
            if not (attends and own_attends):
                continue
            doubt = (
                f"'{trunk[0].plain}' and '{node.plain}' are both built of attention: taken for one "
                f"model. If '{node.plain}' is new, give head={node.plain!r}"
            )
        trunk.append(node)
        kinds |= own_kinds
        attends = attends or own_attends
    return trunk, doubt


def _stem(node: Node) -> str:
    return node.key.rstrip("0123456789")


def _attends(block: Node) -> bool:
    """Whether a block has an attention of linear layers, not a gate of convolutions."""
    return any(
        any(is_linear(n.module) or isinstance(n.module, nn.MultiheadAttention) for n in node.walk())
        for node in block.walk()
        if _ATTENTION.search(node.key) or _ATTENTION.search(node.kind.__name__)
    )


def _leaves(node: Node) -> list[Node]:
    """Return the modules below a node that have parameters of their own."""
    return [n for n in node.walk() if any(p is not None for p in n.module._parameters.values())]


def computes(node: Node) -> bool:
    """Whether a module holds more than embeddings and norms.

    Args:
        node: Its node.
    """
    return not all(is_norm(leaf.module, leaf.key) or _embeds(leaf) for leaf in _leaves(node))


def _is_of_the_task(node: Node, above: Node) -> bool:
    """Whether a module behind the blocks can belong to the task."""
    if not computes(node):
        return False
    if _EMBEDDING.fullmatch(node.key) or _POOLING.fullmatch(node.key):
        return False
    own = {id(p) for p in node.module.parameters()}
    return not any(
        id(p) in own
        for child in above.walk()
        if child is not above and not _below(child, node) and not _below(node, child)
        for p in child.module._parameters.values()
    )


def _below(node: Node, above: Node) -> bool:
    return node is above or above in node.ancestors()


def _embeds(leaf: Node) -> bool:
    """Whether a module's own parameters are embeddings; what is below it is asked by itself."""
    return isinstance(leaf.module, (nn.Embedding, nn.EmbeddingBag)) or bool(
        _EMBEDDING.search(leaf.kind.__name__)
    )


def _without_features(children: list[Node], later: list[Node]) -> list[Node]:
    """Leave out convolutions whose norm follows, if an output layer is behind them."""
    kept = []
    for node in later:
        place = children.index(node) + 1
        after = children[place] if place < len(children) else None
        normed = after is not None and is_norm(after.module, after.key)
        if not (is_conv(node.module) and normed and node is not later[-1]):
            kept.append(node)
    return kept


def _output(root: Node) -> TaskLayers:
    """Return the last part of a module without repeated blocks, if its name is an output's."""
    children, forward = in_order(root)
    if len(children) < 2:
        return TaskLayers()
    last = narrow(children[-1])
    named = _OUTPUT.fullmatch(children[-1].key) and not is_container(root.module)
    if not named or not _is_of_the_task(last, root):
        return TaskLayers(
            doubt=f"without repeated blocks no head was found: head={last.plain!r} would train "
            f"the last part in full"
        )
    order = "the forward" if forward else "definition"
    return TaskLayers((last,), f"what is last in the order of {order}, and its name")
