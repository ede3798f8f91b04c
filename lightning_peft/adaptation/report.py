"""The report of an adaptation: its figures, and a table of them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from lightning_peft.anatomy.quantised import sizes_of
from lightning_peft.evaluation.efficiency import human_bytes
from lightning_peft.evaluation.html import html_table
from lightning_peft.kernels import Acceleration, acceleration_of
from lightning_peft.methods.base import Site

__all__ = ["Report", "make_report"]


@dataclass(frozen=True)
class Report:
    """The figures of one adaptation; ``str(report)`` is a table.

    Attributes:
        method: The method's name.
        sites: Adapted modules, counted by kind and by the last part of their name.
        trained: Trained parameters (scalars): adapter, head and the backbone's own.
        adapter: Of these, new parameters that the adapter added.
        head: Of these, the head's.
        backbone: Of these, the backbone's own, trained in place.
        total: All parameters of the adapted model.
        trained_bytes: Bytes of the trained parameters: the size of an adapter file without its
            header.
        acceleration: Which LoRA layers have the fast forward, why others do not, and what they
            recompute in the backward pass; ``None`` without LoRA layers.
        left_out: What has no adapter although one would be expected: see :class:`Adaptation`.
    """

    method: str
    sites: dict[str, int]
    trained: int
    adapter: int
    head: int
    backbone: int
    total: int
    trained_bytes: int
    acceleration: Acceleration | None = None
    left_out: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Trained parameters over all parameters, in [0, 1]."""
        return self.trained / self.total if self.total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON types."""
        speed = None if self.acceleration is None else self.acceleration.to_dict()
        told = {"acceleration": speed, "left_out": list(self.left_out)}
        return {**asdict(self), "share": self.share, **told}

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"Adaptation: {self.method}", title_justify="left")
        table.add_column("")
        table.add_column("parameters", justify="right")
        table.add_column("share", justify="right")
        for row in self._rows():
            table.add_row(*row)
        out = io.StringIO()
        console = Console(file=out, width=100)
        console.print(table)
        for line in self._notes():
            console.print(line, highlight=False, markup=False)
        return out.getvalue().rstrip()

    def _repr_html_(self) -> str:
        columns = ["", "parameters", "share"]
        return html_table(f"Adaptation: {self.method}", columns, self._rows(), self._notes())

    def _rows(self) -> list[list[str]]:
        counts = {
            "adapter": self.adapter,
            "head": self.head,
            "backbone, in place": self.backbone,
            "trained": self.trained,
            "frozen": self.total - self.trained,
            "total": self.total,
        }
        return [
            [label, f"{count:,}", f"{count / self.total if self.total else 0.0:.2%}"]
            for label, count in counts.items()
        ]

    def _notes(self) -> list[str]:
        sites = ", ".join(f"{n} x {what}" for what, n in self.sites.items()) or "none"
        speed = [] if self.acceleration is None else [f"speed: {self.acceleration}"]
        return [
            f"sites: {sites}",
            *(f"without an adapter: {line}" for line in self.left_out),
            f"trained bytes: {human_bytes(self.trained_bytes)}",
            *speed,
        ]


def make_report(
    model: nn.Module,
    method: str,
    sites: Sequence[Site],
    *,
    trained: Set[str],
    adapter: Set[str],
    head: Set[str],
    left_out: tuple[str, ...] = (),
) -> Report:
    """Count the trained and other parameters of an adapted model.

    Args:
        model: The adapted model; it may be on the ``meta`` device.
        method: The method's name.
        sites: The adapted places.
        trained: Names of the trained parameters.
        adapter: Names of the parameters that the adapter added.
        head: Names of the head's parameters.
        left_out: What has no adapter although one would be expected.

    Returns:
        The report.
    """
    sizes = sizes_of(model)

    def count(names: Set[str]) -> int:
        return sum(size for name, size in sizes.items() if name in names)

    kinds = Counter(f"{site.label} ({site.kind})" if site.label else site.kind for site in sites)
    return Report(
        method=method,
        sites=dict(kinds),
        trained=count(trained),
        adapter=count(trained & adapter),
        head=count(trained & head),
        backbone=count(trained - adapter - head),
        total=sum(sizes.values()),
        trained_bytes=sum(
            p.numel() * p.element_size() for name, p in model.named_parameters() if name in trained
        ),
        acceleration=acceleration_of(model),
        left_out=left_out,
    )
