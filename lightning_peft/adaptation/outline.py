"""The outline of an adaptation: what is adapted, what is trained in place, what is frozen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from lightning_peft.adaptation.newness import is_trained, looks_new
from lightning_peft.anatomy.family import backbones_in
from lightning_peft.anatomy.names import inside
from lightning_peft.anatomy.quantised import sizes_of
from lightning_peft.anatomy.tree import grow

if TYPE_CHECKING:
    from lightning_peft.adaptation.trained import Trained

__all__ = ["Outline", "Part", "frozen_parts", "outline", "parts_of", "some", "warning_of"]

_MOST = 6


@dataclass(frozen=True)
class Part:
    """A module, or a parameter without a module of its own, with all that is in it.

    Attributes:
        name: The name in the backbone.
        parameters: The number of its parameters.
        new: Whether it looks newly initialised, beside a backbone that looks trained.
    """

    name: str
    parameters: int
    new: bool = False

    def __str__(self) -> str:
        return f"{self.name or 'all of it'} ({self.parameters:,})"


@dataclass(frozen=True)
class Outline:
    """What an adaptation does to each part of a backbone.

    Attributes:
        sites: The number of adapted places.
        blocks: The number of repeated blocks.
        adapted_blocks: The number of those with an adapted place.
        adapter: Parameters that the adapter added.
        head: The head, which is trained.
        head_how: How it was found; empty if it was named.
        in_place: What else of the backbone is trained as it is, outside of the blocks.
        in_place_blocks: Parameters in the blocks that are trained as they are.
        frozen: What is frozen outside of the blocks, and not adapted, the largest first.
        frozen_blocks: Frozen parameters in the blocks.
        doubt: What may be wrong about the guess; empty if nothing.
        takes_head: Whether a head can be named, which it cannot in a model that is taken as it is.
    """

    sites: int
    blocks: int
    adapted_blocks: int
    adapter: int
    head: tuple[Part, ...]
    head_how: str
    in_place: tuple[Part, ...]
    in_place_blocks: int
    frozen: tuple[Part, ...]
    frozen_blocks: int
    doubt: str
    takes_head: bool = True

    @property
    def new(self) -> tuple[Part, ...]:
        """The frozen parts that look newly initialised."""
        return tuple(part for part in self.frozen if part.new)

    def to_dict(self) -> dict[str, Any]:
        """Return the outline as plain JSON types."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the outline in words, a line for each kind of part that there is."""
        return [f"{title}: {text}" for title, text in self.entries()]

    def entries(self) -> list[tuple[str, str]]:
        """Return the title and the text of each line of :meth:`lines`."""
        found: list[tuple[str, str]] = []
        if self.sites:
            where = f" in {self.adapted_blocks} of {self.blocks} blocks" if self.blocks else ""
            found.append(("adapted", f"{self.sites} places{where}, {self.adapter:,} parameters"))
        trained = []
        if self.head:
            trained.append(f"the head {some(self.head)}{self.head_how and ', ' + self.head_how}")
        trained += [some(self.in_place)] if self.in_place else []
        trained += [f"{self.in_place_blocks:,} in the blocks"] if self.in_place_blocks else []
        found.append(("trained in place", "; ".join(trained) or "nothing of the backbone"))
        if self.frozen:
            title = "frozen outside of the blocks" if self.blocks else "frozen"
            found.append((title, self._told()))
        if self.doubt:
            found.append(("not certain", self.doubt))
        return found

    def _told(self) -> str:
        first = self.frozen[0].name
        advice = f"also_train={first!r} would train the first in full"
        if not self.head and self.takes_head:
            advice += ", head=... says which layers belong to the task"
        return f"{some(self.frozen)}; {advice}"


def some(parts: Sequence[Part]) -> str:
    """Return parts as text, at most six of them by name."""
    more = parts[_MOST:]
    rest = f" and {len(more)} more ({sum(p.parameters for p in more):,})" if more else ""
    return ", ".join(map(str, parts[:_MOST])) + rest


def outline(adaptation: Trained, source: nn.Module | None = None) -> Outline:
    """Outline an adaptation.

    Args:
        adaptation: The adaptation; its model may be on the ``meta`` device.
        source: The model whose values tell what is new; by default the adapted one itself.
    """
    model, blocks = adaptation.model, adaptation.blocks
    sizes = sizes_of(model)
    adapter = set(adaptation.adapter_names())
    trained = set(adaptation.trained_names()) - adapter
    head = adaptation.head_names() & trained
    in_blocks = {name for name in sizes if inside(name, blocks)}
    # a matrix of a recurrent layer is a place without a parameter of its own: `rnn.ih_l0`
    holders = {name.rpartition(".")[0] for name in adaptation.base_names.values()}
    hosts = (
        site.module.rpartition(".")[0]
        if site.in_weight and site.module not in holders
        else site.module
        for site in adaptation.sites
    )
    places = tuple(
        host for host in hosts if host and not any(inside(block, (host,)) for block in blocks)
    )
    told = {adaptation.base_names.get(name, name) for name in adaptation.fixed}
    others = trained | adapter | told
    at_rest = {name for name in sizes if name not in others and not inside(name, places)}
    adapted_blocks = {b for b in blocks for site in adaptation.sites if inside(site.module, (b,))}

    def total(names: Collection[str]) -> int:
        return sum(sizes[name] for name in names)

    return Outline(
        sites=len(adaptation.sites),
        blocks=len(blocks),
        adapted_blocks=len(adapted_blocks),
        adapter=total(adapter),
        head=tuple(parts_of(model, head)),
        head_how=adaptation.how,
        in_place=tuple(parts_of(model, trained - head - in_blocks)),
        in_place_blocks=total((trained - head) & in_blocks),
        frozen=frozen_parts(model, at_rest - in_blocks, blocks, source),
        frozen_blocks=total(set(sizes) & in_blocks - trained - adapter),
        doubt=adaptation.doubt,
        takes_head=adaptation.method.listed,
    )


def parts_of(model: nn.Module, names: Collection[str]) -> Iterator[Part]:
    """Yield the largest modules all of whose parameters are among some, and single parameters.

    Args:
        model: The model.
        names: Names of parameters.
    """
    every = sizes_of(model)
    size_by_id = {id(p): every[n] for n, p in model.named_parameters()}
    chosen = {id(p) for n, p in model.named_parameters() if n in names}
    seen: set[int] = set()

    def visit(name: str, module: nn.Module) -> Iterator[Part]:
        own = {id(p): size_by_id[id(p)] for p in module.parameters() if id(p) not in seen}
        if not own.keys() & chosen:
            return
        if own.keys() <= chosen:
            seen.update(own)
            yield Part(name, sum(own.values()))
            return
        prefix = f"{name}." if name else ""
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in chosen - seen:
                seen.add(id(parameter))
                yield Part(prefix + key, size_by_id[id(parameter)])
        for key, child in module._modules.items():
            if child is not None:
                yield from visit(prefix + key, child)

    yield from visit("", model)


def frozen_parts(
    model: nn.Module,
    names: Collection[str],
    blocks: Sequence[str],
    source: nn.Module | None = None,
) -> tuple[Part, ...]:
    """Return the parts that some frozen parameters form, the largest first.

    Args:
        model: The model.
        names: Names of the frozen parameters.
        blocks: The repeated blocks, which tell whether the backbone looks trained.
        source: The model whose values are read; by default the same.
    """
    values = source if source is not None else model
    parts = sorted(parts_of(model, names), key=lambda part: -part.parameters)
    known = dict(values.named_modules())
    trunk = [known[name] for name in blocks if name in known] or [values]
    if not parts or not is_trained(trunk):
        return tuple(parts)
    libraries = tuple(node.name for node in backbones_in(grow(model)))
    return tuple(
        Part(part.name, part.parameters, _is_new(part.name, known.get(part.name), libraries))
        for part in parts
    )


def _is_new(name: str, module: nn.Module | None, libraries: tuple[str, ...]) -> bool:
    """Whether a part is beside the pretrained models in a module, or looks newly initialised."""
    if module is None or not any(p.dim() > 1 for p in module.parameters()):
        return False
    return bool(libraries and not inside(name, libraries)) or looks_new(module)


def warning_of(who: str, new: Sequence[Part], ways: Sequence[str]) -> str:
    """Return the warning about frozen parts that look new.

    Args:
        who: Who freezes them.
        new: The parts, at least one.
        ways: The settings that train a part by its name.
    """
    names = [part.name for part in new]
    wanted = repr(names[0]) if len(names) == 1 else repr(names)
    return (
        f"{who}: frozen, but newly initialised to all appearance: {some(new)}. The model would "
        f"compute with random numbers there. Pass {' or '.join(f'{way}={wanted}' for way in ways)} "
        "to train it, or load its weights before the run."
    )
