"""Tokenizers from GGUF metadata and from tokenizer.json."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from trimode.checkpoints.gguf_file import open_gguf
from trimode.errors import CheckpointError, InputError
from trimode.testing import byte_tokenizer
from trimode.text import Tokenizer
from trimode.text.byte_bpe import pre_adds_bos

TEXTS = [
    "Hello world",
    "héllo wörld 日本語 🎉👨\u200d👩\u200d👧 e\u0301",
    "  lead\ttabs\n\n  1. item 12345 3.14 x1y22",
    "def f(x):\n    return x**2  # ½ a\x00b\x7f",
    "don't they're I'LL we'd",
    "<|im_start|>user\nhi<|im_end|>",
    "",
    " ",
]


def alphabet_model(merges):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = (
        alphabet + [left + right for left, right in merges] + ["<|im_start|>", "<|im_end|>", "[x]"]
    )
    types = [1] * (len(tokens) - 3) + [3, 3, 4]
    return tokens, types, [" ".join(pair) for pair in merges]


MERGES = [("1", "2"), ("Ġ", "1"), ("h", "e"), ("Ġ", "w"), ("o", "r"), ("Ġw", "or"), ("'", "t")]


def definition(single_digits):
    """The tokenizer as SmolLM2's own tokenizer.json describes it."""
    tokens, _, _ = alphabet_model(MERGES)
    backend = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, MERGES))
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if single_digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.add_tokens(["[x]"])
    return backend


@pytest.mark.parametrize("pre", ["smollm", "gpt-2"])
@pytest.mark.parametrize("text", TEXTS)
def test_gguf_metadata_gives_the_defined_tokenizer(pre, text):
    tokenizer = Tokenizer.from_gguf(*alphabet_model(MERGES), pre)
    oracle = definition(single_digits=pre == "smollm")
    assert tokenizer.encode(text) == oracle.encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_smollm_splits_digits_one_by_one():
    tokenizer = Tokenizer.from_gguf(*alphabet_model(MERGES), "smollm")
    assert [tokenizer.token_text(i) for i in tokenizer.encode("a 12")] == ["a", " ", "1", "2"]


@pytest.mark.parametrize("pre", GGUF_PRE_TOKENIZER_SPLITS)
def test_a_pre_tokenizer_cuts_texts_as_transformers_does(pre):
    tokens, types, merges = alphabet_model(MERGES)
    ours = Tokenizer.from_gguf(tokens, types, merges, pre).backend.pre_tokenizer
    theirs = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in (*TEXTS, "camelCase HTTPServer a/b//\n\n e\u0301x WE'LL 1234567 \u0e01\u0e33"):
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("pre", "begins"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("gpt-2", False)]
)
def test_whether_a_text_begins_with_bos_depends_on_the_pre_tokenizer(pre, begins):
    assert pre_adds_bos(pre) == begins


def test_an_unknown_pre_tokenizer_is_named():
    with pytest.raises(CheckpointError, match=r"tokenizer.ggml.pre: 'exotic'; supported: default"):
        Tokenizer.from_gguf(*alphabet_model(MERGES), "exotic")


def test_control_tokens_are_skipped_and_user_defined_ones_are_not():
    tokenizer = Tokenizer.from_gguf(*alphabet_model(MERGES), "smollm")
    ids = tokenizer.encode("<|im_start|>a[x]b<|im_end|>")
    assert tokenizer.decode(ids) == "a[x]b"
    assert tokenizer.special_ids == {
        tokenizer.token_id("<|im_start|>"),
        tokenizer.token_id("<|im_end|>"),
    }


def test_bos_is_added_where_the_checkpoint_says_so_and_not_twice():
    tokens, types, merges = alphabet_model(MERGES)
    bos = tokens.index("<|im_start|>")
    tokenizer = Tokenizer.from_gguf(tokens, types, merges, "smollm", bos_token_id=bos, add_bos=True)
    assert tokenizer.encode("a")[0] == bos
    assert tokenizer.encode("<|im_start|>a").count(bos) == 1
    assert bos not in tokenizer.encode("a", add_bos=False)


def test_a_lone_surrogate_is_refused_with_its_place():
    with pytest.raises(InputError, match="character 2 is a lone surrogate"):
        byte_tokenizer().encode("ab\ud800")


def test_save_and_load_round_trip(tmp_path):
    tokenizer = Tokenizer.from_gguf(*alphabet_model(MERGES), "smollm")
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]
    for text in TEXTS:
        assert again.encode(text) == tokenizer.encode(text)


def test_a_damaged_file_is_a_checkpoint_error(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)


def test_token_bytes_join_to_the_bytes_of_the_text():
    tokenizer = Tokenizer.from_gguf(*alphabet_model(MERGES), "smollm")
    for text in TEXTS:
        joined = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text)))
        assert joined == text.encode()


@pytest.fixture(scope="module")
def real_tokenizer(real_cache):
    (path,) = (Path(real_cache) / "models" / "smollm2-135m-instruct").glob("*.gguf")
    return open_gguf(path).tokenizer


def assert_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@pytest.mark.real
@pytest.mark.parametrize("text", TEXTS)
def test_the_real_tokenizer_round_trips(real_tokenizer, text):
    assert_round_trip(real_tokenizer, text)


@pytest.mark.real
def test_the_real_tokenizer_round_trips_real_prompts(real_tokenizer):
    data = Path(__file__).parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
    if not data.exists():
        pytest.skip(f"{data} is not there")
    texts = [json.loads(line)["question"] for line in data.read_text().splitlines()[:200]]
    assert len(texts) == 200
    for text in texts:
        assert_round_trip(real_tokenizer, text)
