"""The repeated blocks of a backbone, in order."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection

from torch import nn

from lightning_peft.anatomy.tree import Node, is_container

__all__ = ["find_blocks"]

# A list of stages differs from a list of blocks in what its elements hold: a stage is little more
# than a list of blocks (and a downsampling), a block that happens to hold a list is much more.
# If the names say that these are stages, a smaller share is enough.
_STAGE_SHARE = 2 / 3
_NAMED_STAGE_SHARE = 1 / 4
_STAGES = re.compile(r"\w*(stage|level)s?\d*", re.IGNORECASE)
_LIST_NAME = re.compile(
    r"(\w*_)?(blocks?|layers?|stages?|levels?|resblocks|features|encoder|h)\d*|\w*\d+"
)
_NO_BLOCKS = re.compile(r"experts|\w*stem\w*|patch_embeds?|downsample\w*")
_NUMBERED = re.compile(r"(\w*(?:block|layer|stage|cell|level)|[a-z])_?\d+")


def find_blocks(root: Node, head: Collection[Node] = ()) -> list[Node]:
    """Find the repeated blocks.

    Blocks are the elements of the topmost containers (ModuleList, ModuleDict, Sequential, or
    numbered children such as `block1`, `block2`) whose composite children are of one class. If
    these hold most of their parameters in such containers of their own, they are stages, and the
    result is the blocks of all stages in order (Swin, ConvNeXt, ResNet, EfficientNet). The experts
    of a mixture, stems and downsamplings are not blocks.

    Args:
        root: The model.
        head: The nodes of its head, in which no block is searched for.

    Returns:
        The nodes of the blocks in model order; empty if the model has no such list.
    """
    return _Search(root, head).visit(root)


class _Search:
    def __init__(self, root: Node, head: Collection[Node]) -> None:
        self.skip = {id(node) for node in head}
        # A class is composite everywhere if it is somewhere: a block without expansion has a single
        # convolution and is a block like its siblings.
        self.composite = {
            node.kind
            for node in root.walk()
            if node.matrices > 1 and node.children and not is_container(node.inner().module)
        }

    def visit(self, node: Node, *, in_element: bool = False, in_stage: bool = False) -> list[Node]:
        """Find the blocks below a node.

        Args:
            node: The node.
            in_element: Whether the node is inside an element of a list: a list below it counts only
                if its name says that it is one.
            in_stage: Whether that element is known to be a stage: any list of composite modules
                below it is a list of blocks, even if their classes differ.
        """
        if id(node) in self.skip or _NO_BLOCKS.fullmatch(node.key):
            return []
        inner = node.inner()
        elements = self.elements(inner, in_element, in_stage)
        if elements:
            return self.flatten(elements)
        numbered = self.numbered(inner, in_stage)
        blocks: list[Node] = []
        for child in inner.children:
            group = numbered.get(id(child))
            if group is None:
                blocks += self.visit(child, in_element=in_element, in_stage=in_stage)
            elif child is group[0]:
                blocks += self.flatten(group)
        return blocks

    def flatten(self, elements: list[Node]) -> list[Node]:
        """Return the elements of a list, or the blocks of the elements if these are stages."""
        above = elements[0].parent
        named = bool(
            (above is not None and _STAGES.fullmatch(above.key))
            or all(_STAGES.fullmatch(e.kind.__name__) or _STAGES.fullmatch(e.key) for e in elements)
        )
        least = _NAMED_STAGE_SHARE if named else _STAGE_SHARE
        shares = [
            sum(block.numel for block in self.visit(element, in_element=True, in_stage=named))
            for element in elements
        ]
        stages = sum(shares) > least * sum(element.numel for element in elements)
        if all(is_container(element.inner().module) for element in elements):
            # In a list of Sequentials one list is enough: the others may mix classes (MobileViT).
            pairs = zip(shares, elements, strict=True)
            stages = stages or any(share > least * element.numel for share, element in pairs)
        if not stages:
            return elements
        return [
            block
            for element in elements
            for block in self.visit(element, in_element=True, in_stage=True)
        ]

    def elements(self, node: Node, in_element: bool, in_stage: bool) -> list[Node]:
        """Return the composite children of a container if they form a list of blocks."""
        if not is_container(node.module):
            return []
        if in_element and not _LIST_NAME.fullmatch(node.key):
            return []
        children = [c for c in node.children if c.numel and id(c) not in self.skip]
        composite = [child for child in children if self.is_composite(child)]
        if not composite:
            return []
        if len(composite) == 1:
            # One element forms a list if it is nearly all of the container and the name says list.
            listed = _LIST_NAME.fullmatch(node.key) and not isinstance(node.module, nn.ModuleDict)
            return composite if listed and composite[0].numel > _STAGE_SHARE * node.numel else []
        counts = Counter(child.kind for child in composite)
        # Hybrids mix classes of blocks, and number them; the parts of one block (attention, MLP)
        # do not repeat, or have names (torchvision's MaxViT).
        numbered = all(child.key[-1:].isdigit() for child in composite)
        hybrid = max(counts.values()) > 1 and len(composite) > 2 and numbered
        return composite if in_stage or len(counts) == 1 or hybrid else []

    def numbered(self, node: Node, in_stage: bool) -> dict[int, list[Node]]:
        """Group composite children such as `block1`, `block2` by name and class."""
        if is_container(node.module):
            return {}
        groups: dict[tuple[str, type], list[Node]] = defaultdict(list)
        for child in node.children:
            match = _NUMBERED.fullmatch(child.key)
            if match and self.is_composite(child) and id(child) not in self.skip:
                groups[match[1], child.kind].append(child)
        least = 1 if in_stage else 2
        return {id(n): group for group in groups.values() if len(group) >= least for n in group}

    def is_composite(self, node: Node) -> bool:
        """Whether a node holds several weights, as a block does."""
        return node.kind in self.composite or (
            node.matrices > 1 and is_container(node.inner().module)
        )
