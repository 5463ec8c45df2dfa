"""What a person at a terminal sees: repainted drafts, the prompt of chat, Ctrl-C."""

import json
import time

import pytest

from tests.cli.terminal import Screen, run

CTRL_C, CTRL_D = "\x03", "\x04"


def unwrapped(text):
    return "".join(text.split())


def seen_on(output, width, height):
    screen = Screen(width, height)
    screen.feed(output)
    return screen.text


def test_the_screen_of_these_tests_overwrites_erases_and_scrolls():
    screen = Screen(4, 2)
    screen.feed("abcdef\r\nxy\r\n\x1b[1A\x1b[2Kz\x1b[1mw\x1b[5A\r!")
    assert screen.text == "abcd\nef\n!w"


@pytest.mark.parametrize(
    "mode",
    [
        "linear",
        "diffusion",
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("ar", "quadratic")),
    ],
)
def test_drafts_are_repainted_until_the_plain_text_is_left(cli, letters, mode):
    arguments = ["generate", letters, "hi", "--mode", mode, "--max-tokens", 150, "-q"]
    arguments += [] if mode == "ar" else ["--block-length", 6]
    plain = cli(*arguments).out
    code, output = run(*arguments, "--show-drafts")
    assert code == 0
    assert unwrapped(seen_on(output, 100, 50)) == plain.strip()


def test_drafts_are_painted_before_the_end(letters):
    _, output = run(
        "generate", letters, "hi", "--mode", "diffusion", "--max-tokens", 200, "-q", "--show-drafts"
    )
    assert "·" in output
    assert output.count("\x1b[2K") > 2


def test_the_plain_text_of_a_terminal_has_no_control_sequences_in_it(cli, letters):
    arguments = ["generate", letters, "hi", "--max-tokens", 20, "-q", "--no-progress"]
    code, output = run(*arguments)
    assert (code, output) == (0, cli(*arguments).out.replace("\n", "\r\n"))


def test_an_answer_taller_than_the_terminal_is_seen_once(cli, letters):
    arguments = ["generate", letters, "hi", "--mode", "linear", "--max-tokens", 240, "-q"]
    plain = cli(*arguments).out
    code, output = run(*arguments, "--show-drafts", width=40, height=3)
    assert code == 0
    assert unwrapped(seen_on(output, 40, 3)) == plain.strip()


def test_ctrl_c_while_drafts_are_painted_leaves_the_text_and_the_cursor(endless):
    keys = [CTRL_C]

    def press(output, terminal):
        if keys and output.count("\x1b[2K") > 5:
            terminal.type(keys.pop())

    code, output = run(
        "generate", endless, "hi", "--mode", "linear", "--max-tokens", 15_000, "--show-drafts",
        "--no-progress", typed=press,
    )  # fmt: skip
    assert code == 130
    assert "Traceback" not in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l"), "the cursor stays hidden"
    assert len(seen_on(output, 100, 50)) > 5


def test_chat_prompts_answers_and_leaves_at_ctrl_d(letters, tmp_path):
    path = tmp_path / "chat.json"
    lines = ["hello\n", f"/save {path}\n", CTRL_D]

    def reply(output, terminal):
        done = 3 - len(lines)
        if lines and output.count(">>> ") == done + 1 and output.endswith(">>> "):
            terminal.type(lines.pop(0))

    code, output = run("chat", letters, "--max-tokens", 6, typed=reply)
    assert code == 0
    assert "/help lists commands" in output
    answer = json.loads(path.read_text())["messages"][1]["content"]
    assert len(answer) == 6
    assert answer in output


def test_ctrl_c_at_the_prompt_of_chat_keeps_the_session(letters):
    keys = [CTRL_C, "/quit\n"]

    def press(output, terminal):
        if keys and output.count(">>> ") == 3 - len(keys) and output.endswith(">>> "):
            time.sleep(0.5)  # CPython hears a signal only once readline waits
            terminal.type(keys.pop(0))

    code, output = run("chat", letters, typed=press)
    assert code == 0
    assert "(Ctrl-D or /quit leaves)" in output


def test_the_progress_of_a_batch_is_shown_on_a_terminal_unless_refused(letters, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "hi"}\n{"prompt": "ho"}\n')
    arguments = ("generate", letters, "--input", source, "--max-tokens", 3)
    _, shown = run(*arguments, "--output", tmp_path / "a.jsonl")
    _, silent = run(*arguments, "--output", tmp_path / "b.jsonl", "--no-progress")
    assert "2 prompts" in shown
    assert "100%" in shown
    assert silent == ""
