"""Language models on two processes (gloo, on the CPU)."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader, DistributedSampler

import lightning_peft as lp
from lightning_peft.backbones.causal_lm import load_lm_tokenizer
from tests.support.language import pairs, tiny_lm
from tests.support.ranks import run_ranks, whole
from tests.support.trainers import quiet_trainer

# torch's threads are idle at the fork, and the children run on one thread each
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def rows() -> list[dict[str, torch.Tensor]]:
    """Give examples of which a process has many tokens to learn when the other has few."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for learned in (2, 11, 9, 3, 4, 12, 1, 10):
        ids = torch.randint(0, 256, (12,), generator=draw)
        labels = torch.where(torch.arange(12) >= 12 - learned, ids, -100)
        found.append({"input_ids": ids, "labels": labels})
    return found


def trainer(world: int, kind: str, **settings: Any) -> Any:
    strategy: Any = kind if world > 1 else "auto"
    if strategy == "sharded":
        strategy = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    return quiet_trainer(
        lp.PEFT("lora", rank=2), devices=world, strategy=strategy, max_epochs=2,
        use_distributed_sampler=False, num_sanity_val_steps=0, **settings,
    )  # fmt: skip


def train(world: int, kind: str, directory: Path) -> None:
    rank = int(os.environ.get("RANK", "0"))
    torch.manual_seed(0)
    module = lp.CausalLM(
        tiny_lm(), optimizer=partial(torch.optim.SGD, lr=0.5, weight_decay=0.0),
        tokenizer=load_lm_tokenizer("byte_llama"), samples=["one", "another"], max_new_tokens=4,
        generation={"do_sample": True},
    )  # fmt: skip
    data = rows()
    part = DistributedSampler(data, world, rank, shuffle=False)  # type: ignore[arg-type]
    loader = DataLoader(data, batch_size=2 // world, sampler=part)  # type: ignore[arg-type]
    runs = trainer(world, kind)
    runs.fit(module, loader, loader)
    trained = {n: p for n, p in whole(module).items() if "lora" in n}
    seen = {k: float(v) for k, v in runs.callback_metrics.items() if k.startswith("val/")}
    torch.save((trained, seen, len(module.latest)), directory / f"{world}-{rank}.pt")


@pytest.mark.parametrize("kind", ["ddp", pytest.param("sharded", marks=pytest.mark.slow)])
def test_two_processes_learn_as_one_with_the_doubled_batch(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each token counts alike, whichever process has it: as with the Trainer of transformers."""
    monkeypatch.delenv("RANK", raising=False)
    train(1, kind, tmp_path)
    run_ranks(2, train, 2, kind, tmp_path)
    (one, seen, _), (first, found, answers), (second, *_, others) = (
        torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1")
    )
    assert one
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-6)
    assert found == pytest.approx(seen, rel=1e-5)
    assert set(seen) == {"val/loss", "val/perplexity"}
    assert (answers, others) == (2, 2 if kind == "sharded" else 0)


def prefer(world: int, kind: str, directory: Path) -> None:
    records = [{**pair, "split": "train" if n < 8 else "val"} for n, pair in enumerate(pairs())]
    data = lp.ChatDataModule(records=records, backbone="byte_llama", batch_size=4 // world)
    torch.manual_seed(0)
    optimizer = partial(torch.optim.SGD, lr=5.0, weight_decay=0.0)
    module = lp.PreferenceModule(tiny_lm(), optimizer=optimizer)
    runs = trainer(world, kind)
    data.setup("fit")
    split = data._samples("train", training=True)
    rank = int(os.environ.get("RANK", "0"))
    part = DistributedSampler(split, world, rank, shuffle=False)
    loader = DataLoader(split, batch_size=4 // world, sampler=part, **data._options())
    runs.fit(module, loader, data.val_dataloader())
    trained = {n: p for n, p in whole(module).items() if "lora" in n}
    torch.save(trained, directory / f"{world}-{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "sharded"])
def test_preferences_are_a_mean_over_all_pairs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    prefer(1, kind, tmp_path)
    run_ranks(2, prefer, 2, kind, tmp_path)
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
