"""The interface of a method, a frozen description of how to adapt a backbone."""

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
"""A choice of modules: a preset, a name, a glob, ``"re:<regex>"``, or several of them."""

Layers = str | int | tuple[int, ...] | None
"""A choice of blocks: an index, several, or a range such as ``"last:4"``."""


@dataclass(frozen=True)
class Site:
    """One adapted place: a module's name and the kind of change.

    Attributes:
        module: The module's name.
        kind: The kind of change, in a word or two.
        parts: Names of further modules that the adapter uses.
        in_weight: Whether the change is in the weight that a forward reads, since the module is
            not called, or computes more than the product with its weight.
        parameter: The name of the parameter of the module that is adapted, where the change is one
            of a single parameter (fused experts); empty for the module itself.
    """

    module: str
    kind: str
    parts: tuple[str, ...] = ()
    in_weight: bool = False
    parameter: str = ""

    @property
    def label(self) -> str:
        """The last part of the module's name, and the parameter's if it is one that is adapted."""
        name = self.module.rpartition(".")[2]
        return f"{name}.{self.parameter}" if self.parameter else name


class Adapter(Protocol):
    """The interface of the adapter at one site."""

    @property
    def owner(self) -> nn.Module:
        """The module in whose call the adapter acts."""

    def written(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the backbone that a merge would change; nothing is changed."""

    @property
    def enabled(self) -> bool:
        """Whether the adapter takes part in the forward."""

    def set_enabled(self, enabled: bool) -> None:
        """Switch the adapter on or off; the trained parameters stay the same."""

    def merge(self) -> float:
        """Fold the adapter into the backbone's weights, computed in float32.

        Returns:
            The largest difference that rounding to the weight's dtype made, relative to the largest
            weight.

        Raises:
            NotImplementedError: If the adapter is not a linear change of a weight.
        """

    def unmerge(self) -> None:
        """Take the adapter out of the weights."""

    def unload(self) -> None:
        """Restore the backbone's own module."""


class Stepper(ABC):
    """The actions of an adapter at each training step, besides its forward.

    Attributes:
        model: The adapted backbone.
    """

    model: nn.Module

    @abstractmethod
    def begin(self, total_steps: int) -> None:
        """Set the length of the run in optimizer steps, before the first step."""

    def penalty_gradients(self) -> dict[str, Tensor]:
        """Return the gradients of a loss term of the method's own, by parameter name.

        They are added after the backward pass, which is equivalent to adding the term to the loss
        and does not change the user's training step.
        """
        return {}

    @abstractmethod
    def after_step(self, step: int) -> None:
        """Act after an optimizer step, while its gradients still exist.

        Args:
            step: The number of steps so far.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint: tensors and plain types."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict`."""


@dataclass(frozen=True)
class Plan:
    """The changes that a method will make to one backbone; nothing is changed yet.

    Attributes:
        sites: The modules to adapt.
        train: Names of the backbone's own parameters that the method trains in place.
        steps: The methods that inject an adapter, each with its sites.
        parted: Names of parameters to train as copies, since modules that are not trained whole
            share them.
    """

    sites: tuple[Site, ...] = ()
    train: tuple[str, ...] = ()
    steps: tuple[tuple[Method, tuple[Site, ...]], ...] = ()
    parted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method(ABC):
    """How to adapt a backbone. Subclasses are frozen dataclasses, one file each.

    Attributes:
        name: The name in the registry.
        summary: One line for tables and ``--help``.
        family: The kind of method, such as ``"low-rank"`` or ``"bottleneck"``.
        formula: The computation or the trained parameters, for the catalogue.
        reference: The paper that introduced the method.
        changes_backbone: Whether the backbone's own parameters are trained, so that the original
            output needs a copy of them.
        keeps_original: Whether that copy is kept (it is small), so that ``disabled()`` works.
        mergeable: Whether the adapter is a linear change of weights that can be folded in.
        starts_as_backbone: Whether the adapted backbone computes what the backbone does, up to
            rounding, until a step is made; the ``PEFT`` callback looks at the first batch.
        accelerated: Whether it adds LoRA layers with the fast forward of
            :mod:`lightning_peft.kernels`, which the setting ``memory`` is for.
        listed: Whether it is one to choose by name for any backbone, as catalogues list.

    >>> import lightning_peft as lp
    >>> method = lp.LoRA(rank=4, layers="last:2")
    >>> method.name, method.family, method.mergeable
    ('lora', 'low-rank', True)
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str]
    family: ClassVar[str] = "other"
    formula: ClassVar[str] = ""
    changes_backbone: ClassVar[bool] = False
    keeps_original: ClassVar[bool] = True
    mergeable: ClassVar[bool] = True
    starts_as_backbone: ClassVar[bool] = True
    accelerated: ClassVar[bool] = False
    listed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        # Hydra passes its own list and mapping types; they are neither hashable nor JSON
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        problems = list(self.problems())
        if problems:
            raise MethodError(f"{type(self).__name__}: " + "; ".join(problems) + ".")

    def problems(self) -> Iterable[str]:
        """Yield the problems of the settings themselves, each as 'expected ..., got ...'."""
        return ()

    @abstractmethod
    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """Plan the changes to a backbone, without making them.

        Args:
            anatomy: The backbone's anatomy.
            model: The backbone, not yet adapted.

        Returns:
            The plan.

        Raises:
            TargetError: If the selection of modules does not fit the backbone.
            MethodError: If the method does not support this backbone.
        """

    def inject(self, model: nn.Module, sites: tuple[Site, ...]) -> None:  # noqa: B027
        """Add the adapter to the model at the sites of the plan.

        The parameters that require a gradient afterwards are those that the method trains.

        Args:
            model: The backbone; changed in place.
            sites: The sites of this method from :meth:`plan`.
        """

    def adapters(self, model: nn.Module, sites: tuple[Site, ...]) -> list[Adapter]:
        """Return the handles on the adapters that :meth:`inject` added, in the order of the sites.

        Args:
            model: The adapted backbone.
            sites: The sites with an adapter.
        """
        return []

    def steppers(self, model: nn.Module) -> list[Stepper]:
        """Return the objects that act at each training step; most methods have none.

        Args:
            model: The adapted backbone.
        """
        return []

    def to_config(self) -> dict[str, Any]:
        """Return the method as plain JSON types: its name and all settings."""
        settings = {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"name": self.name, **settings}

    @classmethod
    def _from_settings(cls, settings: dict[str, Any]) -> Method:
        """Rebuild the method from the settings of :meth:`to_config`, whose names are valid."""
        return cls(**settings)

    def __add__(self, other: Method) -> Method:
        return _together[0]((self, other))


_together: list[Callable[[tuple[Method, ...]], Method]] = []


def add_methods_with(make: Callable[[tuple[Method, ...]], Method]) -> None:
    """Set the function behind ``method + method``, whose module imports this one."""
    _together[:] = [make]


def plain(value: Any) -> Any:
    """Convert a setting to plain JSON types (sets are sorted, tuples become lists)."""
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
    """Convert any mapping to a dict and any sequence to a tuple, recursively."""
    if isinstance(value, str | bytes | Method) or dataclasses.is_dataclass(value):
        return value
    if isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        return {key: _frozen(value[key]) for key in value.keys()}  # noqa: SIM118
    if isinstance(value, set | frozenset):
        return frozenset(value)
    if hasattr(value, "__iter__") and hasattr(value, "__len__"):
        return tuple(_frozen(item) for item in value)
    return value
