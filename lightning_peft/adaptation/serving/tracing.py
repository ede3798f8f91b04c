"""Writing a model as a graph: ``torch.export`` and ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_peft.anatomy.forward import first_tensor
from lightning_peft.errors import ExportError, require

__all__ = ["ONNX_LIMIT", "OUTPUT", "Trace", "run_onnx", "run_torch_export", "trace"]

ONNX_LIMIT = 2_000_000_000
"""Bytes of weights that one ONNX file can hold: protobuf's limit, rounded down."""

OUTPUT = "output"
"""The name of the output in an ONNX file."""


@dataclass(frozen=True)
class Trace:
    """A traced model.

    Attributes:
        program: The exported program.
        inputs: Example inputs by name, as they were traced.
        any_batch: Whether the graph takes any number of samples, not only that of the examples.
    """

    program: torch.export.ExportedProgram
    inputs: dict[str, Any]
    any_batch: bool

    def write_torch_export(self, path: Path) -> None:
        """Write a ``.pt2`` file."""
        with path.open("wb") as file:  # given a path, torch requires the suffix .pt2
            torch.export.save(self.program, file)

    def write_onnx(self, path: Path) -> None:
        """Write an ``.onnx`` file.

        Raises:
            MissingExtraError: Without ``onnx`` and ``onnxscript``.
            ExportError: If an operation of the model has no counterpart in ONNX.
        """
        require("onnx", "onnx")
        require("onnxscript", "onnx")
        with _quiet_exporter():
            try:
                program = torch.onnx.export(
                    self.program,
                    input_names=list(self.inputs),
                    output_names=[OUTPUT],
                    dynamo=True,
                    verbose=False,
                )
            except torch.onnx.errors.OnnxExporterError as error:
                told = next((line for line in str(error).splitlines() if line.strip()), "")
                raise ExportError(
                    f"onnx: torch.onnx cannot write this model: {told} Export it as torch-export."
                ) from error
        assert program is not None
        program.save(str(path))


def trace(model: nn.Module, inputs: Mapping[str, Any], *, positional: bool) -> Trace:
    """Trace a model in evaluation mode.

    If the model allows it, the graph takes any number of samples, and any length of integer inputs
    ``(B, L)`` (the tokens of a text).

    Args:
        model: The model; its modes are restored.
        inputs: Example inputs by the names of the arguments of its forward.
        positional: Whether the graph is called by position or by these names.

    Returns:
        The trace.

    Raises:
        ExportError: If ``torch.export`` cannot follow the model.
    """
    # torch.export treats a dimension of 0 or 1 as a constant
    several = {name: _at_least_two(value) for name, value in inputs.items()}
    modes = [(module, module.training) for module in model.modules()]
    # graphs support no output classes and no caches; a hook keeps the names of the arguments
    hook = model.register_forward_hook(lambda module, args, output: first_tensor(output))
    model.eval()
    try:
        try:
            program, any_batch = _export(model, several, positional, _free_sizes(several)), True
        except Exception:  # perhaps the model's use of sizes; the second try tells
            # copies: torch.export marked the tensors of the first try
            exact = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
            program, any_batch = _export(model, exact, positional, None), False
    except Exception as error:
        told = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ExportError(
            f"torch.export cannot follow {type(model).__name__}: {told} "
            "Export it as safetensors or as an adapter, and serve it from Python."
        ) from error
    finally:
        hook.remove()
        for module, mode in modes:
            module.training = mode
    return Trace(program, several if any_batch else dict(inputs), any_batch)


def run_torch_export(path: Path, inputs: Mapping[str, Any], *, positional: bool) -> Tensor:
    """Load a ``.pt2`` file and run it; return its output, in float32 on the CPU."""
    with path.open("rb") as file:
        program: Callable[..., Tensor] = torch.export.load(file).module()
    with torch.no_grad():
        output = program(*inputs.values()) if positional else program(**inputs)
    return output.float().cpu()


def run_onnx(path: Path, inputs: Mapping[str, Any]) -> Tensor:
    """Load an ``.onnx`` file into onnxruntime and run it; return its output, in float32 on the CPU.

    Raises:
        MissingExtraError: Without ``onnxruntime``.
    """
    runtime = require("onnxruntime", "onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = [entry.name for entry in session.get_inputs()]
    given = {name: inputs[name].detach().cpu().numpy() for name in wanted}
    return torch.from_numpy(session.run([OUTPUT], given)[0]).float()


def _export(
    model: nn.Module, inputs: dict[str, Any], positional: bool, sizes: dict[str, Any] | None
) -> torch.export.ExportedProgram:
    args = tuple(inputs.values()) if positional else ()
    kwargs = None if positional else inputs
    with torch.no_grad(), warnings.catch_warnings():
        # attributes that a module sets during its forward are not part of the graph
        warnings.filterwarnings("ignore", message="The tensor attributes? .* assigned during")
        return torch.export.export(model, args, kwargs=kwargs, dynamic_shapes=sizes)


def _at_least_two(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


def _free_sizes(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return which sizes may vary: the first of every tensor, and the length of a text."""
    free: dict[str, Any] = {}
    for name, value in inputs.items():
        free[name] = None
        if isinstance(value, Tensor) and value.ndim:
            free[name] = {0: torch.export.Dim.DYNAMIC}
            if value.ndim == 2 and not value.is_floating_point():
                free[name][1] = torch.export.Dim.DYNAMIC
    return free


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's messages about itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield
