"""The promises as users of small models have them: LoRA with ``peft``'s own forward."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_peft.kernels import fast_layers
from tests.contract import test_promises as promises
from tests.contract.cases import Case

AS_SHIPPED = fast_layers.SMALL
KEPT = [p for n, p in vars(promises).items() if n.startswith("test_") and "refused" not in n]
LORAS = [
    case
    for case in promises.PASSING
    if case.label in ("lora", "dora", "lora_qv") and case.backbone in ("vit", "bert", "gpt2")
]


@pytest.fixture(autouse=True)
def small_as_shipped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Go back to the size as it is shipped; nothing may be left of the other tests' models."""

    def never(*args: object, **options: object) -> None:
        raise AssertionError("the fast forward was taken")

    monkeypatch.setattr(fast_layers, "SMALL", AS_SHIPPED)
    monkeypatch.setattr(fast_layers, "low_rank_linear", never)
    promises.forget_subject()
    yield
    promises.forget_subject()


@pytest.mark.parametrize("case", LORAS, ids=str)
@pytest.mark.parametrize("promise", KEPT, ids=lambda p: p.__name__.removeprefix("test_"))
def test_the_promise_is_kept(promise, case: Case, tmp_path: Path) -> None:
    promise(case, *([tmp_path] if "saved" in promise.__name__ else []))
