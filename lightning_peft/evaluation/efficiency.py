"""The cost of training: parameters, bytes of gradients, optimizer and checkpoint, and FLOPs.

Pure functions over modules and optimizers; ``EfficiencyMonitor`` decides when they are called.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_peft.evaluation.distinct_bytes import distinct_bytes
from lightning_peft.evaluation.flop_formulas import formula_of

__all__ = [
    "FlopCounter",
    "ParameterCount",
    "count_flops",
    "count_parameters",
    "gradient_bytes",
    "human_bytes",
    "median",
    "numel",
    "optimizer_state_bytes",
    "predicted_optimizer_state_bytes",
    "tensor_bytes",
    "uncompiled",
]

_SMALL = 2**20  # elements of a parameter


@dataclass(frozen=True)
class ParameterCount:
    """The number of scalars in a module's parameters.

    Attributes:
        trainable: Scalars in parameters that require a gradient.
        frozen: Scalars in all other parameters.
    """

    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.trainable + self.frozen

    @property
    def share(self) -> float:
        """Trainable over total, in [0, 1]."""
        return self.trainable / self.total if self.total else 0.0


def count_parameters(module: nn.Module) -> ParameterCount:
    """Count the parameters of a module.

    A parameter that is used in several places counts once, a sharded one in full, and a quantized
    one by the values that it represents. Parameters on the ``meta`` device are counted like
    others, those of a lazy module that has not run yet as 0.

    Args:
        module: The module.

    >>> count_parameters(nn.Linear(3, 2))
    ParameterCount(trainable=8, frozen=0)
    """
    counts = {True: 0, False: 0}
    for parameter in module.parameters():
        counts[parameter.requires_grad] += numel(parameter)
    return ParameterCount(trainable=counts[True], frozen=counts[False])


def numel(parameter: Tensor) -> int:
    """Count the scalars that a parameter represents, over all devices.

    Args:
        parameter: A parameter; a ``DTensor`` counts in full.
    """
    if nn.parameter.is_lazy(parameter):
        return 0
    if hasattr(parameter, "ds_numel"):  # DeepSpeed ZeRO-3 leaves an empty tensor in its place
        return int(parameter.ds_numel)
    if type(parameter).__name__ == "Params4bit":  # bitsandbytes packs two values into each byte
        return 2 * parameter.numel() * parameter.element_size()
    return parameter.numel()


def gradient_bytes(parameters: Iterable[Tensor]) -> int:
    """Return the bytes of the gradients of parameters, whether these require one or not.

    A gradient has the shape and dtype of its parameter; integer (quantized) parameters have none.

    Args:
        parameters: The parameters, each once.
    """
    return sum(
        numel(p) * p.element_size() for p in parameters if p.is_floating_point() or p.is_complex()
    )


def tensor_bytes(state: Any) -> int:
    """Return the bytes of the tensors in a nested state dict; shared bytes count once.

    Args:
        state: Mappings and sequences of tensors, and anything else.
    """
    return distinct_bytes(_tensors(state))


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple | set | frozenset):
        for value in state:
            yield from _tensors(value)


def optimizer_state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of an optimizer's present state, which is empty before its first step.

    Args:
        optimizer: The optimizer.
    """
    return tensor_bytes(list(optimizer.state.values()))


def predicted_optimizer_state_bytes(
    optimizer: Optimizer, parameters: Iterable[Tensor]
) -> int | None:
    """Predict the bytes of the state that an optimizer like this one would hold for parameters.

    A stand-in of the same class with the same options makes one step on a parameter of each shape
    and dtype: on the ``meta`` device, where this takes no memory, or, for a small parameter or an
    optimizer that looks at values, with zeros on the CPU. The optimizer itself is not changed, and
    neither is the random state.

    Args:
        optimizer: The optimizer whose class and options are used: a parameter that it has is taken
            with the options of its group, any other with those of the first group.
        parameters: The parameters, each once.

    Returns:
        The bytes after the first step; ``None`` if the optimizer cannot be stepped that way (one
        that needs a closure, such as LBFGS, or whose state is spread over devices).
    """
    options = {
        id(parameter): index
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    kinds = Counter(
        (options.get(id(p), 0), tuple(p.shape), p.dtype)
        for p in parameters
        if p.is_floating_point() or p.is_complex()
    )
    total = 0
    with torch.random.fork_rng(devices=[]):
        for (index, shape, dtype), times in kinds.items():
            # a step on the meta device takes Python milliseconds
            devices = ("cpu", "meta") if math.prod(shape) < _SMALL else ("meta", "cpu")
            for device in devices:
                try:
                    total += times * _one_state(optimizer, index, shape, dtype, device)
                    break
                except Exception:  # of a foreign optimizer: this way fails, whatever the error
                    continue
            else:
                return None
    return total


def _one_state(
    optimizer: Optimizer, index: int, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> int:
    """Step a stand-in of the optimizer on one parameter, and return the bytes of its state."""
    parameter = nn.Parameter(torch.zeros(shape, dtype=dtype, device=device))
    parameter.grad = torch.zeros_like(parameter)
    group = {key: value for key, value in optimizer.param_groups[index].items() if key != "params"}
    # the fused and capturable kernels know neither device; the state is the same size without them
    switches = dict.fromkeys(("foreach", "fused", "capturable"), False)
    group.update({key: value for key, value in switches.items() if key in group})
    group.pop("param_names", None)
    stand_in = object.__new__(type(optimizer))
    stand_in.__dict__.update(optimizer.__dict__)
    # a learning-rate scheduler replaces `step` on the instance, bound to the original
    stand_in.__dict__.pop("step", None)
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        stand_in.__dict__[hooks] = OrderedDict()
    stand_in.state = defaultdict(dict)
    stand_in.param_groups = [{**group, "params": [parameter]}]
    stand_in.step()
    return optimizer_state_bytes(stand_in)


class FlopCounter(TorchDispatchMode):
    """Count the floating-point operations inside the context.

    As in ``torch.utils.flop_counter.FlopCounterMode``: matrix products, convolutions and attention
    count, elementwise work does not, one multiply-add is two. Unlike that mode, it counts grouped
    convolutions by their groups, and recurrent layers (``flop_formulas`` names the rest). It puts
    no hooks on modules and runs operations without a formula normally (that mode skips custom
    Triton kernels, which changes results), so that a real training step, forward and backward, can
    be counted without changing its result.

    Attributes:
        flops: The count so far.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.HigherOrderOperator):
            return func(*args, **kwargs)
        formula = formula_of(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # under inference_mode, matmul and linear arrive here undecomposed
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        return result


def count_flops(function: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Count the floating-point operations of one call, its backward included if it runs one.

    Args:
        function: The function to call. Compiled modules run uncompiled, since their kernels cannot
            be counted.
        *args: Its arguments.
        **kwargs: Its keyword arguments.

    >>> linear = nn.Linear(4, 3, bias=False)
    >>> count_flops(linear, torch.ones(2, 4))
    48
    """
    with uncompiled(), FlopCounter() as counter:
        function(*args, **kwargs)
    return counter.flops


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled functions uncompiled inside the context; compiled code is kept."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()  # nothing is compiled yet, and importing it takes seconds
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def median(values: Iterable[float]) -> float:
    """Return the median; NaN if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def human_bytes(count: float) -> str:
    """Format a number of bytes for people, in units of 1000.

    >>> human_bytes(1_234_567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
