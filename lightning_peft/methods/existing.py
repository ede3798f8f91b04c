"""What stands in a module already: a model that ``peft`` has wrapped itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from lightning_peft.errors import MethodError, some
from lightning_peft.methods.base import Method, Plan, plain
from lightning_peft.methods.registry import register_method

if TYPE_CHECKING:
    from lightning_peft.anatomy import Anatomy

__all__ = ["Existing", "configs_of"]


@register_method
@dataclass(frozen=True)
class Existing(Method):
    """Take a ``peft.PeftModel`` as it is: what it trains is trained, saved and resumed.

    ``lp.PEFT("existing")`` finds the one in the LightningModule. ``peft``'s own forward stays, so
    that prompt, prefix and p-tuning work, which an injection into layers cannot do.

    Attributes:
        configs: The settings of its adapters by name, filled in from the model.
    """

    name: ClassVar[str] = "existing"
    family: ClassVar[str] = "peft"
    formula: ClassVar[str] = "what stands in the model"
    summary: ClassVar[str] = "a PeftModel in the module, as it is"
    reference: ClassVar[str] = "https://huggingface.co/docs/peft"
    listed: ClassVar[bool] = False
    starts_as_backbone: ClassVar[bool] = False

    configs: Mapping[str, Any] = field(default_factory=dict)

    def problems(self) -> Iterable[str]:
        """See :meth:`Method.problems`."""
        if not all(isinstance(config, Mapping) for config in self.configs.values()):
            yield f"expected the settings of adapters by name, got {self.configs!r}"

    def plan(self, anatomy: Anatomy, model: nn.Module) -> Plan:
        """Refuse: nothing is planned, since nothing is put into the model."""
        raise MethodError(
            "existing: expected to stand alone, since it takes a PeftModel as it is, got further "
            "methods. Put all adapters into the PeftModel, or leave get_peft_model out and give "
            "the callback the methods."
        )

    def refuse_others(self, configs: Mapping[str, Any]) -> None:
        """Refuse a model whose adapters are not those that this was made of.

        Args:
            configs: From :func:`configs_of`.

        Raises:
            MethodError: If these are known and others.
        """
        if not self.configs or plain(self.configs) == configs:
            return
        told = []
        for name in sorted({*self.configs, *configs}):
            then, now = plain(self.configs.get(name, {})), configs.get(name, {})
            keys = [key for key in {**then, **now} if then.get(key) != now.get(key)]
            told += [f"{name}.{k} (expected {then.get(k)!r}, got {now.get(k)!r})" for k in keys]
        raise MethodError(
            f"existing: expected the PeftModel that was trained, got another one: {some(told, 6)}. "
            "Build the module with the same configs of peft."
        )


_OF_THE_PLACE = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "peft_version",
        "revision",
        # of the first values, which a checkpoint replaces; they may name files
        "corda_config",
        "eva_config",
        "init_lora_weights",
        "lora_ga_config",
        "prompt_tuning_init_text",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }
)


def configs_of(model: Any) -> dict[str, Any]:
    """Return the settings of the adapters of a ``PeftModel`` as plain JSON types, by name.

    Args:
        model: The ``PeftModel``.
    """
    found = {}
    for name, config in model.peft_config.items():
        settings = {}
        for key, value in config.to_dict().items():
            if key in _OF_THE_PLACE or value is None:
                continue
            if key == "adapters":  # of X-LoRA: their directories are of the place, too
                value = sorted(value)
            try:
                settings[key] = plain(value)
            except MethodError:  # an object of the user's; it is in no file
                continue
        found[name] = settings
    return found
