"""Whether an adapted backbone computes what the backbone does, on the first batch of a run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from lightning_peft.adaptation.handle import Adaptation, find_adaptations
from lightning_peft.adaptation.sharding import is_sharded
from lightning_peft.caching.keys import plain_leaf
from lightning_peft.lightning.class_names import SHARDING, is_a
from lightning_peft.lightning.isolated import isolated
from lightning_peft.lightning.namespace import pl

__all__ = ["IdentityWatch", "difference_at_start", "first_difference"]

_EXACT = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOOSE = 5e-2
"""Of half precision: what is rounded differently in each of many layers adds up."""

_ROWS = 2
"""Of a batch, as many are looked at: a layer that is passed over is passed over for each."""


class IdentityWatch:
    """Looks once at the first forward of each backbone that a run has adapted itself.

    A backbone that was adapted before the run may be trained already, or loaded.
    """

    def __init__(self) -> None:
        self._standing: list[Adaptation] = []
        self._handles: list[RemovableHandle] = []

    def before(self, pl_module: nn.Module) -> None:
        """Note what is adapted already, before the run adapts anything."""
        self._standing = list(find_adaptations(pl_module).values())

    def begin(self, trainer: pl.Trainer, pl_module: nn.Module) -> None:
        """Wait for the first forward of each backbone to look at; elsewhere nothing happens.

        Args:
            trainer: The trainer, before the first step.
            pl_module: The module.
        """
        if _is_possible(trainer, pl_module):
            for path, adaptation in find_adaptations(pl_module).items():
                fresh = not any(adaptation is standing for standing in self._standing)
                if fresh and _is_comparable(adaptation):
                    self._wait(path or type(pl_module).__name__, adaptation)
        self._standing = []

    def end(self) -> None:
        """Wait no longer."""
        while self._handles:
            self._handles.pop().remove()

    def _wait(self, path: str, adaptation: Adaptation) -> None:
        def look(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return
            handle.remove()
            _warn(path, adaptation, args, kwargs)

        handle = adaptation.model.register_forward_pre_hook(look, prepend=True, with_kwargs=True)
        self._handles.append(handle)


def difference_at_start(
    adaptation: Adaptation, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> float | None:
    """Return by how much the adapter changes the output of a backbone, before any step.

    Two forwards run, in evaluation mode and without any trace, with the first rows of the batch
    where all tensors have as many.

    Args:
        adaptation: The adaptation.
        args: Arguments of the backbone's forward.
        kwargs: Its keyword arguments.

    Returns:
        The largest difference of a number, in multiples of what rounding may explain, which is a
        share of the largest number of the same tensor; infinite for other shapes. ``None`` if it
        cannot be told: the inputs are no tensors and plain values, which a forward may change, or
        the forward fails in evaluation mode.
    """
    leaves = tree_leaves((args, dict(kwargs)))
    if not all(isinstance(leaf, Tensor) or plain_leaf(leaf) for leaf in leaves):
        return None
    pair = _both(adaptation, *_first_rows(args, kwargs)) or _both(adaptation, args, kwargs)
    if pair is None:
        return None
    adapted, bare = pair
    if [t.shape for t in adapted] != [t.shape for t in bare]:
        return float("inf")
    pairs = zip(adapted, bare, strict=True)
    return max((_relative(mine, other) for mine, other in pairs), default=0.0)


def _both(
    adaptation: Adaptation, args: Any, kwargs: Any
) -> tuple[list[Tensor], list[Tensor]] | None:
    """Return the output with the adapter on and off, or None where a forward fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted, bare = (_tensors(adaptation, args, kwargs, on=on) for on in (True, False))
    except Exception:
        return None
    return adapted, bare


def _first_rows(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments for a smaller batch, or as they are where no batch can be told."""
    leaves = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
    if len({leaf.shape[:1] for leaf in leaves if leaf.ndim}) != 1:
        return args, kwargs
    return tree_map(
        lambda leaf: leaf[:_ROWS] if isinstance(leaf, Tensor) and leaf.ndim else leaf,
        (args, dict(kwargs)),
    )


def first_difference(
    adaptation: Adaptation, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Return the name of the first module whose output the adapter changes, innermost first.

    Args:
        adaptation: The adaptation.
        args: Arguments of the backbone's forward.
        kwargs: Its keyword arguments.
    """
    seen: list[dict[str, list[Tensor]]] = []
    for on in (True, False):
        outputs: dict[str, list[Tensor]] = {}
        _tensors(adaptation, args, kwargs, on=on, outputs=outputs)
        seen.append(outputs)
    adapted, bare = seen
    for name, mine in adapted.items():
        other = bare.get(name, [])
        same = [t.shape for t in mine] == [t.shape for t in other]
        if same and any(_relative(a, b) > 1 for a, b in zip(mine, other, strict=True)):
            return name
    return None


def _warn(path: str, adaptation: Adaptation, args: Any, kwargs: Any) -> None:
    found = difference_at_start(adaptation, args, kwargs)
    if found is None or found <= 1:
        return
    from lightning_peft.lightning.namespace import pl_import

    where = first_difference(adaptation, args, kwargs)
    at = f", first in '{where}'" if where else ""
    pl_import("utilities.rank_zero").rank_zero_warn(
        f"PEFT: expected '{path}' to give its own output on the first batch, since "
        f"{adaptation.method.name} starts without an effect, got another one than with the adapter "
        f"switched off{at}. A likely reason is a forward that asks for the class of a layer "
        "(type(layer) is nn.Linear) and takes another branch for an adapted one, or a hook or an "
        "attribute that was set on the layer itself. The run goes on from another function than "
        "the pretrained one. Leave that layer out (exclude=...), ask with isinstance in the "
        "forward, or, if it is meant so, give check_identity=False."
    )


def _is_possible(trainer: pl.Trainer, pl_module: Any) -> bool:
    """Whether a run starts from nothing, in one piece, and not compiled."""
    strategy = trainer.strategy
    if trainer.ckpt_path is not None or trainer.global_step > 0:
        return False
    others = (*SHARDING, "SingleDeviceXLAStrategy")  # which would compile the two forwards
    if not is_a(strategy, "SingleDeviceStrategy", "DDPStrategy") or is_a(strategy, *others):
        return False
    compiled = getattr(pl_module, "_compiler_ctx", None) is not None or any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in pl_module.modules()
    )
    return not compiled and not is_sharded(pl_module)


def _is_comparable(adaptation: Adaptation) -> bool:
    method = adaptation.method
    in_place = method.changes_backbone and not method.keeps_original
    replaced = "forward" in adaptation.model.__dict__  # by a cache, which would note the calls
    return bool(
        adaptation.adapter_names()
        and method.starts_as_backbone
        and not (in_place or replaced or adaptation.merged)
    )


def _tensors(
    adaptation: Adaptation,
    args: Any,
    kwargs: Any,
    *,
    on: bool,
    outputs: dict[str, list[Tensor]] | None = None,
) -> list[Tensor]:
    """Return the tensors of an output with the adapter on or off, and note those of all modules."""
    model = adaptation.model
    with isolated(adaptation, (args, kwargs), bare=not on):
        args, kwargs = tree_map(
            lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf,
            (args, dict(kwargs)),
        )
        if outputs is not None:
            _note_outputs(model, outputs)
        return _floating(model(*args, **kwargs))


def _note_outputs(model: nn.Module, outputs: dict[str, list[Tensor]]) -> None:
    for name, module in model.named_modules():

        def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
            outputs.setdefault(name, [tensor.clone() for tensor in _floating(output)])

        if name:
            module.register_forward_hook(note)


def _floating(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point()]


def _relative(mine: Tensor, other: Tensor) -> float:
    """Return the largest difference of numbers, in multiples of what rounding may explain."""
    exact = torch.promote_types(other.dtype, torch.float32)
    a, b = mine.to(exact), other.to(exact)
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = b[finite].abs().max().clamp_min(1e-12)
    return float((a - b)[finite].abs().max() / largest) / _tolerance(mine, other)


def _tolerance(*tensors: Tensor) -> float:
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device) or torch.get_float32_matmul_precision() != "highest":
        return _LOOSE
    return max(_EXACT.get(tensor.dtype, _LOOSE) for tensor in tensors)
