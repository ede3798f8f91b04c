"""The base class of methods whose adapter is a tuner of ``peft``."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_peft.errors import MethodError, some
from lightning_peft.kernels.instances import keep_class
from lightning_peft.methods.base import Adapter, Method, Plan, Site
from lightning_peft.methods.from_peft.in_weight import put_in_weight, refuse_variant
from lightning_peft.methods.from_peft.inject import inject_tuner
from lightning_peft.methods.from_peft.on_codes import code_problems
from lightning_peft.methods.from_peft.parameters import tuned_places
from lightning_peft.methods.from_peft.places import (
    in_weight_problems,
    ready_for_peft,
    weights_to_change,
)
from lightning_peft.methods.from_peft.start import keep_weights, note_start, without_start
from lightning_peft.methods.from_peft.targets import names_of, without_refused
from lightning_peft.methods.from_peft.token_rows import (
    TOKEN_ROWS,
    TokenRows,
    check_token_rows,
    is_token_layer,
)
from lightning_peft.methods.from_peft.tokens import TOKENS_ONLY, take_any_shape
from lightning_peft.methods.in_weight.part import with_parts

if TYPE_CHECKING:
    from peft import PeftConfig

    from lightning_peft.anatomy import Anatomy

__all__ = ["PeftMethod"]


class PeftMethod(Method):
    """A method that ``peft`` implements: the base of the typed fronts and of :class:`HF`."""

    @abstractmethod
    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """Return the modules to adapt."""

    @abstractmethod
    def peft_config(self, model: nn.Module, sites: tuple[Site, ...]) -> PeftConfig:
        """Build the ``peft`` config that adapts exactly these sites."""

    def site_problems(self, model: nn.Module, names: tuple[str, ...]) -> Iterable[str]:
        """Yield the reasons why the method does not support the selected modules."""
        return ()

    @property
    def tuner_name(self) -> str:
        """The tuner's name in ``peft``."""
        return "LORA"

    def peft_options(self) -> Mapping[str, Any]:
        """Return the settings under the names that ``peft`` gives them."""
        return {"lora_dropout": getattr(self, "dropout", 0.0)}

    @property
    def kind(self) -> str:
        """The kind of change at a site, for reports."""
        return self.name

    def saved_modules(self, model: nn.Module) -> tuple[str, ...]:
        """Return the modules that are trained whole: ``modules_to_save`` of ``peft``."""
        return ()

    def is_left_to_peft(self, model: nn.Module) -> bool:
        """Whether ``peft`` itself chooses the targets in a model, by its own rules."""
        return False

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """See :meth:`Method.plan`."""
        selected = [
            dataclasses.replace(site, module=name)
            for site in self.select(anatomy, model)
            for name in ((site.module,) if site.parameter else with_parts(model, (site.module,)))
        ]
        names = tuple(dict.fromkeys(s.module for s in selected if not s.parameter))
        targets = getattr(self, "targets", ())
        left = without_refused(self.tuner_name, model, names, targets)
        if left:
            selected = [site for site in selected if site.parameter or site.module not in left]
            names = tuple(name for name in names if name not in left)
        in_weight = weights_to_change(model, names)
        problems = [
            *self.site_problems(model, names),
            *in_weight_problems(self.tuner_name, self.peft_options(), model, in_weight),
            *code_problems(self.tuner_name, self.peft_options(), model, names),
        ]
        if problems:
            raise MethodError(f"{self.kind}: " + "; ".join(problems) + ".")
        sites = tuple(
            dataclasses.replace(site, in_weight=not site.parameter and site.module in in_weight)
            for site in selected
        )
        return Plan(sites=sites, steps=((self, sites),))

    def inject(self, model: nn.Module, sites: tuple[Site, ...]) -> None:
        """See :meth:`Method.inject`."""
        before = tuned_places(model)
        rows = tuple(site for site in sites if site.kind == TOKEN_ROWS)
        sites = tuple(site for site in sites if site.kind != TOKEN_ROWS)
        with ready_for_peft(model, sites):
            config = self.peft_config(model, sites)
            kept = keep_weights(config, model, names_of(sites))
            inject_tuner(
                without_start(config), model, self.kind, converted=self.is_left_to_peft(model)
            )
        places = {(site.module, site.parameter) for site in sites}
        now = {place for place in tuned_places(model) if not is_token_layer(model, place[0])}
        check_token_rows(model, rows)
        missed = [".".join(filter(None, place)) for place in sorted(places - now)]
        if missed:
            raise MethodError(
                f"{self.kind}: expected peft to adapt every target, it left out "
                f"{some(missed)}. Exclude these modules, or use another tuner for them."
            )
        beyond = [".".join(filter(None, place)) for place in sorted(now - before - places)]
        if beyond:
            raise MethodError(
                f"{self.kind}: expected peft to adapt the targets alone, it also adapts "
                f"{some(beyond)}. Name these as targets too, or choose other targets."
            )
        for site in sites:
            if site.parameter:
                continue
            layer = model.get_submodule(site.module)
            keep_class(layer)
            if hasattr(layer.base_layer, "eps") and not hasattr(layer, "eps"):
                layer.eps = layer.base_layer.eps  # torch's encoder reads it of its norms
            if site.in_weight:
                refuse_variant(layer, site.module)
                put_in_weight(layer)
            elif self.tuner_name in TOKENS_ONLY and isinstance(layer.base_layer, nn.Linear):
                take_any_shape(layer)
        note_start(config, model, kept)

    def adapters(self, model: nn.Module, sites: tuple[Site, ...]) -> list[Adapter]:
        """See :meth:`Method.adapters`."""
        from lightning_peft.methods.from_peft.layer import ParameterLayer, PeftLayer
        from lightning_peft.methods.from_peft.weight_layer import WeightLayer

        return [
            ParameterLayer(model, site.module, site.parameter)
            if site.parameter
            else TokenRows(model, site.module)
            if site.kind == TOKEN_ROWS
            else (WeightLayer if site.in_weight else PeftLayer)(model, site.module)
            for site in sites
        ]
