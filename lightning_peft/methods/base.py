"""What a method is: a frozen description of how to adapt a backbone."""

from __future__ import annotations

import dataclasses
import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn

from lightning_peft.errors import MethodError

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = [
    "Adapter",
    "Layers",
    "Method",
    "Names",
    "Plan",
    "Site",
    "Stepper",
    "add_methods_with",
    "plain",
]

Names = str | tuple[str, ...] | None
"""Which modules: a preset, a name, a glob, ``"re:<regex>"``, or several of them."""

Layers = str | int | tuple[int, ...] | None
"""Which blocks: an index, several, or a range such as ``"last:4"``."""


@dataclass(frozen=True)
class Site:
    """One place that is adapted: a module's name and what is done there.

    Attributes:
        module: The module's name.
        kind: What is done, in a word or two.
        parts: Names of further modules that the adapter there works with.
    """

    module: str
    kind: str
    parts: tuple[str, ...] = ()


class Adapter(Protocol):
    """What an adaptation asks of the adapter at one site."""

    @property
    def enabled(self) -> bool:
        """Whether the adapter takes part in the forward."""

    def set_enabled(self, enabled: bool) -> None:
        """Switch the adapter on or off; what is trained does not change."""

    def merge(self) -> float:
        """Fold the adapter into the backbone's weights, computed in float32.

        Returns:
            The largest difference that rounding to the weight's dtype made, relative to the largest
            weight.

        Raises:
            NotImplementedError: If the adapter is no linear change of a weight.
        """

    def unmerge(self) -> None:
        """Take the adapter out of the weights again."""

    def unload(self) -> None:
        """Put the backbone's own module back in its place."""


class Stepper(ABC):
    """What an adapter needs at each step of a training, beside its forward.

    Attributes:
        model: The adapted backbone.
    """

    model: nn.Module

    @abstractmethod
    def begin(self, total_steps: int) -> None:
        """Learn the length of the run in optimizer steps, before the first of them."""

    def penalty_gradients(self) -> dict[str, Tensor]:
        """Give the gradients of a loss term of the method's own, by parameter name.

        They are added after the backward pass, which is the same as adding the term to the loss and
        leaves the user's training step alone.
        """
        return {}

    @abstractmethod
    def after_step(self, step: int) -> None:
        """Act after an optimizer step, while the gradients that led to it are there.

        Args:
            step: How many steps have been made.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Give what a checkpoint has to keep: tensors and plain types."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""


@dataclass(frozen=True)
class Plan:
    """What a method is about to do to one backbone; nothing is changed yet.

    Attributes:
        sites: The modules to adapt.
        train: Names of the backbone's own parameters that the method trains in place.
        steps: The methods that have something to inject, each with its own sites.
    """

    sites: tuple[Site, ...] = ()
    train: tuple[str, ...] = ()
    steps: tuple[tuple[Method, tuple[Site, ...]], ...] = ()


@dataclass(frozen=True)
class Method(ABC):
    """How to adapt a backbone. Subclasses are frozen dataclasses, one file each.

    Attributes:
        name: The name in the registry.
        summary: One line for tables and ``--help``.
        family: What kind of method it is, such as ``"low-rank"`` or ``"bottleneck"``.
        formula: What is computed or trained, for the catalogue.
        reference: Where the method comes from.
        changes_backbone: Whether trained parameters are the backbone's own, so that the original
            output can only be had back from a copy of them.
        keeps_original: Whether that copy is kept (it is small), so that ``disabled()`` works.
        mergeable: Whether what is added is a linear change of weights that can be folded in.
        accelerated: Whether it brings LoRA layers with the fast forward of
            :mod:`lightning_peft.kernels`, which the setting ``memory`` is for.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    family: ClassVar[str] = "other"
    formula: ClassVar[str] = ""
    changes_backbone: ClassVar[bool] = False
    keeps_original: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    accelerated: ClassVar[bool] = False

    def __post_init__(self) -> None:
        # Hydra hands over its own list and mapping types; they are neither hashable nor JSON
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        problems = list(self.problems())
        if problems:
            raise MethodError(f"{type(self).__name__}: " + "; ".join(problems) + ".")

    def problems(self) -> Iterable[str]:
        """Yield what is wrong with the settings themselves, each as 'expected ..., got ...'."""
        return ()

    @abstractmethod
    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """Say what would be done to a backbone, without changing it.

        Args:
            anatomy: What the backbone is made of.
            model: The backbone, not yet adapted.

        Returns:
            The plan.

        Raises:
            TargetError: If the selection of modules does not fit the backbone.
            MethodError: If the method cannot serve this backbone.
        """

    def inject(self, model: nn.Module, sites: tuple[Site, ...]) -> None:  # noqa: B027
        """Add the adapter to the model at the sites of the plan.

        What requires a gradient afterwards is what the method trains.

        Args:
            model: The backbone; changed in place.
            sites: The sites that :meth:`plan` gave for this method.
        """

    def adapters(self, model: nn.Module, sites: tuple[Site, ...]) -> list[Adapter]:
        """Give the handles on what :meth:`inject` added, in the order of the sites.

        Args:
            model: The adapted backbone.
            sites: The sites that were injected into.
        """
        return []

    def steppers(self, model: nn.Module) -> list[Stepper]:
        """Give what has to be done at each step of a training; most methods need nothing.

        Args:
            model: The adapted backbone.
        """
        return []

    def to_config(self) -> dict[str, Any]:
        """Give the method as plain JSON types: its name and every setting."""
        settings = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"name": self.name, **settings}

    @classmethod
    def _from_settings(cls, settings: dict[str, Any]) -> Method:
        """Rebuild the method from the settings that :meth:`to_config` wrote; they are known."""
        return cls(**settings)

    def __add__(self, other: Method) -> Method:
        return _together[0]((self, other))


_together: list[Callable[[tuple[Method, ...]], Method]] = []


def add_methods_with(make: Callable[[tuple[Method, ...]], Method]) -> None:
    """Set what ``method + method`` makes: the module that does needs this one."""
    _together[:] = [make]


def plain(value: Any) -> Any:
    """Turn a setting into plain JSON types (sets are sorted, tuples become lists)."""
    if isinstance(value, Method):
        return value.to_config()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    raise MethodError(
        f"expected settings of plain types (numbers, strings, lists, mappings), "
        f"got {type(value).__name__}: {value!r}"
    )


def _frozen(value: Any) -> Any:
    """Turn any mapping into a dict and any sequence into a tuple, all the way down."""
    if isinstance(value, str | bytes | Method) or dataclasses.is_dataclass(value):
        return value
    if isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        return {key: _frozen(value[key]) for key in value.keys()}  # noqa: SIM118
    if isinstance(value, set | frozenset):
        return frozenset(value)
    if hasattr(value, "__iter__") and hasattr(value, "__len__"):
        return tuple(_frozen(item) for item in value)
    return value
