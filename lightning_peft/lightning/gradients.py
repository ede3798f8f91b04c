"""Finding adapters that get no gradient, or only zeros, in the first steps of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_peft.adaptation.handle import Adaptation
from lightning_peft.errors import MethodError, some
from lightning_peft.methods.from_peft.token_rows import TOKEN_ROWS

__all__ = ["GradientWatch", "refuse_frozen"]

_STEPS = 2
_MOST = 20  # places that an error proposes to exclude


class GradientWatch:
    """Watches the first steps of a run.

    A parameter without a gradient in two steps is silent. Zeros are another matter: LoRA's ``A``
    gets zeros as long as ``B`` is zero, and everything does behind a head of zeros, until the first
    step with a learning rate above zero. So zeros count for a site as a whole, in two steps after
    such a step.

    Args:
        goes_on: Whether the run is one that goes on. Its first steps were behind it when it was
            stopped, and zeros in two steps in the middle of a run (of a router of experts) are no
            reason not to continue.
    """

    def __init__(self, *, goes_on: bool = False) -> None:
        self._goes_on = goes_on
        self._looks = 0
        self._absent: set[str] = set()
        self._moved = 0
        self._zeros: set[str] | None = None

    def look(
        self, adaptations: Mapping[str, Adaptation], optimizer: Optimizer, optimizers: int
    ) -> None:
        """Look at the gradients before an optimizer steps.

        Args:
            adaptations: The adaptations by the paths of their backbones.
            optimizer: The optimizer.
            optimizers: The number of optimizers of the run.

        Raises:
            MethodError: If the steps to watch are over and some adapters had no gradient.
        """
        watched = _STEPS * optimizers
        if self._looks < watched:
            absent = {name for name, gradient, _ in _gradients(adaptations) if gradient is None}
            self._absent = absent if self._looks == 0 else self._absent & absent
            self._looks += 1
            if self._looks == watched:
                _refuse(adaptations, self._absent, "no gradient")
        if optimizers <= self._moved < optimizers + watched and not self._goes_on:
            zeros = set(_sites_of_zeros(adaptations))
            self._zeros = zeros if self._zeros is None else self._zeros & zeros
            if self._moved == optimizers + watched - 1:
                _refuse(adaptations, self._zeros, "a gradient of zeros")
        if any(group["lr"] > 0 for group in optimizer.param_groups) or self._moved >= optimizers:
            self._moved += 1


def refuse_frozen(adaptations: Mapping[str, Adaptation]) -> None:
    """Refuse a run whose adapters were frozen after they were made, so that nothing is trained.

    Args:
        adaptations: The adaptations by the paths of their backbones.

    Raises:
        MethodError: If no parameter of any adapter requires a gradient.
    """
    frozen: list[str] = []
    for path, adaptation in adaptations.items():
        names = set(adaptation.adapter_names()) & set(adaptation.trained_names())
        for name, parameter in adaptation.model.named_parameters():
            if name in names and parameter.requires_grad:
                return  # such as a student, whose teacher is frozen
            if name in names:
                frozen.append(f"{path}.{name}" if path else name)
    if frozen:
        raise MethodError(
            "expected an adapter that requires gradients when training starts, got "
            f"{some(frozen, 4)} frozen: code of the module froze the model after it was adapted. "
            "Do so before (peft's prepare_model_for_kbit_training belongs in __init__), or call "
            "adaptation.freeze() afterwards."
        )


def _gradients(
    adaptations: Mapping[str, Adaptation],
) -> Iterator[tuple[str, Tensor | None, str]]:
    """Yield the name, the gradient and the site of each trained parameter of the adapters."""
    for path, adaptation in adaptations.items():
        prefix = f"{path}." if path else ""
        places = {site.module for site in adaptation.sites}
        for name in adaptation.adapter_names():
            parameter = adaptation.model.get_parameter(name)
            if parameter.requires_grad:
                yield prefix + name, parameter.grad, prefix + _place(name, places)


def _rarely_used(adaptations: Mapping[str, Adaptation]) -> set[str]:
    """Return the sites whose gradient is zero whenever a batch has none of their tokens."""
    return {
        f"{path}.{site.module}" if path else site.module
        for path, adaptation in adaptations.items()
        for site in adaptation.sites
        if site.kind == TOKEN_ROWS
    }


def _place(name: str, places: set[str]) -> str:
    """Return the innermost site around a parameter, or its own name if it is at none."""
    around = name
    while around not in places and around:
        around = around.rpartition(".")[0]
    return around or name


def _sites_of_zeros(adaptations: Mapping[str, Adaptation]) -> Iterable[str]:
    alive = _rarely_used(adaptations)
    silent: dict[str, list[str]] = {}
    for name, gradient, place in _gradients(adaptations):
        if place in alive or gradient is None:  # a part that is used sometimes has none
            continue
        if _is_zero(gradient):
            silent.setdefault(place, []).append(name)
        else:
            alive.add(place)
    for place, names in silent.items():
        if place not in alive:
            yield from names


def _is_zero(gradient: Tensor) -> bool:
    """Whether all entries are zero; of shards, no process sees all."""
    if hasattr(gradient, "device_mesh"):
        return False
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return not bool(values.any())


def _refuse(adaptations: Mapping[str, Adaptation], names: set[str], what: str) -> None:
    """Refuse adapters that would be trained for nothing.

    Raises:
        MethodError: If there are names.
    """
    if not names:
        return
    told = f"after {_STEPS} steps these adapter parameters have {what}: {some(sorted(names), 8)}. "
    if names == {name for name, _, _ in _gradients(adaptations)}:
        where = " and ".join(f"'{path}'" if path else "itself" for path in adaptations)
        raise MethodError(
            f"{told}They are all that the adapter has: the module computes {where} without "
            "gradients (an extractor of fixed features, a teacher), or does not use what it "
            "computes, or gradient checkpointing is reentrant (use_reentrant=False)"
            f"{_constant_norms(adaptations)}{_never_called(adaptations)}. Adapt a part that is "
            "trained (backbone=...), or leave the adapter out."
        )
    places = sorted(set(_silent_places(adaptations, names)))
    these = f"exclude={places}" if len(places) <= _MOST else "exclude these"
    raise MethodError(
        f"{told}Either the forward does not call the adapted modules, or does not use what they "
        f"compute ({these}), or gradient checkpointing is reentrant (use_reentrant=False), "
        "or these modules are only used sometimes (check_gradients=False)."
    )


def _constant_norms(adaptations: Mapping[str, Adaptation]) -> str:
    """Describe the norms over a single value, which give their bias whatever comes in."""
    found = [
        f"{path}.{name}" if path else name
        for path, adaptation in adaptations.items()
        for name, module in adaptation.model.named_modules()
        if isinstance(module, nn.LayerNorm) and math.prod(module.normalized_shape) == 1
    ]
    if not found:
        return ""
    return f", or a norm over one value lets nothing through ({some(found, 2)})"


def _never_called(adaptations: Mapping[str, Adaptation]) -> str:
    """Describe the tokens without which an activated LoRA is off."""
    found = [
        str(tokens)
        for adaptation in adaptations.values()
        for config in getattr(adaptation.model, "peft_config", {}).values()
        if (tokens := getattr(config, "alora_invocation_tokens", None))
    ]
    if not found:
        return ""
    return (
        f", or no example holds the tokens that call the activated LoRA ({some(found, 2)}; "
        "check_gradients=False if later ones do)"
    )


def _silent_places(adaptations: Mapping[str, Adaptation], names: set[str]) -> Iterator[str]:
    """Yield the sites of some parameters, by their names in the backbone."""
    for path, adaptation in adaptations.items():
        for name, _, place in _gradients({path: adaptation}):
            if name in names:
                yield place.removeprefix(f"{path}.") if path else place
