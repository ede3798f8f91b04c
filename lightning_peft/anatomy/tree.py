"""A model as a tree of named modules, and the kind of each module.

This package reads models through `grow`, which walks a model once. Nothing here reads the values of
a tensor, so models on the meta device work like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_peft.anatomy.quantised import numel_of, scheme_of

__all__ = [
    "Node",
    "grow",
    "has_weights",
    "is_adaptable",
    "is_container",
    "is_conv",
    "is_linear",
    "is_norm",
    "is_recurrent",
    "plain_name",
    "unwrap",
]

# Wrappers that put one more name between a module and its parent (torch.compile, activation
# checkpointing, FSDP1): `blocks.0._orig_mod.attn` is written `blocks.0.attn` in a target.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_NORM_NAME = re.compile(r"norm", re.IGNORECASE)
_OURS = "lightning_peft.methods."


def plain_name(name: str) -> str:
    """Return the name of a module or parameter without the parts that wrappers add.

    >>> plain_name("_orig_mod.blocks.0._orig_mod.attn.qkv")
    'blocks.0.attn.qkv'
    """
    if not any(part in name for part in _WRAPPED):  # nearly always, and this is called very often
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile`, activation checkpointing or FSDP1 wrappers."""
    while True:
        for name in _WRAPPED:
            inner = module._modules.get(name)
            if inner is not None:
                module = inner
                break
        else:
            return module


def _essence(module: nn.Module) -> nn.Module:
    """Return the module itself; for a layer of `peft`, the layer that it replaced."""
    while _is_of_peft(module):
        base = module._modules.get("base_layer")
        if base is None:
            break
        module = base
    return module


def _is_of_peft(module: nn.Module) -> bool:
    """Whether a module is a layer of `peft`, whose class may be one that was derived from it."""
    return any(kind.__module__.startswith("peft.tuners.") for kind in type(module).__mro__)


def _is_added(module: nn.Module) -> bool:
    """Whether an adapter added a module to another: a child of ours, or the layer around a part.

    The class of a layer that is read with its update is of ours, and derived from its own.
    """
    kind = type(_essence(module))
    own = kind.__mro__[1] if "_read" in vars(kind) else kind
    return own.__module__.startswith(_OURS)


def _is_leaf(module: nn.Module) -> bool:
    """Whether the backbone has no parameters below a module."""
    return not any(has_weights(child) for child in module.children() if not _is_added(child))


def has_weights(module: nn.Module) -> bool:
    """Whether the module or anything in it has a parameter."""
    return next(module.parameters(), None) is not None


def is_container(module: nn.Module) -> bool:
    """Whether a module only holds others, as ModuleList, ModuleDict and Sequential do."""
    return isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential))


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: `nn.Linear` or the `Conv1D` of transformers."""
    module = _essence(module)
    if isinstance(module, nn.Linear) or scheme_of(module) is not None:  # HQQ has a class of its own
        return True
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def is_conv(module: nn.Module, *, pointwise: bool = False) -> bool:
    """Whether a module is a convolution of one group (`pointwise`: with a 1x1 kernel too)."""
    module = _essence(module)
    if not isinstance(module, _ConvNd) or isinstance(module, _ConvTransposeNd):
        return False
    return module.groups == 1 and (not pointwise or set(module.kernel_size) == {1})


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module is a recurrent layer or the cell of one, as torch has them."""
    return isinstance(module, nn.RNNBase | nn.RNNCellBase)


def is_norm(module: nn.Module, name: str = "") -> bool:
    """Whether a module is a normalisation layer with parameters of its own.

    The libraries have many classes of their own (`LlamaRMSNorm`, `GlobalResponseNorm`, ResMLP's
    `Affine` under the name `norm1`): a leaf whose class or name contains norm counts.

    Args:
        module: The module.
        name: Its name in its parent.
    """
    own = [p for p in module._parameters.values() if p is not None]
    if not own:
        return False
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)):
        return True
    if isinstance(module, (nn.Linear, _ConvNd, nn.Embedding)):
        return False
    return _is_leaf(module) and bool(
        _NORM_NAME.search(type(module).__name__) or _NORM_NAME.search(name)
    )


def is_adaptable(module: nn.Module, name: str = "") -> bool:
    """Whether an adapter can be put on a module: it has a weight of its own and applies it.

    Linear layers, convolutions, embeddings, norms, `nn.MultiheadAttention`, recurrent layers, and
    any other leaf with a parameter called `weight`.

    Args:
        module: The module.
        name: Its name in its parent.
    """
    what = _essence(module)
    if (
        isinstance(what, nn.MultiheadAttention)
        or is_recurrent(what)
        or is_linear(what)
        or is_norm(what, name)
    ):
        return True
    if isinstance(what, (_ConvNd, nn.Embedding, nn.EmbeddingBag)):
        return True
    return what._parameters.get("weight") is not None and _is_leaf(what)


@dataclass(eq=False, slots=True)
class Node:
    """One module of a model and its place there.

    Attributes:
        name: The name as in `model.named_modules()`.
        module: The module under that name.
        parent: The node above, or None for the model itself.
        children: The nodes below, in order.
        numel: The number of parameters in the module and below; a shared one counts at each use.
        matrices: How many of its parameters have two dimensions or more (weights, not gains).
    """

    name: str
    module: nn.Module
    parent: Node | None = None
    children: list[Node] = field(default_factory=list)
    numel: int = 0
    matrices: int = 0

    @property
    def plain(self) -> str:
        """The name without the parts that wrappers add."""
        return plain_name(self.name)

    @property
    def key(self) -> str:
        """The plain name's last part."""
        return self.plain.rpartition(".")[2]

    @property
    def kind(self) -> type[nn.Module]:
        """The class of the module inside any wrapper."""
        return type(unwrap(self.module))

    def walk(self) -> Iterator[Node]:
        """Yield this node and all nodes below it, in the order of `named_modules()`."""
        yield self
        for child in self.children:
            yield from child.walk()

    def ancestors(self) -> Iterator[Node]:
        """Yield the nodes above this one, the nearest first."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def inner(self) -> Node:
        """Return the node of the module inside any wrapper."""
        node = self
        while len(node.children) == 1 and node.children[0].name.rpartition(".")[2] in _WRAPPED:
            node = node.children[0]
        return node


def grow(model: nn.Module) -> Node:
    """Read a model into a tree of nodes.

    A module with two names is one node, under the first name. The modules that an adapter added
    (the insides of a `peft` layer, the children that our own methods add to a module) are not part
    of a backbone and are left out.

    Args:
        model: Any module.

    Returns:
        The root's node.
    """
    seen: set[int] = set()

    def visit(name: str, module: nn.Module, parent: Node | None) -> Node:
        seen.add(id(module))
        node = Node(name, module, parent)
        for parameter in module._parameters.values():
            if parameter is not None:
                lazy = nn.parameter.is_lazy(parameter)
                node.numel += 0 if lazy else numel_of(parameter)
                node.matrices += lazy or parameter.dim() > 1
        if _is_of_peft(module) and module._modules.get("model") is None:  # not around a model
            base = _essence(module)
            node.numel = sum(numel_of(p) for p in base.parameters())
            node.matrices = sum(p.dim() > 1 for p in base.parameters())
            return node
        for key, child in module._modules.items():
            if child is None or id(child) in seen or _is_added(child):
                continue
            below = visit(f"{name}.{key}" if name else key, child, node)
            node.children.append(below)
            node.numel += below.numel
            node.matrices += below.matrices
        return node

    return visit("", model, None)
