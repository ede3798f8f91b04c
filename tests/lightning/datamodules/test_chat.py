"""Examples for language models: what is read, what is learned, how rows are packed."""

import json

import pytest
import torch

import lightning_peft as lp
from lightning_peft.backbones.byte_llama import byte_tokenizer
from lightning_peft.data.packing import packed
from tests.support.language import WORDS, chats, pairs, tiny_lm

TOKENIZER = byte_tokenizer(128)


def data(records, **settings):
    defaults = {"val_fraction": 0.0, "test_fraction": 0.0, "batch_size": 4}
    return lp.ChatDataModule(records=records, backbone=TOKENIZER, **{**defaults, **settings})


def learned(module, index=0):
    """Give the text that the labels of a training row hold, by the tokeniser alone."""
    module.setup("fit")
    labels = module.texts("train")[index]["labels"][0]
    return TOKENIZER.decode(labels[labels >= 0].tolist())


def lines(path, *rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return path


def test_only_what_the_assistant_says_is_learned():
    module = data(chats())
    assert learned(module) == f"{WORDS[0].upper()}<|im_end|>"
    batch = module.texts("train").__getitems__([0, 1])
    whole = TOKENIZER.apply_chat_template(chats()[0]["messages"], return_dict=True)["input_ids"]
    assert batch["input_ids"][0, : len(whole)].tolist() == whole
    assert batch["attention_mask"].sum(1).tolist() == [len(whole), len(whole) + 2]
    everything = TOKENIZER.decode(whole[1:])  # the first token is predicted from nothing
    assert learned(data(chats(), train_on="all")) == everything


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        ({"prompt": "say a: ", "completion": "A"}, "A<|im_end|>"),
        ({"text": "once upon"}, "nce upon<|im_end|>"),
        (
            {
                "prompt": [{"role": "user", "content": "hi"}],
                "completion": [{"role": "assistant", "content": "yes"}],
            },
            "yes<|im_end|>\n",
        ),
    ],
    ids=["texts", "plain text", "messages"],
)
def test_other_examples(record, answer):
    module = data([record])
    assert learned(module) == answer
    if "prompt" in record:  # what generation will see is what stands before the answer
        prompt = module.encoder.prompt_ids(record["prompt"])
        row = module.texts("train")[0]
        assert row["input_ids"][0, : len(prompt)].tolist() == prompt
        assert (row["labels"][0, : len(prompt)] == -100).all()


def test_prompt_and_completion_as_messages_need_no_marks():
    template = TOKENIZER.chat_template.replace("{% generation %}", "")
    template = template.replace("{% endgeneration %}", "")
    record = {"prompt": chats()[0]["messages"][:1], "completion": chats()[0]["messages"][1:]}
    assert learned(data([record], chat_template=template)).startswith("RED<|im_end|>")
    assert TOKENIZER.chat_template != template


def test_pairs_are_the_halves_of_a_batch():
    module = data(pairs())
    assert module.task == "preference"
    batch = next(iter(module.plain_dataloader("train")))
    assert batch["input_ids"].shape[0] == 8
    texts = [TOKENIZER.decode(row[row >= 0].tolist()) for row in batch["labels"]]
    assert texts[:4] == [f"{word.upper()}<|im_end|>" for word in WORDS[:4]]
    assert texts[4:] == [f"no {word}<|im_end|>" for word in WORDS[:4]]


def test_files_give_the_same_as_records(tmp_path):
    rows = [{"prompt": f"{word}, ", "completion": word} for word in WORDS]
    path = lines(tmp_path / "a.jsonl", *rows)
    table = "prompt,completion\n" + "".join(f'"{r["prompt"]}",{r["completion"]}\n' for r in rows)
    (tmp_path / "a.csv").write_text(table)
    settings = {"val_fraction": 0.2, "test_fraction": 0.2}
    found = [data(rows, **settings)]
    found += [lp.ChatDataModule(p, TOKENIZER, **settings) for p in (path, tmp_path / "a.csv")]
    for module in found:
        module.setup()
        assert {s: len(i) for s, i in module.indices.items()} == {"train": 6, "val": 2, "test": 2}
    for other in found[1:]:
        assert other.indices == found[0].indices
        assert [e.values for e in other.examples] == [e.values for e in found[0].examples]
    other = data(rows, seed=1, **settings)
    other.setup()
    assert other.indices["test"] == found[0].indices["test"]


def test_what_is_cut_and_left_out_is_counted(caplog):
    long = {"prompt": "a" * 40, "completion": "b" * 10}
    module = data([{"prompt": "a", "completion": "bc"}, {"prompt": "a", "completion": "b" * 30},
                   long, long], max_length=20)  # fmt: skip
    module.setup("fit")
    counts = module.texts("train") and module.counts["train"]
    # by hand: 1 + 2 + the end, 1 + 30 + 1, 40 + 10 + 1
    assert (counts.examples, counts.tokens, counts.learned) == (2, 4 + 20, 3 + 19)
    assert (counts.cut, counts.cut_tokens, counts.dropped) == (2, 12 + 31, 1)
    assert "1 of 4 examples are repeats" in caplog.text
    assert "2 of 3 train examples are longer than 20 tokens and are cut, by 43" in caplog.text
    assert "1 of 3 train examples have no token to learn" in caplog.text


def test_packed_rows_hold_every_document_once():
    lengths = [3, 5, 2, 4, 1, 1, 7]
    rows = packed(lengths, 7)
    assert sorted(i for row in rows for i in row) == list(range(7))
    assert [sum(lengths[i] for i in row) for row in rows] == [7, 7, 7, 2]
    module = data(chats(), packing=True, max_length=90)
    module.setup("fit")
    texts = module.texts("train")
    assert len(texts) == module.counts["train"].rows < 10
    batch = texts.__getitems__(range(len(texts)))
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    starts = (batch["position_ids"] == 0).sum() - (batch["input_ids"][:, -1] == 256).sum()
    assert starts == 10
    words = TOKENIZER.decode(batch["labels"][batch["labels"] >= 0].tolist()).split("<|im_end|>")
    assert sorted(words[:-1]) == sorted(word.upper() for word in WORDS)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_packed_documents_cannot_see_each_other(kind):
    model = tiny_lm(kind).eval()
    plain, together = data(chats()), data(chats(), packing=True)
    with torch.no_grad():
        losses = []
        for module in (plain, together):
            rows = module.texts("train")
            batch = rows.__getitems__(range(len(rows)))
            losses.append(model(**batch, use_cache=False).loss)
    assert len(together.texts("train")) < len(plain.texts("train"))
    torch.testing.assert_close(losses[0], losses[1])


def test_every_line_that_is_wrong_is_named(tmp_path):
    path = lines(
        tmp_path / "a.jsonl", {"text": "fine"}, "", '{"text": ', '"text"', {"message": []},
        {"messages": []}, {"messages": [{"content": "hi"}]}, {"prompt": "a", "completion": " "},
        {"text": "fine", "split": "valid"}, {"text": 3}, {"prompt": "a", "completion": [{}]},
    )  # fmt: skip
    with pytest.raises(lp.DataError, match=r"for 11 reason\(s\)") as error:
        lp.ChatDataModule(path, TOKENIZER).prepare_data()
    told = str(error.value)
    for expected in (
        "line 2: expected a JSON object, got an empty line",
        "line 3: expected a JSON object, got broken JSON",
        "line 4: expected an object with keys, got 'text'",
        "line 5: expected the keys messages; or prompt and chosen and rejected; or prompt and "
        "completion; or text; got message. Did you mean 'messages'?",
        "line 6: expected one message or more as messages, got none",
        "line 7: message 1 of messages: expected a role, got content",
        "line 8: expected a text as completion, got an empty one",
        "line 9: split 'valid'. Did you mean 'val'?",
        "line 10: expected text as a text, got 3",
        "line 11: message 1 of completion: expected a role",
        "line 11: message 1 of completion: expected content, got None",
    ):
        assert expected in told


@pytest.mark.parametrize(
    ("records", "settings", "match"),
    [
        (chats(), {"chat_template": "{{ messages[0]['content'] }}"},
         r"marks what the assistant says with \{% generation %\}.*set chat_template"),
        (chats(), {"max_length": 10}, "got 10 in which the mask leaves no token .*10 of them cut"),
        ([{"messages": chats()[0]["messages"][:1]}], {}, "the mask leaves no token"),
        (pairs(), {"packing": True}, "packing=false for pairs"),
        ([*pairs(1), {"text": "a"}], {}, "example 1: no chosen and rejected, although others"),
        ([{"text": "a", "split": "train"}, {"text": "b"}], {}, "example 1: no split, although"),
        ([{"text": "a"}], {"test_fraction": 0.2}, "Expected training examples, got 1"),
        ([{"text": "a", "split": "train"}, {"text": "a", "split": "val"}], {},
         "example 1: the same as example 0, in another split"),
        ([], {}, "it has no example"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from(records, settings, match):
    module = data(records, **settings)
    with pytest.raises(lp.DataError, match=match):
        module.train_dataloader()


def test_a_tokeniser_without_a_template(tmp_path):
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(lp.DataError, match="expected a tokeniser with a chat template"):
        lp.ChatDataModule(records=chats(), backbone=bare).prepare_data()
    refuses = "{% generation %}{% endgeneration %}{{ raise_exception('no roles of that kind') }}"
    (tmp_path / "a.jinja").write_text(refuses)
    module = data(chats(2), chat_template=tmp_path / "a.jinja")
    with pytest.raises(lp.DataError, match="(?s)example 0: .*no roles.*example 1: "):
        module.texts("train")


def test_arguments_are_checked_together(tmp_path):
    with pytest.raises(lp.DataError, match=r"val_fraction in \[0, 1\).*either root.*train_on as"):
        lp.ChatDataModule(backbone=TOKENIZER, val_fraction=1.0, train_on="some")
    (tmp_path / "chat.jsonl").write_text("")
    with pytest.raises(lp.DataError, match=r"chats.json, which is not one. Did you mean 'chat"):
        lp.ChatDataModule(tmp_path / "chats.json", TOKENIZER).prepare_data()
    with pytest.raises(lp.DataError, match="chat_template as a Jinja template or a file"):
        data(chats(), chat_template="a.jinja")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    for build in (lambda: lp.ChatDataModule(records=chats(), backbone="byte_llama"),
                  lambda: lp.CausalLM("byte_llama")):  # fmt: skip
        with pytest.raises(lp.MissingExtraError, match=r"lightning-peft\[text\]"):
            build()
