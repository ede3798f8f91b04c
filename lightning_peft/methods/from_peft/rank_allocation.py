"""The allocation of AdaLoRA's ranks during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Stepper
from lightning_peft.methods.from_peft.inject import ADAPTER_NAME

__all__ = ["RankAllocation"]


class RankSchedule(Protocol):
    """The schedule of the allocation: fractions of the run, and an interval in steps."""

    @property
    def warmup(self) -> float:
        """The fraction of the run before the first ranks are pruned."""

    @property
    def final(self) -> float:
        """The fraction of the run after the last ranks are pruned."""

    @property
    def interval(self) -> int:
        """The number of steps between two allocations."""


class RankAllocation(Stepper):
    """AdaLoRA's actions besides the forward: a loss term, and the allocation of ranks after a step.

    Both are ``peft``'s own (``AdaLoraModel``), which bare injection leaves out.

    Args:
        model: The adapted backbone.
        method: The method, for its schedule; ``None`` keeps that of the ``peft`` config.
    """

    def __init__(self, model: nn.Module, method: RankSchedule | None = None) -> None:
        from peft.tuners.adalora.layer import RankAllocator

        self.model = model
        self.method = method
        config: Any = model.peft_config[ADAPTER_NAME]  # type: ignore[index]
        self.config = config
        self.allocator: Any = RankAllocator(model, self.config, ADAPTER_NAME)
        # peft takes target_r for every layer, and a narrow one has fewer to begin with
        names = [name % "lora_E" for name in self.allocator.name_set]
        ranks = [len(model.get_parameter(name)) for name in names]
        self.allocator.target_bgt = sum(min(config.target_r, rank) for rank in ranks)

    def begin(self, total_steps: int) -> None:
        """See :meth:`Stepper.begin`."""
        if self.method is not None:
            # peft refuses a file whose schedule has no step between the two
            final = min(round(self.method.final * total_steps), total_steps - 1)
            warmup = min(round(self.method.warmup * total_steps), total_steps - final - 1)
            self.config.total_step = total_steps
            self.config.tinit, self.config.tfinal = warmup, final
            self.config.deltaT = self.method.interval
        elif self.config.total_step != total_steps:
            raise MethodError(
                f"adalora: expected total_step to be the length of the run, {total_steps} steps, "
                f"got {self.config.total_step}. Use lp.AdaLoRA(), which finds it."
            )

    def penalty_gradients(self) -> dict[str, Tensor]:
        """See :meth:`Stepper.penalty_gradients`: the distance of A and B from orthogonal."""
        weight = self.config.orth_reg_weight
        sides = [
            (name, parameter, ".lora_A." in name)
            for name, parameter in self.model.named_parameters()
            if (".lora_A." in name or ".lora_B." in name) and parameter.requires_grad
        ]
        if not weight or not sides:
            return {}
        with torch.enable_grad():
            terms = []
            for _, p, wide in sides:
                covariance = p @ p.T if wide else p.T @ p
                eye = torch.eye(len(covariance), device=p.device, dtype=p.dtype)
                terms.append(torch.linalg.matrix_norm(covariance - eye))
            penalty = weight * torch.stack(terms).sum() / len(terms)
            gradients = torch.autograd.grad(penalty, [p for _, p, _ in sides])
        return {name: g for (name, _, _), g in zip(sides, gradients, strict=True)}

    def after_step(self, step: int) -> None:
        """See :meth:`Stepper.after_step`: importance, and then the budget, as in ``peft``."""
        last = self.config.total_step - self.config.tfinal
        if step < last:
            _, pattern = self.allocator.update_and_allocate(self.model, step)
            if pattern:
                self.config.rank_pattern = pattern
        elif step == last or not self._ended():  # a run that goes on may have become so short
            if not self.allocator.exp_avg_ipt:  # a run of one or two steps has no earlier step
                self.allocator.update_ipt(self.model)
            _, pattern = self.allocator.update_and_allocate(self.model, step, force_mask=True)
            self.config.rank_pattern = pattern
            self.allocator.reset_ipt()
        elif self.config.rank_pattern:
            _mask(self.model, self.config.rank_pattern)

    def _ended(self) -> bool:
        """Whether the ranks are down to the budget."""
        pattern = self.config.rank_pattern
        return bool(pattern) and sum(map(sum, pattern.values())) <= self.allocator.target_bgt

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Stepper.state_dict`."""
        kept = ("ipt", "exp_avg_ipt", "exp_avg_unc")
        state = {name: dict(getattr(self.allocator, name)) for name in kept}
        return {**state, "rank_pattern": self.config.rank_pattern}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Stepper.load_state_dict`."""
        self.config.rank_pattern = state["rank_pattern"]
        parameters = dict(self.model.named_parameters())
        for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            own = {key: value.to(parameters[key].device) for key, value in state[name].items()}
            setattr(self.allocator, name, own)


@torch.no_grad()
def _mask(model: nn.Module, pattern: Mapping[str, list[bool]]) -> None:
    """Keep pruned ranks at zero."""
    for name, kept in pattern.items():
        parameter = model.get_parameter(name)
        mask = torch.tensor(kept, device=parameter.device).unsqueeze(-1)
        parameter.masked_fill_(~mask, 0.0)
