"""Slash commands of `trimode chat`, one by one, through piped stdin."""

import json
import os
import signal
from dataclasses import replace

import pytest

from tests.cli.conftest import assert_one_line_error, wait_until_blocked
from trimode import decoding


@pytest.fixture
def talk(cli, letters):
    def run(*lines, options=("--max-tokens", 4)):
        return cli("chat", letters, *options, stdin="\n".join(lines) + "\n")

    return run


def answers(outcome):
    return outcome.out.split("\n")[:-1]


def test_stdout_carries_the_answers_only(talk):
    outcome = talk("/help", "one", "/mode linear", "two")
    assert outcome.code == 0
    assert [len(answer) for answer in answers(outcome)] == [4, 4]


def test_every_answer_has_its_figures_on_stderr(talk):
    lines = talk("one", "two").err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("mode ar, NFE 4, TPF 1.00, 4 tokens, ")
        assert line.endswith(" tok/s")


def test_help_names_every_command(talk):
    err = talk("/help").err
    for command in ("/mode", "/set", "/system", "/clear", "/save", "/quit", '"""'):
        assert command in err


@pytest.mark.parametrize("command", ["/quit", "/exit", "/bye"])
def test_a_word_of_goodbye_ends_the_session(talk, command):
    assert answers(talk("one", command, "two")) == answers(talk("one"))


def test_empty_lines_are_no_messages(talk):
    assert answers(talk("", "   ", "one", "")) == answers(talk("one"))


def test_a_last_line_without_line_end_is_answered(cli, letters):
    outcome = cli("chat", letters, "--max-tokens", 4, stdin="one")
    assert (outcome.code, len(outcome.out)) == (0, 5)


def test_the_answer_is_that_of_generate_to_the_same_messages(cli, talk, letters, tmp_path):
    path, source = tmp_path / "chat.json", tmp_path / "in.jsonl"
    second = answers(talk("/system be brief", "one", "two", f"/save {path}"))[1]
    messages = json.loads(path.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 2]
    source.write_text(json.dumps({"messages": messages[:-1]}) + "\n")
    outcome = cli("generate", letters, "--input", source, "--max-tokens", 4)
    assert outcome.json()["text"] == second == messages[-1]["content"]


def test_the_system_option_is_the_system_command(talk):
    with_option = talk("one", options=("--max-tokens", 4, "--system", "be brief"))
    assert with_option.out == talk("/system be brief", "one").out
    assert with_option.out != talk("one").out


SETTINGS = {
    "max_tokens 2": ("max_tokens 2", 2),
    "max_new_tokens 2": ("max_tokens 2", 2),
    "n_predict 6": ("max_tokens 6", 6),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_set_changes_the_next_answer_and_says_so(talk, setting):
    said, length = SETTINGS[setting]
    outcome = talk(f"/set {setting}", "one")
    assert outcome.err.splitlines()[0] == said
    assert len(answers(outcome)[0]) == length


def test_set_takes_a_list_and_none(talk):
    lines = ('/set stop ["a", "b"]', "/set threshold 0.5", "/set threshold none")
    outcome = talk(*lines, options=("--mode", "linear"))
    assert outcome.err.splitlines() == ["stop ('a', 'b')", "threshold 0.5", "threshold None"]


def test_set_mode_takes_an_alias(talk):
    assert talk("/set mode linear_spec").err == "mode linear\n"


@pytest.fixture
def only_linear_reads_a_threshold(monkeypatch):
    def inherited(options, mode):
        return options if mode == "linear" else replace(options, threshold=None)

    monkeypatch.setattr(decoding, "inherited", inherited)


@pytest.mark.usefixtures("only_linear_reads_a_threshold")
class TestOptionsThatAModeDoesNotRead:
    def test_set_refuses_them_at_once_and_stores_nothing(self, talk):
        outcome = talk("/set threshold 0.5", "/mode linear", "/set threshold none")
        refused, *later = outcome.err.splitlines()
        assert refused == "error: threshold: 0.5; the mode ar does not read it"
        assert later == ["mode linear", "threshold None"]

    def test_a_change_of_mode_forgets_them_and_says_so(self, talk):
        lines = ("/set threshold 0.5", "/mode linear_spec", "/set mode ar", "/mode linear")
        said = talk(*lines, options=("--mode", "linear")).err.splitlines()
        assert said == ["threshold 0.5", "mode linear", "mode ar, without threshold", "mode linear"]

    def test_the_command_line_refuses_them_before_the_model_loads(self, cli):
        outcome = cli("chat", "/nosuch", "--threshold", 0.5)
        assert_one_line_error(outcome, 2, "threshold: 0.5", "the mode ar")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/mode", "mode: ''"),
        ("/mode magic", "mode: 'magic'; allowed: ar"),
        ("/set", "unknown option"),
        ("/set colour red", "colour: unknown option"),
        ("/set max_tokens", "max_tokens: ''"),
        ("/set max_tokens many", "max_tokens: 'many'"),
        ("/set max_tokens 0", "max_tokens: 0; must be at least 1"),
        ("/set temperature nan", "temperature: 'nan'"),
        ("/set temperature NaN", "temperature: nan"),
        ("/set top_p 0", "top_p: 0"),
        ("/save", "/save: no file name"),
        ("/save /", "/save"),
        ("/save /nosuch/directory/chat.json", "/nosuch/directory"),
        ("/sing", "command: /sing; /help lists"),
        ("/", "command: /"),
    ],
)
def test_a_wrong_command_changes_nothing_and_says_why(talk, line, words):
    outcome = talk(line, "one")
    first = outcome.err.splitlines()[0]
    assert first.startswith("error: ")
    assert words in first
    assert (outcome.code, outcome.out) == (0, talk("one").out)


def test_a_refused_answer_leaves_no_trace_in_the_conversation(cli, llama, tmp_path):
    path = tmp_path / "chat.json"
    lines = ["/mode diffusion", "one", "/mode ar", "two", f"/save {path}"]
    outcome = cli("chat", llama, "--max-tokens", 2, stdin="\n".join(lines) + "\n")
    assert "error: mode: diffusion on llama" in outcome.err
    assert [m["content"] for m in json.loads(path.read_text())["messages"][::2]] == ["two"]


def test_clear_keeps_the_system_message(talk, tmp_path):
    path = tmp_path / "chat.json"
    talk("/system be brief", "one", "/clear", f"/save {path}")
    assert json.loads(path.read_text())["messages"] == [{"role": "system", "content": "be brief"}]


def test_save_replaces_a_file_whole_or_not_at_all(talk, tmp_path, monkeypatch):
    path = tmp_path / "chat.json"
    talk("one", f"/save {path}")
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trimode.cli.chat.Path.replace", full)
        outcome = talk("two", f"/save {path}", "three")
    assert "error: /save: [Errno 28]" in outcome.err
    assert len(answers(outcome)) == 2
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_below_a_file_keeps_the_session(talk, tmp_path):
    (tmp_path / "file").write_text("x")
    outcome = talk(f"/save {tmp_path / 'file' / 'chat.json'}", "one")
    assert (outcome.code, outcome.out) == (0, talk("one").out)


def saved_user_turn(talk, tmp_path, *lines):
    path = tmp_path / "chat.json"
    talk(*lines, f"/save {path}")
    return json.loads(path.read_text())["messages"][0]["content"]


@pytest.mark.parametrize(
    ("lines", "content"),
    [
        (['"""a', "", "b", '"""'], "a\n\nb\n"),
        (['"""', "a", 'b"""'], "\na\nb"),
        (['"""one line"""'], "one line"),
        (['"""', "/quit", '"""'], "\n/quit\n"),
    ],
)
def test_triple_quotes_hold_a_message_together(talk, tmp_path, lines, content):
    assert saved_user_turn(talk, tmp_path, *lines) == content


def test_a_quoted_message_may_begin_with_a_slash(talk, tmp_path):
    assert saved_user_turn(talk, tmp_path, '"""/etc/passwd, what is it?"""') == (
        "/etc/passwd, what is it?"
    )


def test_the_end_of_input_inside_triple_quotes_ends_the_session(talk):
    outcome = talk("one", '"""begun', "and never ended")
    assert (outcome.code, outcome.out) == (0, talk("one").out)


def test_input_that_is_not_utf8_ends_with_code_2(cli, letters):
    outcome = cli("chat", letters, stdin=b"hi\xff\n")
    assert (outcome.code, outcome.err) == (2, "error: stdin: byte 2 is not UTF-8; must be UTF-8\n")


def test_drafts_on_a_pipe_are_noted_and_the_text_is_plain(talk):
    options = ("--max-tokens", 4, "--mode", "linear", "--show-drafts")
    outcome = talk("one", options=options)
    assert outcome.err.startswith("note: stdout is no terminal")
    assert outcome.out == talk("one").out


def test_ctrl_c_twice_in_two_answers_keeps_the_session_and_both_pieces(start, endless, tmp_path):
    path = tmp_path / "chat.json"
    process = start("chat", endless, "--max-tokens", 15_000, bufsize=0)
    pieces = []
    for message in (b"one\n", b"two\n"):
        process.stdin.write(message)
        piece = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        while not piece.endswith(b"\n"):
            piece += os.read(process.stdout.fileno(), 4096)
        pieces.append(piece.decode().strip())
    _, errors = process.communicate(f"/save {path}\n".encode(), timeout=60)
    assert process.returncode == 0, errors
    assert errors.count(b"(stopped)") == 2
    messages = json.loads(path.read_text())["messages"]
    assert [m["content"] for m in messages] == ["one", pieces[0], "two", pieces[1]]


def test_sigterm_ends_a_session_in_the_middle_of_an_answer(start, endless):
    process = start("chat", endless, "--max-tokens", 15_000)
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    process.stdout.read(5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (143, b"")


def test_ctrl_c_while_chat_waits_for_a_line_keeps_the_session(start, letters):
    process = start("chat", letters, "--max-tokens", 4)
    process.stdin.write(b"one\n")
    process.stdin.flush()
    process.stdout.readline()
    process.stderr.readline()
    wait_until_blocked(process)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == b"\n"
    assert b"/quit leaves" in process.stderr.readline()
    out, _ = process.communicate(b"two\n", timeout=30)
    assert (process.returncode, len(out)) == (0, 5)
