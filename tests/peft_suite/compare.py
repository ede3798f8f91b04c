"""One configuration through ``lp.adapt`` and through ``peft``, on equal models."""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lightning_peft as lp
from tests.peft_suite.rows import Row

__all__ = ["compare"]

_PREFIX = "base_model.model."
_SAVED = ".modules_to_save.default"
_WEIGHTS = "adapter_model.safetensors"
_CLOSE = 1e-4
"""The largest difference, as a part of the largest number: rounding, and no more."""


def compare(row: Row) -> dict[str, Any]:
    """Return what is to be known of a row: its status, and why.

    The status is ``"equal"``, ``"refused"`` (by this package, before the model was changed),
    ``"different"``, or ``"peft fails"``.
    """
    torch.manual_seed(1)
    inputs = row.inputs()
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        redirect_stderr(io.StringIO()),  # FRoD's own progress
    ):
        warnings.simplefilter("ignore")
        try:
            theirs = _by_peft(row)
            _run(theirs, inputs)
        except Exception as error:
            return {"status": "peft fails", "message": _text(error)}
        try:
            adaptation, wrapped = _by_us(row)
        except lp.PEFTError as error:
            return {"status": "refused", "message": _text(error)}
        except Exception as error:
            return {"status": "different", "message": f"adapt: {_text(error)}"}
        pair = _Pair(row, theirs, adaptation, wrapped, inputs, Path(folder))
        told = pair.different()
    if told:
        message = "; ".join(told).replace(f"{folder}/", "")
        return {"status": "different", "message": message}
    return {"status": "equal", "message": "; ".join(pair.notes)}


def _by_peft(row: Row) -> Any:
    import peft

    model = row.model()
    torch.manual_seed(2)
    return peft.get_peft_model(model, row.config()).eval()


def _by_us(row: Row) -> tuple[lp.Adaptation, bool]:
    """Return the adaptation, and whether it is that of a ``PeftModel``, as a message advised."""
    model, wrapped = row.model(), False
    torch.manual_seed(2)
    try:
        adaptation = lp.adapt(model, row.config())
    except lp.PEFTError as error:
        if "get_peft_model" not in str(error) or not _takes_existing():
            raise
        adaptation, wrapped = lp.adapt(_by_peft(row), "existing"), True
    adaptation.model.eval()
    return adaptation, wrapped


def _takes_existing() -> bool:
    from lightning_peft.methods.registry import load_plugins, method_class

    load_plugins()
    try:
        method_class("existing")
    except lp.PEFTError:
        return False
    return True


class _Pair:
    """The same configuration twice."""

    def __init__(
        self,
        row: Row,
        theirs: Any,
        adaptation: lp.Adaptation,
        wrapped: bool,
        inputs: dict[str, Tensor],
        folder: Path,
    ) -> None:
        self.row, self.wrapped, self.inputs, self.folder = row, wrapped, inputs, folder
        self.theirs, self.adaptation, self.ours = theirs, adaptation, adaptation.model
        self.backbone = row.model()
        self.notes: list[str] = ["through peft's own wrapper"] if wrapped else []

    def different(self) -> list[str]:
        """Return what is different, by check."""
        told: list[str] = []
        checks: list[tuple[str, Callable[[], Iterator[str]]]] = [
            ("trained", self._trained),
            ("start", self._outputs),
            ("values", self._copy),
            ("outputs", self._outputs),
            ("gradients", self._gradients),
            ("disabled", self._disabled),
            ("our file", self._our_file),
            ("peft's file", self._their_file),
            ("merged", self._merged),
        ]
        for name, check in checks:
            try:
                told += [f"{name}: {text}" for text in check()]
            except Exception as error:
                told.append(f"{name}: {_text(error)}")
            if told and name in ("trained", "values"):
                break  # all that follows would be different, too
        return told

    def _their_names(self) -> dict[str, str]:
        """Return peft's name of each parameter and buffer, by the name in a model without it."""
        names = [n for n, _ in self.theirs.named_parameters(remove_duplicate=False)]
        names += [n for n, _ in self.theirs.named_buffers(remove_duplicate=False)]
        if self.wrapped:
            return {name: name for name in names}
        return {
            name.removeprefix(_PREFIX).replace(_SAVED, ""): name
            for name in names
            if name.startswith(_PREFIX) and ".original_module." not in name
        }

    def _trained(self) -> Iterator[str]:
        theirs = dict(self.theirs.named_parameters(remove_duplicate=False))
        named = {
            ours for ours, name in self._their_names().items()
            if name in theirs and theirs[name].requires_grad
        }  # fmt: skip
        own = {n for n, p in self.ours.named_parameters(remove_duplicate=False) if p.requires_grad}
        for who, only in (("we", own - named), ("peft", named - own)):
            if only:
                yield f"only {who}: {', '.join(sorted(only)[:4])} ({len(only)})"

    def _copy(self) -> Iterator[str]:
        """Move peft's trained weights, and copy all that it added into our model."""
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in self.theirs.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        theirs = {
            **dict(self.theirs.named_parameters(remove_duplicate=False)),
            **dict(self.theirs.named_buffers(remove_duplicate=False)),
        }
        names = self._their_names()
        own = self.ours
        with torch.no_grad():
            for name, tensor in (*own.named_parameters(remove_duplicate=False),
                                 *own.named_buffers(remove_duplicate=False)):  # fmt: skip
                other = theirs.get(names.get(name, ""))
                if other is None:
                    continue
                if other.shape != tensor.shape:
                    yield f"{name} has {tuple(tensor.shape)}, peft's {tuple(other.shape)}"
                elif getattr(tensor, "requires_grad", False) or not torch.equal(tensor, other):
                    tensor.copy_(other)

    def _outputs(self) -> Iterator[str]:
        yield from _far(_run(self.ours, self.inputs), _run(self.theirs, self.inputs))

    def _gradients(self) -> Iterator[str]:
        for model in (self.ours, self.theirs):
            model.zero_grad()
            with _training_without_dropout(model):
                torch.manual_seed(4)
                _loss(model, self.inputs).backward()
        theirs = dict(self.theirs.named_parameters(remove_duplicate=False))
        names = self._their_names()
        for name, parameter in self.ours.named_parameters():
            if not parameter.requires_grad:
                continue
            own, other = parameter.grad, theirs[names[name]].grad
            own = torch.zeros_like(parameter) if own is None else own
            other = torch.zeros_like(parameter) if other is None else other
            for text in _far([own], [other]):
                yield f"{name}: {text}"
                return

    def _disabled(self) -> Iterator[str]:
        try:
            with self.theirs.disable_adapter():
                expected = _run(self.theirs, self.inputs)
        except Exception as error:
            self.notes.append(f"switched off: peft fails: {_text(error)}")
            expected = _run(self.backbone, self.inputs)
        with self.adaptation.disabled():
            found = _run(self.ours, self.inputs)
        told = list(_far(found, expected))
        if told and not list(_far(found, _run(self.backbone, self.inputs))):
            self.notes.append("switched off: the backbone's output, which peft's is not")
            told = []
        if told and not list(_far(found, self._with_our_head())):
            self.notes.append("switched off: the trained head stays")
            told = []
        yield from told

    def _with_our_head(self) -> list[Tensor]:
        """Return the output of the backbone with the head that was trained."""
        twin = copy.deepcopy(self.backbone)
        own, roots = self.ours.state_dict(), tuple(f"{name}." for name in self.adaptation.head)
        named = {n: own[n] for n in twin.state_dict() if n.startswith(roots) and n in own}
        twin.load_state_dict(named, strict=False)
        return _run(twin, self.inputs)

    def _our_file(self) -> Iterator[str]:
        import peft

        ours, theirs = self.folder / "ours", self.folder / "theirs"
        self.theirs.save_pretrained(theirs)
        self.adaptation.save(ours)
        own, other = load_file(ours / _WEIGHTS), load_file(theirs / _WEIGHTS)
        for who, only in (("we", own.keys() - other.keys()), ("peft", other.keys() - own.keys())):
            if only:
                yield f"only {who}: {', '.join(sorted(only)[:4])} ({len(only)})"
        for name in own.keys() & other.keys():
            if own[name].shape != other[name].shape:
                yield f"{name} has {tuple(own[name].shape)}, peft's {tuple(other[name].shape)}"
            else:
                for text in _far([own[name]], [other[name]]):
                    yield f"{name}: {text}"
        torch.manual_seed(5)
        loaded = peft.PeftModel.from_pretrained(self.row.model(), ours).eval()
        for text in _far(_run(loaded, self.inputs), _run(self.ours, self.inputs)):
            yield f"loaded by peft: {text}"

    def _their_file(self) -> Iterator[str]:
        torch.manual_seed(5)
        model = _by_peft(self.row) if self.wrapped else self.row.model()
        if self.wrapped:
            lp.adapt(model, "existing")
        try:
            loaded = lp.load_adapter(model, self.folder / "theirs").eval()
        except lp.AdapterFileError as error:
            if not self.wrapped or "PeftModel.from_pretrained" not in str(error):
                raise
            self.notes.append("its file: by PeftModel.from_pretrained, as the message says")
            return
        yield from _far(_run(loaded, self.inputs), _run(self.theirs, self.inputs))

    def _merged(self) -> Iterator[str]:
        before = _run(self.ours, self.inputs)
        try:
            self.theirs.merge_adapter()
            expected = _run(self.theirs, self.inputs)
            self.theirs.unmerge_adapter()
        except Exception as error:
            expected = None
            reason = _text(error)
        try:
            self.adaptation.merge()
        except lp.PEFTError as error:
            if expected is not None and not list(_far(expected, before)):
                yield f"refused: {_text(error)}"
            return
        found = _run(self.ours, self.inputs)
        told = list(_far(found, before if expected is None else expected))
        if told and not list(_far(found, before)):
            self.notes.append("merged: the output stays, peft's does not")
            told = []
        elif expected is None and not told:
            self.notes.append(f"merged: peft does not: {reason}")
        yield from told
        self.adaptation.unmerge()
        for text in _far(_run(self.ours, self.inputs), before):
            yield f"and taken out again: {text}"


def _run(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        torch.manual_seed(6)
        return _numbers(model(**inputs))


def _loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    outputs = _numbers(model(**inputs))
    torch.manual_seed(7)
    return torch.stack([(out * torch.randn_like(out)).mean() for out in outputs]).sum()


def _numbers(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    found = [outputs[k] for k in outputs if k != "past_key_values"]
    return [t for t in found if isinstance(t, Tensor) and t.is_floating_point()]


@contextmanager
def _training_without_dropout(model: nn.Module) -> Iterator[None]:
    changed: list[tuple[nn.Dropout, float]] = []
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            changed.append((module, module.p))
            module.p = 0.0
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    yield
    for module, p in changed:
        module.p = p
    model.eval()


def _far(found: list[Tensor], expected: list[Tensor]) -> Iterator[str]:
    """Yield how far apart two lists of tensors are, if they are."""
    if [t.shape for t in found] != [t.shape for t in expected]:
        yield f"{[tuple(t.shape) for t in found]}, peft's {[tuple(t.shape) for t in expected]}"
        return
    for own, other in zip(found, expected, strict=True):
        if own.numel() == 0:
            continue
        size = float(other.abs().max())
        most = float((own.to(other.dtype) - other).abs().max())
        if not most <= _CLOSE * size + 1e-7:
            yield f"{most:.2g} away from numbers up to {size:.2g}"
            return


def _text(error: Exception) -> str:
    kind = "" if isinstance(error, lp.PEFTError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())[:400]
