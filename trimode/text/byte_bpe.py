"""Byte-level BPE from a vocabulary and merges, split the way GGUF's `tokenizer.ggml.pre` says."""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from trimode.errors import CheckpointError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+SUFFIX|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*SUFFIX"
    r"|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Words are cut where a small letter is followed by a capital."""
_TEKKEN = _CASED.replace("SUFFIX", "").replace("DIGITS", r"\p{N}")
_GPT4O = _CASED.replace("SUFFIX", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", r"\p{N}{1,3}")


@dataclass(frozen=True)
class _Pre:
    """How a family of tokenizers cuts text before merging."""

    regex: str | None = None
    """None is GPT-2's, which the library has built in."""
    single_digits: bool = False
    nfc: bool = False
    whole_words: bool = False
    """A piece that is in the vocabulary is one token, whatever the merges would make of it."""
    adds_bos: bool = False


_GPT2_RULES = _Pre()
_DIGITS = _Pre(single_digits=True)
_PRES = {
    **dict.fromkeys(
        ("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling",
         "exaone4", "a.x-4.0", "mellum", "gigachat", "jina-es", "jina-de", "jina-v2-es",
         "jina-v2-de"),
        _GPT2_RULES,
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
         "mellum2"),
        _DIGITS,
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
         "jina-v5-nano"),
        _Pre(_LLAMA3, whole_words=True, adds_bos=True),
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _Pre(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _Pre(_QWEN2, nfc=True)),
    **dict.fromkeys(
        ("kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),
        _Pre(_QWEN2),
    ),
    "qwen35": _Pre(_QWEN35, nfc=True),
    "tekken": _Pre(_TEKKEN, whole_words=True, adds_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _Pre(_GPT4O)),
}  # fmt: skip
"""By the names of `tokenizer.ggml.pre`. Names in a row mean the same to llama.cpp."""


def pre_adds_bos(pre: str) -> bool:
    """Whether a text begins with BOS if the file does not say so."""
    return pre in _PRES and _PRES[pre].adds_bos


def byte_bpe(tokens: Sequence[str], merges: Sequence[str], pre: str) -> tokenizers.Tokenizer:
    """A tokenizer without added tokens.

    Args:
        tokens: the vocabulary, in GPT-2's byte alphabet, by id.
        merges: pairs joined by a space, best first.
        pre: value of `tokenizer.ggml.pre`.

    Raises:
        CheckpointError: `pre` is not supported, a token is there twice, or a merge makes no token.
    """
    if pre not in _PRES:
        supported = ", ".join(_PRES)
        raise CheckpointError("tokenizer.ggml.pre", repr(pre), f"supported: {supported}")
    rules = _PRES[pre]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise CheckpointError("tokenizer.ggml.tokens", f"{twice!r} twice", "each token once")
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_pairs(merges, vocabulary),
            ignore_merges=rules.whole_words,
        )
    )
    if rules.nfc:
        backend.normalizer = normalizers.NFC()
    steps: list[pre_tokenizers.PreTokenizer] = []
    if rules.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if rules.regex is not None:
        steps.append(pre_tokenizers.Split(Regex(rules.regex), behavior="isolated"))
    built_in = rules.regex is None
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=built_in))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pairs(merges: Sequence[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The two tokens of each merge.

    The library panics on some merges that do not fit, so they are checked here.
    """
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        known = left in vocabulary and right in vocabulary and left + right in vocabulary
        if not space or not known:
            allowed = "must be two tokens joined by a space whose concatenation is a token"
            raise CheckpointError("tokenizer.ggml.merges", repr(merge), allowed)
        pairs.append((left, right))
    return pairs


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
"""The byte that each character of a byte-level vocabulary stands for."""
