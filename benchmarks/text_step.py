"""Compare a step of LoRA on a text encoder with peft, full fine-tuning and the limit.

    python benchmarks/text_step.py                       # BERT-base, batch 8 of 64 tokens, float32
    python benchmarks/text_step.py --layers 4 --rounds 5

The encoder has the size of BERT-base (Devlin et al., 2019) and random weights, which cost the same
as pretrained ones. The limit is the encoder with everything frozen and the gradient taken down to
its embeddings. Dropout is off, so that only the layers are measured. All variants run in turn in
one process, so that disturbances of the machine affect all of them; figures are medians over
rounds, as ratios to the limit. Activations are the bytes of all storages that the graph keeps for
the backward pass, without parameters.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import peft
import torch
from figures import CLOCKS, interleaved, timed, write_figures
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import lightning_peft as lp

LAYERS = ["query", "key", "value", "dense"]


def variants(options: argparse.Namespace) -> dict[str, nn.Module]:
    """Build the models to compare, with the same weights."""
    config = BertConfig(
        num_hidden_layers=options.layers,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    base = BertForSequenceClassification(config)
    default, low, with_peft, frozen = (copy.deepcopy(base) for _ in range(4))
    method = lp.LoRA(rank=options.rank, targets="all-linear")
    lp.adapt(default, method, head=False)
    lp.adapt(low, method, head=False)
    lp.accelerate(low, memory="low")
    settings = peft.LoraConfig(
        r=options.rank,
        lora_alpha=options.rank,
        target_modules=LAYERS,
        exclude_modules=["bert.pooler.dense"],
    )
    frozen.requires_grad_(False)
    return {
        "limit": frozen,
        "lightning-peft": default,
        "lightning-peft, low": low,
        "peft": peft.get_peft_model(with_peft, settings),
        "full": base,
    }


def trained(model: nn.Module) -> int:
    """Return how many numbers a model trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def loss_of(name: str, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Run the forward pass of one step and return the loss."""
    model.zero_grad(set_to_none=True)
    given: dict[str, Any] = dict(inputs)
    if name == "limit":
        # what is frozen throughout still passes the gradient on, as below an adapted first block
        words = model.get_input_embeddings()(given.pop("input_ids"))
        given["inputs_embeds"] = words.detach().requires_grad_(True)
    return nn.functional.cross_entropy(model(**given).logits, labels)


def kept(model: nn.Module, loss: Tensor) -> int:
    """Return the bytes that the graph of a loss keeps.

    The graph is read without setting a hook: with hooks on saved tensors a fast layer keeps its
    input, as the hooks may be there to move it elsewhere.
    """
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}
    waiting: list[Any] = [loss.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        saved = [getattr(node, key) for key in dir(node) if key.startswith("_saved_")]
        for tensor in (*saved, *(getattr(node, "saved_tensors", None) or ())):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(size for place, size in found.items() if place not in own)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with --threads 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    models = variants(options)
    shape = (options.batch, options.tokens)
    inputs = {
        "input_ids": torch.randint(1000, 20000, shape),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
    }
    labels = torch.randint(0, 2, (options.batch,))
    activations = {}
    for name, model in models.items():
        loss = loss_of(name, model, inputs, labels)
        activations[name] = kept(model, loss)
        loss.backward()
    # without the optimizer, whose cost is that of the trained parameters
    timers = {
        name: timed(
            lambda name=name: loss_of(name, models[name], inputs, labels).backward(),
            CLOCKS[options.clock],
        )
        for name in models
    }
    figures = interleaved(timers, options.rounds)

    table = Table("variant", "trained", "s a step", "to the limit", "spread", "kept")
    for name, row in figures.items():
        row |= {"trained": trained(models[name]), "activation_bytes": activations[name]}
        low, high = row["spread"]
        table.add_row(
            name,
            f"{row['trained']:,}",
            f"{row['seconds']:.3f}",
            f"{row['ratio']:.3f}",
            f"{low:.3f} - {high:.3f}",
            f"{row['activation_bytes'] / 1e6:.0f} MB",
        )
    Console().print(table)
    write_figures(options, figures=figures)


if __name__ == "__main__":
    main()
