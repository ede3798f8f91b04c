"""The first lines of a run: what is adapted, what is trained as it is, what is frozen."""

from __future__ import annotations

import warnings

from torch import nn

from lightning_peft.adaptation.handle import Adaptation, find_adaptations
from lightning_peft.adaptation.newness import looks_new
from lightning_peft.adaptation.outline import outline, parts_of, some, warning_of
from lightning_peft.anatomy.wide import wide_layers
from lightning_peft.lightning.module_checkpoints import ATTACHMENT
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.said import say
from lightning_peft.lightning.teachers import twins_of

__all__ = ["Tell", "around", "tell"]


class Tell(pl.Callback):
    """Say at the start of fit what a module trains; the callback ``PEFT`` does it by itself."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say it."""
        for path, adaptation in find_adaptations(pl_module).items():
            if adaptation.follows is None:  # a teacher trains nothing
                tell(trainer, pl_module, path, adaptation)


def tell(
    trainer: pl.Trainer, pl_module: pl.LightningModule, path: str, adaptation: Adaptation
) -> None:
    """Say what an adaptation trains and freezes; warn if something frozen looks new.

    Args:
        trainer: The trainer.
        pl_module: The LightningModule.
        path: The attribute path of the backbone.
        adaptation: Its adaptation.
    """
    report, found = adaptation.report(), outline(adaptation)
    lines = [
        f"PEFT: {adaptation.method.name} on '{path or type(pl_module).__name__}' "
        f"({len(adaptation.sites)} sites), {report.trained:,} of {report.total:,} "
        f"parameters trained ({report.share:.2%})" + _told_of(adaptation.held),
        *found.lines(),
        *(f"without an adapter: {line}" for line in adaptation.left_out),
        *(
            f"not certain: '{name}' starts with weights {times:.0f} times as large as nn.Linear's, "
            "as timm draws them in many models where there are few classes. If it is new, the "
            "first losses are large: call its reset_parameters() first"
            for name, times in wide_layers(adaptation.model, adaptation.head).items()
        ),
        *around(pl_module, adaptation.model),
        *(
            f"no adapter in '{twin}', frozen and of the same class: its weights are others. A loop "
            f"that averages the parameters of '{path}' into it needs a copy to start from"
            for twin in twins_of(pl_module, path, adaptation)
        ),
        *_not_in_checkpoints(trainer, pl_module, adaptation),
    ]
    say("\n  ".join(lines))
    if found.new and trainer.is_global_zero:
        told = warning_of("PEFT", found.new, ("also_train", "head"))
        warnings.warn(told, UserWarning, stacklevel=2)


def around(pl_module: nn.Module, backbone: nn.Module) -> list[str]:
    """Return a line about what is trained, and one about what is frozen, outside of a backbone.

    Args:
        pl_module: The LightningModule.
        backbone: Its backbone.
    """
    within = {id(parameter) for parameter in backbone.parameters()}
    lines = []
    for trained, text in (
        (True, "trained outside of the backbone, as the module has it"),
        (False, "frozen outside of the backbone, by the module itself"),
    ):
        names = {
            name
            for name, parameter in pl_module.named_parameters()
            if id(parameter) not in within and parameter.requires_grad == trained
        }
        parts = sorted(parts_of(pl_module, names), key=lambda part: -part.parameters)
        if parts:
            lines.append(f"{text}: {some(parts)}")
    return lines


def _not_in_checkpoints(
    trainer: pl.Trainer, pl_module: pl.LightningModule, adaptation: Adaptation
) -> list[str]:
    """Return a line if the checkpoints leave out what nobody else has: random frozen weights."""
    slim = getattr(pl_module.__dict__.get(ATTACHMENT), "checkpoints", "slim") == "slim"
    if not (slim and trainer.checkpoint_callbacks and looks_new(adaptation.model)):
        return []
    return [
        "not in the checkpoints: the frozen weights, which look random. Where the module does not "
        "make the same ones again, a checkpoint is of no use; checkpoints='full' holds them"
    ]


def _told_of(held: tuple[str, ...]) -> str:
    if not held:
        return ""
    more = f" and {len(held) - 4} more" if len(held) > 4 else ""
    return (
        f"; fixed by the module, and left so: {', '.join(held[:4])}{more} (also_train=... trains "
        "them by name)"
    )
