"""Combining several methods on one backbone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from lightning_peft.errors import MethodError, some
from lightning_peft.methods.base import Method, Plan, Stepper, add_methods_with
from lightning_peft.methods.child import ChildMethod
from lightning_peft.methods.registry import (
    create_method,
    list_methods,
    method_class,
    method_from_config,
    register_method,
)

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["Union", "as_method"]


def _get_along(parts: list[Method]) -> bool:
    """Whether several methods may act on one module: ours do, since none replaces it."""
    names = {part.name for part in parts}
    return len(parts) == 1 or (
        len(names) == len(parts)
        and all(isinstance(part, ChildMethod) and part.shares_host for part in parts)
    )


@register_method
@dataclass(frozen=True)
class Union(Method):
    """Apply several methods to one backbone, such as LoRA on the linears and BitFit on the biases.

    ``LoRA() + BitFit()`` makes one, and so does ``["lora", "bitfit"]`` wherever a method is
    expected. Each part keeps its own targets. Two parts on the same module are refused if one of
    them replaces the module, as those of ``peft`` do.

    Attributes:
        methods: The parts, as names or methods; nested unions are flattened.

    >>> import lightning_peft as lp
    >>> method = lp.LoRA(rank=4) + lp.BitFit()
    >>> [part.name for part in method.methods]
    ['lora', 'bitfit']
    """

    name: ClassVar[str] = "union"
    family: ClassVar[str] = "combination"
    formula: ClassVar[str] = "several methods at once"
    summary: ClassVar[str] = "several methods on one backbone"
    reference: ClassVar[str] = "https://arxiv.org/abs/2110.04366"

    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        parts: list[Method] = []
        for part in map(as_method, self.methods):
            parts.extend(part.methods if isinstance(part, Union) else (part,))
        object.__setattr__(self, "methods", tuple(parts))
        super().__post_init__()

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        if not self.methods:
            yield "expected at least one method, got none"
        twice = [name for name, n in Counter(part.name for part in self.methods).items() if n > 1]
        in_place = [part.name for part in self.methods if part.changes_backbone]
        for name in twice:
            if name in in_place:
                yield f"expected each in-place method once, got '{name}' more than once"

    @property
    def keeps_original(self) -> bool:  # type: ignore[override]
        """Whether every part keeps copies of the parameters that it changes in place."""
        return all(part.keeps_original for part in self.methods if part.changes_backbone)

    @property
    def mergeable(self) -> bool:  # type: ignore[override]
        """Whether every part can be merged."""
        return all(part.mergeable for part in self.methods)

    @property
    def changes_backbone(self) -> bool:  # type: ignore[override]
        """Whether any part trains the backbone's own parameters."""
        return any(part.changes_backbone for part in self.methods)

    @property
    def starts_as_backbone(self) -> bool:  # type: ignore[override]
        """Whether no part changes the output before a step is made."""
        return all(part.starts_as_backbone for part in self.methods)

    @property
    def accelerated(self) -> bool:  # type: ignore[override]
        """Whether any part adds fast LoRA layers."""
        return any(part.accelerated for part in self.methods)

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """See :meth:`Method.plan`."""
        plans = [part.plan(anatomy, model) for part in self.methods]
        steps = tuple(step for plan in plans for step in plan.steps)
        parts_of: dict[str, list[Method]] = defaultdict(list)
        for part, sites in steps:
            for site in sites:
                if part not in parts_of[site.module]:  # one part may adapt several parameters
                    parts_of[site.module].append(part)
        twice = [module for module, parts in parts_of.items() if not _get_along(parts)]
        if twice:
            raise MethodError(
                f"union: expected each module to be injected into once, got "
                f"{some(twice)} in more than one of "
                f"{', '.join(part.name for part in self.methods)}. Give them different targets."
            )
        return Plan(
            sites=tuple(dict.fromkeys(site for plan in plans for site in plan.sites)),
            train=tuple(dict.fromkeys(name for plan in plans for name in plan.train)),
            steps=steps,
            parted=tuple(dict.fromkeys(name for plan in plans for name in plan.parted)),
        )

    def steppers(self, model: nn.Module) -> list[Stepper]:
        """See :meth:`Method.steppers`."""
        return [stepper for part in self.methods for stepper in part.steppers(model)]

    @classmethod
    def _from_settings(cls, settings: dict[str, Any]) -> Union:
        parts = settings.get("methods", ())
        return cls(tuple(method_from_config(part) for part in parts))


def as_method(method: Any, **settings: Any) -> Method:
    """Convert anything that a user may pass as a method to a method.

    Args:
        method: A name, a :class:`Method`, a ``peft.PeftConfig``, or a sequence of these.
        **settings: Settings, allowed only with a name.

    Returns:
        The method.

    Raises:
        MethodError: If it is none of these, or settings are passed without a name.
    """
    if isinstance(method, str):
        return create_method(method, **settings)
    if settings:
        raise MethodError(
            f"{', '.join(settings)}: settings need a method's name, got "
            f"{type(method).__name__}. Put them into the {type(method).__name__} itself."
        )
    if isinstance(method, Method):
        return method
    if isinstance(method, Mapping):
        return method_from_config(method)
    if hasattr(method, "peft_type"):
        return method_class("hf").from_peft(method)  # type: ignore[attr-defined]
    if hasattr(method, "__iter__") and hasattr(method, "__len__"):
        return Union(tuple(as_method(part) for part in method))
    raise MethodError(
        "expected a method's name, a Method, a peft.PeftConfig or a list of these, got "
        f"{type(method).__name__}: {method!r}. Names: {', '.join(list_methods())}."
    )


add_methods_with(Union)
