"""Single rows of a token embedding: ``trainable_token_indices`` of ``peft``.

``peft`` wraps the embedding, and an output that is tied to it, in a layer of its own that puts the
trained rows into the weight at each forward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_peft.errors import MethodError, some
from lightning_peft.methods.base import Site

__all__ = ["TOKEN_ROWS", "TokenRows", "check_token_rows", "is_token_layer", "token_sites"]

TOKEN_ROWS = "token rows"
"""The kind of the sites at which rows of an embedding are trained."""


def token_sites(model: nn.Module, rows: Any) -> tuple[Site, ...]:
    """Return the layers whose rows are trained, and those that are tied to them.

    Args:
        model: The backbone.
        rows: The indices of the rows of the input embedding, or of several layers by the ends of
            their names.

    Raises:
        MethodError: If there is no such layer, or one of the indices is beyond its rows.
    """
    if not rows:
        return ()
    modules = dict(model.named_modules())
    if isinstance(rows, Mapping):
        found = {n: rows[e] for e in rows for n in modules if n.endswith(e)}
        lost = [entry for entry in rows if not any(name.endswith(entry) for name in modules)]
    else:
        inputs = _input_embedding(model)
        names = [n for n, m in modules.items() if m is inputs or n.endswith("embed_tokens")]
        found = {names[0]: rows} if names else {}
        lost = [] if names else ["embed_tokens"]
    if lost:
        raise MethodError(
            f"trainable_token_indices: expected names of embeddings, got {some(lost)}. Give them "
            "as a mapping from the name to the indices."
        )
    weights = {name: getattr(modules[name], "weight", None) for name in found}
    beyond = [
        f"{max(indices)} for {name} of {len(weights[name])} rows"  # type: ignore[arg-type]
        for name, indices in found.items()
        if weights[name] is not None and max(indices) >= len(weights[name])
    ]
    if beyond:
        raise MethodError(
            f"trainable_token_indices: expected indices of rows, got {some(beyond)}. Resize the "
            "embedding before it is adapted."
        )
    shared = {id(weight) for weight in weights.values() if weight is not None}
    tied = [n for n, m in modules.items() if id(getattr(m, "weight", None)) in shared]
    return tuple(Site(name, TOKEN_ROWS) for name in dict.fromkeys((*found, *tied)))


def check_token_rows(model: nn.Module, sites: Iterable[Site]) -> None:
    """Check that ``peft`` has wrapped the layers of the plan.

    Args:
        model: The adapted backbone.
        sites: From :func:`token_sites`.

    Raises:
        MethodError: If it has wrapped others.
    """
    planned = {site.module for site in sites}
    wrapped = {name for name, module in model.named_modules() if _is_wrapper(module)}
    if planned != wrapped:
        raise MethodError(
            f"trainable_token_indices: expected peft to train rows of {some(sorted(planned))}, it "
            f"took {some(sorted(wrapped)) or 'none'}. Name the layers in a mapping."
        )


def is_token_layer(model: nn.Module, name: str) -> bool:
    """Whether a layer is the one inside of ``peft``'s wrapper of an embedding."""
    return name.endswith(".token_adapter") and _is_wrapper(model.get_submodule(name[:-14]))


class TokenRows:
    """A handle on one embedding, or output, of which rows are trained.

    Args:
        model: The adapted backbone.
        name: The name of the layer.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.name = name

    @property
    def owner(self) -> Any:
        """See :class:`Adapter`."""
        return self.model.get_submodule(self.name)

    def written(self) -> Iterable[nn.Parameter]:
        """See :class:`Adapter`: what is tied to the weight has the same rows."""
        tied = any(_is_wrapper(m) and m.token_adapter.tied_adapter for m in self.model.modules())
        return () if tied else (self.owner.token_adapter.base_layer.weight,)

    @property
    def enabled(self) -> bool:
        """See :class:`Adapter`."""
        return not self.owner.token_adapter.disable_adapters

    def set_enabled(self, enabled: bool) -> None:
        """See :class:`Adapter`."""
        flags = [(p, p.requires_grad) for p in self.owner.parameters()]
        self.owner.enable_adapters(enabled)  # peft ties requires_grad to it
        for parameter, flag in flags:
            parameter.requires_grad_(flag)

    def merge(self) -> float:
        """See :class:`Adapter`: the rows take the place of those in the weight."""
        self.owner.token_adapter.merge()
        return 0.0

    def unmerge(self) -> None:
        """See :class:`Adapter`."""
        self.owner.token_adapter.unmerge()

    def unload(self) -> None:
        """See :class:`Adapter`."""
        path, _, key = self.name.rpartition(".")
        self.model.get_submodule(path)._modules[key] = self.owner.token_adapter.base_layer


def _is_wrapper(module: Any) -> bool:
    import peft.utils.other as other

    return isinstance(module, getattr(other, "TrainableTokensWrapper", ()))


def _input_embedding(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # no model of transformers
        return None
