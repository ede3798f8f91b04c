"""The head of a backbone: the last layers, which belong to the task."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from torch import nn

from lightning_peft.anatomy.family import backbones_in, family_of
from lightning_peft.anatomy.tree import Node, has_weights, is_container, unwrap
from lightning_peft.errors import TargetError, near

__all__ = ["find_head", "named_head"]

_USUAL = re.compile(
    r"(fc|heads?|head_dist|(aux_)?classifiers?|(multiple_choice|classification|cls|prediction)_head"
    r"|score|last_linear|qa_outputs)"
)

# Classifiers of torchvision with pretrained layers before the last one, by their children's
# classes. A classifier that looks different was put there by the user and is new as a whole.
_TORCHVISION_CLASSIFIERS = {
    "ConvNeXt": (("LayerNorm2d", "Flatten", "Linear"),),
    "MobileNetV3": (("Linear", "Hardswish", "Dropout", "Linear"),),
    "VGG": (("Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"),),
    "AlexNet": (("Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Linear"),),
    "MaxVit": (("AdaptiveAvgPool2d", "Flatten", "LayerNorm", "Linear", "Tanh", "Linear"),),
    "VisionTransformer": (("Linear", "Tanh", "Linear"),),
    "DeepLabV3": (("ASPP", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d"),),
    "FCN": (("Conv2d", "BatchNorm2d", "ReLU", "Dropout", "Conv2d"),),
}


def find_head(root: Node) -> list[Node]:
    """Find the head of a model.

    - timm: what `get_classifier()` returns (two modules for distilled models, none for
      `num_classes=0`).
    - transformers: the children outside `base_model_prefix`; a language-model head, being
      pretrained, does not count.
    - torchvision: the last layer of `fc`, `classifier`, `head` or `heads`; all of it if it was
      replaced.
    - a module around known backbones: all other children with parameters; if there are none,
      the head of the backbone.
    - any other module: the direct children with usual names (`fc`, `head`, `classifier` ...).

    Args:
        root: The model.

    Returns:
        The nodes of the head, in model order; empty if the model has no head.
    """
    root = root.inner()
    family = family_of(root.module)
    if family == "timm":
        return _timm(root)
    if family == "transformers":
        return _transformers(root)
    if family == "torchvision":
        return _torchvision(root)
    return _module(root)


def named_head(root: Node, head: str | Iterable[str]) -> list[Node]:
    """Find the head that the user named.

    Args:
        root: The model.
        head: Exact module names or globs.

    Returns:
        The topmost modules with parameters that the names match, in model order.

    Raises:
        TargetError: If a name matches no module, or only modules without parameters.
    """
    entries = [head] if isinstance(head, str) else list(head)
    nodes = [node for node in root.walk() if node.plain]
    matched: set[int] = set()
    problems = []
    for entry in entries:
        if not isinstance(entry, str):
            problems.append(f"{entry!r} is not the name of a module: expected a string.")
            continue
        hits = [n for n in nodes if entry in (n.name, n.plain) or fnmatch.fnmatch(n.plain, entry)]
        full = [node for node in hits if has_weights(node.module)]
        if not hits:
            tops = [n.plain for n in nodes if n.plain.count(".") <= entry.count(".")]
            problems.append(f"'{entry}' is not a module of this model. {near(entry, tops)}")
        elif not full:
            problems.append(f"'{entry}' has no parameters ({hits[0].kind.__name__}).")
        matched.update(id(node) for node in full)
    if problems:
        raise TargetError(
            "`head` expects names or globs of modules that have parameters, or `()` for no head:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )
    return [
        node
        for node in nodes
        if id(node) in matched and not any(id(above) in matched for above in node.ancestors())
    ]


def _find(root: Node, module: object) -> Node | None:
    for node in root.walk():
        if node.module is module:
            return node
    return None


def _timm(root: Node) -> list[Node]:
    get_classifier = getattr(root.module, "get_classifier", None)
    if get_classifier is None:
        return [] if is_container(root.module) else _usual(root)
    found = get_classifier()
    modules = found if isinstance(found, (tuple, list)) else (found,)
    nodes = [_find(root, module) for module in modules]
    return [_narrow(node) for node in nodes if node is not None and has_weights(node.module)]


def _transformers(root: Node) -> list[Node]:
    model = root.module
    get_output = getattr(model, "get_output_embeddings", None)
    output = get_output() if get_output is not None else None
    candidates = [
        child
        for child in _parameterised(root)
        if output is None or all(module is not output for module in child.module.modules())
    ]
    prefix = getattr(model, "base_model_prefix", "")
    base = next((child for child in root.children if child.key == prefix), None)
    if base is None or output is not None:
        # A model without a base inside, or one for language modelling, whose layers outside the
        # base (a transform before the vocabulary) are as pretrained as the base.
        return [child for child in candidates if _USUAL.fullmatch(child.key)]
    head = [child for child in candidates if child is not base]
    if not head and family_of(base.module) != "transformers":
        return find_head(base)  # timm inside transformers
    return head


def _torchvision(root: Node) -> list[Node]:
    layouts = [
        layout
        for kind in type(root.module).__mro__
        for layout in _TORCHVISION_CLASSIFIERS.get(kind.__name__, ())
    ]
    head = []
    for child in _usual(root):
        layers = child.inner().children
        original = tuple(type(layer.module).__name__ for layer in layers) in layouts
        head.append(layers[-1] if original else child)
    return head


def _module(root: Node) -> list[Node]:
    children = _parameterised(root)
    inside = [child for child in children if backbones_in(child)]
    if inside:
        others = [child for child in children if child not in inside]
        if others:
            return [_narrow(child) for child in others]
        return [node for child in inside for node in find_head(child)]
    if len(children) == 1 and children[0].children:
        return find_head(children[0])  # a plain wrapper around a plain model
    return _usual(root)


def _parameterised(root: Node) -> list[Node]:
    return [child for child in root.children if has_weights(child.module)]


def _usual(root: Node) -> list[Node]:
    return [_narrow(c) for c in _parameterised(root) if _USUAL.fullmatch(c.key)]


def _narrow(node: Node) -> Node:
    """Return the only layer with parameters of a Sequential; any other node as it is."""
    while isinstance(unwrap(node.module), nn.Sequential):
        full = _parameterised(node.inner())
        if len(full) != 1:
            break
        node = full[0]
    return node
