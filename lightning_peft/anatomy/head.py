"""The head of a backbone: the layers that belong to the task."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable

from lightning_peft.anatomy.family import backbones_in, family_of
from lightning_peft.anatomy.task_layers import TaskLayers, narrow, task_layers
from lightning_peft.anatomy.transformers_head import transformers_head
from lightning_peft.anatomy.tree import Node, has_weights, is_container
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


def find_head(root: Node) -> TaskLayers:
    """Find the head of a model.

    - timm: what `get_classifier()` returns (two modules for distilled models, none for
      `num_classes=0`).
    - transformers: see :func:`transformers_head`; a base model has none.
    - torchvision: the last layer of `fc`, `classifier`, `head` or `heads`; all of it if it was
      replaced. Of a detection model all that is not the pretrained encoder: the feature pyramid,
      the region proposals, the heads.
    - a module around known backbones: all other modules with parameters, at any depth; if there
      are none, the head of the backbone.
    - any other module: what follows the repeated blocks (:func:`task_layers`), and the direct
      children with usual names (`fc`, `head`, `classifier` ...).

    Args:
        root: The model.

    Returns:
        The nodes of the head, in model order (none if the model has no head), and how they were
        found.
    """
    found = _find_head(root.inner())
    places = {id(node): place for place, node in enumerate(root.walk())}
    ordered = sorted(found.nodes, key=lambda node: places[id(node)])
    return TaskLayers(tuple(ordered), found.how, found.doubt)


def _find_head(root: Node) -> TaskLayers:
    family = family_of(root.module)
    if family == "timm":
        return TaskLayers(tuple(_timm(root)), "as timm says")
    if family == "transformers":
        inner = _timm_inside(root)
        if inner is not None:
            return _find_head(inner)
        return TaskLayers(tuple(transformers_head(root, _USUAL)), "as transformers has it")
    if family == "torchvision":
        return TaskLayers(tuple(_torchvision(root)), "as torchvision has it")
    return _module(root)


def _timm_inside(root: Node) -> Node | None:
    """Return the only part with parameters of a model of transformers, if it is not of these."""
    children = _parameterised(root)
    if len(children) == 1 and children[0].key == getattr(root.module, "base_model_prefix", ""):
        return children[0] if family_of(children[0].module) == "timm" else None
    return None


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
    return [narrow(node) for node in nodes if node is not None and has_weights(node.module)]


def _torchvision(root: Node) -> list[Node]:
    if {"backbone", "transform"} <= {child.key for child in root.children}:
        return _detection(root)
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


def _detection(root: Node) -> list[Node]:
    """Return all of a detector but the encoder, which alone is pretrained on images."""
    head = []
    for child in _parameterised(root):
        if child.key != "backbone":
            head.append(child)
        else:
            head += [part for part in child.children if part.key == "fpn"]
    return head


def _module(root: Node) -> TaskLayers:
    if backbones_in(root):
        others = _beside(root)
        if others:
            return TaskLayers(tuple(map(narrow, others)), "what is beside the pretrained model")
        known = backbones_in(root)
        found = [_find_head(node.inner()) for node in known]
        return TaskLayers(tuple(n for f in found for n in f.nodes), found[0].how)
    children = _parameterised(root)
    if len(children) == 1 and children[0].children:
        return _find_head(children[0].inner())  # a plain wrapper around a plain model
    found_here = task_layers(root)
    usual = [
        node
        for node in _usual(root)
        if all(node is not other and other not in node.ancestors() for other in found_here.nodes)
        and all(node not in other.ancestors() for other in found_here.nodes)
    ]
    how = " and ".join(filter(None, (found_here.how, "by name" if usual else "")))
    doubt = "" if usual and not found_here.nodes else found_here.doubt
    return TaskLayers((*found_here.nodes, *usual), how, doubt)


def _beside(node: Node) -> list[Node]:
    """Return the modules with parameters that hold no known backbone and are in none."""
    if family_of(node.module) != "module":
        return []
    if not backbones_in(node):
        return [node]
    return [found for child in _parameterised(node.inner()) for found in _beside(child)]


def _parameterised(root: Node) -> list[Node]:
    return [child for child in root.children if has_weights(child.module)]


def _usual(root: Node) -> list[Node]:
    return [narrow(c) for c in _parameterised(root) if _USUAL.fullmatch(c.key)]
