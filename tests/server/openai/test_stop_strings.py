"""`stop`: the text ends before a stop string, however blocks are cut."""

import re

import pytest

from tests.server.asking import (
    MODES,
    ask,
    in_mode,
    text_of,
)


def test_a_stop_string_never_leaks(client):
    full = ask(client).choices[0].message.content
    stop = full[6:9]
    answer = ask(client, stop=stop)
    assert answer.choices[0].message.content == full[: full.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(ask(client, stop=[stop], stream=True))
    assert text_of(chunks) == full[: full.index(stop)]


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_string_ends_the_text_wherever_blocks_are_cut(plain, mode):
    """`stop` as a string or many; never in the output; over the edge of a block."""
    body = in_mode(mode, 4)
    full = ask(plain, max_tokens=24, extra_body=body).choices[0].message.content
    assert re.fullmatch("[a-z]{24}", full)
    for start in range(2, 9):  # whatever its place in a block of 4
        stop = full[start : start + 5]
        expected = full[: full.index(stop)]
        answer = ask(plain, stop=stop, max_tokens=24, extra_body=body)
        assert answer.choices[0].message.content == expected
        assert answer.choices[0].finish_reason == "stop"
        many = ["", "0", "1", "2", "3", "4", "5", "6", stop, "7"][1:]
        chunks = ask(plain, stop=many, max_tokens=24, stream=True, extra_body=body)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
    assert ask(plain, stop=[], max_tokens=24, extra_body=body).choices[0].message.content == full
