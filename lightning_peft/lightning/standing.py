"""The backbone of a module that is adapted already, which is not searched for again.

Adapter layers look like repeated blocks: a second search in an adapted module may find a part of
the backbone, or another one.
"""

from __future__ import annotations

from torch import nn

from lightning_peft.anatomy.backbone import backbone_of
from lightning_peft.errors import TargetError, some
from lightning_peft.lightning.teachers import student_of
from lightning_peft.methods.from_peft.wrapped import is_peft_model, peft_models

__all__ = ["existing_backbone", "note_backbone", "standing_backbone"]

_ATTRIBUTE = "_lightning_peft_backbone"


def note_backbone(pl_module: nn.Module, path: str) -> None:
    """Remember which part of a module was adapted.

    Args:
        pl_module: The LightningModule.
        path: The attribute path of the backbone; empty for the module itself.
    """
    pl_module.__dict__[_ATTRIBUTE] = path


def standing_backbone(pl_module: nn.Module, name: str | None = None) -> tuple[str, nn.Module]:
    """Find the backbone of a LightningModule: the one that was adapted, if one was.

    Of a teacher and a student it is the student.

    Args:
        pl_module: The LightningModule.
        name: The attribute path of the backbone, if it is given.

    Returns:
        As :func:`backbone_of`.

    Raises:
        TargetError: As :func:`backbone_of`.
    """
    noted = pl_module.__dict__.get(_ATTRIBUTE)
    if name is None and noted is not None:
        plain = noted.removesuffix("._orig_mod").removesuffix("_orig_mod")  # compiled, then or now
        if plain in dict(pl_module.named_modules(remove_duplicate=False)):
            return backbone_of(pl_module, plain)
    if name is None:
        name = student_of(pl_module)
    return backbone_of(pl_module, name)


def existing_backbone(pl_module: nn.Module, name: str | None = None) -> tuple[str, nn.Module]:
    """Find the ``PeftModel`` in a LightningModule.

    Args:
        pl_module: The LightningModule.
        name: Its attribute path, or that of a module around it, if there are several.

    Returns:
        The attribute path and the ``PeftModel``.

    Raises:
        TargetError: If there is none, or if there are several and ``name`` does not say which.
    """
    noted = pl_module.__dict__.get(_ATTRIBUTE)
    if name is None and noted is not None:
        return standing_backbone(pl_module)
    path, around = ("", pl_module) if name is None else backbone_of(pl_module, name)
    if is_peft_model(around):
        return path, around
    found = {f"{path}.{inner}" if path else inner: m for inner, m in peft_models(around).items()}
    trained = {p: m for p, m in found.items() if any(w.requires_grad for w in m.parameters())}
    if len(found) > 1 and len(trained) == 1:  # the others are teachers, or references
        found = trained
    if len(found) == 1:
        return next(iter(found.items()))
    where = f"'{path}' of {type(pl_module).__name__}" if path else type(pl_module).__name__
    if not found:
        raise TargetError(
            f"existing: expected a PeftModel in {where}, got none. Wrap the model with "
            "peft.get_peft_model(model, config), or give the callback the config itself."
        )
    names = [repr(p) for p in found]
    raise TargetError(
        f"existing: expected one PeftModel in {where}, got {len(found)}: {some(names)}. Say which "
        f"one is trained, for example backbone={names[0]}."
    )
