"""Checks that run before anything is changed, and report all of their problems at once."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_peft.anatomy.names import parameters_inside
from lightning_peft.errors import MethodError, PEFTError, TargetError, near

__all__ = ["Checks", "as_names", "key_problems", "parameters_named", "value_problems"]

_MOST_PROBLEMS = 20


class Checks:
    """Collect the errors of independent checks, to raise them together.

    Each ``with checks:`` block holds one check; a :class:`PEFTError` inside it is kept for later.
    """

    def __init__(self) -> None:
        self.errors: list[PEFTError] = []

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, PEFTError):
            self.errors.append(error)
            return True
        return False

    def one_of(self, name: str, value: Any, options: tuple[str, ...]) -> None:
        """Check that a setting is one of its options."""
        if value not in options:
            self.errors.append(
                MethodError(f"expected {name} to be one of {options}, got {value!r}.")
            )

    def done(self) -> None:
        """Raise the collected errors as one."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            kind = type(self.errors[0])
            kind = kind if all(type(e) is kind for e in self.errors) else MethodError
            raise kind("\n".join(f"- {error}" for error in self.errors))


def as_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name or several names as a tuple."""
    return (value,) if isinstance(value, str) else tuple(value)


def parameters_named(model: nn.Module, patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Return the parameters matched by names or globs, of parameters or of modules."""
    wanted = as_names(patterns)
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    chosen: dict[str, None] = {}
    problems: list[str] = []
    for pattern in wanted:
        if len(problems) >= _MOST_PROBLEMS:
            break
        roots = tuple(fnmatch.filter([*modules, *parameters], pattern))
        hits = parameters_inside(model, roots)
        if not hits:
            problems.append(f"also_train: no parameters in '{pattern}'. {near(pattern, modules)}")
        chosen.update(dict.fromkeys(hits))
    if problems:
        raise TargetError(" ".join(problems))
    return tuple(chosen)


def key_problems(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], required: Collection[str]
) -> list[str]:
    """Compare the keys and shapes of a state with a model's own, both ways.

    Args:
        state: The state to be loaded.
        own: The model's state dict.
        required: Names that the state must hold.

    Returns:
        A phrase for each kind of problem; empty if it fits.
    """
    missing = sorted(name for name in required if name not in state)
    unknown = sorted(name for name in state if name not in own)
    shapes = [
        f"{name} (expected {tuple(own[name].shape)}, got {tuple(state[name].shape)})"
        for name in state
        if name in own and own[name].shape != state[name].shape
    ]
    return [
        f"{len(names)} {what}: {', '.join(names)}"
        for what, names in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", shapes),
        )
        if names
    ]


def value_problems(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Find the tensors that cannot be copied into a model's own without a loss.

    Args:
        state: The state to be loaded; names that the model does not have are skipped.
        own: The model's state dict.

    Returns:
        A phrase for each kind of problem; empty if all fit.
    """
    dtypes, places = [], []
    for name, tensor in state.items():
        if name not in own or own[name] is tensor:
            continue
        dtype = own[name].dtype
        if tensor.dtype != dtype and not (tensor.is_floating_point() and dtype.is_floating_point):
            dtypes.append(f"{name} (expected {dtype}, got {tensor.dtype})")
        if tensor.layout != own[name].layout or (tensor.is_meta and not own[name].is_meta):
            places.append(name)
    return [
        f"{len(names)} {what}: {', '.join(names)}"
        for what, names in (("of another dtype", dtypes), ("without values", places))
        if names
    ]
