"""Recording one forward: which modules are called, in which order, and which are frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from lightning_peft.caching.keys import plain_leaf
from lightning_peft.caching.splice import NotSplit
from lightning_peft.evaluation.efficiency import FlopCounter
from lightning_peft.methods.child import ChildAdapter

__all__ = ["Call", "devices_of", "hooked", "random_states", "trace", "undisturbed"]


@dataclass(eq=False)
class Call:
    """One call of a module.

    Attributes:
        name: The module's name in the backbone.
        module: The module.
        parent: The call that it is part of.
        entered: The position of its beginning among all beginnings and ends.
        left: The position of its end.
        calls: The calls inside it.
        clean_input: Whether no input depends on trained parameters.
        hookable: Whether its hooks run (its forward may be called directly).
        why_not: Why its output cannot be kept; None if it can.
        flops_before: Operations until it begins.
        flops_after: Operations until it ends.
    """

    name: str
    module: nn.Module
    parent: Call | None
    entered: int
    left: int = -1
    calls: list[Call] = field(default_factory=list)
    clean_input: bool = True
    hookable: bool = True
    why_not: str | None = None
    flops_before: int = 0
    flops_after: int = 0


def trace(
    root: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """Run a forward and record its calls.

    The output of a call can be kept if it depends only on the call's input, and that only on the
    forward's input: it needs no gradient, draws no random numbers, changes no buffer, uses no
    statistics of the batch, and no hook looks inside it.

    Args:
        root: The module.
        forward: Its own forward.
        args: The arguments.
        kwargs: The keyword arguments.

    Returns:
        The call of the root.

    Raises:
        NotSplit: If parts are run again in the backward pass (gradient checkpointing).
    """
    watch = _Watch(root, devices_of((args, kwargs)))
    with FlopCounter() as watch.counter, _watched(root, watch):
        watch.run(root, forward, args, kwargs)
    return watch.first


class _Watch:
    def __init__(self, root: nn.Module, devices: list[torch.device]) -> None:
        self.devices = devices
        self.names = {module: name for name, module in root.named_modules()}
        self.watched_inside = _hooked_inside(root)
        self.counter = FlopCounter()
        self.pending: dict[nn.Module, bool] = {}
        self.stack: list[Call] = []
        self.events = 0
        self.saving = _saving()
        self.first: Call

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Record the input of a module, before any other hook."""
        self.pending[module] = _clean((args, kwargs))

    def run(
        self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Run the forward of a module, and record it."""
        if _saving() is not self.saving:
            raise NotSplit("parts of it are run again in the backward pass (checkpointing)")
        parent = self.stack[-1] if self.stack else None
        call = Call(self.names[module], module, parent, self._event())
        noted = self.pending.pop(module, None)
        call.hookable = noted is not None
        call.clean_input = _clean((args, kwargs)) if noted is None else noted
        call.flops_before = self.counter.flops
        if parent is None:
            self.first = call
        else:
            parent.calls.append(call)
        random = random_states(self.devices)
        buffers = {id(b): b._version for b in module.buffers()}
        self.stack.append(call)
        try:
            output = forward(*args, **kwargs)
        finally:
            self.stack.pop()
        call.left = self._event()
        call.flops_after = self.counter.flops
        if not _same(random, random_states(self.devices)):
            call.why_not = "it draws random numbers in this mode"
        elif buffers != {id(b): b._version for b in module.buffers()}:
            call.why_not = "it changes its buffers"
        else:
            call.why_not = self._why_not(module, output)
        return output

    def _event(self) -> int:
        self.events += 1
        return self.events

    def _why_not(self, module: nn.Module, output: Any) -> str | None:
        leaves = tree_leaves(output)
        strange = [leaf for leaf in leaves if not isinstance(leaf, Tensor) and not plain_leaf(leaf)]
        if strange:
            return f"it returns a {type(strange[0]).__name__}"
        if not any(isinstance(leaf, Tensor) for leaf in leaves):
            return "it returns no tensor"
        if not _clean(output) or any(p.requires_grad for p in _own_parameters(module)):
            return "it is trained"
        if any(_uses_batch(part) for part in module.modules()):
            return "its BatchNorm is in training mode"
        return "a hook looks inside it" if module in self.watched_inside else None


@contextmanager
def _watched(root: nn.Module, watch: _Watch) -> Iterator[None]:
    modules = [module for module in watch.names if module is not root]
    before = {module: module.__dict__.get("forward") for module in modules}
    handles = []
    try:
        for module in modules:
            handles.append(
                module.register_forward_pre_hook(watch.enter, prepend=True, with_kwargs=True)
            )
            module.__dict__["forward"] = _Watched(module, module.forward, watch)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, kept in before.items():
            if kept is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = kept


@dataclass
class _Watched:
    module: nn.Module
    original: Callable[..., Any]
    watch: _Watch

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.watch.run(self.module, self.original, args, kwargs)


def hooked(module: nn.Module) -> bool:
    """Whether a module has a forward hook."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _hooked_inside(root: nn.Module) -> set[nn.Module]:
    """Find the modules that contain modules with hooks."""
    inside: set[nn.Module] = set()

    def visit(module: nn.Module) -> bool:
        found = [visit(child) for child in module.children()]
        if any(found):
            inside.add(module)
        return hooked(module) or any(found)

    visit(root)
    return inside


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that a module's forward uses; adapters with hooks act around it."""
    adapters = [child for child in module.children() if isinstance(child, ChildAdapter)]
    hanging = [child for child in adapters if not child.in_weight]
    theirs = {id(p) for child in hanging for p in child.parameters()}
    return (p for p in module.parameters() if id(p) not in theirs)


def _uses_batch(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


def _clean(tree: Any) -> bool:
    return not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(tree))


def _saving() -> Any:
    """Return the active hook on saved tensors: checkpointing installs its own."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def devices_of(tree: Any) -> list[torch.device]:
    """Return the accelerator devices of tensors."""
    found = {leaf.device for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)}
    return sorted((d for d in found if d.type not in ("cpu", "meta")), key=str)


def random_states(devices: list[torch.device]) -> list[Tensor]:
    """Return the states of the global generators of the CPU and of accelerators."""
    more = [torch.get_device_module(device).get_rng_state(device) for device in devices]
    return [torch.get_rng_state(), *more]


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(map(torch.equal, left, right))


@contextmanager
def undisturbed(
    root: nn.Module, devices: list[torch.device], begin: list[Tensor] | None = None
) -> Iterator[None]:
    """Run a forward without side effects: random state and buffers are unchanged afterwards.

    Args:
        root: The module.
        devices: The accelerators that it is on.
        begin: The random states to run it with; None uses the present ones.
    """
    tables = [(module, dict(module._buffers)) for module in root.modules()]
    copies = {id(buffer): buffer.detach().clone() for buffer in root.buffers()}
    kind = devices[0].type if devices else "cuda"
    with torch.random.fork_rng(devices=[d.index or 0 for d in devices], device_type=kind):
        if begin is not None:
            torch.set_rng_state(begin[0])
            for device, state in zip(devices, begin[1:], strict=True):
                torch.get_device_module(device).set_rng_state(state, device)
        try:
            # on copies, not restored afterwards: a running step may need the buffers as they are
            for module, table in tables:
                module._buffers.update(
                    {name: b if b is None else copies[id(b)] for name, b in table.items()}
                )
            yield
        finally:
            for module, table in tables:
                module._buffers.clear()
                module._buffers.update(table)
