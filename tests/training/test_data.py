"""From files to packed rows."""

import json

import numpy as np
import pytest
import torch

from trimode.errors import InputError
from trimode.testing.tiny import CHAT_TEMPLATE, byte_tokenizer
from trimode.text import ChatTemplate
from trimode.training.conversations import Conversation, parse_conversation
from trimode.training.data import Document, PackedRows, read_documents, tokenise

TOKENIZER = byte_tokenizer()
TEMPLATE = ChatTemplate(CHAT_TEMPLATE)
END = TOKENIZER.token_id("<|im_end|>")


def talk(*turns):
    roles = ("user", "assistant")
    return tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(turns))


def document(messages, **options):
    conversation = Conversation(messages=messages, **options)
    return tokenise(conversation, TOKENIZER, TEMPLATE, eos_token_ids=(END,))


def learned(found):
    """The trained stretches of a document as text."""
    stretches, current = [], []
    for token, flag in zip(found.tokens.tolist(), found.learn.tolist(), strict=True):
        if flag:
            current.append(token)
        elif current:
            stretches.append(current)
            current = []
    return [TOKENIZER.decode(s, skip_special=False) for s in (*stretches, current) if s]


def test_the_answers_and_their_end_are_trained_on_and_nothing_else():
    found = document(talk("hi", "ho", "he", "ha"))
    assert learned(found) == ["ho<|im_end|>", "ha<|im_end|>"]
    text = TEMPLATE.render(list(talk("hi", "ho", "he", "ha")), add_generation_prompt=False)
    assert TOKENIZER.decode(found.tokens.tolist(), skip_special=False) == text


def test_a_prompt_is_tokenised_as_it_is_for_generation():
    found = document(talk("hi", "ho"))
    prompt = TOKENIZER.encode(TEMPLATE.render([talk("hi")[0]]), add_bos=False)
    assert found.tokens[: len(prompt)].tolist() == prompt


def test_an_answer_that_was_cut_off_has_no_end_to_learn():
    found = document(talk("hi", "ho and"), truncated=True)
    assert learned(found) == ["ho and"]
    assert END not in found.tokens[-6:].tolist()


def test_plain_text_is_trained_on_throughout():
    found = tokenise(Conversation(text="abc"), TOKENIZER, None, eos_token_ids=())
    assert found.tokens.tolist() == TOKENIZER.encode("abc")
    assert found.learn.all()


def test_everything_can_be_trained_on():
    conversation = Conversation(messages=talk("hi", "ho"))
    found = tokenise(
        conversation, TOKENIZER, TEMPLATE, eos_token_ids=(END,), learn_from="everything"
    )
    assert found.learn.all()


def test_a_template_that_rewrites_earlier_turns_is_refused():
    template = ChatTemplate(
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(InputError, match="rewrites earlier turns"):
        tokenise(
            Conversation(messages=talk("a", "b", "c", "d")), TOKENIZER, template, eos_token_ids=()
        )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "has no field"),
        ({"prompt": "a"}, "line 3: completion"),
        ({"prompt": "a", "completion": " "}, "completion: empty"),
        ({"prompt": "a", "text": "b"}, "prompt and text"),
        ({"messages": []}, "not empty"),
        ({"messages": ["a"]}, r"messages\[0\]"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn"),
        ({"messages": [{"role": "assistant", "content": ""}]}, r"messages\[0\].content: empty"),
        ({"messages": [{"content": "a"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user", "content": 3}]}, r"content: int"),
        ({"text": "   "}, "text: empty"),
    ],
)
def test_a_bad_row_is_named_by_line_and_field(row, words):
    with pytest.raises(InputError, match=words) as caught:
        parse_conversation(row, "data.jsonl line 3")
    assert "line 3" in str(caught.value)


def read(path, **options):
    fields = {"eos_token_ids": (END,), "max_length": 64}
    return read_documents([path], TOKENIZER, TEMPLATE, **fields | options)


def test_malformed_json_is_named_by_line(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(InputError, match="line 2: not JSON"):
        read(path)


def test_a_missing_file_and_one_without_answers_are_refused(tmp_path):
    with pytest.raises(InputError, match="not readable"):
        read(tmp_path / "none.jsonl")
    path = tmp_path / "d.jsonl"
    path.write_text("\n")
    with pytest.raises(InputError, match="nothing to train on"):
        read(path)


def test_a_document_longer_than_a_row_is_refused_or_cut(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b" * 100}) + "\n")
    with pytest.raises(InputError, match=r"line 1: \d+ tokens; at most sequence_length \(64\)"):
        read(path)
    (cut,) = read(path, overlong="truncate")
    assert len(cut.tokens) == 64


def test_plain_text_fills_rows(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("x" * 150)
    assert [len(d.tokens) for d in read(path)] == [64, 64, 22]


def test_parquet_says_what_it_needs(tmp_path):
    path = tmp_path / "d.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"trimode\[data\]|not readable"):
        read(path)


def made(sizes):
    return [
        Document(np.full(size, i, dtype=np.int32), np.arange(size) > 0)
        for i, size in enumerate(sizes)
    ]


def test_every_epoch_holds_every_document_once_and_whole():
    sizes = [3, 10, 1, 7, 7, 2, 9, 4]
    rows = PackedRows(made(sizes), 10, seed=3)
    row, seen = 0, []
    for epoch in range(3):
        counted = {}
        while rows.epoch_of(row) < epoch + 1:
            batch = rows.batch(row, 1)
            for number in range(int(batch.documents.max()) + 1):
                chosen = batch.tokens[batch.documents == number]
                assert len(set(chosen.tolist())) == 1
                counted[int(chosen[0])] = len(chosen)
                learn = batch.learn[batch.documents == number]
                assert learn.tolist() == [i > 0 for i in range(len(chosen))]
            row += 1
        assert counted == dict(enumerate(sizes))
        seen.append(rows.batch(row - 1, 1).tokens.tolist())
    assert len({str(tokens) for tokens in seen}) > 1  # shuffled anew


def test_rows_are_a_function_of_seed_and_number():
    sizes = list(range(1, 30))
    one, two = (PackedRows(made(sizes), 40, seed=5) for _ in range(2))
    two.batch(50, 3)
    assert torch.equal(one.batch(7, 4).tokens, two.batch(7, 4).tokens)
    assert not torch.equal(
        one.batch(0, 4).tokens, PackedRows(made(sizes), 40, seed=6).batch(0, 4).tokens
    )
