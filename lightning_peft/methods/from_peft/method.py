"""The base class of methods whose adapter is a tuner of ``peft``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from lightning_peft.errors import MethodError
from lightning_peft.methods.base import Adapter, Method, Plan, Site
from lightning_peft.methods.from_peft.inject import inject_tuner
from lightning_peft.methods.from_peft.parameters import tuned_places
from lightning_peft.methods.from_peft.targets import names_of

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
    def kind(self) -> str:
        """The kind of change at a site, for reports."""
        return self.name

    @property
    def targets_by_peft(self) -> bool:
        """Whether ``peft`` itself chooses the targets, by its own rules."""
        return False

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """See :meth:`Method.plan`."""
        sites = self.select(anatomy, model)
        problems = list(self.site_problems(model, names_of(sites)))
        if problems:
            raise MethodError(f"{self.kind}: " + "; ".join(problems) + ".")
        return Plan(sites=sites, steps=((self, sites),))

    def inject(self, model: nn.Module, sites: tuple[Site, ...]) -> None:
        """See :meth:`Method.inject`."""
        config = self.peft_config(model, sites)
        before = tuned_places(model)
        inject_tuner(config, model, self.kind, converted=self.targets_by_peft)
        places = {(site.module, site.parameter) for site in sites}
        now = tuned_places(model)
        missed = [".".join(filter(None, place)) for place in sorted(places - now)]
        if missed:
            raise MethodError(
                f"{self.kind}: expected peft to adapt every target, it left out "
                f"{', '.join(missed[:8])}. Exclude these modules, or use another tuner for them."
            )
        beyond = [".".join(filter(None, place)) for place in sorted(now - before - places)]
        if beyond:
            raise MethodError(
                f"{self.kind}: expected peft to adapt the targets alone, it also adapts "
                f"{', '.join(beyond[:8])}. Name these as targets too, or choose other targets."
            )

    def adapters(self, model: nn.Module, sites: tuple[Site, ...]) -> list[Adapter]:
        """See :meth:`Method.adapters`."""
        from lightning_peft.methods.from_peft.layer import ParameterLayer, PeftLayer

        return [
            ParameterLayer(model, site.module, site.parameter)
            if site.parameter
            else PeftLayer(model, site.module)
            for site in sites
        ]
