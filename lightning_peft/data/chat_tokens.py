"""Examples of a language model as tokens, with a mask of those to learn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from lightning_peft.data.conversations import Example
from lightning_peft.errors import DataError, shown

__all__ = ["Encoder", "Tokenised", "TrainOn", "marks_answers"]

TrainOn = Literal["answers", "all"]

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""What transformers looks for in a chat template."""


class Tokenised(NamedTuple):
    """The tokens of one document.

    Attributes:
        ids: The tokens.
        learn: Whether the loss is taken on each.
        cut: How many tokens were left out at its end.
    """

    ids: list[int]
    learn: list[bool]
    cut: int = 0

    @property
    def learned(self) -> int:
        """How many tokens are learned; the first has nothing before it to be predicted from."""
        return sum(self.learn[1:])


def marks_answers(template: str | None) -> bool:
    """Whether a chat template marks what the assistant says with ``{% generation %}``."""
    return template is not None and MARK.search(template) is not None


class Encoder:
    """Turns examples into tokens.

    Args:
        tokenizer: A tokeniser of transformers.
        train_on: ``"answers"`` learns what the assistant says and completions, ``"all"`` every
            token. Plain texts are learned whole.
        max_length: The most tokens of a document; longer ones are cut at their end.
    """

    def __init__(self, tokenizer: Any, train_on: TrainOn, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.max_length = max_length

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse examples that the tokeniser's chat template cannot serve, before any is encoded.

        Raises:
            DataError: If there is no template, or it does not mark what the assistant says.
        """
        chats = [example for example in examples if _is_chat(example)]
        if not chats:
            return
        template = self._template(chats[0].values.get("tools"))
        name = type(self.tokenizer).__name__
        if template is None:
            raise DataError(
                f"{chats[0].place}: expected a tokeniser with a chat template for messages, got "
                f"{name} without one. Set chat_template (a Jinja template, or a file of one), use "
                "the tokeniser of a model for chats, or give prompt and completion as texts."
            )
        marked = any(example.kind == "messages" for example in chats)
        if marked and self.train_on == "answers" and not marks_answers(template):
            raise DataError(
                "Expected a chat template that marks what the assistant says with {% generation %} "
                f"and {{% endgeneration %}}, got that of {name} without these marks: it "
                "cannot be told which tokens to learn. Write them around the assistant's message "
                "in a copy of the template and set chat_template to it; or give each line "
                "as prompt and completion, two lists of messages; or set train_on='all', which "
                "learns the words of the user as well."
            )

    def encode(self, example: Example) -> list[Tokenised]:
        """Return the tokens of an example: one document, or two for a pair of answers.

        Raises:
            DataError: If the template cannot write the messages.
        """
        values = example.values
        if example.kind == "text":
            ids = self._ended(self.tokenizer(values["text"])["input_ids"])
            return [self._cut(ids, [True] * len(ids))]
        if example.kind == "messages":
            return [self._conversation(example)]
        answers = ("chosen", "rejected") if example.kind == "preference" else ("completion",)
        return [self._continued(example, values["prompt"], values[key]) for key in answers]

    def prompt(self, example: Example) -> tuple[Any, str]:
        """Return what a model would be asked, and the answer in the data.

        Args:
            example: An example.

        Returns:
            A text or a list of messages, and a text.
        """
        values = example.values
        if example.kind == "messages":
            messages = list(values["messages"])
            last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=0)
            return messages[:last] or messages, _content(messages[last])
        if example.kind == "text":
            text = values["text"]
            half = text.find(" ", len(text) // 2) % (len(text) + 1)
            return text[:half], text[half:]
        answer = values.get("completion", values.get("chosen"))
        return values["prompt"], answer if isinstance(answer, str) else _content(answer[-1])

    def prompt_ids(self, prompt: Any) -> list[int]:
        """Return the tokens after which an answer begins.

        Args:
            prompt: A text, or a list of messages.
        """
        if isinstance(prompt, str):
            ids = list(self.tokenizer(prompt)["input_ids"])
            if ids and ids[-1] == self.tokenizer.eos_token_id:  # some end every text
                ids.pop()
            return ids
        return self._rendered(prompt, add_generation_prompt=True)["input_ids"]

    def _conversation(self, example: Example) -> Tokenised:
        masked = self.train_on == "answers"
        try:
            found = self._rendered(
                example.values["messages"],
                tools=example.values.get("tools"),
                return_assistant_tokens_mask=masked,
            )
        except DataError as error:
            raise DataError(f"{example.place}: {error}") from error
        ids = list(found["input_ids"])
        learn = [bool(m) for m in found["assistant_masks"]] if masked else [True] * len(ids)
        return self._cut(ids, learn)

    def _continued(self, example: Example, prompt: Any, answer: Any) -> Tokenised:
        try:
            first = self.prompt_ids(prompt)
            if isinstance(answer, str):
                # by itself, as generation sees it: no token may reach over the border
                more = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
                ids = self._ended([*first, *more])
            else:
                ids = list(self._rendered([*prompt, *answer])["input_ids"])
        except DataError as error:
            raise DataError(f"{example.place}: {error}") from error
        if ids[: len(first)] != first:
            raise DataError(
                f"{example.place}: expected a chat template that writes the prompt the same way "
                "with and without an answer, got one that does not. Give prompt and answer as "
                "texts, or all of it as messages with a template that marks the answers."
            )
        asked = 0 if self.train_on == "all" and example.kind == "completion" else len(first)
        return self._cut(ids, [i >= asked for i in range(len(ids))])

    def _rendered(self, messages: Any, **options: Any) -> Mapping[str, Any]:
        from jinja2 import TemplateError

        try:
            found: Mapping[str, Any] = self.tokenizer.apply_chat_template(
                list(messages), tokenize=True, return_dict=True, **options
            )
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise DataError(
                f"expected messages that the chat template can write, got {shown(messages, 60)}: "
                f"{error}"
            ) from error
        return found

    def _template(self, tools: Any) -> str | None:
        try:
            found: str = self.tokenizer.get_chat_template(tools=tools)
        except (ValueError, AttributeError):  # there is none
            return None
        return found

    def _ended(self, ids: Iterable[int]) -> list[int]:
        """Return tokens with the token that ends a text, so that generation learns to end."""
        found, end = list(ids), self.tokenizer.eos_token_id
        if end is not None and (not found or found[-1] != end):
            found.append(end)
        return found

    def _cut(self, ids: list[int], learn: list[bool]) -> Tokenised:
        most = self.max_length
        return Tokenised(ids[:most], learn[:most], max(0, len(ids) - most))


def _is_chat(example: Example) -> bool:
    return example.kind == "messages" or (
        example.kind != "text" and not isinstance(example.values["prompt"], str)
    )


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else str(content)
