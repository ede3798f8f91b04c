"""Exporting a trained model to a file that can be used without lightning-peft.

| format | content | for |
|---|---|---|
| ``safetensors`` | the merged backbone under its own names | timm, transformers |
| ``adapter`` | the adapter alone, in ``peft``'s format if it can express it | this, peft |
| ``torch-export`` | the graph of the model, merged if it can be | torch |
| ``onnx`` | the same graph | onnxruntime and others |

A small JSON file beside each describes the inputs and outputs of the model.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_peft.adaptation.handle import Adaptation, find_adaptation
from lightning_peft.adaptation.serving.example_inputs import by_name, computed, examples_for
from lightning_peft.adaptation.serving.tracing import (
    ONNX_LIMIT,
    Trace,
    run_onnx,
    run_torch_export,
    trace,
)
from lightning_peft.anatomy.forward import output_of
from lightning_peft.backbones.data_config import DataConfig, data_config
from lightning_peft.errors import DiskError, ExportError, MethodError, near, require
from lightning_peft.evaluation.outputs import Outputs
from lightning_peft.files.writing import CONFIG_FILE, versions
from lightning_peft.system.atomic import written_whole

__all__ = ["FORMATS", "ExportReport", "card_path", "check_format", "export_model"]

FORMATS = ("safetensors", "adapter", "torch-export", "onnx")
CARD_VERSION = 1
_TOLERATED = 0.1  # rounding to half precision stays below it; a wrong graph does not


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        format: One of :data:`FORMATS`.
        path: The file, or the adapter's directory.
        card: The JSON file beside it.
        bytes: The size of the export, without the JSON file.
        merged: Whether the adapter is merged, so that none is left in it.
        output_difference: The largest difference between the output of the file, read back, and
            that of the model, relative to the largest output; ``None`` if nothing was run.
        any_batch: Whether it takes any number of samples; only a graph may not.
        note: Why it differs from what one might expect; empty if it does not.

    >>> import tempfile
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     report = lp.export_model(lp.adapt(net, "lora", rank=2), f"{directory}/net.safetensors")
    ...
    >>> report.format, report.merged
    ('safetensors', True)
    """

    format: str
    path: Path
    card: Path
    bytes: int
    merged: bool
    output_difference: float | None = None
    any_batch: bool = True
    note: str = ""


def export_model(
    model: Adaptation | nn.Module,
    path: str | PathLike[str],
    format: str = "safetensors",
    *,
    example_inputs: Any = None,
    preprocessing: DataConfig | None = None,
    class_names: Sequence[str] | None = None,
    outputs: Outputs | None = None,
) -> ExportReport:
    """Write a model for serving; the model itself stays as it is.

    A file is written under a temporary name, read back, compared with the model, and only then
    renamed.

    Args:
        model: An adaptation, an adapted backbone, or a plain model.
        path: The file, or for ``"adapter"`` the directory; an existing one is replaced.
        format: One of :data:`FORMATS`.
        example_inputs: A batch for the model's forward (a tensor, a tuple of positional or a
            mapping of keyword arguments); by default random images, if the model says
            which it expects.
        preprocessing: How images are prepared; by default the backbone's own configuration.
        class_names: The meaning of each output.
        outputs: How outputs are read (which the file itself does not do): the task, the
            temperature, the mean and deviation of numbers.

    Returns:
        The written files, and the difference between their output and the model's.

    Raises:
        ExportError: If there is no such format, the model cannot be written in it, example inputs
            are needed and missing, the file cannot be written, or its output differs.
        AdapterFileError: If an adapter is to be written and it is merged.
        MethodError: If the adapter is switched off, or in another state in which this is refused.
        MissingExtraError: For ``"onnx"``, without its packages.

    >>> import tempfile, torch
    >>> from torch import nn
    >>> import lightning_peft as lp
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = f"{directory}/net.safetensors"
    ...     report = lp.export_model(lp.adapt(net, "lora"), path, example_inputs=torch.ones(2, 4))
    ...
    >>> report.output_difference
    0.0
    """
    check_format(format)
    adaptation = model if isinstance(model, Adaptation) else find_adaptation(model)
    if adaptation is not None:
        adaptation.state.ask("export_model()")
    network = adaptation.model if adaptation is not None else model
    assert isinstance(network, nn.Module)
    if preprocessing is None and hasattr(network, "pretrained_cfg"):
        preprocessing = data_config(network)
    target = Path(path)
    try:
        if format == "adapter":
            report = _write_adapter(adaptation, target)
        else:
            examples = examples_for(network, example_inputs, preprocessing, format)
            inputs = by_name(network, examples)
            positional = not isinstance(examples, Mapping)
            report = _write_file(network, format, target, inputs, positional)
        card = _card(report, network, adaptation, preprocessing, class_names)
        card["outputs"] = None if outputs is None else outputs.to_dict()
        with written_whole(report.card) as temporary:
            temporary.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    except DiskError as error:
        raise ExportError(f"{format}: it cannot be written. {error}") from error
    except OSError as error:
        raise ExportError(f"cannot write to {target}: {error}") from error
    return report


def check_format(format: str) -> None:
    """Refuse an unknown format.

    Raises:
        ExportError: With similar names.
    """
    if format not in FORMATS:
        raise ExportError(f"there is no format '{format}'. {near(format, FORMATS)}")


def card_path(path: Path, format: str) -> Path:
    """Return the path of the JSON file of an export."""
    return path / "export.json" if format == "adapter" else path.with_name(f"{path.name}.json")


def _write_adapter(adaptation: Adaptation | None, target: Path) -> ExportReport:
    if adaptation is None:
        raise ExportError(
            "adapter: expected an adapted model, got a plain one. Export it as safetensors."
        )
    adaptation.save(target)
    size = sum(file.stat().st_size for file in target.glob("adapter_*"))
    card = card_path(target, "adapter")
    by_peft = "peft_type" in json.loads((target / CONFIG_FILE).read_text(encoding="utf-8"))
    note = "" if by_peft else "It is in the format of lightning-peft; peft alone cannot hold it."
    return ExportReport("adapter", target, card, size, merged=False, note=note)


def _write_file(
    network: nn.Module,
    format: str,
    target: Path,
    inputs: dict[str, Any] | None,
    positional: bool,
) -> ExportReport:
    expected = None if inputs is None else computed(network, inputs, format)
    plain, refusal = _merged_copy(network)
    if format == "safetensors":
        if refusal:
            raise ExportError(
                f"safetensors: expected an adapter that can be merged into the backbone's own "
                f"weights. {refusal} Export it as torch-export or onnx, which take the adapted "
                "model as it is, or as adapter."
            )
        found: Trace | None = None
        write: Callable[[Path], None] = lambda path: _save_weights(plain, path)  # noqa: E731
        read: Callable[[Path, Any], Tensor] = lambda path, x: _run_weights(plain, path, x)  # noqa: E731
    else:
        assert inputs is not None
        if format == "onnx":
            _refuse_for_onnx(plain)
        found = trace(plain, inputs, positional=positional)
        if found.any_batch:
            inputs = found.inputs
            expected = output_of(network, inputs).cpu()
        write = found.write_torch_export if format == "torch-export" else found.write_onnx
        if format == "torch-export":
            read = partial(run_torch_export, positional=positional)
        else:
            read = run_onnx
    with written_whole(target) as temporary:
        write(temporary)
        difference = None
        if inputs is not None and expected is not None:
            difference = _difference(read(temporary, inputs), expected, format)
    return ExportReport(
        format=format,
        path=target,
        card=card_path(target, format),
        bytes=target.stat().st_size,
        merged=not refusal,
        output_difference=difference,
        any_batch=found is None or found.any_batch,
        note=refusal and f"The adapter is in the graph beside the backbone: {refusal}",
    )


def _merged_copy(network: nn.Module) -> tuple[nn.Module, str]:
    """Copy a model and fold its adapter in; return the copy, and why this failed if it did."""
    twin = copy.deepcopy(network)
    adaptation = find_adaptation(twin)
    if adaptation is None:
        return twin, ""
    try:
        return adaptation.merge_and_unload(), ""
    except MethodError as error:
        return twin, str(error)


def _save_weights(plain: nn.Module, path: Path) -> None:
    from safetensors.torch import save_file

    # copies: safetensors refuses tensors that share memory, and a plain load_state_dict needs tied
    # weights under each of their names
    state = {n: t.detach().cpu().contiguous().clone() for n, t in plain.state_dict().items()}
    save_file(state, path, metadata={"format": "pt"})


def _run_weights(plain: nn.Module, path: Path, inputs: Any) -> Tensor:
    from safetensors.torch import load_file

    plain.load_state_dict(load_file(path))
    return output_of(plain, inputs).cpu()


def _refuse_for_onnx(plain: nn.Module) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require(module, "onnx")
    size = sum(tensor.nbytes for tensor in plain.state_dict().values())
    if size > ONNX_LIMIT:
        raise ExportError(
            f"onnx: expected at most {ONNX_LIMIT / 1e9:.0f} GB of weights, which one file can hold,"
            f" got {size / 1e9:.1f} GB. Export it as torch-export or safetensors."
        )


def _difference(got: Tensor, expected: Tensor, format: str) -> float:
    difference = float((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not difference <= _TOLERATED:  # NaN too
        raise ExportError(
            f"{format}: the file, read back, differs from the model's output by {difference:.2g} "
            f"of its largest value; expected at most {_TOLERATED}. Nothing was written. Is the "
            "model's output random, or not finite, in evaluation mode?"
        )
    return difference


def _card(
    report: ExportReport,
    network: nn.Module,
    adaptation: Adaptation | None,
    preprocessing: DataConfig | None,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    pretrained: Any = getattr(network, "pretrained_cfg", None) or {}
    return {
        "format_version": CARD_VERSION,
        "format": report.format,
        "bytes": report.bytes,
        "merged": report.merged,
        "output_difference": report.output_difference,
        "any_batch": report.any_batch,
        "architecture": pretrained.get("architecture"),
        "method": None if adaptation is None else adaptation.method.to_config(),
        "preprocessing": None if preprocessing is None else dataclasses.asdict(preprocessing),
        "class_names": None if class_names is None else [str(name) for name in class_names],
        "versions": versions(),
    }
