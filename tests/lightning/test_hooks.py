"""When the backbone of a LightningModule is adapted."""

from __future__ import annotations

import copy
import pickle

from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from lightning_peft.lightning.hooks import after_configure_model


def count_calls(module: nn.Module) -> None:
    module.calls = getattr(module, "calls", 0) + 1


def test_the_hook_on_the_instance_counts_as_overridden_and_runs_after_the_original() -> None:
    order = []

    class Late(BoringModel):
        def configure_model(self) -> None:
            order.append("original")

    module = Late()
    after_configure_model(module, "a", lambda m: order.append("a"))
    after_configure_model(module, "b", lambda m: order.append("b"))
    after_configure_model(module, "a", lambda m: order.append("A"))
    assert is_overridden("configure_model", module)
    module.configure_model()
    assert order == ["original", "A", "b"]


def test_a_copy_and_a_pickle_act_on_themselves() -> None:
    module = BoringModel()
    after_configure_model(module, "count", count_calls)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        twin.configure_model()
        assert twin.calls == 1
    assert not hasattr(module, "calls")
