"""`trimode generate` with one prompt: where the words go, what the options do."""

import json

import pytest

from tests.cli.conftest import assert_one_line_error
from trimode.testing.tiny import write_tiny_checkpoint

KEYS = [
    "model", "mode", "text", "token_ids", "prompt_tokens", "completion_tokens", "finish_reason",
    "nfe", "tokens_per_forward", "acceptance_length", "seconds", "tokens_per_second",
]  # fmt: skip
"""Section 6 of the design."""

SETTINGS = {
    "ar": [],
    "linear": ["block_length", "commit_rule", "threshold"],
    "quadratic": ["block_length"],
    "diffusion": ["block_length", "commit_rule", "threshold", "rolling_block"],
}
"""What is in force of the options that only some modes read."""


def keys(mode):
    shared = ["max_tokens", "temperature", "top_p", "seed"]
    return [*KEYS[:2], *shared, *SETTINGS[mode], *KEYS[2:]]


LOSSLESS = ["ar", "linear", "quadratic"]
MODES = [*LOSSLESS, "diffusion"]


@pytest.fixture
def answer(cli, letters):
    """The --json object of a short answer of the model that writes letters."""

    def ask(*arguments, stdin=b""):
        words = ("generate", "-m", letters, "--json", *arguments)
        outcome = cli(*words, *(() if "--max-tokens" in words else ("--max-tokens", 12)))
        assert outcome.code == 0, outcome.err
        return outcome.json()

    return ask


# What goes where


@pytest.mark.parametrize("mode", MODES)
def test_stdout_carries_the_text_and_one_newline_only(cli, letters, answer, mode):
    expected = answer("hi", "--mode", mode)["text"]
    outcome = cli("generate", letters, "hi", "--max-tokens", 12, "--mode", mode)
    assert (outcome.code, outcome.out) == (0, expected + "\n")
    assert len(expected) == 12


def test_the_figures_go_to_stderr(cli, letters):
    outcome = cli("generate", letters, "hi", "--max-tokens", 12, "--mode", "linear")
    prompt, generation, memory, summary = outcome.err.splitlines()
    assert prompt.startswith("Prompt: ")
    assert prompt.endswith(" tokens-per-sec")
    assert generation.startswith("Generation: 12 tokens, ")
    assert memory.startswith("Peak memory: ")
    assert memory.endswith(" GB")
    assert summary.startswith("mode linear, NFE ")
    assert ", TPF " in summary
    assert ", acceptance " in summary


def test_the_figures_are_those_of_the_json_object(cli, letters, answer):
    row = answer("hi", "--mode", "quadratic")
    err = cli("generate", letters, "hi", "--max-tokens", 12, "--mode", "quadratic").err
    assert f"Prompt: {row['prompt_tokens']} tokens" in err
    shown = f"NFE {row['nfe']}, TPF {row['tokens_per_forward']:.2f}"
    assert f"mode quadratic, {shown}, acceptance {row['acceptance_length']:.2f}" in err


def test_the_speed_is_that_of_the_json_object():
    """Also if all tokens come at once, as a block of diffusion may."""
    from trimode.cli.render import figures
    from trimode.decoding import Stats

    stats = Stats(completion_tokens=8, admitted_at=0.0, first_token_at=2.0, finished_at=2.000001)
    assert stats.tokens_per_second == pytest.approx(4.0, abs=1e-3)
    assert "Generation: 8 tokens, 4.0 tokens-per-sec" in figures(stats, "diffusion", 3)


def test_ar_shows_no_acceptance(cli, letters):
    assert "acceptance" not in cli("generate", letters, "hi", "--max-tokens", 12).err


@pytest.mark.parametrize("flag", ["--quiet", "-q"])
def test_quiet_leaves_stderr_empty(cli, letters, flag):
    outcome = cli("generate", letters, "hi", "--max-tokens", 12, flag)
    assert (outcome.code, outcome.err) == (0, "")
    assert len(outcome.out) == 13


@pytest.mark.parametrize("mode", ["linear", "quadratic", "diffusion"])
def test_a_mode_without_a_mask_token_is_refused_before_weights_are_read(cli, tmp_path, mode):
    path = write_tiny_checkpoint(tmp_path / "stock", "llama", mask_token_id=None)
    read = "trimode.checkpoints.loader.Checkpoint.build"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(read, None)
        outcome = cli("generate", path, "hi", "--mode", mode, "--force")
        source = tmp_path / "in.jsonl"
        source.write_text(json.dumps({"prompt": "hi", "mode": mode, "force": True}) + "\n")
        batch = cli("generate", path, "--input", source)
    for found in (outcome, batch):
        words = (f"mode: {mode} on stock, which has no mask token", "trimode convert")
        assert_one_line_error(found, 2, *words)
    assert cli("generate", path, "hi", "--max-tokens", 3).code == 0


def test_drafting_on_an_untrained_checkpoint_says_so_on_stderr(cli, llama):
    outcome = cli("generate", llama, "hi", "--max-tokens", 4, "--mode", "linear", "--json")
    assert outcome.err.startswith("note: this checkpoint was not trained to draft")
    assert outcome.json()["mode"] == "linear"


@pytest.mark.parametrize(
    "arguments",
    [["llama", "ar"], ["llama", "linear", "-q"], ["nld", "linear"]],
    ids=["ar", "quiet", "trained"],
)
def test_there_is_no_such_note_where_it_does_not_apply(cli, request, arguments):
    name, mode, *rest = arguments
    model = request.getfixturevalue(name)
    outcome = cli("generate", model, "hi", "--max-tokens", 4, "--mode", mode, *rest)
    assert "not trained" not in outcome.err


# --json


@pytest.mark.parametrize("mode", MODES)
def test_json_prints_one_object_with_the_keys_of_the_design(cli, letters, mode):
    outcome = cli("generate", letters, "hi", "--max-tokens", 12, "--mode", mode, "--json")
    assert outcome.out.endswith("}\n")
    assert list(outcome.json()) == keys(mode)
    assert outcome.err == ""


@pytest.mark.parametrize("mode", MODES)
def test_the_numbers_of_the_json_object_agree_with_each_other(answer, mode):
    row = answer("hi", "--mode", mode)
    assert row["model"] == "letters"
    assert row["mode"] == mode
    assert row["completion_tokens"] == len(row["token_ids"]) == 12
    assert row["finish_reason"] == "length"
    assert row["tokens_per_forward"] == pytest.approx(12 / row["nfe"], abs=1e-3)
    assert (row["acceptance_length"] is None) == (mode in ("ar", "diffusion"))
    # Seconds are rounded, and a tiny model takes a few thousandths of one.
    assert row["seconds"] == pytest.approx(12 / row["tokens_per_second"], abs=1e-4)


def test_ar_makes_one_pass_a_token(answer):
    assert answer("hi")["nfe"] == 12
    assert answer("hi")["tokens_per_forward"] == 1.0


def test_auto_reports_what_it_chose(cli, llama, answer):
    found = answer("hi", "--mode", "auto")
    assert found["mode"] == "auto"
    assert sum(found["plans"].values()) == found["nfe"] - 1  # the prompt's
    untrained = cli("generate", llama, "hi", "--mode", "auto", "--json").json()
    assert set(untrained["plans"]) <= {"ar", "lookup"}


@pytest.mark.parametrize("mode", MODES)
def test_logprobs_are_in_the_json_object_one_a_token(answer, mode):
    row = answer("hi", "--mode", mode, "--logprobs", 3)
    assert list(row) == [*keys(mode), "logprobs"]
    assert [entry["token"] for entry in row["logprobs"]] == row["token_ids"]
    for entry in row["logprobs"]:
        assert entry["logprob"] <= 0
        assert len(entry["top"]) == 3
        values = [value for _, value in entry["top"]]
        assert values == sorted(values, reverse=True)


def test_the_greedy_token_is_the_first_alternative_of_its_logprobs(answer):
    row = answer("hi", "--logprobs", 2)
    assert [entry["top"][0] for entry in row["logprobs"]] == [
        [entry["token"], entry["logprob"]] for entry in row["logprobs"]
    ]
    assert len(row["logprobs"]) == row["completion_tokens"] > 0


def test_zero_alternatives_leave_the_logprob_itself(answer):
    entries = answer("hi", "--logprobs", 0)["logprobs"]
    assert len(entries) == 12
    assert all(entry["top"] == [] for entry in entries)


# Where the prompt and the model come from


def test_the_model_may_stand_before_the_prompt(cli, letters, answer):
    outcome = cli("generate", letters, "hi", "--max-tokens", 12, "--json")
    assert outcome.json()["token_ids"] == answer("hi")["token_ids"]


def test_a_word_before_the_prompt_wins_over_the_model_option(cli, letters, llama):
    outcome = cli("generate", letters, "hi", "-m", llama, "--max-tokens", 2, "--json")
    assert outcome.json()["model"] == "letters"


def test_the_long_model_option_is_the_short_one(cli, llama):
    outcome = cli("generate", "hi", "--model", llama, "--max-tokens", 2, "--json")
    assert outcome.json()["model"] == "llama"


@pytest.mark.parametrize("words", [["-"], []], ids=["dash", "pipe"])
def test_the_prompt_may_come_from_stdin(cli, letters, answer, words):
    arguments = ("--max-tokens", 12, "--json")
    outcome = cli("generate", "-m", letters, *words, *arguments, stdin="hé\nlo")
    assert outcome.json()["token_ids"] == answer("hé\nlo")["token_ids"]
    assert outcome.json()["prompt_tokens"] == answer("hé\nlo")["prompt_tokens"]


def test_a_model_word_and_a_dash_read_stdin(cli, letters, answer):
    outcome = cli("generate", letters, "-", "--max-tokens", 12, "--json", stdin="hello")
    assert outcome.json()["token_ids"] == answer("hello")["token_ids"]


def test_stdin_is_left_alone_where_there_is_a_prompt(cli, letters, answer):
    outcome = cli("generate", letters, "hi", "--max-tokens", 12, "--json", stdin=b"\xff")
    assert outcome.json()["token_ids"] == answer("hi")["token_ids"]


def test_the_chat_template_goes_around_the_prompt(answer):
    wrapped = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    by_hand = answer(wrapped, "--raw")
    assert answer("hi")["prompt_tokens"] == by_hand["prompt_tokens"]
    assert answer("hi")["token_ids"] == by_hand["token_ids"]


def test_raw_takes_the_prompt_as_it_is(answer):
    assert answer("hello", "--raw")["prompt_tokens"] == 5


def test_the_system_message_comes_before_the_prompt(answer):
    turns = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    by_hand = answer(turns + "<|im_start|>assistant\n", "--raw")
    row = answer("hi", "--system", "be brief")
    assert row["prompt_tokens"] == by_hand["prompt_tokens"]
    assert row["token_ids"] == by_hand["token_ids"]


# Aliases and the environment


@pytest.mark.parametrize(
    ("alias", "mode"),
    [
        ("autoregressive", "ar"),
        ("dlm", "diffusion"),
        ("linear_spec", "linear"),
        ("linear_speculative", "linear"),
        ("quadratic_spec", "quadratic"),
    ],
)
def test_a_mode_has_the_names_other_programs_use(answer, alias, mode):
    named, row = answer("hi", "--mode", alias), answer("hi", "--mode", mode)
    assert named["mode"] == mode
    assert (named["token_ids"], named["nfe"]) == (row["token_ids"], row["nfe"])


@pytest.mark.parametrize("name", ["--max-new-tokens", "--max-completion-tokens", "--n-predict"])
def test_max_tokens_has_the_names_other_programs_use(cli, letters, name):
    assert cli("generate", letters, "hi", name, 7, "--json").json()["completion_tokens"] == 7


def test_temp_is_temperature(answer):
    sampled = answer("hi", "--temperature", 2.0, "--max-tokens", 30)
    assert answer("hi", "--temp", 2.0, "--max-tokens", 30)["token_ids"] == sampled["token_ids"]
    assert sampled["token_ids"] != answer("hi", "--max-tokens", 30)["token_ids"]


@pytest.mark.parametrize("name", ["--block-length", "--block-size", "--canvas-length"])
def test_block_length_has_the_names_other_programs_use(answer, name):
    short = answer("hi", "--mode", "linear", name, 1)
    long = answer("hi", "--mode", "linear")
    assert short["nfe"] < long["nfe"]
    assert short["token_ids"] == answer("hi")["token_ids"], "blocks of one token are AR"


@pytest.mark.parametrize("name", ["--steps", "--max-denoising-steps"])
def test_steps_is_max_denoising_steps(answer, name):
    ordinary = answer("hi", "--mode", "diffusion", "--block-length", 6)
    hurried = answer("hi", "--mode", "diffusion", "--block-length", 6, name, 1)
    assert hurried["nfe"] < ordinary["nfe"]


@pytest.mark.parametrize("name", ["--threshold", "--confidence-threshold"])
def test_confidence_threshold_is_threshold(answer, name):
    careful = answer("hi", "--mode", "diffusion", "--block-length", 6, name, 1.0)
    hasty = answer("hi", "--mode", "diffusion", "--block-length", 6, name, 0.0)
    assert hasty["nfe"] < careful["nfe"]


ENVIRONMENT = {
    "TRIMODE_MODE": ("quadratic", "mode", "quadratic"),
    "TRIMODE_MAX_TOKENS": ("5", "completion_tokens", 5),
    "TRIMODE_RAW": ("1", "prompt_tokens", 2),
    "TRIMODE_SYSTEM": ("abc", "prompt_tokens", 34),
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_an_environment_variable_stands_for_an_option(cli, letters, monkeypatch, name):
    value, key, expected = ENVIRONMENT[name]
    arguments = ["generate", letters, "hi", "--json"]
    arguments += [] if name == "TRIMODE_MAX_TOKENS" else ["--max-tokens", 4]
    plain = cli(*arguments).json()
    monkeypatch.setenv(name, value)
    assert cli(*arguments).json()[key] == expected
    assert plain[key] != expected


def test_the_environment_may_name_the_model(cli, letters, monkeypatch):
    monkeypatch.setenv("TRIMODE_MODEL", letters)
    assert cli("generate", "hi", "--max-tokens", 2, "--json").json()["model"] == "letters"


def test_the_environment_may_set_temperature_and_seed(answer, monkeypatch):
    by_flag = answer("hi", "--temperature", 2.0, "--seed", 5, "--max-tokens", 30)
    monkeypatch.setenv("TRIMODE_TEMPERATURE", "2.0")
    monkeypatch.setenv("TRIMODE_SEED", "5")
    assert answer("hi", "--max-tokens", 30)["token_ids"] == by_flag["token_ids"]


@pytest.mark.parametrize("flag", ["--max-tokens", "--max-new-tokens"])
def test_a_flag_wins_over_the_environment(cli, letters, monkeypatch, flag):
    monkeypatch.setenv("TRIMODE_MAX_TOKENS", "5")
    assert cli("generate", letters, "hi", flag, 3, "--json").json()["completion_tokens"] == 3


def test_a_wrong_value_in_the_environment_is_refused_as_a_flag_is(cli, letters, monkeypatch):
    monkeypatch.setenv("TRIMODE_MODE", "magic")
    outcome = cli("generate", letters, "hi")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: mode: 'magic'")


def test_quiet_may_be_set_in_the_environment(cli, letters, monkeypatch):
    monkeypatch.setenv("TRIMODE_QUIET", "1")
    assert cli("generate", letters, "hi", "--max-tokens", 2).err == ""


# What the options do


@pytest.mark.parametrize("mode", MODES)
def test_the_text_ends_before_a_stop_string(answer, mode):
    whole = answer("hi", "--mode", mode)["text"]
    stop = whole[5:7]
    row = answer("hi", "--mode", mode, "--stop", stop)
    assert row["text"] == whole[: whole.index(stop)]
    assert row["finish_reason"] == "stop"


def test_of_several_stop_strings_the_one_that_comes_first_ends_the_text(cli, letters, answer):
    whole = answer("hi")["text"]
    late, early = whole[8:10], whole[3:5]
    outcome = cli(
        "generate", letters, "hi", "--max-tokens", 12, "-q",
        "--stop", late, "--stop", "NEVER", "--stop", early,
    )  # fmt: skip
    assert outcome.out == whole[: whole.index(early)] + "\n"
    assert cli(
        "generate", letters, "hi", "--max-tokens", 12, "-q", "--stop", "NEVER", "--stop", late
    ).out.startswith(whole[: whole.index(early) + 1])


def test_the_same_seed_gives_the_same_text_again(answer):
    arguments = ("hi", "--temperature", 1.5, "--seed", 7, "--max-tokens", 30)
    assert answer(*arguments)["token_ids"] == answer(*arguments)["token_ids"]


def test_different_seeds_differ_at_a_temperature(answer):
    arguments = ("hi", "--temperature", 1.5, "--max-tokens", 30)
    texts = {tuple(answer(*arguments, "--seed", seed)["token_ids"]) for seed in range(4)}
    assert len(texts) == 4


def test_the_seed_does_not_matter_at_temperature_0(answer):
    assert answer("hi", "--seed", 1)["token_ids"] == answer("hi", "--seed", 2)["token_ids"]


@pytest.mark.parametrize("temperature", [0.0, 1.3])
@pytest.mark.parametrize("mode", ["linear", "quadratic"])
def test_lossless_modes_print_what_ar_prints(cli, letters, mode, temperature):
    arguments = ("generate", letters, "hi", "-q", "--max-tokens", 40, "--seed", 3)
    arguments += ("--temperature", temperature)
    expected = cli(*arguments, "--mode", "ar")
    assert cli(*arguments, "--mode", mode, "--block-length", 6).out == expected.out
    assert expected.out.strip()


def test_diffusion_prints_something_else_than_ar(answer):
    """So that the tests above can fail: the mode reaches the decoder."""
    assert answer("hi", "--mode", "diffusion")["text"] != answer("hi")["text"]


def test_all_mask_start_changes_what_diffusion_does(answer):
    arguments = ("hi", "--mode", "diffusion", "--block-length", 6, "--threshold", 0)
    seeded, bare = answer(*arguments), answer(*arguments, "--all-mask-start")
    assert (seeded["token_ids"], seeded["nfe"]) != (bare["token_ids"], bare["nfe"])


def test_ignore_eos_goes_on_to_max_tokens(cli, nld):
    arguments = ("generate", nld, "hi", "--temperature", 2.0, "--max-tokens", 600, "--json")
    ended = cli(*arguments).json()
    endless = cli(*arguments, "--ignore-eos").json()
    assert ended["finish_reason"] == "stop"
    assert endless["completion_tokens"] == 600
    assert endless["token_ids"][: len(ended["token_ids"])] == ended["token_ids"]


def test_a_thinking_budget_forces_the_end_of_thinking(cli, letters):
    wrapped = "<think>"
    row = cli(
        "generate", letters, wrapped, "--raw", "--max-thinking-tokens", 3, "--max-tokens", 8,
        "--json",
    ).json()  # fmt: skip
    end = 260
    assert row["token_ids"].index(end) == 3


def test_bf16_is_accepted_and_answers(answer):
    assert answer("hi", "--dtype", "bf16")["completion_tokens"] == 12


def test_max_tokens_is_cut_to_the_context(cli, letters):
    row = cli("generate", letters, "x" * 1020, "--raw", "--max-tokens", 50, "--json").json()
    assert (row["prompt_tokens"], row["completion_tokens"]) == (1020, 4)
    assert row["finish_reason"] == "length"


def test_the_json_object_is_ascii_whatever_the_text(cli, nld):
    outcome = cli("generate", nld, "hi", "--max-tokens", 20, "--json")
    assert outcome.out.isascii()
    assert not json.loads(outcome.out)["text"].isascii()
