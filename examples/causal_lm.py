"""An existing LightningModule around a causal language model, with one line added.

The module knows nothing about adapters. With the marked line it trains low-rank adapters; the rest
of the model stays frozen. Run it with ``python examples/causal_lm.py``: it takes a small model over
bytes with random weights, which needs no network; ``--backbone`` takes any name of the Hugging Face
hub.
"""

import argparse

import lightning as L
import torch

import lightning_peft as lp
from lightning_peft.backbones.causal_lm import load_causal_lm, load_lm_tokenizer

TEXTS = [f"{word} is a colour." for word in ("red", "blue", "green", "black", "white", "grey")]


class Writer(L.LightningModule):
    """An ordinary module around a model of transformers."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.model = load_causal_lm(backbone, pretrained=backbone != "byte_llama")

    def training_step(self, batch, batch_idx):
        loss = self.model(**batch, labels=batch["input_ids"]).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="byte_llama", help="a name on the Hugging Face hub")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps")
    options = parser.parse_args()

    L.seed_everything(0)
    tokenizer = load_lm_tokenizer(options.backbone)
    rows = [dict(tokenizer(text, return_tensors="pt")) for text in TEXTS]
    module = Writer(options.backbone)
    trainer = L.Trainer(
        max_steps=options.steps,
        callbacks=[lp.PEFT("lora", rank=8)],  # <- the line
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=5,
    )
    trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=None))

    prompt = tokenizer("red is", return_tensors="pt")
    ids = module.model.eval().generate(**prompt, max_new_tokens=8, do_sample=False)
    print(f"the model writes: {tokenizer.decode(ids[0], skip_special_tokens=True)!r}")


if __name__ == "__main__":
    main()
