"""The places of adapters in a block, independent of the names that libraries give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import MethodError
from lightning_peft.methods.in_weight.places import never_called

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy
    from lightning_peft.methods.base import Layers, Names

__all__ = ["Grid", "adapted_blocks", "grid_of", "outputs_of", "token_grid"]

BRANCHES = {"attention": "attention-out", "mlp": "mlp-out"}


def outputs_of(
    branches: Sequence[str],
    anatomy: Anatomy,
    model: nn.Module,
    method: str,
    *,
    layers: Layers,
    exclude: Names,
) -> dict[str, str]:
    """Find the modules whose output is the output of a block's attention or MLP.

    That is the last linear layer of the branch, or the module around it that reads its weight and
    never calls it, such as ``nn.MultiheadAttention``.

    Args:
        branches: ``"attention"``, ``"mlp"`` or both.
        anatomy: The backbone's anatomy.
        model: The backbone.
        method: The method's name, for the error.
        layers: The choice of blocks.
        exclude: Modules to leave out.

    Returns:
        Their names, in model order, each with the name of the branch's last layer.

    Raises:
        MethodError: If the backbone has no such branch.
    """
    found: list[str] = []
    for branch in branches:
        found += anatomy.roles[BRANCHES[branch]]
    if not found:
        raise MethodError(
            f"{method}: expected blocks with {' or '.join(branches)}, found none in this "
            f"{type(model).__name__}. Methods for any network: 'lora', 'norm', 'bitfit', 'ssf'."
        )
    names = resolve(anatomy, model, found, layers=layers, exclude=exclude)
    read = never_called(model, names)
    return {name.rpartition(".")[0] if name in read else name: name for name in names}


def adapted_blocks(
    anatomy: Anatomy, model: nn.Module, method: str, layers: Layers, exclude: Names
) -> tuple[str, ...]:
    """Find the blocks that a method adapts as a whole.

    Raises:
        MethodError: If the backbone has no repeated blocks.
    """
    if not anatomy.blocks:
        raise MethodError(
            f"{method}: expected a backbone with repeated blocks, found none in this "
            f"{type(model).__name__}. Methods for any network: 'lora', 'norm', 'bitfit', 'ssf'."
        )
    return resolve(anatomy, model, "blocks", layers=layers, exclude=exclude, containers=True)


@dataclass(frozen=True)
class Grid:
    """The layout of the tokens of a vision transformer.

    Attributes:
        prefix: Tokens before the patches: class, distillation and register tokens.
        size: Rows and columns of patches.
        width: Features of a token.
    """

    prefix: int
    size: tuple[int, int]
    width: int


_POSITION_IN_ATTENTION = re.compile(r"rel(ative)?_pos|rope|position_bias")


def token_grid(anatomy: Anatomy, model: nn.Module) -> Grid | None:
    """Return the layout of the tokens, if the model is a plain vision transformer.

    Plain means that all blocks see the same tokens ``(B, N, D)`` and distinguish them only by the
    embeddings added at the beginning, so that tokens can be added or removed: timm's and
    torchvision's ``VisionTransformer``, transformers' ViT, DeiT and their like.

    Args:
        anatomy: The backbone's anatomy.
        model: The backbone.

    Returns:
        The grid; ``None`` for windows, relative positions, rotary positions, and any model that is
        not a vision transformer.
    """
    if not anatomy.blocks or not anatomy.roles["qkv"]:
        return None
    names = [name for name, _ in model.named_parameters()] + [n for n, _ in model.named_modules()]
    if any(_POSITION_IN_ATTENTION.search(name) for name in names):
        return None
    kind = type(model).__name__
    grid_size = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if hasattr(model, "num_prefix_tokens") and grid_size is not None:
        rows, columns = grid_size
        return Grid(int(model.num_prefix_tokens), (int(rows), int(columns)), int(model.embed_dim))  # type: ignore[arg-type]
    if kind == "VisionTransformer" and hasattr(model, "hidden_dim"):
        side = int(model.image_size) // int(model.patch_size)  # type: ignore[arg-type]
        return Grid(1, (side, side), int(model.hidden_dim))  # type: ignore[arg-type]
    config = getattr(model, "config", None)
    if re.match(r"(vit|deit)($|_msn)", str(getattr(config, "model_type", ""))):
        size, patch = config.image_size, config.patch_size  # type: ignore[union-attr]
        prefix = 2 if config.model_type == "deit" else 1  # type: ignore[union-attr]
        return Grid(prefix, (size // patch, size // patch), int(config.hidden_size))  # type: ignore[union-attr]
    return None


def grid_of(method: str, anatomy: Anatomy, model: nn.Module) -> Grid:
    """Return the layout of the tokens, or refuse the backbone.

    Raises:
        MethodError: If it is not a plain vision transformer.
    """
    grid = token_grid(anatomy, model)
    if grid is None:
        raise MethodError(
            f"{method}: expected a plain vision transformer (ViT, DeiT), whose blocks all see the "
            f"same tokens, got {type(model).__name__}. Methods that fit more backbones: 'lora', "
            "'houlsby', 'ssf', 'norm', 'bitfit'."
        )
    return grid
