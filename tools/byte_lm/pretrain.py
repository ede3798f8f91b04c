"""Pretrain the example's language model: ``python -m tools.byte_lm.pretrain``.

A Llama of two million parameters over bytes, trained on the documentation of Python that comes with
the interpreter. Writes a directory that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load, with a
card. A twentieth of the texts is held out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import LlamaForCausalLM, get_cosine_schedule_with_warmup

from lightning_peft.backbones.byte_llama import byte_llama_config, byte_tokenizer
from tools.byte_lm.corpus import documentation

SIZE = {
    "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 6, "tie_word_embeddings": True,
}  # fmt: skip
HELD_OUT = 20
"""One text of so many is not trained on."""


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bytes of the texts to train on, and of those that are held out."""
    tokenizer = byte_tokenizer()
    train: list[int] = []
    held_out: list[int] = []
    for number, text in enumerate(documentation()):
        part = train if number % HELD_OUT else held_out
        # line by line: to the tokeniser a text of a million characters is one word
        for line in tokenizer(text.splitlines(keepends=True), add_special_tokens=False).input_ids:
            part += line
        part.append(tokenizer.eos_token_id)
    return torch.tensor(train), torch.tensor(held_out)


def batches(data: torch.Tensor, length: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Return random windows ``(size, length)``."""
    starts = torch.randint(len(data) - length, (size,), generator=generator)
    return torch.stack([data[start : start + length] for start in starts])


@torch.no_grad()
def loss_on(model: LlamaForCausalLM, data: torch.Tensor, length: int) -> float:
    """Return the cross entropy (nats a byte) over consecutive windows."""
    model.eval()
    windows = data[: len(data) // length * length].view(-1, length)
    losses = [model(input_ids=part, labels=part).loss.item() for part in windows.split(16)]
    model.train()
    return sum(losses) / len(losses)


def train(options: argparse.Namespace) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    """Train the model.

    Args:
        options: As from the command line.

    Returns:
        The model, and what was measured.
    """
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    data, held_out = tokens()
    model = LlamaForCausalLM(byte_llama_config(SIZE))
    matrices = [p for n, p in model.named_parameters() if ".layers." in n and p.dim() == 2]
    others = [p for n, p in model.named_parameters() if not (".layers." in n and p.dim() == 2)]
    optimizers = [
        torch.optim.Muon(matrices, lr=options.matrix_lr, weight_decay=0.05),
        torch.optim.AdamW(others, lr=options.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    warmup = max(1, options.steps // 50)
    schedules = [get_cosine_schedule_with_warmup(o, warmup, options.steps) for o in optimizers]
    began = time.monotonic()
    for _ in (bar := tqdm(range(options.steps))):
        ids = batches(data, options.length, options.batch, generator)
        loss = model(input_ids=ids, labels=ids).loss
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepped in (*optimizers, *schedules):
            stepped.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return model, {
        "parameters": model.num_parameters(),
        "bytes": len(data),
        "steps": options.steps,
        "held_out_loss": round(loss_on(model, held_out, options.length), 3),
        "seconds": round(time.monotonic() - began),
        "python": platform.python_version(),
    }


CARD = """\
# byte_lm

A language model the size of a joke, so that LoRA, QLoRA and prompt tuning can be tried without a
download: a Llama of {parameters:,} parameters over bytes, in bfloat16. It was trained by `python -m
tools.byte_lm.pretrain` on {bytes:,} bytes of the documentation of Python {python}, the topics of
`help()` and the docstrings of the standard library, with {steps:,} steps. On texts that it has not
seen it needs {held_out_loss} nats a byte. It writes what looks like documentation; nothing that it
says is true.

The documentation of Python is under the
[PSF licence](https://docs.python.org/3/license.html); the weights are under that of this project.
"""


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("examples/byte_lm"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--matrix-lr", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, record = train(options)
    model.to(torch.bfloat16).save_pretrained(options.out)
    byte_tokenizer().save_pretrained(options.out)
    (options.out / "README.md").write_text(CARD.format(**record))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
