"""Initialisations of LoRA that read data: EVA, CorDA and LoRA-GA, from the trainer's own loader.

They need a few batches before the first step. ``peft`` has a function for each, which its users
call before they make the adapter; here the module's own ``training_step`` runs on batches of the
train dataloader while ``peft``'s function watches. A run that resumes does without: the checkpoint
has what came of it.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lightning_peft.adaptation.handle import find_adaptations
from lightning_peft.adaptation.sharding import is_sharded
from lightning_peft.anatomy import anatomy
from lightning_peft.errors import MethodError, some
from lightning_peft.lightning.namespace import pl
from lightning_peft.lightning.said import say
from lightning_peft.methods.base import Method
from lightning_peft.methods.from_peft.inject import ADAPTER_NAME
from lightning_peft.methods.from_peft.start import follow_factors, loading, loading_what
from lightning_peft.methods.from_peft.start_checks import data_given, measured_by
from lightning_peft.methods.hf import HF
from lightning_peft.system.randomness import random_state, restore_random_state

__all__ = ["PENDING", "FirstValues", "data_later", "measure_on_data"]

PENDING = "_lightning_peft_first_values"
"""The attribute of a module whose adapter waits for values that come from data."""

SAMPLES = {"corda": 256, "lora_ga": 64}
"""How many samples (CorDA) or batches (LoRA-GA) are read at most, and never more than an epoch."""

_MEASURED = {"corda": "eigens", "lora_ga": "_peft_loraga_grad"}
"""The attribute of a layer in which ``peft``'s function leaves what it has measured."""

START_A, START_B = "A", "B"


class FirstValues(pl.Callback):
    """Measure at the start of a fit; the callback ``PEFT`` does it by itself."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, if the adapter waits for it."""
        measure_on_data(trainer, pl_module)


@contextmanager
def data_later(pl_module: Any, backbone: nn.Module, method: Method, head: Any) -> Iterator[None]:
    """Let a backbone be adapted inside although what the method measures on data is not there yet.

    A run that resumes has it in its checkpoint, which is read later; any other run measures in
    :func:`measure_on_data`.

    Args:
        pl_module: The LightningModule.
        backbone: Its backbone, not yet adapted.
        method: The method.
        head: As for :func:`adapt`.

    Raises:
        MethodError: If the settings do not fit.
    """
    kind = measured_by(method)
    if kind is None or pl_module.__dict__.get("_trainer") is None or loading_what() is not None:
        yield
        return
    assert isinstance(method, HF)
    with data_given():
        plan = method.plan(anatomy(backbone, head=head), backbone)
        places = [backbone.get_submodule(site.module) for site in plan.sites if not site.parameter]
        if kind != "eva" and all(_MEASURED[kind] in place.__dict__ for place in places):
            yield  # by the user, with peft's own function
            return
        if kind == "eva":
            config: Any = method.peft_config(backbone, plan.sites)
            if config.eva_config.rho != 1.0:
                raise MethodError(
                    "init_lora_weights='eva': expected eva_config with rho=1.0, since a run that "
                    f"resumes has to know each rank, got rho={config.eva_config.rho}. Use "
                    "peft.EvaConfig(rho=1.0), or peft's own wrapper and the method 'existing'."
                )
            yield
        else:
            with loading("factors"):
                yield
    pl_module.__dict__[PENDING] = kind


def measure_on_data(trainer: Any, pl_module: Any) -> None:
    """Compute the first values that come from data, unless a checkpoint brought them.

    Args:
        trainer: The trainer, at the start of a fit.
        pl_module: The module, adapted, on its device.

    Raises:
        MethodError: If there is no data to read, or the steps cannot be run before a run.
    """
    kind = pl_module.__dict__.pop(PENDING, None)
    if kind is None or trainer.state.fn != "fit":
        return
    for path, adaptation in find_adaptations(pl_module).items():
        if measured_by(adaptation.method) != kind or adaptation.follows is not None:
            continue
        model: Any = adaptation.model
        if is_sharded(model):
            raise MethodError(
                f"init_lora_weights='{kind}': expected whole weights to measure on, got shards. "
                "Train with one process first, or choose another initialisation."
            )
        layers = {site.module: model.get_submodule(site.module) for site in adaptation.sites}
        config = _on_bases(model.peft_config[ADAPTER_NAME], layers)
        say(f"PEFT: '{path}' reads the train dataloader for the first values ({kind})")
        with _as_before(pl_module, model), adaptation.disabled():
            measure = {"eva": _eva, "corda": _corda, "lora_ga": _lora_ga}[kind]
            measure(pl_module, trainer, model, config, layers)
        if kind != "eva":
            for layer in layers.values():
                for side, made in ((START_A, layer.lora_A), (START_B, layer.lora_B)):
                    getattr(layer.initial_factors, side).copy_(made[ADAPTER_NAME].weight.detach())
            follow_factors(model)


def _on_bases(config: Any, layers: Mapping[str, Any]) -> Any:
    """Return a config whose targets are the layers inside of ``peft``'s own."""
    found = copy.copy(config)
    names = "|".join(re.escape(f"{name}.base_layer") for name in layers)
    found.target_modules = rf"(?:net\.)?(?:{names})"
    found.exclude_modules = found.layers_to_transform = found.layers_pattern = None
    found.rank_pattern = {rf"{k}\.base_layer": rank for k, rank in config.rank_pattern.items()}
    return found


def _eva(
    pl_module: Any, trainer: Any, model: nn.Module, config: Any, layers: Mapping[str, Any]
) -> None:
    from peft.tuners.lora.eva import get_eva_state_dict

    step = _step_of(pl_module)
    around = nn.Module()  # peft asks a model with adapters to be its own wrapper
    around.net = model
    found = get_eva_state_dict(
        around,
        _Told(trainer, None, quiet=True),  # peft has a bar of its own
        peft_config=config,
        forward_fn=lambda _, batch: step(batch),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        gather_distributed_inputs=False,
        show_progress_bar=trainer.progress_bar_callback is not None,
    )
    problems = []
    for name, layer in layers.items():
        own, value = layer.lora_A[ADAPTER_NAME].weight, found.get(f"net.{name}.base_layer")
        if value is None or own.shape != value.shape:
            problems.append(name)
            continue
        own.data.copy_(value)
    if problems:
        raise MethodError(
            f"init_lora_weights='eva': expected data that give as many directions as the rank, got "
            f"fewer for {some(problems, 4)}. Give it larger batches, or a smaller rank."
        )


def _corda(
    pl_module: Any, trainer: Any, model: nn.Module, config: Any, layers: Mapping[str, Any]
) -> None:
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    given = config.corda_config or {}
    given = given if isinstance(given, Mapping) else dataclasses.asdict(given)
    config.corda_config = CordaConfig(**{**given, "verbose": False})
    step = _step_of(pl_module)

    def run() -> None:
        for sample in _samples(_Told(trainer, SAMPLES["corda"])):
            step(sample)

    preprocess_corda(model, config, run_model=run)
    for layer in layers.values():
        _with_own_weight(layer).corda_init(ADAPTER_NAME, "corda")
        layer.get_base_layer().__dict__.pop("eigens", None)


def _lora_ga(
    pl_module: Any, trainer: Any, model: nn.Module, config: Any, layers: Mapping[str, Any]
) -> None:
    from peft import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    if config.lora_ga_config is None:
        config.lora_ga_config = LoraGAConfig()
    step = _step_of(pl_module)

    def run() -> None:
        for batch in _Told(trainer, SAMPLES["lora_ga"]):
            step(batch).backward()

    with warnings.catch_warnings():  # the first layer's inputs need no gradient
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        preprocess_loraga(model, config, run)
    for layer in layers.values():
        _with_own_weight(layer).lora_ga_init(ADAPTER_NAME, config.lora_ga_config)
        layer.get_base_layer().__dict__.pop("_peft_loraga_grad", None)


def _with_own_weight(layer: Any) -> Any:
    """Return a layer whose weight may be written to: the original is kept."""
    weight = layer.get_base_layer().weight
    weight.data = weight.data.clone()
    return layer


def _samples(loader: Any) -> Iterator[Any]:
    """Yield each sample of each batch by itself, as ``peft`` reads them."""
    left = SAMPLES["corda"]
    for batch in loader:
        leaves = [t for t in tree_leaves(batch) if isinstance(t, Tensor) and t.ndim]
        size = max(map(len, leaves), default=0)
        for index in range(min(size, left)):
            yield tree_map(
                lambda leaf, index=index, size=size: (
                    leaf[index : index + 1]
                    if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size
                    else leaf
                ),
                batch,
            )
        left -= size
        if left <= 0:
            return


class _Told:
    """The batches of the train dataloader, on the module's device, with a progress bar.

    Args:
        trainer: The trainer.
        most: How many batches at most; ``None`` is an epoch.
        quiet: Whether there is no progress bar, as where the trainer has none.
    """

    def __init__(self, trainer: Any, most: int | None, quiet: bool = False) -> None:
        self.trainer = trainer
        self.quiet = quiet or trainer.progress_bar_callback is None
        self.most = most
        source = trainer.fit_loop._data_source
        if not source.is_defined():
            raise MethodError(
                "the initialisation reads data: expected a train dataloader, got none. Give one to "
                "fit(), or choose another init_lora_weights."
            )
        self.loader = source.dataloader()

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        module = self.trainer.lightning_module
        device = next(module.parameters()).device
        told = tqdm(self.loader, desc="reading data for the first values", disable=self.quiet)
        for index, batch in enumerate(told):
            if self.most is not None and index >= self.most:
                return
            yield module._apply_batch_transfer_handler(batch, device=device)


def _step_of(pl_module: Any) -> Callable[[Any], Any]:
    """Return the module's training step on a batch, as its loss."""
    if not pl_module.automatic_optimization:
        raise MethodError(
            "the initialisation runs training_step before the first step: expected automatic "
            "optimization, got manual. Call peft's own function on the backbone before the fit."
        )

    def step(batch: Any) -> Any:
        index = (0,) if len(inspect.signature(pl_module.training_step).parameters) > 1 else ()
        found = pl_module.training_step(batch, *index)
        return found["loss"] if isinstance(found, dict) else found

    return step


@contextmanager
def _as_before(pl_module: Any, backbone: nn.Module) -> Iterator[None]:
    """Leave no trace of steps: random states, modes, buffers, gradients, what is logged."""
    state = random_state()
    modes = [(module, module.training) for module in pl_module.modules()]
    buffers = [(b, b.detach().clone()) for b in pl_module.buffers()]
    gradients = [(p, p.grad, p.requires_grad) for p in pl_module.parameters()]
    for parameter in pl_module.parameters():
        parameter.grad = None
    quiet = {key: lambda *args, **kwargs: None for key in ("log", "log_dict")}
    hidden = {key: pl_module.__dict__[key] for key in quiet if key in pl_module.__dict__}
    pl_module.__dict__.update(quiet)
    try:
        yield
    finally:
        for key in quiet:
            pl_module.__dict__.pop(key, None)
        pl_module.__dict__.update(hidden)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for parameter, gradient, flag in gradients:
            parameter.grad = gradient
            parameter.requires_grad_(flag)
        restore_random_state(state)
