"""Resolving presets, names, globs, regular expressions and layer ranges to modules."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from lightning_peft.anatomy import ROLES, Anatomy, layer_of
from lightning_peft.anatomy.tree import Node, grow, is_adaptable
from lightning_peft.errors import TargetError, near

__all__ = ["PRESETS", "layer_indices", "layer_of", "resolve"]

PRESETS = ("auto", *ROLES)
"""The names that are looked up in the model's anatomy instead of among its modules' names."""

_MOST_PROBLEMS = 20

_RANGE = re.compile(r"(\d+)-(\d+)")


def resolve(
    anatomy: Anatomy,
    model: nn.Module,
    targets: str | Sequence[str],
    *,
    layers: int | str | Sequence[int] | None = None,
    exclude: str | Sequence[str] | None = None,
    containers: bool = False,
) -> tuple[str, ...]:
    """Find the modules that a selection describes.

    Each entry of ``targets`` and ``exclude`` is one of

    - a preset: ``"auto"`` (``"all-linear"``, or ``"convs"`` in a model without linear layers),
      ``"all-linear"``, ``"attention"``, ``"qkv"``, ``"attention-out"``, ``"mlp"``, ``"mlp-in"``,
      ``"mlp-out"``, ``"convs"``, ``"norms"``, ``"blocks"``; a preset that the model has takes
      precedence over a module of the same name;
    - a module's name, whole or its last dotted parts: ``"blocks.0.attn.qkv"``, ``"attn.qkv"``,
      ``"fc1"``;
    - a glob on the whole name, in which ``*`` also stands for dots: ``"blocks.*.attn.*"``;
    - ``"re:"`` and a regular expression that matches the whole name.

    Names are matched without the parts that ``torch.compile`` adds. Presets, globs, regular
    expressions and last parts never match inside the head; only a whole name does. Only modules
    with a weight of their own match (linear layers, convolutions, embeddings, norms,
    ``nn.MultiheadAttention``); a glob skips modules that only hold others, such as ``"blocks.0"``.
    Excluding a module excludes everything below it.

    Args:
        anatomy: The model's anatomy.
        model: The model.
        targets: One entry or several.
        layers: Keep only the modules in these blocks: an index (from the end if negative), several,
            ``"last:4"``, ``"first:2"``, ``"2-5"`` (both ends included), ``"0,3,5"``.
        exclude: Entries to leave out.
        containers: Also match modules that only hold others, for a method that looks inside.

    Returns:
        The modules' names as in ``model.named_modules()``, in its order.

    Raises:
        TargetError: If an entry matches nothing, a layer does not exist, or nothing is left; all
            problems at once, with similar names and the presets that this model has.

    >>> from lightning_peft.anatomy import anatomy
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> resolve(anatomy(net), net, "auto", exclude="2")
    ('0',)
    """
    search = _Search(anatomy, model, containers)
    wanted = search.entries(targets, "targets")
    if not wanted and not search.problems:
        search.problems.append("`targets` is empty: expected a preset, a name, a glob or 're:...'.")
    chosen = search.all_matches(wanted)
    left_out = search.all_matches(
        search.entries(() if exclude is None else exclude, "exclude"), anything=True
    )
    kept = None
    if layers is not None:
        try:
            kept = frozenset(layer_indices(layers, len(anatomy.blocks)))
        except TargetError as error:
            search.problems.append(str(error))
    search.raise_problems()
    nodes = [node for node in search.nodes if id(node) in chosen]
    rest = [node for node in nodes if not search.is_within(node, left_out)]
    if not rest:
        raise TargetError(
            f"Nothing is left of {_listed(n.plain for n in nodes)} after `exclude={exclude!r}`. "
            "Expected at least one module to adapt: exclude less."
        )
    if kept is not None:
        nodes, rest = rest, [node for node in rest if anatomy.layer_of(node.name) in kept]
        if not rest:
            raise TargetError(
                f"Nothing of {_listed(n.plain for n in nodes)} is in the layers {sorted(kept)} "
                f"(of {len(anatomy.blocks)}, {anatomy.blocks[0]} to {anatomy.blocks[-1]}). "
                "Choose other layers or targets inside the blocks."
            )
    return tuple(node.name for node in rest)


def layer_indices(layers: int | str | Sequence[int], count: int) -> tuple[int, ...]:
    """Parse a choice of layers.

    Args:
        layers: An index (from the end if negative), several, ``"last:4"``, ``"first:2"``, ``"2-5"``
            (both ends included), or several of these and indices with commas: ``"0,3,5-7"``.
        count: The number of blocks of the model.

    Returns:
        The indices in ascending order, each once.

    Raises:
        TargetError: If the model has no blocks, a layer does not exist, or the text is not a choice
            of layers; all problems at once.

    >>> layer_indices("last:2", 12), layer_indices("0,3-5", 12), layer_indices([-1], 12)
    ((10, 11), (0, 3, 4, 5), (11,))
    """
    if count == 0:
        raise TargetError(
            f"Expected a model with repeated blocks for `layers={layers!r}`, found none here. "
            "Leave `layers` out, or choose by name with `targets` and `exclude`."
        )
    if isinstance(layers, (int, str)):
        parts: list[object] = [*layers.split(",")] if isinstance(layers, str) else [layers]
    elif isinstance(layers, Iterable) and not isinstance(layers, (Mapping, bytes)):
        parts = list(layers)
    else:
        parts = [layers]
    chosen: set[int] = set()
    problems = [] if parts else ["no layer is chosen"]
    for part in parts:
        found = _layers_of(part, count)
        if isinstance(found, str):
            problems.append(found)
        else:
            chosen.update(found)
    if problems:
        raise TargetError(
            f"`layers={layers!r}`: {'; '.join(problems)}. This model has {count} blocks (0 to "
            f"{count - 1}). Expected an index, a list of indices, 'last:4', 'first:2', '2-5' or "
            "'0,3,5'."
        )
    return tuple(sorted(chosen))


def _layers_of(part: object, count: int) -> range | str:
    """Return the indices of one part of a choice, or a phrase for what is wrong with it."""
    if isinstance(part, str):
        part = part.strip()
        word, colon, number = part.partition(":")
        between = _RANGE.fullmatch(part)
        if colon and word in ("last", "first") and number.strip().isdigit():
            many = int(number)
            if not 1 <= many <= count:
                return f"'{part}' is out of range"
            return range(count - many, count) if word == "last" else range(many)
        if between:
            first, last = int(between[1]), int(between[2])
            if first > last:
                return f"'{part}' runs backwards"
            return range(first, last + 1) if last < count else f"'{part}' is out of range"
        if not re.fullmatch(r"-?\d+", part):
            return f"'{part}' is not a choice of layers"
        part = int(part)
    if isinstance(part, bool) or not isinstance(part, int):
        return f"{part!r} is not the index of a layer"
    if not -count <= part < count:
        return f"layer {part} is out of range"
    return range(part % count, part % count + 1)


@dataclass
class _Search:
    """A search for entries in one model, which collects the problems."""

    anatomy: Anatomy
    model: nn.Module
    containers: bool
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nodes = list(grow(self.model).walk())
        self.head = {id(node) for node in self.nodes if node.name in set(self.anatomy.head)}
        self.roles = {role: set(names) for role, names in self.anatomy.roles.items()}

    @staticmethod
    def is_within(node: Node, roots: set[int]) -> bool:
        """Whether a node or one of its ancestors is among the roots."""
        return id(node) in roots or any(id(above) in roots for above in node.ancestors())

    def entries(self, given: object, argument: str) -> list[str]:
        """Read an argument as a list of entries."""
        if isinstance(given, str):
            given = [given]
        if not isinstance(given, Iterable) or isinstance(given, (Mapping, bytes)):
            self.problems.append(
                f"`{argument}` expects a string or a sequence of strings, got {given!r}."
            )
            return []
        entries = []
        for entry in given:
            if isinstance(entry, str) and entry.strip():
                entries.append(entry.strip())
            else:
                self.problems.append(f"`{argument}` expects non-empty strings, got {entry!r}.")
        return entries

    def all_matches(self, entries: Iterable[str], *, anything: bool = False) -> set[int]:
        """Find the nodes of several entries; stop when there are too many problems to read."""
        found: set[int] = set()
        for entry in entries:
            if len(self.problems) >= _MOST_PROBLEMS:
                break
            found.update(id(node) for node in self.matches(entry, anything=anything))
        return found

    def matches(self, entry: str, *, anything: bool = False) -> list[Node]:
        """Find the nodes of an entry; with `anything`, also those that cannot have an adapter."""
        role = entry
        if entry == "auto":
            role = "all-linear" if self.roles["all-linear"] else "convs"
        if self.roles.get(role):
            return [node for node in self.nodes if node.name in self.roles[role]]
        try:
            named = self._named(entry)
        except re.error as error:
            self.problems.append(f"'{entry}' is not a regular expression: {error}.")
            return []
        usable = [n for n in named if anything or self.containers or self._is_adaptable(n)]
        if named and not usable:
            self.problems.append(self._only_containers(entry, named[0]))
        elif not named and not (anything and entry in PRESETS):
            self.problems.append(self._nothing(entry))
        return usable

    def _named(self, entry: str) -> list[Node]:
        exact = [node for node in self.nodes if node.plain and entry in (node.plain, node.name)]
        if entry.startswith("re:"):
            pattern = re.compile(entry[3:])
            found = [node for node in self.nodes if pattern.fullmatch(node.plain)]
        elif any(sign in entry for sign in "*?["):
            found = [node for node in self.nodes if fnmatch.fnmatchcase(node.plain, entry)]
        else:
            found = [node for node in self.nodes if f".{node.plain}".endswith(f".{entry}")]
        found = [node for node in found if node.plain and not self.is_within(node, self.head)]
        known = {id(node) for node in found}
        return [*found, *(node for node in exact if id(node) not in known)]

    @staticmethod
    def _is_adaptable(node: Node) -> bool:
        return is_adaptable(node.module, node.key)

    def _only_containers(self, entry: str, node: Node) -> str:
        inside = [below.plain for below in node.walk() if self._is_adaptable(below)]
        what = f"'{entry}' is {node.kind.__name__}, which has no weight of its own to adapt."
        if not inside:
            return f"{what} Nothing in it has either."
        return f"{what} Expected layers such as {_listed(inside)}, or a glob: '{node.plain}.*'."

    def _nothing(self, entry: str) -> str:
        if entry in PRESETS:
            return f"'{entry}': this model has no such layers."
        names = [node.plain for node in self.nodes if self._is_adaptable(node)]
        depth = entry.count(".") + 1
        endings = {".".join(name.split(".")[-depth:]) for name in names}
        in_head = [n.plain for n in self.nodes if id(n) in self.head]
        hint = near(entry, endings | set(names))
        if any(name.split(".")[-1] == entry.split(".")[-1] for name in in_head):
            hint = (
                f"The head ({', '.join(in_head)}) is trained in full and only matched by its name."
            )
        return f"'{entry}' matches no module of this model. {hint}"

    def raise_problems(self) -> None:
        """Raise the collected problems as one error."""
        if not self.problems:
            return
        presets = [f"{r} ({len(self.anatomy.roles[r])})" for r in ROLES if self.anatomy.roles[r]]
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        raise TargetError(
            f"This selection does not fit {type(self.model).__name__}:\n{lines}\n"
            f"Presets that this model has: {', '.join(presets) or 'none'}. Otherwise pass names, "
            "their last parts, globs ('blocks.*.attn.*') or 're:' and a regular expression."
        )


def _listed(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more
