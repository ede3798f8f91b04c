"""Teach a language model which of two answers is the better one (DPO).

Run it with ``python examples/preferences.py``. It takes a small model over bytes with random
weights, which needs no network and learns nothing beyond the pairs; ``--backbone`` takes any name
of the Hugging Face hub. Only an adapter is trained, and the reference of DPO is the model with the
adapter switched off: no second model is in memory.
"""

import argparse

import lightning as L

import lightning_peft as lp

WORDS = ("red", "blue", "green", "black", "white", "grey", "pink", "brown", "gold", "teal")
PAIRS = [
    {
        "prompt": [{"role": "user", "content": f"say {word}"}],
        "chosen": [{"role": "assistant", "content": f"{word}!"}],
        "rejected": [{"role": "assistant", "content": f"{word}."}],
    }
    for word in WORDS
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="byte_llama", help="a name on the Hugging Face hub")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps")
    options = parser.parse_args()

    L.seed_everything(0)
    data = lp.ChatDataModule(records=PAIRS, backbone=options.backbone)
    pretrained = options.backbone != "byte_llama"
    module = lp.PreferenceModule(options.backbone, pretrained=pretrained, lr=5e-3)
    trainer = L.Trainer(
        max_steps=options.steps,
        callbacks=[lp.PEFT("lora", rank=8)],
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    (found,) = trainer.test(module, data, verbose=False)
    print(f"the better answer gained in {found['test/accuracy']:.0%} of the pairs of the test")
    print(module.generate([PAIRS[0]["prompt"]], max_new_tokens=12))


if __name__ == "__main__":
    main()
