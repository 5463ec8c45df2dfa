"""Which token stands for a masked place in vocabularies that name none."""

import json

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from trimode import generate, load
from trimode.checkpoints import find_mask_token, save_adapter
from trimode.errors import InputError
from trimode.model import AdapterWeights, expected_tensors
from trimode.testing.tiny import CHAT_TEMPLATE, byte_tokenizer, tiny_config, write_tiny_checkpoint
from trimode.text import ChatTemplate, Tokenizer


def byte_level(*special, added=()):
    """Bytes, then the tokens given: the shape of Llama 3's and Qwen's vocabularies."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    backend.add_tokens(list(added))
    return Tokenizer(backend)


def byte_fallback(*extra):
    """`<unk>`, `<s>`, `</s>`, bytes and words: the shape of Llama 2's vocabulary."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", *extra]
    vocab = {word: i for i, word in enumerate(words)}
    model = models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, bos_token_id=1, eos_token_id=2)


LLAMA3 = byte_level(
    "<|begin_of_text|>", "<|end_of_text|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(12)), "<|eot_id|>",
)  # fmt: skip
QWEN = byte_level(
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_pad|>", "<|image_pad|>",
    added=("<tool_call>", "<|fim_pad|>", "<think>", "</think>"),
)  # fmt: skip
SMOLLM = byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<gh_stars>", "<empty_output>")
GEMMA = byte_fallback("<mask>", *(f"<unused{i}>" for i in range(9)))
MISTRAL3 = byte_fallback("[INST]", "[/INST]", *(f"[control_{i}]" for i in range(8, 20)))
TEKKEN = byte_level("<unk>", "<s>", "</s>", "[INST]", *(f"<SPECIAL_{i}>" for i in range(14, 30)))
GGUF_QWEN = byte_level("<|im_end|>", added=("<|fim_pad|>", "[PAD258]", "[PAD259]"))
BARE = byte_level("<|endoftext|>")


@pytest.mark.parametrize(
    ("tokenizer", "rows", "chosen"),
    [
        (LLAMA3, 0, "<|reserved_special_token_11|>"),
        (QWEN, 0, "<|fim_pad|>"),
        (QWEN, 7, None),  # more rows in the embedding than tokens, as Qwen has
        (GGUF_QWEN, 0, "[PAD259]"),  # such rows in a GGUF file
        (SMOLLM, 0, "<empty_output>"),
        (GEMMA, 0, "<mask>"),
        (MISTRAL3, 0, "[control_19]"),
        (TEKKEN, 0, "<SPECIAL_29>"),
        (byte_fallback(), 0, "<unk>"),  # Llama 2, TinyLlama, Mistral 7B v0.1
        (BARE, 0, "ÿ"),  # the byte 255
        (byte_tokenizer(), 0, "<|mask|>"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_an_unused_token_is_chosen(tokenizer, rows, chosen):
    config = tiny_config("llama", vocab_size=tokenizer.vocab_size + rows, mask_token_id=None,
                         eos_token_ids=())  # fmt: skip
    found = find_mask_token(config, tokenizer, ChatTemplate(CHAT_TEMPLATE))
    assert found.chosen
    assert found.text == chosen
    if chosen is None:
        assert found.id == config.vocab_size - 1
    text = "Any text: é 汉字 😀\n<|im_start|>user\n\x00"
    assert found.id not in tokenizer.encode(text, add_bos=False)


def config_for(tokenizer, **fields):
    return tiny_config("llama", vocab_size=tokenizer.vocab_size, **{"mask_token_id": None} | fields)


def test_a_token_that_is_in_use_is_not_chosen():
    template = ChatTemplate("{{ messages[0].content }}<|reserved_special_token_11|>")
    last = LLAMA3.token_id("<|reserved_special_token_10|>")
    config = config_for(LLAMA3, eos_token_ids=(last,))
    assert find_mask_token(config, LLAMA3, template).text == "<|reserved_special_token_9|>"


def test_the_checkpoints_own_goes_before_any_choice(tmp_path):
    config = config_for(LLAMA3, mask_token_id=7, eos_token_ids=())
    found = find_mask_token(config, LLAMA3, None)
    assert (found.id, found.chosen) == (7, False)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": {"content": "z"}}))
    config = config_for(LLAMA3, eos_token_ids=())
    assert find_mask_token(config, LLAMA3, None, directory=tmp_path).text == "z"


@pytest.mark.parametrize("asked", ["<|reserved_special_token_3|>", 261, "261"])
def test_the_user_names_another_one_by_text_or_id(asked):
    found = find_mask_token(config_for(LLAMA3, eos_token_ids=()), LLAMA3, None, asked=asked)
    assert (found.id, found.text) == (261, "<|reserved_special_token_3|>")
    assert not found.chosen


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("<nope>", "'<nope>'; must be the text of one token"),
        (9999, "9999; ids are 0"),
        ("-1", "'-1'; must be the text"),
        ("<|im_end|>", "which ends a text"),
        ("<|im_start|>", "which the chat template writes"),
    ],
)
def test_a_token_that_cannot_be_the_mask_is_refused(asked, words):
    tokenizer = byte_tokenizer()
    template = ChatTemplate(CHAT_TEMPLATE)
    with pytest.raises(InputError, match=f"mask_token: .*{words}"):
        find_mask_token(tiny_config("llama"), tokenizer, template, asked=asked)


def test_a_vocabulary_in_which_every_token_is_used_asks_for_one():
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer = Tokenizer(backend)
    config = tiny_config("llama", vocab_size=2, mask_token_id=None, eos_token_ids=())
    with pytest.raises(InputError, match="give --mask-token"):
        find_mask_token(config, tokenizer, None)


def test_a_checkpoint_decodes_with_the_mask_token_of_its_adapter(tmp_path):
    base = write_tiny_checkpoint(tmp_path / "base", "llama", mask_token_id=None)
    config = tiny_config("llama")
    targets = {
        name.removesuffix(".weight"): (torch.randn(2, shape[1]), torch.randn(shape[0], 2))
        for name, shape in expected_tensors(config).items()
        if "o_proj" in name
    }
    adapter = AdapterWeights(1.0, targets, "denoise", torch.randn(32), mask_token_id=253)
    save_adapter(tmp_path / "adapter", adapter, config)
    plain = load(base, dtype="fp32")
    assert plain.config.mask_token_id is None
    reference = generate(plain, "hi", max_tokens=9)
    with pytest.raises(InputError, match="has no mask token"):
        generate(plain, "hi", max_tokens=9, mode="linear")
    adapted = load(base, dtype="fp32", adapter=tmp_path / "adapter")
    assert adapted.config.mask_token_id == 253
    answer = generate(adapted, "hi", max_tokens=9, mode="linear")
    assert answer.token_ids == reference.token_ids
