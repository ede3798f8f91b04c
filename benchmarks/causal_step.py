"""Compare the time and the peak memory of a step of LoRA on a causal language model with peft.

    python benchmarks/causal_step.py                                # like Llama, float32
    python benchmarks/causal_step.py --model gpt2 --dtype bfloat16
    python benchmarks/causal_step.py --codes nf4                    # on 4 bits of bitsandbytes

The models have the layers of Llama (Touvron et al., 2023) or GPT-2, a width of 512, a small
vocabulary, so that the layers count and not the loss (``--vocabulary 32000`` for the other case,
where ``lp.CausalLM`` computes the loss in parts), and random weights, which cost the same as
pretrained ones. With ``--codes`` transformers quantises the layers as it loads them; full
fine-tuning is then that of the model in numbers. LoRA is on every linear layer of the blocks.
All variants run in turn in one process, so that disturbances of the machine affect all of them;
times are medians over rounds, as ratios to peft in the same round. The peak is that of the bytes
which torch allocates during a forward and a backward pass, without the weights: see
``activation_memory.py``.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from activation_memory import peak_of
from figures import CLOCKS, interleaved, timed, write_figures
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import (
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import lightning_peft as lp
from lightning_peft.evaluation.efficiency import human_bytes

LAYERS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


def base_of(options: argparse.Namespace) -> nn.Module:
    """Build the model without an adapter."""
    if options.model == "gpt2":
        made: nn.Module = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=options.vocabulary,
                n_embd=512,
                n_layer=options.layers,
                n_head=8,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
            )
        )
    else:
        made = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=options.vocabulary,
                hidden_size=512,
                intermediate_size=1376,
                num_hidden_layers=options.layers,
                num_attention_heads=8,
                num_key_value_heads=8,
                use_cache=False,
            )
        )
    return made.to(getattr(torch, options.dtype))


def quantised(base: Any, options: argparse.Namespace) -> Any:
    """Return the model with its layers as codes, as transformers loads it; or as it is."""
    if options.codes == "none":
        return copy.deepcopy(base)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=options.codes)
    with tempfile.TemporaryDirectory() as folder:
        base.save_pretrained(folder)
        return type(base).from_pretrained(folder, quantization_config=settings, dtype=base.dtype)


def variants(options: argparse.Namespace) -> dict[str, nn.Module]:
    """Build the models to compare, with the same weights."""
    base, names = base_of(options), LAYERS[options.model]
    found = {"full": base}
    coded = options.codes != "none"
    settings = {"r": options.rank, "lora_alpha": options.rank, "target_modules": names}
    for name in ("peft", "peft, checkpointed"):
        turned = options.model == "gpt2" and not coded  # codes have the shape of a linear layer
        config = peft.LoraConfig(**settings, fan_in_fan_out=turned)
        found[name] = peft.get_peft_model(quantised(base, options), config)
    found["peft, checkpointed"].enable_input_require_grads()
    found["peft, checkpointed"].gradient_checkpointing_enable({"use_reentrant": False})
    for memory in ("default",) if coded else ("default", "low", "lowest", "high"):
        name = "lightning-peft" if memory == "default" else memory
        found[name] = quantised(base, options)
        method = lp.LoRA(rank=options.rank, targets=names)
        lp.adapt(found[name], method, head=False, memory=memory)
    if not coded:
        found["CausalLM"] = lp.CausalLM(copy.deepcopy(found["lightning-peft"]))
        found["CausalLM, low"] = lp.CausalLM(copy.deepcopy(found["low"]))
    return {name: model.train() for name, model in found.items()}


def step(model: nn.Module, tokens: Tensor) -> None:
    """Run a forward and a backward pass, without the optimizer."""
    model.zero_grad(set_to_none=True)
    batch = {"input_ids": tokens, "labels": tokens}
    if isinstance(model, lp.CausalLM):
        model.training_step(batch, 0).backward()
    else:
        model(**batch).loss.backward()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=LAYERS, default="llama")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=2000)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--codes", choices=["none", "nf4", "fp4"], default="none")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: with --threads 1")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that peft uses
    models = variants(options)
    tokens = torch.randint(options.vocabulary, (options.batch, options.tokens))
    steps: dict[str, Callable[[], None]] = {
        name: partial(step, model, tokens) for name, model in models.items()
    }
    peaks = {}
    for name, model in models.items():
        steps[name]()  # what is made at the first call only
        peaks[name] = peak_of(model, steps[name])
        model.zero_grad(set_to_none=True)
    timers = {name: timed(one, CLOCKS[options.clock]) for name, one in steps.items()}
    figures = interleaved(timers, options.rounds, base="peft")
    table = Table("variant", "s a step", "to peft", "spread", "peak", "to peft")
    for name, row in figures.items():
        row |= {"bytes": peaks[name], "memory": peaks[name] / peaks["peft"]}
        low, high = row["spread"]
        table.add_row(
            name,
            f"{row['seconds']:.3f}",
            f"{row['ratio']:.3f}",
            f"{low:.3f} - {high:.3f}",
            human_bytes(row["bytes"]),
            f"{row['memory']:.3f}",
        )
    Console().print(table)
    write_figures(options, figures=figures)


if __name__ == "__main__":
    main()
