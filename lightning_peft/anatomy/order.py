"""The order in which a module's forward calls the modules in it."""

from __future__ import annotations

from lightning_peft.anatomy.source import Reader
from lightning_peft.anatomy.tree import Node, has_weights, is_container, unwrap

__all__ = ["in_order"]


def in_order(node: Node) -> tuple[list[Node], bool]:
    """Return the children with parameters in the order of the forward.

    The source of the forward is read, it is not run. Where it does not tell the place of every
    child (no source, a loop over names, a call from outside), the order of definition decides.

    Args:
        node: The module's node.

    Returns:
        The children, and whether this is the order of the forward.
    """
    children = [child for child in node.children if has_weights(child.module)]
    if is_container(unwrap(node.module)):
        return children, True
    places = {key: place for place, key in enumerate(Reader(unwrap(node.module)).calls)}
    first: dict[int, int] = {}
    for child in children:
        seen = [
            places[key] for below in child.walk() if (key := id(unwrap(below.module))) in places
        ]
        if not seen:
            return children, False
        first[id(child)] = min(seen)
    return sorted(children, key=lambda child: first[id(child)]), True
