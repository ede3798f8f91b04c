"""Any tuner of Hugging Face ``peft`` as a method, through its integration API.

``peft`` builds the layers and implements their forward, state dict and merge; this module chooses
their places, checks everything before a change, and calls ``peft``. ``lp.LoRA`` and similar methods
are typed fronts on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from lightning_peft.anatomy.names import inside, parameters_inside
from lightning_peft.anatomy.targets import resolve
from lightning_peft.errors import MethodError, TargetError, near, some
from lightning_peft.methods.base import Layers, Names, Plan, Site, Stepper
from lightning_peft.methods.from_peft.defaults import DEFAULT, default_targets
from lightning_peft.methods.from_peft.experts import kept_parameters
from lightning_peft.methods.from_peft.idle import idle_problems, pattern_for, wrapper_problems
from lightning_peft.methods.from_peft.method import PeftMethod
from lightning_peft.methods.from_peft.narrow import kinds_of, named, narrow_layers, rank_problems
from lightning_peft.methods.from_peft.options import MANAGED, options_of, thawed
from lightning_peft.methods.from_peft.parameters import (
    as_peft_reads_it,
    is_replaced,
    parameter_sites,
    parameters_of,
)
from lightning_peft.methods.from_peft.ranks import BY_LAYER, NO_RANK, limit_ranks
from lightning_peft.methods.from_peft.start import loading_what
from lightning_peft.methods.from_peft.start_checks import start_problems
from lightning_peft.methods.from_peft.targets import (
    fan_in_fan_out,
    ia3_targets,
    matched_by_peft,
    names_of,
    target_spec,
)
from lightning_peft.methods.from_peft.token_rows import token_sites
from lightning_peft.methods.from_peft.tuners import (
    OWN_START,
    attention_problems,
    config_class,
    layer_refusal,
    refusal,
)
from lightning_peft.methods.from_peft.whole import read_elsewhere, saved_whole
from lightning_peft.methods.in_weight.part import with_parts
from lightning_peft.methods.registry import register_method

if TYPE_CHECKING:
    from peft import PeftConfig

    from lightning_peft.anatomy import Anatomy

__all__ = ["HF"]


@register_method
@dataclass(frozen=True, init=False)
class HF(PeftMethod):
    """Use any tuner of ``peft`` by its own name, with its own settings.

    ``lp.HF("loha", r=4)`` is ``peft.LoHaConfig(r=4)`` with targets resolved by lightning-peft.
    :func:`lightning_peft.methods.list_tuners` lists them. Initial output, mergeability and cost
    depend on the tuner.

    Attributes:
        tuner: A name of ``peft.PeftType``, in any case.
        targets: The adapted layers; ``None`` leaves ``target_modules`` in the options to ``peft``,
            and ``"default"`` are those that ``peft`` chooses in a model of transformers that it
            knows, ``"auto"`` in any other.
        layers: The adapted blocks, such as ``"last:4"``.
        exclude: Modules to leave out.
        options: The settings of the tuner's config class.

    >>> import timm
    >>> import lightning_peft as lp
    >>> model = timm.create_model("test_vit", num_classes=3)
    >>> adaptation = lp.adapt(model, lp.HF("loha", r=4))
    >>> adaptation.report().adapter
    43008
    """

    name: ClassVar[str] = "hf"
    family: ClassVar[str] = "peft"
    formula: ClassVar[str] = "the tuner's own"
    summary: ClassVar[str] = "any tuner of Hugging Face peft, by its name"
    reference: ClassVar[str] = "https://huggingface.co/docs/peft"

    tuner: str
    targets: Names
    layers: Layers
    exclude: Names
    options: Mapping[str, Any]

    def __init__(
        self,
        tuner: str,
        *,
        targets: Names = "auto",
        layers: Layers = None,
        exclude: Names = None,
        **options: Any,
    ) -> None:
        for key, value in (
            ("tuner", str(tuner).upper()),
            ("targets", None if options.get("target_modules") is not None else targets),
            ("layers", layers),
            ("exclude", exclude),
            ("options", options),
        ):
            object.__setattr__(self, key, value)
        self.__post_init__()

    @classmethod
    def from_peft(cls, config: PeftConfig) -> HF:
        """Create the method from a ``peft`` config; its targets follow ``peft``'s own rules.

        Args:
            config: Any ``peft.PeftConfig``; it is copied, not kept.

        Returns:
            The method.

        Raises:
            MethodError: If the tuner cannot be injected, or the config is not plain data.
        """
        options = options_of(config)
        asked = [getattr(config, key, None) for key in ("target_modules", "target_parameters")]
        targets: Names = DEFAULT if asked == [None, None] else None
        if options.get("target_modules") == ALL_LINEAR:
            # peft's own rule also adapts the new head of models that are not from transformers
            targets = ALL_LINEAR
            options.pop("target_modules")
        tuner = config.peft_type
        return cls(getattr(tuner, "value", tuner), targets=targets, **options)

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        reason = refusal(self.tuner)
        if reason is not None:
            yield reason
            return
        known = {field.name for field in dataclasses.fields(config_class(self.tuner))} - MANAGED
        for key in self.options:
            if key not in known:
                yield f"{self.tuner} has no setting '{key}'. {near(key, known)}"
        yield from wrapper_problems(self.tuner, self.options)
        start = self.options.get("init_lora_weights", True)
        if self.options.get("target_parameters") and start not in (True, False, "gaussian"):
            yield (
                "expected init_lora_weights to be True, False or 'gaussian' beside "
                f"target_parameters, got {start!r}, which peft computes for whole layers"
            )

    @property
    def kind(self) -> str:
        """See :meth:`PeftMethod.kind`."""
        return self.tuner.lower()

    @property
    def tuner_name(self) -> str:
        """See :attr:`PeftMethod.tuner_name`."""
        return self.tuner

    def peft_options(self) -> Mapping[str, Any]:
        """See :meth:`PeftMethod.peft_options`."""
        return self.options

    @property
    def starts_as_backbone(self) -> bool:  # type: ignore[override]
        """Whether the tuner's own initialisation leaves the output as it is."""
        starts = [value for key, value in self.options.items() if key.startswith("init_")]
        return self.tuner not in OWN_START and not any(s in (False, "loftq") for s in starts)

    @property
    def accelerated(self) -> bool:  # type: ignore[override]
        """Whether it is LoRA; each layer shows whether it is a variant with another forward."""
        return self.tuner == "LORA"

    def to_config(self) -> dict[str, Any]:
        """See :meth:`Method.to_config`; settings that only the initialisation reads are left out.

        They may name files, which no adapter file may do, and a loaded adapter does not need them.
        """
        config = super().to_config()
        for key in ("corda_config", "lora_ga_config"):
            config["options"].pop(key, None)
        return config

    @classmethod
    def _from_settings(cls, settings: dict[str, Any]) -> HF:
        settings = dict(settings)
        options = settings.pop("options", {})
        if not isinstance(options, Mapping):
            raise MethodError(f"hf: expected 'options' to be a mapping, got {options!r}.")
        if "tuner" not in settings:
            raise MethodError("hf needs tuner: expected the name of a peft tuner, got none.")
        return cls(**{**settings, **{str(key): value for key, value in options.items()}})

    def select(self, anatomy: Anatomy, model: nn.Module) -> tuple[Site, ...]:
        """See :meth:`PeftMethod.select`."""
        wanted = self.options.get("target_parameters") or ()
        if self.is_left_to_peft(model):
            config: Any = self._as_peft_reads_it(model)
            names = matched_by_peft(config, model)
            wanted = sorted(getattr(config, "target_parameters", None) or ())
        else:
            targets: Any = self.targets
            default = default_targets(self.tuner, model) if targets == DEFAULT else {}
            if default:
                chosen = config_class(self.tuner)(**{**self._plain_options(), **default})
                targets = matched_by_peft(chosen, model)
            elif targets in ("auto", DEFAULT):
                targets = "norms" if self.tuner == "LN_TUNING" else "auto"
            names = resolve(anatomy, model, targets, layers=self.layers, exclude=self.exclude)
        parameters = parameter_sites(model, wanted, self.kind)
        if not self.is_left_to_peft(model):
            parameters = kept_parameters(anatomy, model, parameters, self.layers, self.exclude)
        saved = self._saved(model)
        twice = [n for n in parameters_of(parameters) if inside(n, saved)]
        if twice:
            raise MethodError(
                f"{self.kind}: expected target_parameters outside of modules_to_save, got "
                f"{some(twice)}. Name each once: to adapt it, or to train it whole."
            )
        beside = tuple(name for name in names if not inside(name, saved))  # as peft has it
        if names and not beside:
            raise TargetError(
                f"{self.kind}: expected targets outside of modules_to_save, got {some(names)}, "
                "which are trained whole. Name each once."
            )
        names = beside
        kinds = kinds_of(self.kind, self._narrow(model, with_parts(model, names)))
        return (*(Site(name, kinds.get(name, self.kind)) for name in names), *parameters)

    def is_left_to_peft(self, model: nn.Module) -> bool:
        """See :meth:`PeftMethod.is_left_to_peft`.

        Of ``"all-linear"``, where ``peft`` means fused experts and routers, too, which are no
        layers.
        """
        if self.targets != ALL_LINEAR or self.tuner != "LORA":
            return self.targets is None
        if self.layers is not None or self.exclude is not None:
            return False
        return is_replaced(
            config_class(self.tuner)(**self._plain_options(), target_modules=ALL_LINEAR), model
        )

    def _is_as_in_peft(self, model: nn.Module) -> bool:
        """Whether the layers are those that ``peft`` chooses: it keeps a rank above their sides."""
        return self.is_left_to_peft(model) or (
            self.targets == DEFAULT and bool(default_targets(self.tuner, model))
        )

    def _narrow(self, model: nn.Module, names: Iterable[str]) -> dict[str, int]:
        """Return the ranks of the layers that get a rank below ``r``, which was given."""
        rank = self.options.get("r")
        if not isinstance(rank, int) or self.tuner not in BY_LAYER or self._is_as_in_peft(model):
            return {}
        own = self.options.get("rank_pattern") or {}
        found = narrow_layers(model, names, rank)
        return {name: most for name, most in found.items() if pattern_for(own, name) is None}

    def _plain_options(self) -> dict[str, Any]:
        options = self.options.items()
        return {key: thawed(value) for key, value in options if key != "modules_to_save"}

    def _as_peft_reads_it(self, model: nn.Module) -> PeftConfig:
        try:
            return as_peft_reads_it(self.peft_config(model, ()), model)
        except ValueError as error:
            raise TargetError(f"{self.kind}: peft refuses these targets: {error}") from error

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """See :meth:`Method.plan`."""
        plan = super().plan(anatomy, model)
        saved, roots = self.options.get("modules_to_save") or (), self._saved(model)
        # some may be absent, as 'classifier' or 'score' is in files of peft; all are by mistake
        if saved and not roots and loading_what() is None:
            names = [name for name, _ in model.named_modules() if name]
            raise TargetError(
                "; ".join(f"modules_to_save has no module '{e}'. {near(e, names)}" for e in saved)
            )
        # peft trains a copy of it; training in place is equivalent and takes half the memory, but
        # for what other modules read, too
        parted = read_elsewhere(model, roots)
        train = parameters_inside(model, roots, without=parted)
        rows = token_sites(model, self.options.get("trainable_token_indices"))
        twice = [site.module for site in rows if inside(site.module, roots)]
        twice += [site.module for site in rows if site.module in {s.module for s in plan.sites}]
        if twice:
            raise MethodError(
                f"{self.kind}: expected trainable_token_indices of layers that are neither targets "
                f"nor in modules_to_save, got {some(twice)}. Name each once."
            )
        sites = (*plan.sites, *rows)
        return Plan(sites=sites, train=train, steps=((self, sites),), parted=parted)

    def saved_modules(self, model: nn.Module) -> tuple[str, ...]:
        """See :meth:`PeftMethod.saved_modules`."""
        return self._saved(model)

    def _saved(self, model: nn.Module) -> tuple[str, ...]:
        return saved_whole(model, self.options)

    def site_problems(self, model: nn.Module, names: tuple[str, ...]) -> Iterable[str]:
        """See :meth:`PeftMethod.site_problems`."""
        rank = self.options.get("r")
        if isinstance(rank, int) and not self._is_as_in_peft(model):
            if self.tuner in BY_LAYER:
                yield from rank_problems(model, named(names, self.targets), rank)
            elif self.tuner not in NO_RANK:
                yield from rank_problems(model, names, rank)
        if self.tuner == "LORA" and self.is_left_to_peft(model):
            yield from attention_problems(model, names)
        yield from layer_refusal(self.tuner, model, names)
        yield from start_problems(self.tuner, self.options, model, names)
        if loading_what() is None:
            beside = (*names, *self._saved(model))  # which a pattern may name, too
            yield from idle_problems(self.tuner, self.options, model, beside)

    def peft_config(self, model: nn.Module, sites: tuple[Site, ...]) -> PeftConfig:
        """See :meth:`PeftMethod.peft_config`."""
        names = names_of(sites)
        cls = config_class(self.tuner)
        options = self._plain_options()
        by_peft = self.is_left_to_peft(model)
        # peft's own patterns do not match the parts of a module, and do match saved modules
        apart = sites and self._saved(model)
        if not by_peft or apart or any(site.in_weight for site in sites):
            options["target_modules"] = target_spec(model, names)
            if self.tuner == "IA3" and by_peft and options.get("feedforward_modules"):
                options.update(ia3_targets(names, options["feedforward_modules"]))
            if self.tuner == "IA3" and "feedforward_modules" not in options:
                default = default_targets("IA3", model) if self.targets == DEFAULT else {}
                options["feedforward_modules"] = default.get("feedforward_modules", [])
            if "target_parameters" in options:
                options["target_parameters"] = parameters_of(sites)
        elif self.targets == ALL_LINEAR:
            options["target_modules"] = ALL_LINEAR
        elif options.get("target_parameters"):
            # none at all, since peft would add its default modules for this kind of model
            options["target_modules"] = options.get("target_modules") or []
        limit_ranks(self.tuner, options, self._narrow(model, names))
        if isinstance(options.get("lora_ga_config"), dict):  # peft 0.20 keeps it as it is
            from peft import LoraGAConfig

            options["lora_ga_config"] = LoraGAConfig(**options["lora_ga_config"])
        if options.get("init_lora_weights") == "corda":
            options.setdefault("corda_config", {})  # peft's default, without its warning
        fields = {field.name for field in dataclasses.fields(cls)}
        if "fan_in_fan_out" in fields and "fan_in_fan_out" not in options:
            options.update(fan_in_fan_out(model, names))
        try:
            return cls(**options)
        except (ValueError, TypeError) as error:
            raise MethodError(f"{self.kind}: peft refuses these settings: {error}") from error

    def steppers(self, model: nn.Module) -> list[Stepper]:
        """See :meth:`Method.steppers`."""
        if self.tuner != "ADALORA":
            return []
        from lightning_peft.methods.from_peft.rank_allocation import RankAllocation

        return [RankAllocation(model)]


ALL_LINEAR = "all-linear"
