"""Wrong usage and wrong input: an exit code and one line that names the field."""

import pytest

from tests.cli.conftest import assert_one_line_error
from trimode.testing.tiny import write_tiny_checkpoint

BAD_VALUES = {
    "an empty prompt": ([""], "prompt: empty"),
    "a negative temperature": (["hi", "--temperature", "-0.5"], "temperature: -0.5"),
    "a temperature that is no number": (["hi", "--temperature", "nan"], "temperature: nan"),
    "an unknown mode": (["hi", "--mode", "magic"], "mode: 'magic'"),
    "block length 0": (["hi", "--block-length", "0"], "block_length: 0"),
    "top-p 0": (["hi", "--top-p", "0"], "top_p: 0"),
    "top-p above 1": (["hi", "--top-p", "1.5"], "top_p: 1.5"),
    "a negative top-k": (["hi", "--top-k", "-1"], "top_k: -1"),
    "min-p above 1": (["hi", "--min-p", "1.1"], "min_p: 1.1"),
    "repetition penalty 0": (["hi", "--repetition-penalty", "0"], "repetition_penalty: 0"),
    "no tokens asked for": (["hi", "--max-tokens", "0"], "max_tokens: 0"),
    "a negative seed": (["hi", "--seed", "-1"], "seed: -1"),
    "a seed beyond 63 bits": (["hi", "--seed", str(2**63)], "seed: "),
    "an unknown commit rule": (["hi", "--commit-rule", "coin"], "commit_rule: 'coin'"),
    "a negative threshold": (["hi", "--threshold", "-1"], "threshold: -1"),
    "no denoising steps": (["hi", "--max-denoising-steps", "0"], "max_denoising_steps: 0"),
    "a revision threshold above 1": (["hi", "--revision-threshold", "2"], "revision_threshold: 2"),
    "too many logprobs": (["hi", "--logprobs", "21"], "logprobs: 21"),
    "a negative thinking budget": (["hi", "--max-thinking-tokens", "-1"], "max_thinking_tokens"),
    "an empty stop string": (["hi", "--stop", ""], "stop: an empty string"),
    "an unknown dtype": (["hi", "--dtype", "int3"], "dtype: 'int3'"),
    "an unknown device": (["hi", "--device", "nosuch"], "device: 'nosuch'"),
    "an adapter that is not there": (["hi", "--adapter", "/nosuch/adapter"], "/nosuch/adapter"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_wrong_value_is_refused_with_its_field(cli, nld, arguments, message):
    assert_one_line_error(cli("generate", "-m", nld, *arguments), 2, message)


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_a_prompt_longer_than_the_context_is_refused(cli, nld, command):
    outcome = cli(command, nld, "x" * 2000)
    assert_one_line_error(outcome, 2, "prompt: ", "tokens", "1024")


def test_the_longest_prompt_that_fits_is_answered(cli, nld):
    outcome = cli("generate", nld, "x" * 1023, "--raw", "--json")
    assert (outcome.json()["prompt_tokens"], outcome.json()["completion_tokens"]) == (1023, 1)


def test_a_prompt_that_fills_the_context_is_refused(cli, nld):
    assert_one_line_error(cli("generate", nld, "x" * 1024, "--raw"), 2, "prompt: 1024 tokens")


def test_empty_stdin_is_an_empty_prompt(cli, nld):
    assert_one_line_error(cli("generate", "-m", nld, stdin=b""), 2, "prompt: empty")


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_stdin_that_is_not_utf8_is_refused_with_the_byte(cli, nld, command):
    outcome = cli(command, "-m", nld, "-", stdin=b"abc\xffdef")
    assert_one_line_error(outcome, 2, "stdin: byte 3 is not UTF-8")


def test_three_words_are_refused_with_a_hint_at_quotes(cli, nld):
    assert_one_line_error(cli("generate", nld, "two", "words"), 2, "prompt: 3 words", "quotes")


def test_a_missing_prompt_at_a_terminal_is_refused_at_once(cli, nld, monkeypatch):
    monkeypatch.setattr("tests.cli.conftest._NoTerminal.isatty", lambda self: True)
    assert_one_line_error(cli("generate", "-m", nld), 2, "prompt: missing", "--input")


@pytest.mark.parametrize("command", ["generate", "compare"])
def test_a_model_that_is_no_path_and_no_name_is_refused(cli, tmp_path, command):
    missing = tmp_path / "nosuch"
    assert_one_line_error(cli(command, missing, "hi"), 2, "model: ", str(missing))


def test_chat_with_a_model_that_is_not_there_is_refused(cli, tmp_path):
    missing = tmp_path / "nosuch"
    assert_one_line_error(cli("chat", missing), 2, "model: ", str(missing))


def test_a_file_that_is_no_gguf_is_refused_with_its_name(cli, tmp_path):
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"these are not weights")
    assert_one_line_error(cli("generate", path, "hi"), 2, str(path))


def test_a_directory_that_is_no_checkpoint_is_refused_with_the_missing_file(cli, tmp_path):
    assert_one_line_error(cli("generate", tmp_path, "hi"), 2, str(tmp_path / "config.json"))


def test_damaged_weights_are_refused_with_their_name(cli, tmp_path):
    path = write_tiny_checkpoint(tmp_path / "damaged")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_one_line_error(cli("generate", path, "hi"), 2, "model.safetensors")


def test_a_damaged_config_is_refused_with_its_name(cli, tmp_path):
    path = write_tiny_checkpoint(tmp_path / "damaged")
    (path / "config.json").write_text("{")
    assert_one_line_error(cli("generate", path, "hi"), 2, "config.json")


def test_a_model_that_is_not_cached_fails_offline_with_code_1(cli):
    outcome = cli("generate", "-m", "pypi:nosuch==1.0", "hi", "--offline")
    assert_one_line_error(outcome, 1, "nosuch==1.0", "--offline")


def test_a_malformed_hub_name_is_refused(cli):
    assert_one_line_error(cli("generate", "hub:a/b/c", "hi"), 2, "model: hub:a/b/c")


@pytest.mark.parametrize(
    "arguments",
    [["hi", "--nosuch"], ["hi", "--max-tokens", "many"], ["hi", "--temperature"]],
    ids=["unknown", "no number", "no value"],
)
def test_a_wrong_option_is_usage_with_code_2_and_its_name(cli, nld, arguments):
    outcome = cli("generate", nld, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert arguments[1] in outcome.err


def test_an_unknown_command_is_usage_with_code_2(cli):
    outcome = cli("nosuch")
    assert (outcome.code, outcome.out) == (2, "")
    assert "nosuch" in outcome.err


def test_an_input_file_that_is_not_there_is_refused(cli, nld, tmp_path):
    missing = tmp_path / "nosuch.jsonl"
    assert_one_line_error(cli("generate", nld, "--input", missing), 2, "input: ", str(missing))


def test_a_directory_without_rows_as_input_is_refused(cli, nld, tmp_path):
    assert_one_line_error(
        cli("generate", nld, "--input", tmp_path), 2, "no rows in it", str(tmp_path)
    )


def test_an_input_file_that_is_not_utf8_is_refused_with_the_byte(cli, nld, tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"prompt": "é"}'.encode("latin-1"))
    outcome = cli("generate", nld, "--input", path)
    assert_one_line_error(outcome, 2, str(path), "byte 12 is not UTF-8")


def test_an_input_file_without_prompts_is_refused(cli, nld, tmp_path):
    path = tmp_path / "blank.jsonl"
    path.write_text("\n  \n")
    assert_one_line_error(cli("generate", nld, "--input", path), 2, f"{path}: no prompts")


def test_a_prompt_beside_an_input_file_is_refused(cli, nld, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "hi"}\n')
    outcome = cli("generate", nld, "hi", "--input", path)
    assert_one_line_error(outcome, 2, "prompt: given with --input")


def test_an_output_file_without_an_input_file_is_refused(cli, nld, tmp_path):
    path = tmp_path / "out.jsonl"
    assert_one_line_error(cli("generate", nld, "hi", "--output", path), 2, "output: ", "--input")
    assert not path.exists()


def test_diffusion_on_an_untrained_checkpoint_is_refused_with_the_way_out(cli, llama):
    outcome = cli("generate", llama, "hi", "--mode", "diffusion")
    assert_one_line_error(outcome, 2, "mode: diffusion on llama", "--force")


def test_diffusion_on_an_untrained_checkpoint_runs_with_force(cli, llama):
    outcome = cli("generate", llama, "hi", "--mode", "diffusion", "--force", "--json")
    assert (outcome.code, outcome.json()["mode"]) == (0, "diffusion")


def test_a_thinking_budget_without_the_token_for_it_is_refused(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("trimode.testing.tiny.SPECIAL_TOKENS", ("<|mask|>", "<|im_end|>"))
    path = write_tiny_checkpoint(tmp_path / "thoughtless")
    outcome = cli("generate", path, "hi", "--max-thinking-tokens", "3")
    assert_one_line_error(outcome, 2, "max_thinking_tokens: set", "</think>")


def test_a_draft_mode_without_a_mask_token_is_refused(cli, tmp_path):
    path = write_tiny_checkpoint(tmp_path / "maskless", "llama", mask_token_id=None)
    assert_one_line_error(cli("generate", path, "hi", "--mode", "linear"), 2, "mode: linear")


def test_concurrency_0_is_refused_with_its_name(cli, nld, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "hi"}\n')
    outcome = cli("generate", nld, "--input", path, "--concurrency", "0")
    assert_one_line_error(outcome, 2, "concurrency: 0")


def test_a_prompt_that_is_no_text_is_refused(cli, nld):
    """A byte that is not UTF-8 comes out of argv as a lone surrogate."""
    assert_one_line_error(cli("generate", nld, "abc\udcff"), 2, "prompt: ")


def test_a_chat_with_a_model_without_template_is_refused(cli, tmp_path):
    path = write_tiny_checkpoint(tmp_path / "plain")
    (path / "chat_template.jinja").unlink()
    assert_one_line_error(cli("chat", path), 2, "model: plain has no chat template")


def test_an_unforeseen_failure_is_one_line_with_code_1(cli, nld, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the moon is blue")

    monkeypatch.setattr("trimode.checkpoints.load", fail)
    outcome = cli("generate", nld, "hi")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "the moon is blue" in outcome.err


def test_the_debug_variable_shows_the_traceback_of_an_unforeseen_failure(cli, nld, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the moon is blue")

    monkeypatch.setattr("trimode.checkpoints.load", fail)
    monkeypatch.setenv("TRIMODE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="moon"):
        cli("generate", nld, "hi")
