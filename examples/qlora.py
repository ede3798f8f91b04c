"""QLoRA: adapt a language model whose weights are held in 4 bits, without Lightning's precision.

Run it with ``python examples/qlora.py``; it needs ``pip install 'lightning-peft[quantized]'``. The
model is a tiny Llama of random weights, so that no file is loaded; with a pretrained one, pass a
``BitsAndBytesConfig`` to ``from_pretrained`` in place of :func:`in_4_bits`.
"""

import argparse
import logging
import tempfile

import bitsandbytes as bnb
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

import lightning_peft as lp


def in_4_bits() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, nn.Linear):
            coded = bnb.nn.Linear4bit(
                layer.in_features, layer.out_features, bias=False, quant_type="nf4"
            )
            coded.load_state_dict(layer.state_dict())
            holder, _, key = name.rpartition(".")
            setattr(model.model.get_submodule(holder), key, coded.to("cpu"))
    return model


class Counting(L.LightningModule):
    """Learn to count: each sequence is a run of neighbouring tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.model = in_4_bits()

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=1e-2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    steps = parser.parse_args().steps
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    starts = torch.arange(3, 23)
    sequences = starts[:, None] + torch.arange(8)
    module = Counting()
    trainer = L.Trainer(
        max_steps=steps, callbacks=[lp.PEFT("lora", rank=8)], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(sequences, batch_size=10, shuffle=True, drop_last=True))

    adaptation = lp.find_adaptation(module.model)
    with tempfile.TemporaryDirectory() as directory:
        adaptation.save(directory)  # as peft writes it
        loaded = lp.load_adapter(in_4_bits(), directory).eval()
    given = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}
    print(
        "after 5, 6, 7:",
        loaded.generate(**given, max_new_tokens=4, do_sample=False)[0, 3:].tolist(),
    )

    dense = adaptation.merge_and_unload(dequantize=True)  # plain layers, for a server
    kinds = {type(layer).__name__ for layer in dense.model.layers.modules()}
    print("quantised layers after merging:", len(kinds & {"Linear4bit"}))


if __name__ == "__main__":
    main()
