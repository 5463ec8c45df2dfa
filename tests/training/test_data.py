"""From files to packed rows."""

import json

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers

from trimode.errors import InputError
from trimode.testing.tiny import CHAT_TEMPLATE, byte_tokenizer
from trimode.text import ChatTemplate, Tokenizer
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
    (found,) = tokenise(conversation, TOKENIZER, TEMPLATE, eos_token_ids=(END,))
    return found


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
    (found,) = tokenise(Conversation(text="abc"), TOKENIZER, None, eos_token_ids=())
    assert found.tokens.tolist() == TOKENIZER.encode("abc")
    assert found.learn.all()


def test_everything_can_be_trained_on():
    conversation = Conversation(messages=talk("hi", "ho"))
    (found,) = tokenise(
        conversation, TOKENIZER, TEMPLATE, eos_token_ids=(END,), learn_from="everything"
    )
    assert found.learn.all()


def test_a_text_ends_with_an_end_token_once():
    for text in ("abc", "abc<|im_end|>"):
        (found,) = tokenise(Conversation(text=text), TOKENIZER, None, eos_token_ids=(END,))
        assert TOKENIZER.decode(found.tokens.tolist(), skip_special=False) == "abc<|im_end|>"
        assert found.learn.all()


def each_answer(messages, template, **options):
    """Text and trained text of each document."""
    conversation = Conversation(messages=tuple(messages), **options)
    documents = tokenise(conversation, TOKENIZER, ChatTemplate(template), eos_token_ids=(END,))
    texts = [TOKENIZER.decode(d.tokens.tolist(), skip_special=False) for d in documents]
    return [(text, *learned(d)) for text, d in zip(texts, documents, strict=True)]


def test_a_template_that_rewrites_earlier_turns_gives_each_answer_its_own_document():
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert each_answer(talk("a", "b", "c", "d"), template) == [("1ab", "b"), ("3abcd", "d")]


DROPS_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last and m.reasoning_content %}"
    "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Like Qwen 3's: only the last turn shows its thoughts."""


def test_thoughts_that_a_template_drops_later_are_trained_where_they_are_shown():
    messages = list(talk("hi", "ho", "he", "ha"))
    messages[1]["reasoning_content"] = "hm"
    messages[3]["reasoning_content"] = "ah"
    first, second = each_answer(messages, DROPS_THOUGHTS)
    assert first[1] == "<think>hm</think>ho<|im_end|>"
    assert second[1] == "<think>ah</think>ha<|im_end|>"
    assert "hm" not in second[0]
    prompt = ChatTemplate(DROPS_THOUGHTS).render(messages[:3])
    assert second[0].startswith(prompt)


OPENS_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""Like DeepSeek R1's: the prompt opens thoughts that a finished turn does not show."""


def test_an_answer_is_what_follows_the_generation_prompt():
    messages = talk("hi", "so\n</think>\n\nho", "he", "ha\n</think>\n\nhu")
    first, second = each_answer(messages, OPENS_THOUGHTS)
    answer = "so\n</think>\n\nho<|im_end|>"
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert first == (f"{prompt}{answer}\n", answer)
    assert second[0].startswith(ChatTemplate(OPENS_THOUGHTS).render(list(messages[:3])))
    assert second[1] == "ha\n</think>\n\nhu<|im_end|>"


def test_thoughts_in_a_field_of_their_own_follow_the_prompt_that_opens_them():
    messages = list(talk("hi", "ho"))
    messages[1]["reasoning_content"] = "so"
    template = OPENS_THOUGHTS + "{# reasoning_content #}"
    ((_, answer),) = each_answer(messages, template)
    assert answer == "so\n</think>\n\nho<|im_end|>"


def test_a_cut_answer_after_a_prompt_that_opens_thoughts_has_no_end():
    ((text, answer),) = each_answer(talk("hi", "so and"), OPENS_THOUGHTS, truncated=True)
    assert answer == "so and"
    assert text.endswith("so and")


def test_an_opening_greeting_is_context():
    messages = ({"role": "assistant", "content": "hello"}, *talk("hi", "ho"))
    ((text, answer),) = each_answer(messages, CHAT_TEMPLATE)
    assert answer == "ho<|im_end|>"
    assert "hello" in text


def test_turns_that_are_only_context_are_not_trained_on():
    found = document(talk("hi", "ho", "he", "ha"), context_only=frozenset({1}))
    assert learned(found) == ["ha<|im_end|>"]
    assert "ho" in TOKENIZER.decode(found.tokens.tolist())


def sentencepiece():
    """A vocabulary as Llama 2's: words begin with a space that the normalizer adds."""
    words = ["<unk>", "<s>", "</s>", *"▁abcdehinorst|<>\n", "▁h", "▁ho", "ho", "hi", "▁hi"]
    vocab = {word: i for i, word in enumerate(words)}
    merges = [("▁", "h"), ("▁h", "o"), ("h", "o"), ("h", "i"), ("▁h", "i")]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend, eos_token_id=2)


def test_a_conversation_is_tokenised_whole_as_decoding_feeds_it():
    tokenizer = sentencepiece()
    template = ChatTemplate(
        "{% for m in messages %}<|{{ m.role[0] }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|a|>\n{% endif %}"
    )
    messages = talk("hi", "ho", "hi ho", "ho hi")
    (found,) = tokenise(Conversation(messages=messages), tokenizer, template, eos_token_ids=(2,))
    whole = template.render(list(messages), add_generation_prompt=False)
    assert found.tokens.tolist() == tokenizer.encode(whole, add_bos=False)
    spelled = [tokenizer.backend.id_to_token(i) for i in found.tokens[found.learn].tolist()]
    assert spelled == ["ho", "</s>", "ho", "▁hi", "</s>"]
    for end in (1, 3):  # what decoding feeds for an answer is the beginning of what was trained on
        prompt = tokenizer.encode(template.render(list(messages[:end])), add_bos=False)
        assert found.tokens[: len(prompt)].tolist() == prompt


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, "messages: tool_calls"),
        ({"reasoning_content": "hm"}, "messages: reasoning_content"),
        ({"mood": "good"}, "messages: mood"),
    ],
)
def test_a_field_that_the_template_does_not_show_is_refused(fields, words):
    user, answer = talk("hi", "ho")
    with pytest.raises(InputError, match=words):
        document((user, answer | fields))


def test_tools_that_the_template_does_not_show_are_refused():
    with pytest.raises(InputError, match="tools: given; the model's chat template"):
        document(talk("hi", "ho"), tools=({"type": "function", "function": {"name": "f"}},))


WITH_TOOLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}</call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_tools_and_their_calls_are_shown_and_calls_are_learned():
    call = {"type": "function", "function": {"name": "find", "arguments": {"q": 1}}}
    messages = (
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        {"role": "assistant", "content": "it is 42"},
    )
    ((text, *answers),) = each_answer(messages, WITH_TOOLS, tools=({"name": "find"},))
    assert text.startswith('[{"name": "find"}]')
    assert answers == ["<call>find</call><|im_end|>", "it is 42<|im_end|>"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "has no field"),
        ({"prompt": "a"}, "line 3: completion"),
        ({"prompt": "a", "completion": " "}, "completion: empty"),
        ({"prompt": "a", "text": "b"}, "prompt and text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen: given; this trains on answers"),
        ({"prompt": "a", "completion": "b", "label": False}, "label: False"),
        ({"mesages": []}, "mesages: no such column; did you mean messages"),
        ({"Prompts": "a", "completion": "b"}, "Prompts: no such column; did you mean prompt"),
        ({"text": "a", "tools": [{}]}, "tools: given with text"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": "b"}, "completion: str"),
        ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, r"weight: on a turn of"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "must be 0 or 1"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, r"conversations\[0\].from: 'alien'"),
        (
            {"conversations": [{"from": "function_call", "value": "x"}]},
            r"\.value: 'x'; must be JSON",
        ),
        ({"messages": "a"}, "messages: not JSON"),
        ({"images": ["x.png"], "text": "a"}, "images: given"),
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


def words_of(row):
    """The learned texts of a row, as the tiny template shows them."""
    documents = tokenise(
        parse_conversation(row, "line 1"), TOKENIZER, TEMPLATE, eos_token_ids=(END,)
    )
    return [text for found in documents for text in learned(found)]


def test_every_form_of_a_conversation_is_read():
    user, answer = talk("hi", "ho")
    later, last = talk("he", "ha")
    sharegpt = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    for row in (
        {"messages": [user, answer]},
        {"messages": json.dumps([user, answer])},
        {"messages": [user, {"role": "assistant", "content": [{"type": "text", "text": "ho"}]}]},
        {"conversations": sharegpt, "system": "be kind"},
        {"conversations": [user, answer]},
        {"prompt": "hi", "completion": "ho"},
        {"prompt": [user], "completion": [answer]},
    ):
        assert words_of(row) == ["ho<|im_end|>"], row
    trl = {"prompt": [user, answer, later], "completion": [last]}
    assert words_of(trl) == ["ha<|im_end|>"]  # earlier answers of a prompt are context


@pytest.mark.parametrize("off", [{"weight": 0}, {"train": False}])
def test_an_answer_of_weight_0_is_in_the_context_and_not_in_the_loss(off, tmp_path):
    user, answer = talk("hi", "ho")
    row = {"messages": [user, answer | off, user, answer | {"weight": 1}]}
    assert words_of(row) == ["ho<|im_end|>"]
    path = tmp_path / "d.jsonl"
    path.write_text(f"{json.dumps(row)}\n{json.dumps({'messages': [user, answer | off]})}\n")
    examples = read(path)
    (found,) = examples.documents
    assert TOKENIZER.decode(found.tokens.tolist()).count("ho") == 2
    assert examples.left_out == {"every answer has weight 0": 1}


def test_columns_that_are_not_read_are_named_once(tmp_path):
    path = tmp_path / "d.csv"
    path.write_bytes("\ufeffid,prompt,completion,source\r\n1,a,b,web\r\n2,c,d,web\r\n".encode())
    examples = read(path)
    assert len(examples.documents) == 2
    assert "data: columns not read: source" in examples.notes()


def test_a_row_with_the_mask_token_is_refused(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b<|mask|>"}) + "\n")
    with pytest.raises(InputError, match=r"line 1: holds the mask token <\|mask\|> .*--mask-token"):
        read(path, mask_token_id=TOKENIZER.token_id("<|mask|>"))


def test_a_wrong_column_of_the_last_file_is_found_first(tmp_path):
    first, last = tmp_path / "first.jsonl", tmp_path / "last.csv"
    last.write_text("question,answer\na,b\n")
    first.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n{\n")
    with pytest.raises(InputError, match=r"last.csv line 2: has question, answer; needs one of"):
        read_documents([first, last], TOKENIZER, TEMPLATE, eos_token_ids=(END,), max_length=64)


def test_unusable_rows_are_counted_by_reason(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [{"id": i, "skipped": "empty answer"} for i in range(11)]
    rows.append({"id": 11, "skipped": "user turn without an end"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"12 of 12 rows unusable; empty answer 11, user turn"):
        read(path)


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
    cut_examples = read(path, overlong="truncate")
    (cut,) = cut_examples.documents
    assert any("cut to 64 tokens" in note for note in cut_examples.notes())
    assert len(cut.tokens) == 64


def test_plain_text_fills_rows(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text("x" * 150)
    assert [len(d.tokens) for d in read(path).documents] == [64, 64, 23]


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
