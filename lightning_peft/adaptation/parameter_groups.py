"""Parameter groups for any torch optimizer: weight decay, and learning rates by depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.adaptation.layer_depths import Depths, layer_depths
from lightning_peft.adaptation.standing_anatomy import standing_anatomy
from lightning_peft.anatomy.names import inside
from lightning_peft.anatomy.tree import is_norm
from lightning_peft.errors import MethodError
from lightning_peft.methods.factors import second_factors

__all__ = ["parameter_groups"]


def parameter_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    *,
    layer_decay: float | None = None,
    head_lr: float | None = None,
    head_weight_decay: float | None = None,
    adapter_weight_decay: float | None = None,
    lora_plus: float | None = None,
    head: str | Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    r"""Group the trained parameters of a module for an optimizer.

    Every parameter that requires a gradient is in exactly one group, a shared one once; no other
    parameter is in any. Weight decay is left off where it only does harm: biases, norms, parameters
    of one dimension (also in disguise, such as a scale of shape ``(dim, 1)``), tokens, position
    embeddings and prompts (parameters of shape ``(1, length, dim)`` that are not a layer's
    ``weight``), and the parameters in the model's own ``no_weight_decay()``.

    With ``layer_decay``, a backbone of :math:`n` blocks learns at :math:`\mathtt{lr} \cdot
    \mathtt{layer\_decay}^{\,n + 1 - d}` at depth :math:`d`: the embedding (the stem) is depth 0,
    the blocks are 1 to :math:`n`, what lies between two blocks or behind the last is as deep as the
    block before, and the head is :math:`n + 1`, the full rate. A model of timm with a
    ``group_matcher`` has the depths of ``timm.optim.param_groups_layer_decay`` instead, which count
    whole stages in some families (MaxViT, PVT), and put a downsampling with the block behind it and
    the norm of a pooling head with the head; without one (CAFormer) timm counts every twelve
    parameters as a layer, which this function does not. An adapter is as deep as the block that it
    sits in. Clark et al., "ELECTRA", 2020 (https://arxiv.org/abs/2003.10555); Bao et al., "BEiT",
    2022 (https://arxiv.org/abs/2106.08254).

    With ``lora_plus``, the second factor ``B`` of every low-rank update learns at that multiple of
    the rate of ``A``: Hayou et al., "LoRA+", 2024 (https://arxiv.org/abs/2402.12354).

    Args:
        module: The model, or the LightningModule that holds it; adapted or not.
        lr: The full learning rate.
        weight_decay: The weight decay of the parameters that decay.
        layer_decay: The factor from one block to the one before, in (0, 1]; ``None`` for one rate.
        head_lr: A separate rate for the head.
        head_weight_decay: A separate weight decay for the decaying parameters of the head.
        adapter_weight_decay: A separate weight decay for the decaying parameters that an adaptation
            added.
        lora_plus: How many times as fast as ``A`` the factor ``B`` learns; the paper takes 16.
            ``None`` for the same.
        head: Names or globs of the head's modules, if they are not found automatically.

    Returns:
        One dictionary a group: ``params``, ``lr``, ``weight_decay``, and a ``name`` for logs.

    Raises:
        MethodError: If nothing is trained, an argument is out of its range, or the model
            lacks what an argument needs: repeated blocks for ``layer_decay``, adapters for
            ``adapter_weight_decay``, low-rank updates for ``lora_plus``.
        TargetError: If ``head`` matches nothing.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    >>> [(g["name"], len(g["params"])) for g in parameter_groups(net, 1e-3, 0.05)]
    [('decay', 1), ('no_decay', 3)]
    """
    settings = _Settings(
        lr, weight_decay, layer_decay, head_lr, head_weight_decay, adapter_weight_decay, lora_plus
    )
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    adapters, factors = _adapter_names(module), second_factors(module)
    problems = list(settings.problems(adapters, factors))
    if not trained:
        problems.append(
            f"expected trained parameters in this {type(module).__name__}, got none that require a "
            "gradient: adapt it first, or check what froze it"
        )
    if problems:
        raise MethodError("parameter_groups: " + "; ".join(problems) + ".")
    found = standing_anatomy(module, head)
    depths, last = layer_depths(module, found, Depths.of(module, found))
    if layer_decay is not None and last < 2:
        raise MethodError(
            "parameter_groups: expected a model with repeated blocks for layer_decay, found "
            f"none in this {type(module).__name__}. Leave layer_decay out."
        )
    undecayed = _undecayed(module)

    groups: dict[_Kind, dict[str, Any]] = {}
    for name, parameter in trained:
        kind = _Kind(
            depths[name] if layer_decay is not None else last,
            settings.head_apart and inside(name, found.head),
            adapter_weight_decay is not None and name in adapters,
            lora_plus is not None and name in factors,
            name in undecayed,
        )
        if kind not in groups:
            groups[kind] = settings.group(kind, last)
        groups[kind]["params"].append(parameter)
    return [groups[kind] for kind in sorted(groups)]


class _Kind(NamedTuple):
    """The properties by which parameters are grouped."""

    depth: int
    head: bool
    adapter: bool
    second_factor: bool
    undecayed: bool


@dataclass(frozen=True)
class _Settings:
    """The numeric arguments of :func:`parameter_groups`."""

    lr: float
    weight_decay: float
    layer_decay: float | None
    head_lr: float | None
    head_weight_decay: float | None
    adapter_weight_decay: float | None
    lora_plus: float | None

    @property
    def head_apart(self) -> bool:
        return self.head_lr is not None or self.head_weight_decay is not None

    def group(self, kind: _Kind, last: int) -> dict[str, Any]:
        """Return an empty group with its rate, weight decay and name."""
        rate, decay = self.lr, self.weight_decay
        label = ""
        if self.layer_decay is not None:
            rate *= self.layer_decay ** (last - kind.depth)
            label = f"layer_{kind.depth}_"
        if kind.head:
            label = "head_"
            rate = rate if self.head_lr is None else self.head_lr
            decay = decay if self.head_weight_decay is None else self.head_weight_decay
        if kind.adapter and self.adapter_weight_decay is not None:
            label += "adapter_"
            decay = self.adapter_weight_decay
        if kind.second_factor and self.lora_plus is not None:
            label += "lora_b_"
            rate *= self.lora_plus
        return {
            "params": [],
            "lr": rate,
            "weight_decay": 0.0 if kind.undecayed else decay,
            "name": f"{label}{'no_decay' if kind.undecayed else 'decay'}",
        }

    def problems(self, adapters: set[str], factors: set[str]) -> Iterator[str]:
        """Yield what is wrong with the numbers, by themselves and for this model."""
        for name in ("lr", "head_lr", "weight_decay", "head_weight_decay", "adapter_weight_decay"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < float("inf")):
                yield f"expected {name} to be a number from 0, got {value!r}"
        decay, plus = self.layer_decay, self.lora_plus
        if decay is not None and not (_is_number(decay) and 0 < decay <= 1):
            yield f"expected layer_decay to be a number in (0, 1], got {decay!r}"
        if plus is not None and not (_is_number(plus) and 0 < plus < float("inf")):
            yield f"expected lora_plus to be a number above 0, got {plus!r}"
        elif plus is not None and not factors:
            yield (
                "expected low-rank updates for lora_plus, found none: use it with 'lora' and its "
                "kin, or leave it out"
            )
        if self.adapter_weight_decay is not None and not adapters:
            yield (
                "expected adapters for adapter_weight_decay, found none: the method trains the "
                "backbone in place, so weight_decay is the one to set"
            )


def _adapter_names(module: nn.Module) -> set[str]:
    """Return the names of the parameters that adaptations added, anywhere in a module."""
    return {
        f"{path}.{name}" if path else name
        for path, adaptation in find_adaptations(module).items()
        for name in adaptation.adapter_names()
    }


def _undecayed(module: nn.Module) -> set[str]:
    """Return the names of the parameters that should not decay."""
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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
