"""Everything that is asked of one small model with the callback."""

from __future__ import annotations

import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

import lightning_peft as lp
from lightning_peft.anatomy.quantised import quantised_layers, scheme_of
from lightning_peft.errors import PEFTError
from tests.small_models.bases import base_of, without_head
from tests.small_models.fits import BATCHES, fit
from tests.small_models.models import Small, batch_of
from tests.wild.record import plain_name

__all__ = ["CHECKS", "Line", "measure"]

CHECKS = ("trained", "loss", "resume", "files", "peft", "merge", "dense", "generate")
_CLOSE = 1e-4
"""The largest difference, as a part of the largest number: rounding, and no more."""
_PACKED = 0.02
"""By as much bitsandbytes may be off: without gradients it packs codes of layers that have no
adapter, and computes in bfloat16 (0.005 for such a Llama or Mamba-2 without any adapter)."""


@dataclass(frozen=True)
class Line:
    """What is measured: a model, what its weights are, and what is adapted.

    Attributes:
        small: The model.
        base: One of ``bases.BASES``.
        words: Settings beyond ``PEFT("lora")``.
    """

    small: Small
    base: str
    words: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name of the line."""
        return "/".join(
            [self.small.name.replace(" ", "Model"), self.base, *(["experts"] if self.words else [])]
        )


class Wrong(AssertionError):
    """What a check found."""


class Open(Exception):
    """Why a check says nothing about the package."""


def measure(line: Line, folder: Path) -> dict[str, Any]:
    """Run every check on one model.

    Args:
        line: The model.
        folder: An empty folder.

    Returns:
        ``status`` (``"ok"``, ``"refused"``, ``"wrong"`` or ``"base fails"``), ``message``,
        ``trained``, ``total``, ``kept`` and ``checks``.
    """
    began = time.monotonic()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {"status": "ok", "message": "", "checks": {}, "kept": [], "words": {}}
    try:
        _run_base(line, folder / "base")
    except Exception as error:
        return found | {"status": "base fails", "message": _told(error)}
    checks = None
    while checks is None:
        try:
            checks = _Checks(line, folder, found["kept"], found["words"])
        except PEFTError as error:
            kept, words = without_head(str(error)), _advice(str(error))
            if (not kept or found["kept"]) and (not words or found["words"]):
                return found | {"status": "refused", "message": str(error)}
            found["message"] = found["message"] or str(error)
            found["kept"], found["words"] = found["kept"] or kept, found["words"] or words
        except Exception as error:
            return found | {"status": "wrong", "message": _told(error)}
    found |= checks.counts()
    for name in CHECKS:
        found["checks"][name] = _result(getattr(checks, name))
    if any(r.startswith("wrong") for r in found["checks"].values()):
        found["status"] = "wrong"
    return found | {"seconds": round(time.monotonic() - began, 1)}


def _not_packed(model: Any) -> Any:
    """Keep bitsandbytes from packing 4-bit codes, which fails for layers as small as these."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _advice(message: str) -> dict[str, Any]:
    """Return the setting that a message offers for layers that are used only sometimes."""
    return {"check_gradients": False} if "used sometimes (check_gradients=False)" in message else {}


def _run_base(line: Line, folder: Path) -> None:
    """Train, evaluate and ask the model as it is; raise what it raises."""
    model = _not_packed(base_of(line.small, line.base, folder))
    if line.base != "float32" and not any(True for _ in quantised_layers(model)):
        raise ValueError("transformers quantises none of its layers")
    loss = model.train()(**batch_of(line.small)).loss
    if loss.requires_grad:  # a quantised base may have nothing that takes a gradient
        loss.backward()
    _output(model, line.small)
    if line.small.generates:
        _answers(model, line.small)


def _result(check: Callable[[], str | None]) -> str:
    try:
        return check() or "ok"
    except Open as reason:
        return f"open: {reason}"
    except Wrong as reason:
        return f"wrong: {reason}"
    except Exception as error:
        return f"wrong: {_told(error)}"


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" (at {Path(f.filename).name}:{f.lineno})" for f in last)
    return f"{type(error).__name__}: {str(error)[:600]}{where}"


@torch.no_grad()
def _output(model: nn.Module, small: Small) -> Tensor:
    found = model.eval()(**batch_of(small, seed=9))
    logits: Tensor = found.logits_per_image if small.kind == "pairs" else found.logits
    return logits


@torch.no_grad()
def _answers(model: Any, small: Small) -> tuple[Tensor, Tensor]:
    """Return the tokens that a model gives greedily, and the logits that they were chosen by."""
    batch = batch_of(small)
    asked = ("input_ids", "attention_mask", "input_features")
    prompt = {key: value for key, value in batch.items() if key in asked}
    found = model.eval().generate(
        **prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return found.sequences, torch.stack(found.logits)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


class _Checks:
    """One run of four epochs, and what is asked of it afterwards."""

    def __init__(self, line: Line, folder: Path, kept: list[str], words: dict[str, Any]) -> None:
        self.line, self.folder, self.kept, self.words = line, folder, kept, line.words | words
        self.module, self.run = self.fit("whole")
        self.model = self.module.model
        found = lp.find_adaptation(self.model)
        assert found is not None
        self.adaptation = found

    def fit(self, folder: str, **settings: Any) -> Any:
        """Train the model, as it was before it was trained."""
        return fit(self.base(), self.line.small, self.words, self.folder / folder, **settings)

    def base(self) -> Any:
        """Return the model, as it was before it was trained."""
        return base_of(self.line.small, self.line.base, self.folder / "base", self.kept)

    def alone(self) -> Any:
        """Return the model for others, with its codes as they are: see ``FourBit.hold``."""
        return _not_packed(self.base())

    def counts(self) -> dict[str, Any]:
        """Return the numbers of the report, and what it says is left out."""
        report = self.adaptation.report()
        return {
            "trained": report.trained,
            "total": report.total,
            "places": len(self.adaptation.sites),
            "left out": list(self.adaptation.left_out),
        }

    def trained(self) -> str | None:
        """The adapter and the head, and nothing else; every layer of the blocks has an adapter."""
        run = self.run
        wanted = {*self.adaptation.adapter_names(), *self.adaptation.head_names()}
        wanted = {f"model.{name}" for name in wanted}
        trains = {name for name, flag in run.trains.items() if flag}
        if trains - wanted:
            raise Wrong(f"trained, and neither adapter nor head: {sorted(trains - wanted)[0]}")
        moved = {name for name in run.before if run.changed(name)}
        if moved - trains:
            raise Wrong(f"frozen, and changed: {sorted(moved - trains)[0]}")
        if trains - moved:
            raise Wrong(f"said to be trained, and did not move: {sorted(trains - moved)}")
        fresh = dict(self.base().named_parameters(remove_duplicate=False))
        for name, value in run.before.items():
            own = plain_name(name.removeprefix("model."))
            if not run.trains[name] and own in fresh and not torch.equal(value, fresh[own]):
                raise Wrong(f"not that of the base: {name}")
        without = list(self._without())
        return f"ok: without an adapter: {', '.join(without)}" if without else None

    def _without(self) -> Iterator[str]:
        """Yield the linear layers outside of the head that have no adapter, nor a word of it."""
        places = {site.module for site in self.adaptation.sites}
        heads = tuple(f"{name}." for name in self.adaptation.head)
        model = self.base()
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        for name, module in model.named_modules():
            linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
            outside = module is output or name in places or f"{name}.".startswith(heads)
            if linear and not outside:
                yield name

    def loss(self) -> str | None:
        """The mean loss of the last epoch is below that of the first."""
        first, last = self.run.mean_loss(0), self.run.mean_loss(-1)
        if not last < first:
            raise Wrong(f"{first:.5g} to {last:.5g}")
        return f"ok: {first:.4g} to {last:.4g}"

    def resume(self) -> str | None:
        """A run that dies in its third epoch and goes on ends with the same bits."""
        folder = self.folder / "killed"
        try:
            self.fit("killed", stop_at=2 * BATCHES + 1)
        except RuntimeError as error:
            if str(error) != "stopped":
                raise
        (last,) = folder.glob("*.ckpt")
        held = torch.load(last, weights_only=True)["state_dict"]
        numbers = sum(tensor.numel() for tensor in held.values())
        _, again = self.fit("killed", resumed=last)
        different = [
            name
            for name, value in self.run.after.items()
            if not torch.equal(value, again.after[name])
        ]
        if different:
            raise Wrong(f"{len(different)} parameters differ, such as {different[0]}")
        report = self.adaptation.report()
        if numbers > 1.1 * report.trained + 100:
            raise Wrong(f"the checkpoint holds {numbers:,} numbers, {report.trained:,} are trained")
        return None

    def files(self) -> str | None:
        """What is saved and loaded into a fresh base gives the same bits."""
        self.adaptation.save(self.folder / "adapter")
        loaded = lp.load_adapter(self.base(), self.folder / "adapter")
        if not torch.equal(_output(loaded, self.line.small), self._adapted()):
            raise Wrong("another output after loading")
        return None

    def _adapted(self) -> Tensor:
        return _output(self.model, self.line.small)

    def peft(self) -> str | None:
        """``peft`` alone loads it into a fresh base, with the same output up to rounding."""
        folder, small = self.folder / "adapter", self.line.small
        config = json.loads((folder / "adapter_config.json").read_text())
        if "peft_type" not in config:
            raise Open("the file is in the package's own form")
        try:
            theirs = peft.PeftModel.from_pretrained(self.alone(), folder).eval()
            apart = _apart(_output(theirs, small), self._adapted())
        except Exception as error:
            own = peft.PeftConfig.from_pretrained(folder)
            try:
                _output(peft.get_peft_model(self.alone(), own), small)
            except Exception:
                raise Open(f"peft alone fails here: {_told(error)}") from error
            raise
        told = None
        if not apart < _CLOSE and any(site.in_weight for site in self.adaptation.sites):
            theirs = theirs.merge_and_unload().eval()
            apart = _apart(_output(theirs, small), self._adapted())
            told = "ok: merged; unmerged, it has no effect in peft where a weight is read"
        if not apart < _CLOSE:
            raise Wrong(f"the outputs differ by {apart:.1g} of the largest")
        return self._same_answers(theirs, "peft") or told

    def merge(self) -> str | None:
        """Merged, the output is the same up to rounding, or codes measure the loss or refuse."""
        before = self._adapted()
        bare = _output(self.alone(), self.line.small)
        try:
            report = self.adaptation.merge()
        except PEFTError as error:
            raise Open(f"refused: {error}") from error
        apart, own = _apart(self._adapted(), before), _apart(bare, before)
        self.adaptation.unmerge()
        if self._numbers() and not apart < _CLOSE:
            raise Wrong(f"the outputs differ by {apart:.1g} of the largest")
        self._again(before)
        return f"ok: {report.weight_difference:.1g} in a layer, {apart:.1g} of {own:.1g} in all"

    def _again(self, before: Tensor) -> None:
        """Ask for the output of before: exactly where all places hold codes, which are kept."""
        now, layers = (
            self._adapted(),
            [self.model.get_submodule(s.module) for s in self.adaptation.sites],
        )
        exact = all(scheme_of(getattr(layer, "base_layer", layer)) for layer in layers)
        if not (torch.equal(now, before) if exact else _apart(now, before) < _CLOSE):
            raise Wrong(f"unmerged, the output is another one, by {_apart(now, before):.1g}")

    def _numbers(self) -> bool:
        return self.line.base == "float32"

    def dense(self) -> str | None:
        """The layers made dense compute the same, up to the rounding of int8's inputs."""
        if self._numbers():
            raise Open("nothing is quantised")
        before = self._adapted()
        try:
            self.adaptation.merge(dequantize=True)
        except PEFTError as error:
            raise Open(f"refused: {error}") from error
        apart = _apart(self._adapted(), before)
        self.adaptation.unmerge()
        self._again(before)
        if not apart < (0.1 if self.line.base == "int8" else _CLOSE):
            raise Wrong(f"the outputs differ by {apart:.1g} of the largest")
        return f"ok: {apart:.1g}"

    def generate(self) -> str | None:
        """Merged into numbers, it answers a prompt as before; and not by the base's logits."""
        small = self.line.small
        if not small.generates:
            raise Open("does not generate")
        before = _answers(self.model, small)
        if _apart(_answers(self.alone(), small)[1], before[1]) < 0.01:
            raise Wrong("its answers are the base's")
        settings = {} if self._numbers() else {"dequantize": True}
        try:
            merged = self.adaptation.merge_and_unload(**settings)
        except PEFTError as error:
            raise Open(f"refused: {error}") from error
        return self._same_answers(merged, "merged", before)

    def _same_answers(self, model: Any, whose: str, wanted: Any = None) -> str | None:
        small = self.line.small
        if not small.generates:
            return None
        wanted = _answers(self.model, small) if wanted is None else wanted
        found = _answers(model, small)
        parts = float((found[0] == wanted[0]).float().mean())
        if self.line.base == "int8" and whose == "merged":  # its inputs are no longer rounded
            return f"ok: {parts:.0%} of the tokens"
        apart = _apart(found[1], wanted[1])
        if self.line.base == "nf4" and whose == "merged" and 10 * _CLOSE <= apart < _PACKED:
            return f"ok: {parts:.0%} of the tokens, logits {apart:.1g} off"
        if parts < 1 or not apart < 10 * _CLOSE:
            raise Wrong(f"{whose}: {parts:.0%} of the tokens are the same, logits {apart:.1g} off")
        return None
