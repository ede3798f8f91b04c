"""Parameter groups for any torch optimizer: what decays, and at which rate each depth learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_peft.anatomy import anatomy
from lightning_peft.anatomy.tree import is_norm
from lightning_peft.errors import MethodError
from lightning_peft.methods.selection import inside

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["Depths", "parameter_groups"]


def parameter_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    layer_decay: float | None = None,
    head_lr: float | None = None,
    head: str | Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    r"""Group the trained parameters of a module for an optimizer.

    Every parameter that requires a gradient is in exactly one group, a shared one once; nothing
    else is in any. Weight decay is left off where it only does harm: biases, norms, parameters of
    one dimension (also in disguise, such as a scale of shape ``(dim, 1)``), tokens, position
    embeddings and prompts (parameters of shape ``(1, length, dim)`` that are no layer's
    ``weight``), and what the model lists in its own ``no_weight_decay()``.

    With ``layer_decay``, a backbone of :math:`n` blocks learns at :math:`\mathtt{lr} \cdot
    \mathtt{layer\_decay}^{\,n + 1 - d}` at depth :math:`d`: the embedding (the stem) is depth 0,
    the blocks are 1 to :math:`n`, a final norm is as deep as the last of them, and the head is
    :math:`n + 1`, the full rate. An adapter is as deep as the block that it sits in. The depths
    are those of ``timm.optim.param_groups_layer_decay``. Clark et al., "ELECTRA", 2020
    (https://arxiv.org/abs/2003.10555); Bao et al., "BEiT", 2022
    (https://arxiv.org/abs/2106.08254).

    Args:
        module: The model, or the LightningModule that holds it; adapted or not.
        lr: The full learning rate.
        weight_decay: The weight decay of the parameters that decay.
        layer_decay: The factor from one block to the one before, in (0, 1]; ``None`` for one rate.
        head_lr: A rate of its own for the head.
        head: Names or globs of the head's modules, where they are not found by themselves.

    Returns:
        One dictionary a group: ``params``, ``lr``, ``weight_decay``, and a ``name`` for logs.

    Raises:
        MethodError: If nothing is trained, an argument is out of its range, or layer-wise decay is
            asked of a model without repeated blocks.
        TargetError: If ``head`` names nothing.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    >>> [(g["name"], len(g["params"])) for g in parameter_groups(net, 1e-3, 0.05)]
    [('decay', 1), ('no_decay', 3)]
    """
    problems = list(_problems(lr, weight_decay, layer_decay, head_lr))
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    if not trained:
        problems.append(
            f"expected trained parameters in this {type(module).__name__}, got none that require a "
            "gradient: adapt it first, or check what froze it"
        )
    if problems:
        raise MethodError("parameter_groups: " + "; ".join(problems) + ".")
    found = anatomy(module, head=head)
    depths = Depths.of(module, found)
    if layer_decay is not None and not found.blocks:
        raise MethodError(
            "parameter_groups: expected a model with repeated blocks for layer_decay, found "
            f"none in this {type(module).__name__}. Leave layer_decay out."
        )
    undecayed = _undecayed(module)

    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in trained:
        depth = depths.parameters[name] if layer_decay is not None else depths.last
        in_head = head_lr is not None and inside(name, found.head)
        decays = name not in undecayed
        key = (depth, in_head, not decays)
        if key not in groups:
            rate = lr if layer_decay is None else lr * layer_decay ** (depths.last - depth)
            label = "head_" if in_head else f"layer_{depth}_" if layer_decay is not None else ""
            groups[key] = {
                "params": [],
                "lr": head_lr if in_head else rate,
                "weight_decay": weight_decay if decays else 0.0,
                "name": f"{label}{'decay' if decays else 'no_decay'}",
            }
        groups[key]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


@dataclass(frozen=True)
class Depths:
    """How deep in a model each of its modules and parameters is.

    Depth 0 is what comes before the first block, 1 to n are the blocks, and n + 1 is what follows
    the last one, with the head. Something between two blocks (a downsampling) is as deep as the
    block before it. "Before" and "after" are the order in which the model registers its modules.

    Attributes:
        modules: The depth of each module, by name.
        parameters: The depth of each parameter, by name; a shared one under its first name.
        last: The depth of the head, n + 1.
    """

    modules: dict[str, int]
    parameters: dict[str, int]
    last: int

    @classmethod
    def of(cls, model: nn.Module, found: Anatomy) -> Depths:
        """Measure a model.

        Args:
            model: The model.
            found: Its anatomy.
        """
        index = {name: i + 1 for i, name in enumerate(found.blocks)}
        last = len(index) + 1
        modules: dict[str, int] = {}
        seen = 0
        for name, _ in model.named_modules():
            seen = max(seen, index.get(name, 0))
            parent = name.rpartition(".")[0]
            if name in index:
                modules[name] = index[name]
            elif name and inside(name, found.head):
                modules[name] = last
            elif parent in modules and inside(parent, found.blocks):
                modules[name] = modules[parent]
            else:
                modules[name] = seen
        parameters = {
            name: last if inside(name, found.head) else modules[name.rpartition(".")[0]]
            for name, _ in model.named_parameters()
        }
        return cls(modules, parameters, last)


def _undecayed(module: nn.Module) -> set[str]:
    """Name the parameters that weight decay should leave alone."""
    names = set()
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        listed = getattr(part, "no_weight_decay", None)
        if callable(listed):
            names |= {f"{prefix}{name}" for name in listed()}
        norm = is_norm(part, path.rpartition(".")[2])
        for key, parameter in part.named_parameters(recurse=False):
            vector = sum(size > 1 for size in parameter.shape) <= 1 and key != "weight"
            token = parameter.ndim > 2 and parameter.shape[0] == 1 and key != "weight"
            if parameter.ndim <= 1 or norm or "bias" in key or vector or token:
                names.add(f"{prefix}{key}")
    return names


def _problems(
    lr: float, weight_decay: float, layer_decay: float | None, head_lr: float | None
) -> Iterator[str]:
    for name, rate in (("lr", lr), ("head_lr", head_lr), ("weight_decay", weight_decay)):
        if rate is not None and not (_is_number(rate) and 0 <= rate < float("inf")):
            yield f"expected {name} to be a number from 0, got {rate!r}"
    if layer_decay is not None and not (_is_number(layer_decay) and 0 < layer_decay <= 1):
        yield f"expected layer_decay to be a number in (0, 1], got {layer_decay!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
