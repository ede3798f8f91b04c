"""Train LoRA and prompts with one callback, and hand the adapters to plain ``peft``.

Run it with ``python examples/handed_to_peft.py``. The language model is a tiny one with random
weights that reads bytes, so that nothing has to be downloaded.
"""

import argparse
import tempfile
from typing import Any

import lightning as L
import peft
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

import lightning_peft as lp

TEXT = b"Beautiful is better than ugly. Explicit is better than implicit. " * 8


def language_model() -> Any:
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    sizes = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends))


class Language(L.LightningModule):
    """A module as one may have it: it knows nothing of adapters."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, tokens: Tensor, index: int) -> Tensor:
        loss: Tensor = self.net(input_ids=tokens, labels=tokens).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], 0.01)


def loss_of(net: Any, tokens: Tensor) -> float:
    with torch.no_grad():
        return float(net.eval()(input_ids=tokens, labels=tokens).loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    tokens = torch.tensor(list(TEXT))[:512].reshape(16, 32)
    print(f"without an adapter: {loss_of(language_model(), tokens):.3f}")

    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8)
    for name, method, net in (
        # lightning-peft puts the layers of peft's config into the model
        ("LoRA", lora, language_model()),
        # a prompt needs peft's own wrapper, which is taken as it is
        ("prompts", "existing", peft.get_peft_model(language_model(), prompts)),
    ):
        module = Language(net)
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[lp.PEFT(method)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, DataLoader(tokens, batch_size=4))
        print(f"{name}: {loss_of(module.net, tokens):.3f}")
        with tempfile.TemporaryDirectory() as directory:
            lp.find_adaptation(module.net).save(directory)
            plain = peft.PeftModel.from_pretrained(language_model(), directory)
            print(f"{name}, loaded by peft alone: {loss_of(plain, tokens):.3f}")


if __name__ == "__main__":
    main()
