"""`seed`: one seed, one text."""

from tests.server.asking import (
    LOSSLESS,
    ask,
    in_mode,
)


def test_one_seed_is_one_text_and_choices_differ(client):
    fields = {"temperature": 1.0, "seed": 5, "n": 3}
    first, again = ask(client, **fields), ask(client, **fields)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage.prompt_tokens == ask(client).usage.prompt_tokens


def test_without_a_seed_texts_differ(client):
    texts = {ask(client, temperature=1.0).choices[0].message.content for _ in range(4)}
    assert len(texts) > 1


def test_one_seed_is_one_text_in_every_lossless_mode(client):
    """`seed`."""
    fields = {"seed": 11, "temperature": 1.0, "max_tokens": 24}
    texts = {ask(client, extra_body=in_mode(m), **fields).choices[0].message.content
             for m in LOSSLESS}  # fmt: skip
    assert len(texts) == 1
    assert ask(client, **{**fields, "seed": 12}).choices[0].message.content not in texts
