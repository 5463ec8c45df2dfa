"""What ends an answer and what a template sees, whichever files of a checkpoint say it."""

import json
import os

import pytest
import transformers

from trimode import generate, load
from trimode.checkpoints import open_checkpoint
from trimode.errors import CheckpointError
from trimode.testing import byte_tokenizer, write_tiny_checkpoint

IM_END = 258
SHOWN = "{{bos_token}}|{{eos_token}}|{{pad_token}}|{{unk_token}}|{{image_token}}"
USER = [{"role": "user", "content": "x"}]


@pytest.fixture
def checkpoint(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "model", "llama", eos_token_ids=(0,), vocab_size=270)
    (path / "chat_template.jinja").write_text(SHOWN)
    return path


def write(checkpoint, name, **fields):
    (checkpoint / name).write_text(json.dumps(fields))


def add_special(checkpoint, *texts):
    tokenizer = byte_tokenizer()
    tokenizer.backend.add_special_tokens(list(texts))
    tokenizer.save(checkpoint / "tokenizer.json")
    return tokenizer


def ends(checkpoint):
    return open_checkpoint(checkpoint).config.eos_token_ids


def test_all_files_together_say_what_ends_an_answer(checkpoint):
    add_special(checkpoint, "<stop>")
    write(checkpoint, "tokenizer_config.json", eos_token="<stop>")
    write(checkpoint, "generation_config.json", eos_token_id=[7, 0])
    assert ends(checkpoint) == (0, 7, 261, IM_END)


def test_the_tokenizers_own_end_counts_although_the_config_names_another(checkpoint):
    write(checkpoint, "tokenizer_config.json", eos_token="<|im_end|>")
    assert ends(checkpoint) == (0, IM_END)


@pytest.mark.parametrize("text", ["<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>"])
def test_an_end_that_chat_formats_are_known_by_counts_if_it_is_special(checkpoint, text):
    add_special(checkpoint, text)
    assert 261 in ends(checkpoint)


@pytest.mark.parametrize("text", ["<|python_tag|>", "<|end_of_role|>", "<|im_start|>"])
def test_a_token_that_an_answer_goes_on_after_does_not(checkpoint, text):
    token = add_special(checkpoint, text).token_id(text)
    assert token not in ends(checkpoint)


def test_an_end_that_is_plain_text_in_the_vocabulary_does_not_count(checkpoint):
    tokenizer = byte_tokenizer()
    tokenizer.backend.add_tokens(["<|eot_id|>"])
    tokenizer.save(checkpoint / "tokenizer.json")
    assert tokenizer.token_id("<|eot_id|>") not in ends(checkpoint)


def test_the_end_of_a_message_is_no_end_where_answers_have_several(checkpoint):
    tokenizer = add_special(checkpoint, "<|end|>", "<|return|>", "<|call|>")
    assert ends(checkpoint)[-2:] == tuple(
        tokenizer.token_id(text) for text in ("<|return|>", "<|call|>")
    )
    assert tokenizer.token_id("<|end|>") not in ends(checkpoint)


def test_an_end_that_the_model_has_no_row_for_is_left_out(checkpoint):
    rows = open_checkpoint(checkpoint).config.vocab_size
    add_special(checkpoint, *(f"<{i}>" for i in range(rows)), "<|eot_id|>")
    assert all(token < rows for token in ends(checkpoint))


@pytest.mark.parametrize(
    ("config", "older"),
    [
        ({"bos_token": "<b>", "eos_token": "<|im_end|>", "pad_token": "<p>"}, None),
        ({"eos_token": "<|im_end|>"}, {"bos_token": "<z>", "unk_token": {"content": "<u>"}}),
        ({"bos_token": None}, {"bos_token": "<b>"}),
        ({"added_tokens_decoder": {}, "extra_special_tokens": {"image_token": "<i>"}}, None),
        (
            {"added_tokens_decoder": {"261": {"content": "<a>", "special": True}}},
            {"bos_token": "<not read>"},
        ),
        ({"extra_special_tokens": ["<x>", "<y>"]}, None),
        ({"additional_special_tokens": ["<x>"]}, None),
    ],
)
def test_names_and_ids_are_those_of_transformers(checkpoint, config, older):
    write(checkpoint, "tokenizer_config.json", **config)
    if older is not None:
        write(checkpoint, "special_tokens_map.json", **older)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)
    ours = open_checkpoint(checkpoint)
    text = "a<b><p><u><z><i><a><x><y><|im_end|>"
    assert ours.tokenizer.encode(text, add_bos=False) == theirs.encode(
        text, add_special_tokens=False
    )
    ids = list(range(250, len(theirs)))
    assert ours.tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.chat_template.render(USER) == theirs.apply_chat_template(USER, tokenize=False)


def test_ids_of_the_config_stand_in_where_the_tokenizer_names_no_token(checkpoint):
    (checkpoint / "tokenizer_config.json").unlink()
    fields = json.loads((checkpoint / "config.json").read_text())
    write(checkpoint, "config.json", **{**fields, "bos_token_id": 257, "eos_token_id": IM_END})
    text = open_checkpoint(checkpoint).chat_template.render(USER)
    assert text == "<|im_start|>|<|im_end|>|||"


@pytest.mark.parametrize("stop", ["<|im_start|>", "<think>"])
@pytest.mark.parametrize("mode", ["ar", "linear", "quadratic"])
def test_a_special_token_as_stop_string_ends_the_answer(checkpoint, stop, mode):
    model = load(checkpoint, dtype="fp32")
    token = model.tokenizer.token_id(stop)
    options = {"mode": mode, "max_tokens": 20, "logit_bias": {token: 100.0}, "stop": stop}
    if mode != "ar":
        options["block_length"] = 4
    answer = generate(model, [5, 90], **options)
    assert (answer.finish_reason, answer.token_ids, answer.text) == ("stop", (token,), "")


def test_a_stop_string_may_hold_a_special_token_and_text(checkpoint):
    model = load(checkpoint, dtype="fp32")
    token = model.tokenizer.token_id("<think>")
    options = {"max_tokens": 6, "logit_bias": {token: 100.0}}
    assert generate(model, [5], stop="<think><think>", **options).token_ids == (token, token)
    assert generate(model, [5], stop="<think>x", **options).finish_reason == "length"


@pytest.mark.parametrize("value", ["2", True, 2.0, [1, "2"], -1, {"a": 1}])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_an_end_that_is_no_id_is_named_with_its_file(checkpoint, name, value):
    path = checkpoint / name
    fields = json.loads(path.read_text()) if path.exists() else {}
    write(checkpoint, name, **{**fields, "eos_token_id": value})
    with pytest.raises(CheckpointError, match=rf"{name}: eos_token_id"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": "4"}}, "rope_parameters: factor"),
        ({"rope_scaling": [4]}, "rope_scaling"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"block_size": "8"}, "block_size"),
        ({"bos_token_id": "x"}, "bos_token_id"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"partial_rotary_factor": "x"}, "partial_rotary_factor"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_file(checkpoint, fields, named):
    path = checkpoint / "config.json"
    given = json.loads(path.read_text())
    if "rope_scaling" in fields:
        del given["rope_parameters"]
    write(checkpoint, "config.json", **{**given, **fields})
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{named}"):
        open_checkpoint(checkpoint)


FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")


@pytest.mark.parametrize("name", FILES[:3])
def test_json_that_is_nested_too_deeply_is_named(checkpoint, name):
    (checkpoint / name).write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=name):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_or_a_device_is_refused_before_it_is_read(checkpoint, name):
    path = checkpoint / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match=rf"{name}: not a regular file"):
        open_checkpoint(checkpoint)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=rf"{name}: not a regular file"):
        open_checkpoint(checkpoint)


def test_a_tokenizer_that_panics_is_named(checkpoint):
    path = checkpoint / "tokenizer.json"
    fields = json.loads(path.read_text())
    normalizer = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}
    path.write_text(json.dumps({**fields, "normalizer": normalizer}))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not readable"):
        open_checkpoint(checkpoint)
