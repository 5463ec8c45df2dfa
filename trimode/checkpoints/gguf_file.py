"""GGUF files: config, dequantised weights, tokenizer and chat template."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimode.checkpoints.families import FAMILIES, Family, family_of_gguf
from trimode.checkpoints.gguf_header import GgufHeader, StoredTensor, read_header
from trimode.checkpoints.gguf_types import to_floats
from trimode.checkpoints.hf_config import from_hf
from trimode.checkpoints.names import check_tensors, from_gguf, rows_of, split_fused
from trimode.checkpoints.special_tokens import end_token_ids, template_tokens
from trimode.config import ModelConfig
from trimode.errors import CheckpointError
from trimode.model import QuantisedMatrix, ReadTensor
from trimode.model.quantised import BLOCK_KINDS
from trimode.text import ChatTemplate, Tokenizer, chat_template
from trimode.text.byte_bpe import pre_adds_bos
from trimode.text.sentencepiece import SentencePieceVocabulary


@dataclass(frozen=True, slots=True)
class GgufModel:
    """The checked content of a GGUF file; weights are read on demand."""

    name: str
    config: ModelConfig
    read: ReadTensor
    """Canonical tensor name -> the matrix as it is stored, if its type is in `BLOCK_KINDS`; else
    floats: those of F16 and BF16 as they are stored, others in fp32 as llama.cpp dequantises them.
    What is as it is stored is a view of the file."""
    in_blocks: bool
    """Whether most weights are stored in blocks of `BLOCK_KINDS`."""
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None


def open_gguf(path: Path) -> GgufModel:
    """Read a GGUF file's metadata and check its tensors.

    Args:
        path: the file, or any part of one that was split.

    Raises:
        CheckpointError: the file is damaged, a part is missing, the architecture or quantisation is
            not supported, or the tensors are not those of the model.
    """
    headers = [read_header(part) for part in gguf_parts(path)]
    metadata = _Metadata(headers[0])
    family = family_of_gguf(metadata.need("general.architecture"))
    stored: dict[str, StoredTensor] = {}
    factors = None
    for tensor in (tensor for header in headers for tensor in header.tensors()):
        if tensor.name == "rope_freqs.weight":
            factors = tuple(_floats(tensor, None).flatten().tolist())
        name = from_gguf(tensor.name, family)
        if name in stored:
            raise CheckpointError(f"{path}: {tensor.name}", "is there twice", "each tensor once")
        if name is not None:
            stored[name] = tensor
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    config = _config(metadata, family, shapes, factors)
    homes = {
        part: (name, rows) for name in stored for part, rows in split_fused(name, config).items()
    }
    check_tensors(
        config,
        {part: rows_of(shapes[name], rows) for part, (name, rows) in homes.items()},
        str(path),
    )

    def read(name: str) -> Tensor | QuantisedMatrix:
        home, rows = homes[name]
        tensor = stored[home]
        if tensor.kind.name in BLOCK_KINDS and len(tensor.shape) == 2:
            weight = QuantisedMatrix(tensor.kind.name, _blocks(tensor, rows))
            order = _row_order(name, config)
            return weight if order is None else weight.rows(order)
        return _as_published(name, _floats(tensor, rows), config)

    tokenizer = _tokenizer(metadata)
    ends = (metadata.token(f"{kind}_token_id") for kind in ("eos", "eot", "eom"))
    ends = end_token_ids(tokenizer, config, [end for end in ends if end is not None])
    config = replace(config, eos_token_ids=ends)
    model = GgufModel(
        name=str(metadata.get("general.name", path.stem)),
        config=config,
        read=read,
        in_blocks=_mostly_in_blocks(stored.values()),
        tokenizer=tokenizer,
        chat_template=_chat_template(metadata, template_tokens(tokenizer, config)),
    )
    for header in headers:
        header.give_back()
    return model


def _mostly_in_blocks(tensors: Iterable[StoredTensor]) -> bool:
    sizes = {True: 0, False: 0}
    for tensor in tensors:
        sizes[tensor.kind.name in BLOCK_KINDS] += math.prod(tensor.shape)
    return sizes[True] > sizes[False]


_SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
"""llama.cpp's names of the parts of a file."""


def gguf_parts(path: Path) -> list[Path]:
    """All parts of a GGUF file, the first one first; most files are whole.

    Raises:
        CheckpointError: a part is missing.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None or int(match[3]) < 2:
        return [path]
    names = [f"{match[1]}-{i:05}-of-{match[3]}.gguf" for i in range(1, int(match[3]) + 1)]
    parts = [path.with_name(name) for name in names]
    for part in parts:
        if not part.is_file():
            allowed = f"all {len(parts)} parts must be in one directory"
            raise CheckpointError(str(part), "missing", allowed)
    return parts


def _blocks(tensor: StoredTensor, rows: slice | None) -> Tensor:
    """Some rows of a tensor as they are stored, uint8 `[rows, bytes of a row]`; None is all."""
    columns = tensor.shape[-1] if tensor.shape else 1
    size = columns // tensor.kind.weights * tensor.kind.size
    count = math.prod(tensor.shape[:-1])
    start, end, _ = (slice(None) if rows is None else rows).indices(count)
    blocks = tensor.file.tensor(tensor.start + start * size, (end - start) * size)
    return blocks.view(end - start, size)


def _floats(tensor: StoredTensor, rows: slice | None) -> Tensor:
    """Some rows of a tensor; None is all."""
    return to_floats(tensor.kind, _blocks(tensor, rows)).view(rows_of(tensor.shape, rows))


class _Metadata:
    """GGUF key-value pairs, checked for their types."""

    def __init__(self, header: GgufHeader) -> None:
        self._header, self._path = header, header.path

    def get(self, key: str, default: Any = None) -> Any:
        return self._header.get(key, default)

    def token(self, name: str) -> int | None:
        """A token id under `tokenizer.ggml.`; None if the file does not say."""
        key = f"tokenizer.ggml.{name}"
        value = self.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise CheckpointError(f"{self._path}: {key}", repr(value), "must be a token id")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self._path}: {key}", repr(value), "must be true or false")
        return value

    def strings(self, key: str) -> list[str]:
        """A list of texts."""
        value = self.need(key)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value[:1]):
            raise CheckpointError(f"{self._path}: {key}", "of another type", "a list of texts")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number."""
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, int | float):
            raise CheckpointError(f"{self._path}: {key}", repr(value), "must be a number")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number. Some architectures have a list of one per layer; no family here does."""
        value = self.need(key) if default is None else self.get(key, default)
        if type(value) is not int:
            raise CheckpointError(f"{self._path}: {key}", repr(value), "must be a whole number")
        return value

    def need(self, key: str) -> Any:
        if key not in self._header:
            raise CheckpointError(f"{self._path}: {key}", "missing", "the field is needed")
        return self.get(key)


def _config(
    metadata: _Metadata,
    family_name: str,
    shapes: dict[str, tuple[int, ...]],
    factors: tuple[float, ...] | None,
) -> ModelConfig:
    """The config, by way of the fields that the family's `config.json` would have."""
    family = FAMILIES[family_name]
    architecture = family.gguf_architecture

    def integer(key: str, default: int | None = None) -> int:
        return metadata.integer(f"{architecture}.{key}", default)

    def number(key: str, default: float | None = None) -> float:
        return metadata.number(f"{architecture}.{key}", default)

    heads, hidden = integer("attention.head_count"), integer("embedding_length")
    if heads < 1:
        raise CheckpointError(f"{architecture}.attention.head_count", str(heads), "at least 1")
    rotated = metadata.get(f"{architecture}.rope.dimension_count")
    head_dim = integer("attention.key_length", _head_dim(family, rotated, hidden // heads))
    rotated = head_dim if rotated is None else integer("rope.dimension_count")
    if rotated != head_dim and not family.partial_rotation:
        raise CheckpointError(
            f"{architecture}.rope.dimension_count", str(rotated), f"supported: {head_dim}, all"
        )
    eps = "layer_norm_epsilon" if family.norm == "layer" else "layer_norm_rms_epsilon"
    layers = integer("block_count")
    rope, attention_factor = _rope(metadata, architecture)
    fields: dict[str, Any] = {
        "model_type": family_name,
        "vocab_size": shapes.get("embed_tokens.weight", (0,))[0] or integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        family.norm_eps_field: number(f"attention.{eps}"),
        "max_position_embeddings": integer("context_length"),
        "rope_parameters": rope,
        "partial_rotary_factor": rotated / head_dim,
        "sliding_window": integer("attention.sliding_window", 0) or None,
        "tie_word_embeddings": "lm_head.weight" not in shapes,
        "bos_token_id": metadata.token("bos_token_id"),
        "eos_token_id": metadata.token("eos_token_id"),
        "mask_token_id": metadata.token("mask_token_id"),
    }
    for name, key in _OTHER_FIELDS.items():
        if (value := metadata.get(f"{architecture}.{key}")) is not None:
            fields[name] = value
    if family.local_rope:
        fields["rope_parameters"] = {
            "full_attention": rope,
            "sliding_attention": {"rope_theta": number("rope.freq_base_swa", 10_000.0)},
        }
        # Of this architecture, the largest model alone scales scores by its width.
        fields["query_pre_attn_scalar"] = hidden // heads if layers == 62 else head_dim
    config = from_hf(fields)
    return replace(
        config,
        rope=replace(config.rope, frequency_factors=factors, attention_factor=attention_factor),
        qkv_bias=_any_bias(shapes, "self_attn.q_proj", "self_attn.qkv_proj"),
        o_bias=_any_bias(shapes, "self_attn.o_proj"),
        mlp_bias=_any_bias(shapes, "mlp.down_proj"),
        qk_norm="layers.0.self_attn.q_norm.weight" in shapes,
    )


_OTHER_FIELDS = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "attention_multiplier": "attention.scale",
    "final_logit_softcapping": "final_logit_softcapping",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "use_parallel_residual": "use_parallel_residual",
}
"""Fields of `config.json` that some families have, and the keys that hold them."""


def _head_dim(family: Family, rotated: Any, share: int) -> int:
    """Dimensions of a head if the file does not say: what is rotated, if that is all of them."""
    return rotated if type(rotated) is int and not family.partial_rotation else share


def _any_bias(shapes: dict[str, tuple[int, ...]], *names: str) -> bool:
    return any(f"layers.0.{name}.bias" in shapes for name in names)


def _rope(metadata: _Metadata, architecture: str | None) -> tuple[dict[str, Any], float | None]:
    """`rope_parameters`, and the factor on cos and sin; None is the type's own.

    As llama.cpp reads them: a factor without a type is linear, an older key names the factor, and
    YaRN stretches the whole context unless the file gives the original one.
    """
    prefix = f"{architecture}.rope"
    kind = metadata.get(f"{prefix}.scaling.type")
    factor = metadata.number(
        f"{prefix}.scaling.factor", metadata.number(f"{prefix}.scale_linear", 0.0)
    )
    if kind is None:
        kind = "linear" if factor else "none"
    if not isinstance(kind, str):
        raise CheckpointError(f"{prefix}.scaling.type", repr(kind), "must be a name")
    fields: dict[str, Any] = {
        "rope_type": "default" if kind == "none" else kind,
        "rope_theta": metadata.number(f"{prefix}.freq_base", 10_000.0),
        "factor": factor or 1.0,
    }
    original = metadata.integer(f"{prefix}.scaling.original_context_length", 0)
    if original:
        fields["original_max_position_embeddings"] = original
    beta = metadata.number(f"{architecture}.attention.temperature_scale", 0.0)
    if beta:
        length = metadata.integer(f"{architecture}.attention.temperature_length", original)
        if original and length != original:
            allowed = f"supported: {original}, the original context"
            raise CheckpointError(
                f"{architecture}.attention.temperature_length", str(length), allowed
            )
        fields |= {"llama_4_scaling_beta": beta, "original_max_position_embeddings": length}
    for name, usual in (("yarn_ext_factor", float(kind == "yarn")), ("yarn_attn_factor", 1.0)):
        value = metadata.number(f"{prefix}.scaling.{name}", usual)
        if value != usual and value >= 0:  # below 0 is "not given"
            raise CheckpointError(f"{prefix}.scaling.{name}", str(value), f"supported: {usual}")
    stretch = 0.0
    if kind == "yarn":
        fields |= _yarn(metadata, prefix)
        stretch = 0.1 * math.log(factor) if factor > 1 else 0.0
    attention = metadata.number(f"{prefix}.scaling.attn_factor", 1.0)
    if attention == 1.0:
        return fields, None
    own = (1 + stretch) / (1 + fields.get("mscale_all_dim", 0.0) * stretch)
    return fields, attention * own


def _yarn(metadata: _Metadata, prefix: str) -> dict[str, Any]:
    """What only YaRN reads; llama.cpp takes mscale for 1."""
    keys = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
    found = {name: metadata.number(f"{prefix}.scaling.{k}", 0.0) for name, k in keys.items()}
    found["mscale_all_dim"] = metadata.number(f"{prefix}.scaling.yarn_log_multiplier", 0.0)
    if found["mscale_all_dim"]:
        found["mscale"] = 1.0
    return {name: value for name, value in found.items() if value}


def _as_published(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """A tensor as `config.json`'s family has it: GGUF files change the form of some."""
    if FAMILIES[config.family].norm == "offset_rms" and name.endswith("norm.weight"):
        return weight - 1.0  # the files hold the scale itself
    order = _row_order(name, config)
    return weight if order is None else weight[order]


def _row_order(name: str, config: ModelConfig) -> Tensor | None:
    """The rows of a file's tensor in their original order, int64 `[out]`; None if they are in it.

    Files of some families reorder query and key rows for interleaved RoPE: row 2j + s of a head is
    row s * head_dim / 2 + j of the original.
    """
    if not FAMILIES[config.family].interleaved_gguf_rope:
        return None
    if ".q_proj." in name:
        heads = config.num_heads
    elif ".k_proj." in name:
        heads = config.num_kv_heads
    else:
        return None
    rows = torch.arange(heads * config.head_dim)
    return rows.view(heads, config.head_dim // 2, 2).transpose(1, 2).flatten()


_NAMED_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",  # so spelled
    "pad_token": "padding",
    "mask_token": "mask",
}
"""Names of tokens in chat templates, and in the keys of a GGUF file."""


def _tokenizer(metadata: _Metadata) -> Tokenizer:
    model = metadata.need("tokenizer.ggml.model")
    tokens = metadata.strings("tokenizer.ggml.tokens")
    types = metadata.need("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        allowed = f"one type for each of {len(tokens)} tokens"
        raise CheckpointError("tokenizer.ggml.token_type", "of another length", allowed)
    ids = {name: metadata.token(f"{key}_token_id") for name, key in _NAMED_TOKENS.items()}
    if model == "llama":  # SentencePiece's own ids
        ids |= {n: i for n, i in (("bos_token", 1), ("eos_token", 2)) if ids[n] is None}
    named = {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}
    pre = metadata.get("tokenizer.ggml.pre", "default")
    usual = model == "llama" or pre_adds_bos(pre)
    given: dict[str, Any] = {
        "bos_token_id": ids["bos_token"],
        "eos_token_id": ids["eos_token"],
        "add_bos": metadata.flag("tokenizer.ggml.add_bos_token", usual),
        "named_tokens": named,
    }
    if model == "llama":
        scores = metadata.need("tokenizer.ggml.scores")
        vocabulary = SentencePieceVocabulary(
            pieces=tokens,
            scores=scores if isinstance(scores, list) else [],
            types=types,
            add_space_prefix=metadata.flag("tokenizer.ggml.add_space_prefix", True),
        )
        return Tokenizer.from_sentencepiece(vocabulary, **given)
    if model != "gpt2":
        allowed = "supported: gpt2 (byte-level BPE) and llama (SentencePiece)"
        raise CheckpointError("tokenizer.ggml.model", repr(model), allowed)
    merges = metadata.strings("tokenizer.ggml.merges")
    return Tokenizer.from_gguf(tokens, types, merges, pre, **given)


def _chat_template(metadata: _Metadata, tokens: dict[str, str]) -> ChatTemplate | None:
    found = {}
    for name, key in (("default", ""), ("tool_use", ".tool_use")):
        source = metadata.get(f"tokenizer.chat_template{key}")
        if source is not None:
            found[name] = str(source)
    return chat_template(found, **tokens)
