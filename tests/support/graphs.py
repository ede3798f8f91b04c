"""What the graph below a tensor keeps for its backward pass."""

from __future__ import annotations

from torch import Tensor


def kept_below(out: Tensor) -> list[Tensor]:
    """Return the tensors that the nodes of the graph below a tensor keep, each node once."""
    nodes, seen, found = [out.grad_fn], set(), []
    while nodes:
        node = nodes.pop()
        kept = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        kept += getattr(node, "saved_tensors", ())  # of a function in Python
        found += [tensor for tensor in kept if isinstance(tensor, Tensor)]
        later = {following for following, _ in node.next_functions if following is not None}
        nodes += later - seen
        seen |= later
    return found
