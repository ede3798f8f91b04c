"""Teach a small language model a form: see what LoRA, QLoRA and prompt tuning change.

The model (``examples/byte_lm``) was trained on the documentation of Python and goes on as such
documentation does. The adapter learns from 300 functions of the standard library to write a manual
page instead: NAME, the name again, and one line. Run it with ``python examples/byte_lm_style.py``,
and ``--how qlora`` or ``--how prompts``; it takes some minutes.
"""

import argparse
import inspect
import json
import logging
import os
import shutil
import statistics
import textwrap
from pathlib import Path

import lightning as L
import peft
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lightning_peft as lp

HERE = Path(__file__).parent / "byte_lm"
HOW = ("lora", "qlora", "prompts")
ASKED = ["def average(values):", "def read_file(path, mode):", "def close(self):"]


def pages() -> list[dict[str, str]]:
    """Return prompts with manual pages of functions, made from their first lines."""
    found = []
    for module in (json, logging, os, shutil, statistics, textwrap, inspect, argparse):
        for name, function in vars(module).items():
            told = (inspect.getdoc(function) or "").partition("\n")[0]
            if inspect.isfunction(function) and 10 < len(told) < 80:
                try:
                    arguments = ", ".join(inspect.signature(function).parameters)
                except ValueError:
                    continue
                page = f"NAME\n    {name} -- {told}\n"
                found.append({"prompt": f"def {name}({arguments}):\n", "completion": page})
    return found[:300]


def model_for(how: str) -> nn.Module:
    """Return the model, in 4 bits or with prompts in front of it where that is asked for."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32)
    if how == "qlora":
        import bitsandbytes as bnb

        for name, layer in list(model.model.layers.named_modules()):
            if isinstance(layer, nn.Linear):
                coded = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=False)
                coded.load_state_dict(layer.state_dict())
                holder, _, key = name.rpartition(".")
                setattr(model.model.layers.get_submodule(holder), key, coded.to("cpu"))
    if how == "prompts":
        model.requires_grad_(False)
        settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
        model = peft.get_peft_model(model, settings)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--how", choices=HOW, default="lora")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--tokens", type=int, default=60, help="of each answer")
    options = parser.parse_args()
    L.seed_everything(0, verbose=False)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    tokenizer = AutoTokenizer.from_pretrained(HERE)
    rows = [{**row, "split": "val" if i % 10 == 0 else "train"} for i, row in enumerate(pages())]
    data = lp.ChatDataModule(None, tokenizer, records=rows, max_length=256, batch_size=16)
    module = lp.CausalLM(
        model_for(options.how), tokenizer=tokenizer, samples=0,
        lr=3e-1 if options.how == "prompts" else 5e-3,
    )  # fmt: skip
    asked = [f"{line}\n" for line in ASKED]
    before = module.generate(asked, max_new_tokens=options.tokens)
    method = lp.PEFT("existing") if options.how == "prompts" else lp.PEFT("lora", rank=8)
    trainer = L.Trainer(
        max_steps=options.steps, callbacks=[method, lp.WarmupCosine(warmup=0.1)], accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    after = module.generate(asked, max_new_tokens=options.tokens)
    for prompt, first, then in zip(ASKED, before, after, strict=True):
        print(f"{prompt}\n  before: {first[:70]!r}\n  after:  {then[:70]!r}")


if __name__ == "__main__":
    main()
