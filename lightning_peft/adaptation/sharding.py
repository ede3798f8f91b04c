"""Sharding an adapted backbone with FSDP2: one unit for each block and its adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from lightning_peft.adaptation.standing_anatomy import standing_anatomy
from lightning_peft.anatomy.names import shared_names
from lightning_peft.errors import MethodError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["is_sharded", "shard"]

_ENTRIES = ("forward_features", "forward_head", "forward_intermediates", "get_image_features")
"""Methods of a backbone, besides its forward, that modules call."""


def is_sharded(module: nn.Module) -> bool:
    """Whether any part of a module is sharded with FSDP2."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(part, FSDPModule) for part in module.modules())


def shard(module: nn.Module, backbone: str, mesh: DeviceMesh) -> None:
    """Shard a module that holds an adapted backbone, over the processes of a mesh.

    Every block of the backbone is one unit, the rest of the backbone is another, and so is every
    other child of the module. Frozen and trained parameters may share a unit: FSDP2 shards each
    parameter separately, and only the trained ones have gradients and optimizer state.

    Args:
        module: The module around the backbone, such as a LightningModule; changed in place.
        backbone: The attribute path of the backbone, which must not be the module itself.
        mesh: A mesh of one dimension, such as ``device_mesh["data_parallel"]``.

    Raises:
        MethodError: If a trained tensor is shared between blocks, or a parameter belongs to no
            child with a forward; nothing is sharded then.

    >>> import lightning_peft as lp
    >>> def configure_model(self):  # of a module with `trainer.strategy=ModelParallelStrategy()`
    ...     lp.shard(self, "backbone", self.device_mesh["data_parallel"])
    ...
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    net = module.get_submodule(backbone)
    blocks = standing_anatomy(net).blocks
    _refuse(module, net, backbone, blocks)
    for name in blocks:
        fully_shard(net.get_submodule(name), mesh=mesh)
    fully_shard(net, mesh=mesh)
    for entry in _ENTRIES:
        if hasattr(net, entry):
            register_fsdp_forward_method(net, entry)
    for child in _outside(module, net):
        fully_shard(child, mesh=mesh)


def _refuse(module: nn.Module, net: nn.Module, backbone: str, blocks: tuple[str, ...]) -> None:
    problems = []
    own = [name for name, _ in module.named_parameters(recurse=False)]
    if own:
        problems.append(
            f"{', '.join(own)} of {type(module).__name__} belong to no layer, so nothing would "
            "gather their shards: put them into a module with a forward"
        )
    trained = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    torn = [
        f"{first} (also {name})"
        for name, first in shared_names(net).items()
        if first in trained and _unit(first, blocks) != _unit(name, blocks)
    ]
    if torn:
        more = f" and {len(torn) - 3} more" if len(torn) > 3 else ""
        problems.append(
            f"'{backbone}' trains tensors that several blocks share, which FSDP2 cannot shard: "
            f"{', '.join(torn[:3])}{more}. Use DDP, or a method without shared tensors (lora, ssf)"
        )
    if problems:
        raise MethodError("sharding: " + "; ".join(problems) + ".")


def _unit(name: str, blocks: tuple[str, ...]) -> str:
    return next((block for block in blocks if name.startswith(f"{block}.")), "")


def _outside(module: nn.Module, net: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules with parameters outside the backbone, the largest that are called."""
    for child in module.children():
        if child is net or not any(True for _ in child.parameters()):
            continue
        inside = any(part is net for part in child.modules())
        if inside or isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _outside(child, net)
        else:
            yield child
