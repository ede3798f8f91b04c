"""The basis of our own methods: an adapter is a child of the module that it adapts, the host.

It acts through hooks of its host. No part of the backbone is renamed or wrapped, so a plain
checkpoint of the backbone loads before and after, and copies, pickles, ``torch.compile`` and
``torch.export`` see an ordinary module with hooks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.forward import in_evaluation_mode
from lightning_peft.anatomy.quantised import scheme_of
from lightning_peft.errors import MethodError, some
from lightning_peft.methods.base import Adapter, Method, Plan, Site
from lightning_peft.methods.child_codes import MergesCodes
from lightning_peft.methods.codes import refuse_codes
from lightning_peft.methods.features import features_of, first, spatial_dims, with_first
from lightning_peft.methods.finite import lost, refuse_not_finite
from lightning_peft.methods.in_weight.part import Part, add_part, layer_at, remove_part
from lightning_peft.methods.in_weight.places import never_called, own_forward
from lightning_peft.methods.in_weight.probe import (
    is_known,
    probe_input,
    probed,
    refuse_other_function,
)
from lightning_peft.methods.in_weight.reading import (
    Update,
    read_with_updates,
    read_without_updates,
)
from lightning_peft.methods.in_weight.values import own_values, parameters_of, restore, write_all

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = [
    "BesideAdapter",
    "ChildAdapter",
    "ChildHandle",
    "ChildMethod",
]


class ChildAdapter(Update):
    """The trainable part at one site.

    Subclasses create their parameters in ``__init__`` and override :meth:`connect`, which registers
    bound methods as hooks. A hook does nothing unless :attr:`active` is true. At a site in the
    weight there are no hooks: what the forward reads is :meth:`merged`.

    Attributes:
        enabled: Whether it takes part in the forward.
        folded: Whether it is currently merged into the host's weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.folded = False

    @property
    def active(self) -> bool:
        """Whether the hooks have an effect."""
        return self.enabled and not self.folded

    def __getstate__(self) -> dict[str, Any]:
        """Leave values that one hook keeps for another out of copies and pickles."""
        state = dict(self.__dict__)
        return {**state, **{key: None for key in state if isinstance(state[key], Tensor)}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled adapter; one of 0.1 (until 0.3) names its dimensions otherwise."""
        if "last" in state:
            state = {**state, "spatial": 0 if state["last"] else None}
        super().__setstate__(state)

    @abstractmethod
    def connect(self, model: nn.Module, site: Site) -> None:
        """Register the hooks on the host, ``model.get_submodule(site.module)``, and around it."""

    def merged(self, host: nn.Module) -> dict[str, Tensor]:
        """Compute the host's own weights with the adapter folded in.

        Args:
            host: The adapted module; not changed. Its weights are
                :func:`~lightning_peft.methods.in_weight.values.own_value`.

        Returns:
            New values by name, in float32 or finer.

        Raises:
            NotImplementedError: If the adapter is not a linear change of them, with the reason.
        """
        raise NotImplementedError("it is not linear, so no weight can replace it")


class BesideAdapter(ChildAdapter):
    """Adds :meth:`change` of one module's input to another module's output.

    The first is ``site.parts[0]``, the second is the host.
    """

    prepend: ClassVar[bool] = False
    """Whether it acts on the host's output before the existing hooks."""

    def __init__(self) -> None:
        super().__init__()
        self._x: Tensor | None = None

    @abstractmethod
    def change(self, x: Tensor) -> Tensor:
        """Compute the added tensor."""

    def connect(self, model: nn.Module, site: Site) -> None:
        """See :meth:`ChildAdapter.connect`."""
        model.get_submodule(site.parts[0]).register_forward_pre_hook(self.keep)
        host = model.get_submodule(site.module)
        host.register_forward_hook(self.after, prepend=self.prepend)

    def keep(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Keep the input of the first module until the host's output is computed."""
        if self.active:
            self._x = args[0]

    def after(self, host: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Add the change to the host's output."""
        x, self._x = self._x, None
        if not self.active or x is None:
            return output
        y = first(output)
        change = self.change(x).to(y.dtype)
        return with_first(output, y + change.reshape(y.shape))  # Swin flattens its feature maps


class ChildMethod(Method):
    """A method whose adapters are :class:`ChildAdapter` modules."""

    mergeable = False  # unless the adapters are linear
    shares_host: ClassVar[bool] = True
    """Whether another method's adapter may sit on the same module."""
    linear: ClassVar[bool] = False
    """Whether its adapters can be in the weight, where a layer is read and not called."""
    of_weight: ClassVar[bool] = False
    """Whether they are a sum with the weight, whatever a layer does with it."""

    @property
    def key(self) -> str:
        """The name of the adapter in its host."""
        return f"adapter_{self.name}"

    @abstractmethod
    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """Return the modules to adapt; raise if the method does not support them."""

    @abstractmethod
    def build(self, model: nn.Module, sites: tuple[Site, ...]) -> Iterator[ChildAdapter]:
        """Build the adapter of each site, in order; the model is not changed."""

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """See :meth:`Method.plan`."""
        sites = self.select(anatomy, model)
        if self.linear:
            names = [site.module for site in sites]
            read = dict.fromkeys(never_called(model, names), "read and not called")
            if self.of_weight:
                own = {name: own_forward(layer_at(model, name)) for name in names}
                read |= {name: reason for name, reason in own.items() if reason is not None}
            problems = [
                f"{name} ({reason})"
                for name in read
                if (reason := self.in_weight_problem(layer_at(model, name))) is not None
            ]
            if problems:
                raise MethodError(
                    f"{self.name}: expected layers whose weights can hold the update, which are "
                    f"read and not called here, got {some(problems, separator='; ')}. Exclude them."
                )
            sites = tuple(replace(site, in_weight=site.module in read) for site in sites)
        return Plan(sites=sites, steps=((self, sites),))

    def in_weight_problem(self, layer: nn.Module) -> str | None:
        """Return why the weights of a layer cannot hold the update, or ``None``."""
        return None

    def inject(self, model: nn.Module, sites: tuple[Site, ...]) -> None:
        """See :meth:`Method.inject`."""
        self.attach(model, sites, list(self.build(model, sites)))

    def attach(
        self, model: nn.Module, sites: tuple[Site, ...], adapters: list[ChildAdapter]
    ) -> None:
        """Add each adapter to its host, on the host's device, and connect it."""
        for site, adapter in zip(sites, adapters, strict=True):
            if site.in_weight and add_part(model, site.module):
                part = model.get_submodule(site.module)
                assert isinstance(part, Part)
                read_with_updates(part.holder, filter(None, part.names.values()))
            host = model.get_submodule(site.module)
            like = next(_floats(host), None)
            if like is None:
                like = next(_floats(model), torch.empty(0))
            # a half-precision adapter would lose its updates: it stays in float32, as with peft
            dtype = torch.float32 if like.dtype in (torch.float16, torch.bfloat16) else like.dtype
            host.add_module(self.key, adapter.to(device=like.device, dtype=dtype))
            adapter.train(host.training)
            if site.in_weight:
                adapter.in_weight = True
                read_with_updates(host, adapter.merged(host))
            else:
                adapter.connect(model, site)

    def adapters(self, model: nn.Module, sites: tuple[Site, ...]) -> list[Adapter]:
        """See :meth:`Method.adapters`."""
        return [ChildHandle(model, site.module, self.key) for site in sites]


class ChildHandle(MergesCodes):
    """A handle on one adapter by its place in the model, so a deep copy of the model has its own.

    Args:
        model: The adapted backbone.
        host: The name of the adapted module.
        key: The adapter's name in it.
    """

    def __init__(self, model: nn.Module, host: str, key: str) -> None:
        self.model = model
        self.host = host
        self.key = key
        self._kept: dict[str, Tensor] = {}

    @property
    def child(self) -> ChildAdapter:
        """The adapter."""
        child = self.model.get_submodule(self.host)._modules[self.key]
        assert isinstance(child, ChildAdapter)
        return child

    @property
    def enabled(self) -> bool:
        """See :class:`Adapter`."""
        return self.child.enabled

    def set_enabled(self, enabled: bool) -> None:
        """See :class:`Adapter`."""
        self.child.enabled = enabled

    @property
    def owner(self) -> nn.Module:
        """See :class:`Adapter`; of a part, the module that holds the parameter."""
        host = self.model.get_submodule(self.host)
        return host.holder if isinstance(host, Part) else host

    @torch.no_grad()
    def written(self) -> list[nn.Parameter]:
        """See :class:`Adapter`."""
        host = self.model.get_submodule(self.host)
        if scheme_of(host) is not None:
            return list(host.parameters(recurse=False))
        refuse_codes(self.owner, self.host)
        with in_evaluation_mode(self.child):
            return [p for name in self.child.merged(host) for p in parameters_of(host, name)]

    @torch.no_grad()
    def merge(self) -> float:
        """See :class:`Adapter`; the host's values are kept, so that unmerging is exact."""
        host, child = self.model.get_submodule(self.host), self.child
        scheme = scheme_of(host)
        if scheme is not None:
            return self._merge_into_codes(host, scheme)
        refuse_codes(self.owner, self.host)
        own = own_values(host)
        with in_evaluation_mode(child):  # dropout is not merged
            values = child.merged(host)
        rounded = {name: v.to(own[name].dtype) for name, v in values.items()}
        refuse_not_finite(rounded, f"the merged weights of {self.host}")
        what = f"{self.host} ({type(host).__name__})"
        given = None
        if values and not (child.in_weight or is_known(host)):
            given = probe_input(host, features_of(host)[0], spatial_dims(host))
        kept: dict[str, Tensor] = {}
        try:
            before = None if given is None else probed(host, given)
            kept = write_all(host, rounded)
            child.folded = True
            if given is not None and before is not None:
                refuse_other_function(before, probed(host, given))
        except Exception as error:
            child.folded = False
            restore(host, kept)
            raise ValueError(f"{what} {error}") from error
        self._kept = kept
        return max((lost(values[name], rounded[name]) for name in values), default=0.0)

    def unmerge(self) -> None:
        """See :class:`Adapter`."""
        if self._restorer is not None:
            self._restorer()
            self._restorer, self.child.folded = None, False
            return
        restore(self.model.get_submodule(self.host), self._kept)
        self._kept = {}
        self.child.folded = False

    def unload(self) -> None:
        """See :class:`Adapter`."""
        child = self.child
        for module in self.model.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for number, hook in list(hooks.items()):
                    if getattr(hook, "__self__", None) is child:
                        del hooks[number]
        host = self.model.get_submodule(self.host)
        del host._modules[self.key]
        if child.in_weight and not any(isinstance(m, Update) for m in host.children()):
            read_without_updates(host)
            if isinstance(host, Part) and not remove_part(host):
                read_without_updates(host.holder)


def _floats(module: nn.Module) -> Iterator[Tensor]:
    return (p for p in module.parameters() if p.is_floating_point())
