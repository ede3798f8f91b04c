"""Measure the peak memory of a training step beside the one that ``lightning_peft.plan`` predicts.

    python benchmarks/planned_memory.py                              # four models, 40 cases
    python benchmarks/planned_memory.py --models bert --out planned.json

The measured figure is the peak of the bytes that torch's CPU allocator has given out during a step
with AdamW (the second one, since the first makes the optimizer's state), with everything that
existed before: weights, inputs, old gradients, the optimizer's state. It does not depend on the
machine's load. The models are made from configs and have random weights.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from figures import write_figures
from peaks import allocated
from rich.console import Console
from rich.table import Table
from torch import nn

import lightning_peft as lp
from lightning_peft.adaptation.training_step import training_step
from lightning_peft.evaluation.efficiency import human_bytes, tensor_bytes

METHODS = ("full", "lora", "bitfit", "linear_probe", "houlsby")
OF_DECODERS = ("full", "lora", "norm", "ia3", "houlsby")  # without biases and without a new head

Made = tuple[nn.Module, Any]


def vit(pixels: int, **changes: Any) -> Made:
    """Return a ViT-Ti/16 of six blocks, and four images."""
    import timm

    options = {"depth": 6, "num_classes": 10, "img_size": pixels, **changes}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **options)
    return model, torch.randn(4, 3, pixels, pixels)


def convnext(pixels: int, **changes: Any) -> Made:
    """Return a ConvNeXt of the smallest size, and four images."""
    import timm

    options = {"num_classes": 10, **changes}
    model = timm.create_model("convnext_atto", pretrained=False, **options)
    return model, torch.randn(4, 3, pixels, pixels)


def bert(tokens: int, **changes: Any) -> Made:
    """Return a BERT of three layers, and four texts of which one is half as long."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    more = {"intermediate_size": 512, "vocab_size": 1000, "num_labels": 3}
    model = BertForSequenceClassification(BertConfig(**{**sizes, **more, **changes}))
    ids = torch.randint(0, 1000, (4, tokens))
    mask = torch.ones_like(ids)
    mask[0, tokens // 2 :] = 0
    return model, {"input_ids": ids, "attention_mask": mask}


def decoder(tokens: int, **changes: Any) -> Made:
    """Return a Llama of three layers, and four texts with its own loss of the next token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "intermediate_size": 384, "vocab_size": 1000}
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **more, "use_cache": False, **changes}))
    ids = torch.randint(0, 1000, (4, tokens))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


MODELS: dict[str, tuple[Callable[..., Made], tuple[int, int], tuple[str, ...]]] = {
    "vit": (vit, (224, 512), METHODS),
    "convnext": (convnext, (224, 384), METHODS),
    "bert": (bert, (128, 512), METHODS),
    "decoder": (decoder, (128, 512), OF_DECODERS),
}
"""How each is made, its two sizes in pixels or tokens, and its methods."""


def measured_peak(model: nn.Module, inputs: Any) -> int:
    """Return the peak of the bytes that exist in a training step with AdamW.

    Args:
        model: The model; it is trained for two steps.
        inputs: Its inputs.

    Returns:
        The largest sum of the bytes that were there before and of those allocated since.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    training_step(model, inputs, optimizer)
    gradients, state = [p.grad for p in trained], list(optimizer.state.values())
    before = tensor_bytes([*model.parameters(), *model.buffers(), gradients, state, inputs])
    del gradients, state
    return before + allocated(lambda: training_step(model, inputs, optimizer))


def compared(make: Callable[..., Made], size: int, method: str, **changes: Any) -> dict[str, float]:
    """Return the planned and the measured peak of one case in bytes, and their ratio.

    Args:
        make: Makes the model and its inputs.
        size: Pixels or tokens.
        method: The method.
        **changes: Changes of the model's config.
    """
    torch.manual_seed(0)
    model, inputs = make(size, **changes)
    planned = lp.plan(model, method, inputs=inputs, processor="cpu").memory.peak
    assert planned is not None
    adapted = copy.deepcopy(model)
    lp.adapt(adapted, method)
    measured = measured_peak(adapted.train(), inputs)
    return {"planned": planned, "measured": measured, "ratio": planned / measured}


def cases(names: list[str]) -> Iterator[tuple[str, int, str, dict[str, float]]]:
    """Yield the model, the size and the method of every case, and its figures."""
    for name in names:
        make, sizes, methods = MODELS[name]
        for size in sizes:
            for method in methods:
                yield name, size, method, compared(make, size, method)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    table = Table("model", "size", "method", "planned", "measured", "ratio")
    figures = {}
    for name, size, method, row in cases(options.models):
        figures[f"{name} {size} {method}"] = row
        sizes = [human_bytes(row[key]) for key in ("planned", "measured")]
        table.add_row(name, str(size), method, *sizes, f"{row['ratio']:.3f}")
    Console().print(table)
    ratios = [row["ratio"] for row in figures.values()]
    Console().print(f"{len(ratios)} cases, ratios from {min(ratios):.3f} to {max(ratios):.3f}")
    write_figures(options, figures=figures)


if __name__ == "__main__":
    main()
