"""Merging our own adapters into a host whose weight is held as codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.forward import in_evaluation_mode
from lightning_peft.anatomy.quantised import Scheme, scheme_of
from lightning_peft.methods.codes import probe
from lightning_peft.methods.finite import refuse_not_finite
from lightning_peft.methods.merging_codes import (
    Restorer,
    become_dense,
    measured,
    weight_in_numbers,
    write_codes,
)

__all__ = ["MergesCodes"]


class MergesCodes:
    """The part of a handle on a child adapter that merges into a quantised host."""

    model: nn.Module
    host: str
    child: Any
    merge: Any
    _restorer: Restorer | None = None

    @torch.no_grad()
    def merge_dequantised(self, dtype: torch.dtype) -> float:
        """Merge into a host that is made dense; one of numbers is merged into as it is.

        Args:
            dtype: The dtype of the dense layer.

        Returns:
            As from :meth:`merge`.
        """
        host = self.model.get_submodule(self.host)
        if scheme_of(host) is None:
            return self.merge()
        restorer, values = Restorer(host), self._values_in_numbers(host)
        difference = become_dense(host, values, dtype)
        self.child.folded = True
        self._restorer = restorer
        return difference

    def _merge_into_codes(self, host: nn.Module, scheme: Scheme) -> float:
        """Merge by the host's own quantiser; return the difference of its outputs."""
        child, restorer = self.child, Restorer(host)
        values = self._values_in_numbers(host)

        def bare() -> Tensor:
            enabled, child.enabled = child.enabled, False
            try:
                return probe(host, host)
            finally:
                child.enabled = enabled

        def fold() -> None:
            write_codes(host, scheme, values)
            child.folded = True

        try:
            difference = measured(host, host, bare, fold, f"{type(host).__name__} in {self.host}")
        except BaseException:
            child.folded = False
            restorer()
            raise
        child.folded = True
        self._restorer = restorer
        return difference

    def _values_in_numbers(self, host: nn.Module) -> dict[str, Tensor]:
        """Return the sums with the weight that the host's codes stand for."""
        with weight_in_numbers(host), in_evaluation_mode(self.child):
            values = self.child.merged(host)
        missing = [name for name in values if name != "weight" and name not in host._parameters]
        missing += [name for name in values if host._parameters.get(name, values) is None]
        if missing:
            raise ValueError(
                f"expected {self.host} ({type(host).__name__}) to have a {missing[0]}, got none"
            )
        refuse_not_finite(values, f"the merged weights of {self.host}")
        return values
