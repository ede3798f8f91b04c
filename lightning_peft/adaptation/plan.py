"""The plan of an adaptation: what it would change, and the memory that training would need.

The plan is made on a copy on the ``meta`` device, which has shapes and no values: a backbone of any
size is planned in seconds, without its weights and without its memory.
"""

from __future__ import annotations

import copy
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_peft.adaptation.adapt import adapt
from lightning_peft.adaptation.outline import Outline, outline, warning_of
from lightning_peft.adaptation.quantised_plan import (
    dense_on_meta,
    quantised_on_meta,
    runs_without_values,
)
from lightning_peft.adaptation.report import Report
from lightning_peft.adaptation.training_step import called, peak_of_step
from lightning_peft.adaptation.without_values import Processor, RunsOn
from lightning_peft.anatomy.quantised import sizes_of, tensors_of
from lightning_peft.errors import MethodError
from lightning_peft.evaluation.efficiency import gradient_bytes, human_bytes, tensor_bytes
from lightning_peft.evaluation.html import html_table
from lightning_peft.kernels import Memory
from lightning_peft.kernels.rebuild import Held

__all__ = ["AdaptationPlan", "LayerPlan", "TrainingMemory", "plan"]

ADAM_STATES = 2
"""Tensors that AdamW keeps for each trained parameter, each of the parameter's size."""


@dataclass(frozen=True)
class LayerPlan:
    """The changes in one block, or in the layers outside the blocks.

    Attributes:
        name: The block's name; ``"head"``, or ``"(outside of the blocks)"``.
        sites: The adapted modules there, by the last part of their name.
        trained: Trained parameters there.
        total: All parameters there.
    """

    name: str
    sites: tuple[str, ...]
    trained: int
    total: int


@dataclass(frozen=True)
class TrainingMemory:
    """An estimate of the bytes that a training step needs.

    Attributes:
        weights: Parameters and buffers.
        gradients: Gradients of the trained parameters.
        optimizer: AdamW's state of the trained parameters.
        activations: The tensors that autograd keeps of one forward pass, each once; ``None``
            without example inputs.
        peak: The bytes at the largest moment of a step: of the four and of what is needed for a
            moment only. ``None`` without example inputs, or where the backward pass cannot be run
            without values. It does not include the workspaces inside kernels and fragmentation.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int | None = None
    peak: int | None = None

    @property
    def total(self) -> int:
        """The sum of all four."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0)


@dataclass(frozen=True)
class AdaptationPlan:
    """The changes that a method would make to a backbone; ``str(plan)`` is a table.

    Attributes:
        report: The counts, as the adaptation itself would report them.
        layers: The changes in each block, in model order.
        memory: The memory that a training step would need.
        full: The memory that a step of full fine-tuning would need, of a quantised backbone in
            floating point, since codes cannot be trained.
        outline: What is adapted, what is trained as it is, what is frozen outside of the blocks.

    >>> import torch
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> plan = lp.plan(net, "lora", rank=2, inputs=torch.ones(16, 4))
    >>> plan.report.adapter, plan.memory.gradients < plan.full.gradients
    (44, True)
    """

    report: Report
    layers: tuple[LayerPlan, ...]
    memory: TrainingMemory
    full: TrainingMemory
    outline: Outline

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return {
            "report": self.report.to_dict(),
            "layers": [asdict(layer) for layer in self.layers],
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "full": {**asdict(self.full), "total": self.full.total},
            "outline": self.outline.to_dict(),
        }

    def __str__(self) -> str:
        from rich.console import Console, Group
        from rich.table import Table

        layers = Table(title=f"Plan: {self.report.method}", title_justify="left")
        for column in ("layer", "adapted", "trained", "of"):
            layers.add_column(column, justify="left" if column in ("layer", "adapted") else "right")
        *rows, last = self._layer_rows()
        for row in rows:
            layers.add_row(*row)
        layers.add_section()
        layers.add_row(*last)
        memory = Table(title="A training step", title_justify="left")
        for column in ("", "this method", "full fine-tuning"):
            memory.add_column(column, justify="left" if not column else "right")
        for row in self._memory_rows():
            memory.add_row(*row)
        out = io.StringIO()
        console = Console(file=out, width=100)
        console.print(Group(self._tree(), layers, memory))
        console.print(self._on_disk(), highlight=False)
        return out.getvalue().rstrip()

    def _repr_html_(self) -> str:
        about = [f"{name}: {text}" for name, text in self.outline.entries()]
        if self.outline.new:
            about.append(f"WARNING: {self._warning()}")
        columns = ["layer", "adapted", "trained", "of"]
        title = f"Plan: {self.report.method}"
        layers = html_table(title, columns, self._layer_rows(), about, words=2)
        columns = ["", "this method", "full fine-tuning"]
        notes = [self._on_disk()]
        return layers + html_table("A training step", columns, self._memory_rows(), notes)

    def _layer_rows(self) -> list[list[str]]:
        """Return a row for each layer, and one for all of them."""
        report = self.report
        rows = [
            [layer.name, ", ".join(layer.sites), f"{layer.trained:,}", f"{layer.total:,}"]
            for layer in self.layers
        ]
        share = f"{report.total:,} ({report.share:.2%})"
        return [*rows, ["all", "", f"{report.trained:,}", share]]

    def _memory_rows(self) -> list[list[str]]:
        known = self.memory.peak is not None and self.full.peak is not None
        last = "peak" if known else "total"
        return [
            [name, human_bytes(mine), human_bytes(getattr(self.full, name))]
            for name in ("weights", "gradients", "optimizer", "activations", last)
            if (mine := getattr(self.memory, name)) is not None
        ]

    def _on_disk(self) -> str:
        return f"adapter on disk: {human_bytes(self.report.trained_bytes)}"

    def _warning(self) -> str:
        return warning_of("plan", self.outline.new, ("also_train", "head"))

    def _tree(self) -> Any:
        from rich.text import Text
        from rich.tree import Tree

        report = self.report
        title = f"{report.method}: {report.trained:,} of {report.total:,} parameters trained"
        tree = Tree(Text(f"{title} ({report.share:.2%})"))
        for name, text in self.outline.entries():
            tree.add(Text(f"{name}: {text}"))
        if self.outline.new:
            tree.add(Text(f"WARNING: {self._warning()}"))
        return tree


def plan(
    model: nn.Module,
    method: Any = "lora",
    *,
    inputs: Any = None,
    head: str | Sequence[str] | Literal[False] | None = None,
    also_train: str | Sequence[str] = (),
    memory: Memory = "default",
    processor: Processor | None = None,
    **settings: Any,
) -> AdaptationPlan:
    """Plan the adaptation of a backbone, without changing it.

    Args:
        model: The backbone, on any device; it is not changed and no weight is copied.
        method: As for :func:`adapt`.
        inputs: A batch for the forward (a tensor, a tuple of positional or a mapping of keyword
            arguments), of which only shapes and dtypes matter, and the values of masks where the
            model looks whether anything is masked. It is needed to estimate the activations.
        head: As for :func:`adapt`.
        also_train: As for :func:`adapt`.
        memory: As for :func:`adapt`; recomputed tensors are not among the activations.
        processor: Where the training will run: ``"cpu"`` or ``"cuda"``, whose attention and dropout
            keep other tensors. By default the backbone's device; for one on the ``meta`` device the
            GPU of this machine, if it has one.
        **settings: Settings of the method, if it is given by name.

    Returns:
        The plan.

    Raises:
        MethodError: As for :func:`adapt`; also if the forward needs values that ``inputs`` has not.
        TargetError: As for :func:`adapt`.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> plan(net, "lora", rank=1).report.adapter
    22
    """
    if processor not in (None, "cpu", "cuda"):
        raise MethodError(f"plan: expected processor to be 'cpu' or 'cuda', got {processor!r}.")
    runs_on = processor or _processor_of(model)
    full = dense_on_meta(on_meta(model)).train().requires_grad_(True)
    adapted = on_meta(model)
    adaptation = adapt(adapted, method, head=head, also_train=also_train, memory=memory, **settings)
    for name in adaptation.fixed:
        full.get_parameter(name).requires_grad_(False)
    adapted.train()
    runs_without_values(adapted)
    return AdaptationPlan(
        report=adaptation.report(),
        layers=tuple(_layers(adaptation)),
        memory=_memory(adapted, inputs, runs_on),
        full=_memory(full, inputs, runs_on),
        outline=outline(adaptation, source=getattr(model, "_orig_mod", model)),
    )


def _processor_of(model: nn.Module) -> Processor:
    devices = {tensor.device.type for tensor in (*model.parameters(), *model.buffers())}
    if "cuda" in devices or (devices == {"meta"} and torch.cuda.is_available()):
        return "cuda"
    return "cpu"


def on_meta(model: nn.Module) -> nn.Module:
    """Copy a model to the ``meta`` device without copying a value.

    Args:
        model: The model; not changed.

    Returns:
        The copy, with the same modes as the model.
    """
    memo: dict[int, Any] = {}
    quantised_on_meta(model, memo)
    for parameter in model.parameters():
        if id(parameter) in memo:
            continue
        twin = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        memo[id(parameter)] = twin
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _layers(adaptation: Any) -> Iterator[LayerPlan]:
    from lightning_peft.anatomy.names import inside

    model = adaptation.model
    blocks = adaptation.blocks
    outside = "(outside of the blocks)"

    def place(name: str) -> str:
        if inside(name, adaptation.head):
            return "head"
        return next((block for block in blocks if inside(name, (block,))), outside)

    sites: dict[str, list[str]] = defaultdict(list)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    trained = set(adaptation.trained_names())
    for name, size in sizes_of(model).items():
        count = counts[place(name)]
        count[0] += size if name in trained else 0
        count[1] += size
    for site in adaptation.sites:
        label = site.label or site.kind
        if label not in sites[place(site.module)]:
            sites[place(site.module)].append(label)
    order = [outside, *blocks, "head"]
    for name in sorted(counts, key=order.index):
        yield LayerPlan(name, tuple(sites[name]), *counts[name])


def _memory(model: nn.Module, inputs: Any, processor: Processor) -> TrainingMemory:
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = gradient_bytes(trained)
    known = TrainingMemory(
        weights=tensor_bytes(tensors_of(model)),
        gradients=gradients,
        optimizer=ADAM_STATES * gradients,
    )
    if inputs is None:
        return known
    values: Any = WeakTensorKeyDictionary()

    def without(tensor: Tensor) -> Tensor:
        twin = torch.empty_like(tensor, device="meta")
        values[twin] = tensor
        return twin

    given = tree_map_only(Tensor, without, inputs)
    try:
        activations = _activations(model, given, RunsOn(processor, values))
    except RuntimeError as error:
        if "meta" not in str(error):
            raise
        raise MethodError(
            f"plan: expected a {type(model).__name__} whose forward runs without values, got "
            f"{type(error).__name__}: {error}. Leave the inputs out, or those that it looks into."
        ) from error
    return replace(
        known, activations=activations, peak=peak_of_step(model, given, processor, values)
    )


def _activations(model: nn.Module, given: Any, mode: RunsOn) -> int:
    """Count the bytes that autograd keeps of a forward pass, without parameters and inputs."""
    known = {*model.parameters(), *model.buffers(), *tree_leaves(given)}
    held: WeakSet[Held] = WeakSet()

    def pack(tensor: Tensor) -> Held:
        kept = Held(tensor)
        held.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, Held.let_go), mode:
        output = called(model, given)
    # a tensor that is gone by now belonged to a part of the graph that is not needed
    sizes = _bytes_by_storage(kept.tensor for kept in held)
    del output
    for tensor in known:
        if isinstance(tensor, Tensor):
            sizes.pop(_storage(tensor), None)
    return sum(sizes.values())


def _bytes_by_storage(tensors: Iterable[Tensor]) -> dict[int, int]:
    return {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
