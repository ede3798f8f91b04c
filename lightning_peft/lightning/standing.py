"""The backbone of a module that is adapted already, which is not searched for again.

Adapter layers look like repeated blocks: a second search in an adapted module may find a part of
the backbone, or another one.
"""

from __future__ import annotations

from torch import nn

from lightning_peft.anatomy.backbone import backbone_of
from lightning_peft.lightning.teachers import student_of

__all__ = ["note_backbone", "standing_backbone"]

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
