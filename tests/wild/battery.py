"""Everything that is asked of one foreign module."""

from __future__ import annotations

import inspect
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning_peft as lp
from lightning_peft.errors import BackboneMismatchError, PEFTError
from tests.wild import parts
from tests.wild.case import Case
from tests.wild.record import Record, listen
from tests.wild.trainers import advice, build, evaluate, fit, loader, seed

__all__ = ["CHECKS", "measure"]

CHECKS = (
    "step 0", "frozen", "new parts", "loss", "validate", "resume", "test", "load", "merge",
    "own file", "package",
)  # fmt: skip


class Wrong(AssertionError):
    """What a check found."""


class Refused(Exception):
    """The callback refuses what a check does, with the reason."""


class Open(Exception):
    """Why a check says nothing about the package."""


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Run every check on one module.

    Args:
        case: The module.
        folder: An empty folder.

    Returns:
        A line of the results: ``status``, ``words``, ``message``, ``said`` and ``checks``.
    """
    began = time.monotonic()
    line: dict[str, Any] = {"name": case.name, "words": {}, "message": "", "checks": {}}
    try:
        plain = fit(case, [], folder / "plain")
    except Exception as error:
        return line | {"status": "not run", "message": _told(error)}
    line |= _measured(case, folder, plain, {})
    asked = _said_head(line)
    if asked:  # a guess that the first lines call uncertain, with the word that makes it certain
        doubt = "; ".join(text.partition("not certain: ")[2] for text in line["said"])
        again = _measured(case, folder / "asked", plain, line["words"] | asked)
        line |= again | {"message": line["message"] or doubt}
    line["seconds"] = round(time.monotonic() - began, 1)
    return line


def _measured(case: Case, folder: Path, plain: Any, words: dict[str, Any]) -> dict[str, Any]:
    """Fit with some words, follow the errors that name others, and run the checks."""
    line: dict[str, Any] = {"message": ""}
    fitted = None
    for _ in range(3):
        try:
            with listen() as said:
                fitted = fit(case, [lp.PEFT("lora", **words)], folder / f"peft{len(words)}")
            break
        except PEFTError as error:
            line["message"] = line["message"] or str(error)
            proposed = advice(str(error)) or dict(case.words)
            if not proposed or proposed.items() <= words.items():
                proposed = dict(case.words)
            if not proposed or proposed.items() <= words.items():
                return line | {"status": "refused", "message": str(error), "words": words}
            words = words | proposed
        except Exception as error:
            return line | {"status": "wrong", "message": _told(error), "words": words}
    if fitted is None:
        return line | {"status": "refused", "words": words}
    line["words"], line["said"] = words, said
    checks = _Checks(case, folder, words, plain, fitted)
    line["checks"] = {name: _result(checks.by_name[name]) for name in CHECKS}
    failed = {k: v for k, v in line["checks"].items() if v.startswith("wrong")}
    line["words"] = words | checks.later
    refused = [v for v in line["checks"].values() if v.startswith("refused")]
    if refused and not failed:
        return line | {"status": "refused", "message": refused[0].partition(": ")[2]}
    works = "with words" if line["words"] else "one line"
    return line | {"status": "wrong" if failed else works}


def _said_head(line: dict[str, Any]) -> dict[str, Any]:
    """Return the head that the first lines propose, where new parts were not trained."""
    if not line["checks"].get("new parts", "").startswith("wrong: new"):
        return {}
    proposed = advice("; ".join(text.partition("not certain: ")[2] for text in line["said"]))
    return {key: value for key, value in proposed.items() if key == "head"}


def _result(check: Callable[[], str | None]) -> str:
    try:
        return check() or "ok"
    except Open as reason:
        return f"open: {reason}"
    except Refused as reason:
        return f"refused: {reason}"
    except Exception as error:
        return f"wrong: {error if isinstance(error, Wrong) else _told(error)}"


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" (at {Path(f.filename).name}:{f.lineno})" for f in last)
    return f"{type(error).__name__}: {str(error)[:600]}{where}"


class _Checks:
    def __init__(
        self, case: Case, folder: Path, words: dict[str, Any], plain: Any, fitted: Any
    ) -> None:
        self.case, self.folder, self.words = case, folder, words
        self.plain_module, _, self.plain = plain
        self.module, self.trainer, self.run = fitted
        self.metrics: list[float] = []
        self.unstable: set[int] = set()
        self.later: dict[str, Any] = {}
        self.by_name: dict[str, Callable[[], str | None]] = {
            "step 0": self.step_0, "frozen": self.frozen, "new parts": self.new_parts,
            "loss": self.loss, "validate": self.validate, "resume": self.resume,
            "test": self.test, "load": self.load, "merge": self.merge,
            "own file": self.own_file, "package": self.package,
        }  # fmt: skip

    def callbacks(self) -> list[Any]:
        return [lp.PEFT("lora", **self.words)]

    def step_0(self) -> str | None:
        module, _ = build(self.case)
        bare = evaluate(self.case, module, self.folder)
        module, _ = build(self.case)
        adapted = evaluate(self.case, module, self.folder, self.callbacks())
        if not bare:
            raise Open("validation gives no number")
        return self._close(bare, adapted, "without and with the fresh adapter")

    def frozen(self) -> str | None:
        for problem in parts.changed_although_frozen(self.plain, self.run):
            raise Wrong(problem)
        return None

    def new_parts(self) -> str | None:
        for problem in parts.misplaced(self.plain, self.run, self.case.backbone, self.case.new):
            raise Wrong(problem)
        trained = sum(self.run.before[k].numel() for k, v in self.run.trains.items() if v)
        return f"ok: {trained:,} of {sum(p.numel() for p in self.run.before.values()):,} trained"

    def loss(self) -> str | None:
        if self.case.falls:
            raise Open(self.case.falls)
        if not self.run.losses:
            raise Open("manual optimization gives no loss")
        first, last = self.run.mean_loss(0), self.run.mean_loss(-1)
        if last < first:
            return f"ok: {first:.4g} to {last:.4g}"
        if self.plain.mean_loss(-1) >= self.plain.mean_loss(0):
            raise Open("nor does it fall without the callback")
        raise Wrong(f"{first:.5g} to {last:.5g}; without the callback to "
                    f"{self.plain.mean_loss(-1):.5g}")  # fmt: skip

    def validate(self) -> str | None:
        first = evaluate(self.case, self.module, self.folder, self.callbacks())
        self.metrics = evaluate(self.case, self.module, self.folder, self.callbacks())
        # some modules go on counting from one validation to the next
        pairs = zip(first, self.metrics, strict=True)
        self.unstable = {place for place, (a, b) in enumerate(pairs) if a != b and a == a}
        bare = evaluate(self.case, self.plain_module, self.folder)
        if len(bare) != len(self.metrics):
            raise Wrong(f"{len(self.metrics)} numbers, {len(bare)} without the callback")
        if any(map(math.isnan, self.metrics)) and not any(map(math.isnan, bare)):
            raise Wrong("a number is NaN")
        return None

    def resume(self) -> str | None:
        again = self._resumed(self.callbacks(), self.trainer.default_root_dir)
        different = parts.different(self.run, again)
        if not different:
            return None
        bare = parts.different(self.plain, self._resumed([], self.folder / "plain"))
        if bare:
            raise Open(f"nor is it equal without the callback ({bare[0]})")
        raise Wrong(f"{len(different)} parameters differ, {different[0]}")

    def _resumed(self, callbacks: list[Any], folder: Any) -> Record:
        (middle,) = Path(folder).glob(f"epoch={self.case.epochs // 2 - 1}*.ckpt")
        return fit(self.case, callbacks, self.folder / "resumed", middle)[2]

    def test(self) -> str | None:
        data = loader(self.case)
        options = {"verbose": False, "weights_only": False, "ckpt_path": "best"}
        try:
            self.trainer.test(self.module, data, **options)
        except Exception as error:
            if isinstance(error, PEFTError) or "test_step" not in str(error):
                raise
            self.trainer.validate(self.module, data, **options)
            return "ok: validate, since there is no test_step"
        return None

    def load(self) -> str | None:
        path = self.trainer.checkpoint_callback.best_model_path
        taken: dict[str, Any] = {}
        for _ in range(3):
            seed()  # what is built from it stands for pretrained weights
            trust = {k: v for k, v in taken.items() if k == "weights_only"}
            try:
                loaded = lp.load_from_checkpoint(
                    type(self.module), path, **trust, **self.case.load()
                )
                break
            except PEFTError as error:
                asked = _asked_of_a_load(error)
                if not asked or asked.items() <= taken.items():
                    raise
            if "checkpoints" in asked:
                path = self._fitted_with(asked)
            taken |= asked
        found = evaluate(self.case, self.case.ready(loaded), self.folder)
        self._close(self.metrics, found, "before and after loading")
        return f"ok: with {_written(taken)}" if taken else None

    def _fitted_with(self, words: dict[str, Any]) -> str:
        """Fit again as a message asks, and return the checkpoint."""
        self.later |= words
        again = fit(self.case, [lp.PEFT("lora", **self.words, **words)], self.folder / "again")
        best: str = again[1].checkpoint_callback.best_model_path
        return best

    def merge(self) -> str | None:
        adaptations = [a for m in list(self.module.modules()) if (a := lp.find_adaptation(m))]
        for adaptation in dict.fromkeys(adaptations):
            adaptation.merge_and_unload()
        keys, plain = set(self.module.state_dict()), set(self.plain_module.state_dict())
        if keys != plain:
            raise Wrong(f"other keys, such as {sorted(keys ^ plain)[0]}")
        return self._close(self.metrics, self._bare(), "before and after merging")

    def _bare(self) -> list[float]:
        self.module.trainer = None
        return evaluate(self.case, self.module, self.folder)

    def own_file(self) -> str | None:
        folder = self.folder / "own"
        folder.mkdir()
        module, note = self.module, None
        expected = self._bare()
        if self.case.own is not None:
            module = self.case.own(self.module, folder)
        else:
            self.module.trainer.strategy.connect(self.module)
            self.module.trainer.save_checkpoint(folder / "own.ckpt")
            seed()
            module = type(self.module).load_from_checkpoint(
                folder / "own.ckpt", weights_only=False, **self.case.load()
            )
            note = "ok: Lightning's"
        found = evaluate(self.case, self.case.ready(module), self.folder)
        return self._close(expected, found, "saved, loaded") or note

    def package(self) -> str | None:
        if self.case.package is None:
            raise Open("it leaves the trainer to the user")
        folder = self.folder / "package"
        folder.mkdir()
        try:
            self.case.package(self.callbacks, folder)
        except Exception:
            if "merge_at_end" not in inspect.signature(lp.PEFT).parameters:
                raise
        else:
            return None
        whole = {"checkpoints": "merged", "merge_at_end": True}
        again = folder / "merged"
        again.mkdir()
        self.later |= whole
        try:
            self.case.package(lambda: [lp.PEFT("lora", **self.words, **whole)], again)
        except PEFTError as error:  # its data are others than ours
            raise Refused(str(error)) from error
        return "ok: with checkpoints='merged', merge_at_end=True"

    def _close(self, one: list[float], other: list[float], what: str) -> str | None:
        if len(one) != len(other):
            raise Wrong(f"{what}: {len(one)} and {len(other)} numbers")
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            same = math.isclose(a, b, rel_tol=2e-4, abs_tol=1e-5) or (a != a and b != b)
            if not same and place not in self.unstable:
                raise Wrong(f"{what}: {a:.6g} and {b:.6g}")
        return None


def _asked_of_a_load(error: PEFTError) -> dict[str, Any]:
    """Return what a message asks for; frozen weights that a class draws itself are to be saved."""
    if isinstance(error, BackboneMismatchError):
        return {"checkpoints": "full"}
    trust = any(word in str(error) for word in ("weights_only=False", "safe_globals"))
    return {"weights_only": False} if trust else advice(str(error))


def _written(words: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in words.items())
