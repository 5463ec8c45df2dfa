"""`trimode chat` through piped stdin."""

import json
import os
import signal
import time

import pytest


@pytest.fixture
def talk(cli, letters):
    def run(*lines, options=("--max-tokens", 6)):
        return cli("chat", letters, *options, stdin="\n".join(lines) + "\n")

    return run


def saved(path):
    return json.loads(path.read_text())["messages"]


def test_a_conversation_is_remembered_and_saved(talk, tmp_path):
    path = tmp_path / "chat.json"
    outcome = talk("hello", "again", f"/save {path}")
    assert outcome.code == 0
    messages = saved(path)
    assert [m["role"] for m in messages] == ["user", "assistant"] * 2
    assert [m["content"] for m in messages[1::2]] == outcome.out.split()
    assert list(tmp_path.iterdir()) == [path]


def test_the_earlier_turns_are_part_of_the_prompt(talk):
    assert talk("hello", "again").out.split()[1] != talk("again").out.split()[0]


def test_clear_forgets_them(talk):
    assert talk("hello", "/clear", "again").out.split()[1] == talk("again").out.split()[0]


def test_mode_switches_live_and_the_text_stays(talk):
    switched = talk("/mode linear_spec", "/set block_size 4", "hello")
    assert switched.out == talk("hello").out
    assert "mode linear, NFE" in switched.err
    assert "acceptance" in switched.err


def test_the_system_message_is_used_and_can_be_removed(talk, tmp_path):
    path = tmp_path / "chat.json"
    with_system = talk("/system be brief", "hello", f"/save {path}")
    assert saved(path)[0] == {"role": "system", "content": "be brief"}
    assert with_system.out != talk("hello").out
    assert talk("/system x", "/system", "hello").out == talk("hello").out


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("/mode fast", "fast"),
        ("/set temperature -1", "temperature"),
        ("/set colour 3", "colour"),
        ("/nonsense", "/nonsense"),
        ("/save", "/save"),
        ("/save /nowhere/at/all.json", "/nowhere"),
    ],
)
def test_a_wrong_command_is_answered_and_the_session_goes_on(talk, line, word):
    outcome = talk(line, "hello")
    assert outcome.code == 0
    assert word in outcome.err
    assert outcome.out == talk("hello").out


def test_triple_quotes_make_one_message_of_several_lines(talk, tmp_path):
    path = tmp_path / "chat.json"
    talk('"""first', "second", 'third"""', f"/save {path}")
    assert saved(path)[0]["content"] == "first\nsecond\nthird"


def test_a_conversation_too_long_for_the_context_is_said_and_goes_on(talk, tmp_path):
    path = tmp_path / "chat.json"
    outcome = talk("x" * 1200, "hello", f"/save {path}")
    assert outcome.code == 0
    assert "maximum context length is 1024" in outcome.err
    assert saved(path)[0]["content"] == "hello"


def test_quit_leaves(talk):
    assert talk("/quit", "hello").out == ""


def test_ctrl_c_ends_the_answer_and_not_the_session(start, endless, tmp_path):
    path = tmp_path / "chat.json"
    process = start("chat", endless, "--max-tokens", 15_000)
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    begun = os.read(process.stdout.fileno(), 10)  # `communicate` does not see what a reader holds
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    rest, errors = process.communicate(f"/save {path}\n/quit\n".encode(), timeout=60)
    assert process.returncode == 0, errors
    assert b"(stopped)" in errors
    assert saved(path)[1]["content"].encode() == (begun + rest).strip()
