"""The role of each layer in its block: attention, MLP, norm, convolution."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

from torch import nn

from lightning_peft.anatomy.tree import (
    Node,
    is_container,
    is_conv,
    is_linear,
    is_norm,
    is_recurrent,
)

__all__ = ["ROLES", "find_roles"]

ROLES = (
    "qkv",
    "attention",
    "attention-out",
    "mlp",
    "mlp-in",
    "mlp-out",
    "all-linear",
    "convs",
    "norms",
    "blocks",
)

# The names of projections, as they are in timm, transformers,
# torchvision, diffusers and the many repositories around them.
_FUSED = re.compile(r"(\w*_)?w?(qkv|kqv)s?(_\w+)?|c_attn|query_key_value|queries_keys_values", re.I)
_ALONE = re.compile(
    r"(?:to_|w_?|fc_|linear_|in_|conv_|c_|convolution_projection_|projection_)?"
    r"(?P<what>q|query|k|key|v|value|kv|k_v|key_value|qk)"
    r"(?:_?(?:proj|lin|linear|layer|conv|dense|attn|global|[ab]_proj|a_proj_with_mqa))*",
    re.I,
)
_OUT = re.compile(
    r"(?:attn_|attention_)?(?:proj|out|o|output|projection|merge)"
    r"|(?:attn_|attention_)?(?:out_?proj|o_proj|proj_out|c_proj|w_?o|fc_o|out_lin|out_linear|"
    r"linear_out|out_layer|to_out|dense)",
    re.I,
)
_ATTENTION = re.compile(r"att(entio)?n", re.I)
_NOT_ATTENTION = re.compile(r"mlp|ffn|feed_?forward|pos|bias|gate|router", re.I)
_MLP_PLACE = re.compile(
    r"mlp|ffn|^ff$|^ff_|feed_?forward|swiglu|geglu|relu_?dense|gated_?act|expert", re.I
)
_MLP_NAME = re.compile(
    r"fc[123]?(_[gx])?|lin(ear)?_?[123]|c_fc|c_proj|w(i|o|[123]|12)(_\d)?|(gate|up|down|gate_up)_proj"
    r"|(intermediate|output)\.dense|dense_h_to_4h|dense_4h_to_h|weights_(in|out)",
    re.I,
)
_ROUTER = re.compile(r"(\w+_)?(gate|router)", re.I)


def find_roles(
    root: Node, blocks: Collection[Node], head: Collection[Node]
) -> dict[str, tuple[str, ...]]:
    """Find the modules that play each role.

    `qkv`, `attention`, `attention-out`, `mlp`, `mlp-in`, `mlp-out` and `all-linear` are looked for
    inside the blocks, or in the whole model if it has none; `convs` and `norms` everywhere. The
    head is left out.

    An `nn.MultiheadAttention` has no layer for query, key and value: the module itself plays the
    role `qkv`, and its `out_proj` is the output. Attention between
    sequences (the decoder of T5) is attention. A 1x1 convolution counts as linear only if it is
    part of an attention or an MLP (ConvNeXt with `conv_mlp`, MetaFormer). A recurrent layer does,
    outside of the blocks, too, if anything else does.
    `convs` are all convolutions of one group, including the stem, downsamplings and the two of a
    squeeze-and-excitation.

    Args:
        root: The model.
        blocks: The nodes of its blocks.
        head: The nodes of its head.

    Returns:
        The names of the modules for each of `ROLES`, in model order.
    """
    skipped = {id(node) for node in head}

    def outside_head(node: Node) -> bool:
        return id(node) not in skipped and all(
            id(above) not in skipped for above in node.ancestors()
        )

    nodes = [node for node in root.walk() if outside_head(node)]
    found: dict[str, set[int]] = {role: set() for role in ROLES}
    for scope in blocks or (root,):
        inside = [node for node in scope.walk() if outside_head(node)]
        within = _attention(scope, inside, found)
        _mlp(scope, [node for node in inside if id(node) not in within], found)
        found["all-linear"].update(id(node) for node in inside if _multiplies(node.module))
    if found["all-linear"]:  # where only convolutions are adapted, it stays at these
        found["all-linear"].update(id(node) for node in nodes if is_recurrent(node.module))
    for role in ("attention", "mlp"):  # with their 1x1 convolutions
        found["all-linear"] |= found[role]
    found["convs"].update(id(node) for node in nodes if is_conv(node.module))
    found["norms"].update(id(node) for node in nodes if is_norm(node.module, node.key))
    found["blocks"].update(id(node) for node in blocks)
    return {role: tuple(n.name for n in nodes if id(n) in found[role]) for role in ROLES}


def _multiplies(module: nn.Module) -> bool:
    return is_linear(module) or is_recurrent(module)


def _is_dense(node: Node) -> bool:
    return is_linear(node.module) or is_conv(node.module, pointwise=True)


def _path(node: Node, scope: Node) -> list[str]:
    """Return the parts of a node's plain name, relative to a scope."""
    return node.plain.removeprefix(scope.plain).strip(".").split(".")


def _attention(scope: Node, inside: Iterable[Node], found: dict[str, set[int]]) -> set[int]:
    """Find the attention in a block; return all nodes inside it, which belong to no MLP."""
    within: set[int] = set()
    units: dict[int, list[tuple[Node, str]]] = defaultdict(list)
    owners: dict[int, Node] = {}
    dense = []
    for node in inside:
        if isinstance(node.module, nn.MultiheadAttention):
            last = {id(below) for below in node.children if below.key == "out_proj"}
            found["qkv"].add(id(node))
            found["attention-out"] |= last
            found["attention"] |= {id(node), *last}
        elif node.parent is not None and isinstance(node.parent.module, nn.MultiheadAttention):
            continue
        elif _is_dense(node) and node is not scope:
            dense.append(node)
            unit = _unit(node)
            if unit.parent is not None:
                units[id(unit.parent)].append((node, unit.key))
                owners[id(unit.parent)] = unit.parent
    for key, members in units.items():
        core = owners[key]
        qkv = _projections(members)
        if not qkv and _ATTENTION.search(core.kind.__name__):
            qkv = [node for node, name in members if name == "in_proj"]  # DeBERTa
        if not qkv:
            continue
        around = _attention_around(core, scope)
        ids = {id(node) for node in qkv}
        rest = [n for n in dense if id(n) not in ids and any(a is around for a in n.ancestors())]
        rest = [n for n in rest if not any(map(_NOT_ATTENTION.search, _path(n, around)))]
        out = [node for node in rest if any(map(_OUT.fullmatch, _path(node, around)))]
        if not out and len(rest) == 1 and around is not scope:
            out = rest
        found["qkv"] |= ids
        found["attention-out"].update(id(node) for node in out)
        found["attention"] |= ids | {id(node) for node in out}
        if around is not scope:
            within.update(id(node) for node in around.walk())
    return within


def _unit(node: Node) -> Node:
    """Return the parent `qkv` of `qkv.linear` (a layer with its norm), which has the known name."""
    parent = node.parent
    if parent is None or _is_projection(node.key) or not _is_projection(parent.key):
        return node
    if _ATTENTION.search(parent.kind.__name__):
        return node
    return parent


def _is_projection(name: str) -> bool:
    return bool(_FUSED.fullmatch(name) or _ALONE.fullmatch(name))


def _projections(members: list[tuple[Node, str]]) -> list[Node]:
    """Pick q, k and v among the layers of one module; a lone `k` or `value` does not count."""
    fused = [node for node, name in members if _FUSED.fullmatch(name)]
    alone = [(node, match) for node, name in members if (match := _ALONE.fullmatch(name))]
    what = {match["what"].lower()[0] for _, match in alone if match["what"].lower() != "qk"}
    what |= {"q", "k"} if any(match["what"].lower() == "qk" for _, match in alone) else set()
    if fused or ("q" in what and len(what) > 1):
        return [*fused, *(node for node, _ in alone)]
    return []


def _attention_around(core: Node, scope: Node) -> Node:
    """Return the module around q, k and v that holds the output projection too."""
    around = core
    while around is not scope and around.parent is not None and around.parent is not scope:
        parent = around.parent
        telling = _ATTENTION.search(parent.key) or _ATTENTION.search(parent.kind.__name__)
        if not telling or is_container(parent.inner().module):
            break
        around = parent
    return around


def _mlp(scope: Node, inside: Iterable[Node], found: dict[str, set[int]]) -> None:
    groups: dict[int, list[Node]] = defaultdict(list)
    owners: dict[int, Node] = {}
    for node in inside:
        if node is scope or not _is_dense(node) or id(node) in found["attention"]:
            continue
        if _ROUTER.fullmatch(node.key) or node.parent is None:
            continue
        owner = node.parent
        if node.key == "dense" and owner.key in ("intermediate", "output") and owner.parent:
            owner = owner.parent  # BERT and its kin: `intermediate.dense` and `output.dense`
        groups[id(owner)].append(node)
        owners[id(owner)] = owner
    for key, group in groups.items():
        if not _is_mlp(group, owners[key], scope):
            continue
        found["mlp"].update(id(node) for node in group)
        if len(group) > 1:
            last = _last_of(group)
            found["mlp-out"].add(id(last))
            found["mlp-in"].update(id(node) for node in group if node is not last)


def _is_mlp(group: list[Node], owner: Node, scope: Node) -> bool:
    """Whether the layers of one module are an MLP, by its place, their names or their shapes."""
    below = [part for part in _path(owner, scope) if part]
    place = [*below, owner.kind.__name__ if owner is not scope else ""]
    if any(re.search(r"pos|cpb|bias|(^|_)se$|squeeze|attn_?pool", part, re.I) for part in place):
        return False
    if any(map(_MLP_PLACE.search, place)):
        return True
    if not all(is_linear(node.module) for node in group) or len(group) < 2:
        return False  # 1x1 convolutions are everywhere: only a place called MLP makes one of them
    names = [".".join(_path(node, owner)) for node in group]
    if all(map(_MLP_NAME.fullmatch, names)):
        return True
    if len(group) > 2:
        return False
    (rows_in, columns_in), (rows_out, columns_out) = map(_sizes, group)
    return rows_in == columns_out and columns_in == rows_out and columns_in >= rows_in


def _last_of(group: list[Node]) -> Node:
    """Return the output layer of an MLP: the last one, except for the `w1, w2, w3` of Llama."""
    by_name = {node.key: node for node in group}
    if {"w1", "w2", "w3"} <= set(by_name):
        return by_name["w2"]
    return group[-1]


def _sizes(node: Node) -> tuple[int, int]:
    """Return the numbers of input and output features of a linear layer."""
    names: tuple[Callable[[nn.Module], object], ...] = (
        lambda module: (module.in_features, module.out_features),
        lambda module: (module.nx, module.nf),
    )
    module = getattr(node.module, "base_layer", node.module)
    pair = names[0](module) if hasattr(module, "in_features") else names[1](module)
    assert isinstance(pair, tuple)
    return int(pair[0]), int(pair[1])
