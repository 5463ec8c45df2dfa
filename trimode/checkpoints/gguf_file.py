"""GGUF files: config, dequantised weights, tokenizer and chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimode.checkpoints.families import FAMILIES, family_of_gguf
from trimode.checkpoints.gguf_header import check_header
from trimode.checkpoints.names import check_tensors, from_gguf
from trimode.config import ModelConfig, RopeConfig
from trimode.errors import CheckpointError
from trimode.text import ChatTemplate, Tokenizer

_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q6_K")


@dataclass(frozen=True, slots=True)
class GgufModel:
    """The checked content of a GGUF file; weights are read on demand."""

    name: str
    config: ModelConfig
    read: Callable[[str], Tensor]
    """Canonical tensor name -> fp32 tensor, exactly as llama.cpp dequantises it."""
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None


def open_gguf(path: Path) -> GgufModel:
    """Read a GGUF file's metadata and check its tensors.

    Raises:
        CheckpointError: the file is damaged, the architecture or quantisation is not supported, or
            the tensors are not those of the model.
    """
    import gguf  # slow to import; only needed here

    check_header(path)
    try:
        reader = gguf.GGUFReader(path)
    except Exception as error:  # noqa: BLE001 - the reader raises whatever a bad offset leads to
        found = f"not readable ({type(error).__name__}: {error}); truncated or damaged"
        raise CheckpointError(str(path), found, "fetch it again") from None
    metadata = _Metadata(reader.fields, path)
    architecture = metadata.need("general.architecture")
    family = family_of_gguf(architecture)
    tensors = {}
    shapes = {}
    factors = None
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if kind not in _TYPES:
            raise CheckpointError(tensor.name, f"type {kind}", f"supported: {', '.join(_TYPES)}")
        if tensor.name == "rope_freqs.weight":
            factors = tuple(gguf.dequantize(tensor.data, tensor.tensor_type).tolist())
        name = from_gguf(tensor.name)
        if name is not None:
            tensors[name] = tensor
            shapes[name] = tuple(int(n) for n in reversed(tensor.shape))
    tied = "lm_head.weight" not in tensors
    config = _config(metadata, family, shapes, tied=tied, factors=factors)
    check_tensors(config, shapes, str(path))

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        weight = torch.from_numpy(np.array(values, dtype=np.float32).reshape(shapes[name]))
        if FAMILIES[family].interleaved_gguf_rope:
            return _unpermute(name, weight, config)
        return weight

    return GgufModel(
        name=str(metadata.get("general.name", path.stem)),
        config=config,
        read=read,
        tokenizer=_tokenizer(metadata),
        chat_template=_chat_template(metadata),
    )


class _Metadata:
    """GGUF key-value pairs, decoded on demand (decoding all takes seconds)."""

    def __init__(self, fields: dict[str, Any], path: Path) -> None:
        self._fields, self._path = fields, path

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self._fields[key].contents() if key in self._fields else default
        except (ValueError, IndexError) as error:
            found = f"not readable ({error})"
            raise CheckpointError(f"{self._path}: {key}", found, "fetch it again") from None

    def strings(self, key: str) -> list[str]:
        """A list of texts."""
        value = self.need(key)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
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
        if key not in self._fields:
            raise CheckpointError(f"{self._path}: {key}", "missing", "the field is needed")
        return self.get(key)


def _config(
    metadata: _Metadata,
    family: str,
    shapes: dict[str, tuple[int, ...]],
    *,
    tied: bool,
    factors: tuple[float, ...] | None,
) -> ModelConfig:
    architecture = FAMILIES[family].gguf_architecture

    def integer(key: str, default: int | None = None) -> int:
        return metadata.integer(f"{architecture}.{key}", default)

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{architecture}.{key}", default)

    heads, hidden = integer("attention.head_count"), integer("embedding_length")
    if heads < 1:
        raise CheckpointError(f"{architecture}.attention.head_count", str(heads), "at least 1")
    rotated = get("rope.dimension_count")
    head_dim = integer("attention.key_length", rotated or hidden // heads)
    if rotated not in (None, head_dim):
        raise CheckpointError(
            f"{architecture}.rope.dimension_count", str(rotated), f"supported: {head_dim}, all"
        )
    scaling: Any = get("rope.scaling.type", "none")
    rope = RopeConfig(
        rope_type="default" if scaling == "none" else scaling,
        rope_theta=metadata.number(f"{architecture}.rope.freq_base", 10_000.0),
        factor=metadata.number(f"{architecture}.rope.scaling.factor", 1.0),
        original_max_position_embeddings=get("rope.scaling.original_context_length"),
        frequency_factors=factors,
    )
    mask_key = "tokenizer.ggml.mask_token_id"
    mask = metadata.get(mask_key)
    ends = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot"))
    return ModelConfig(
        family=family,
        vocab_size=shapes.get("embed_tokens.weight", (0,))[0] or integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=integer("feed_forward_length"),
        num_layers=integer("block_count"),
        num_heads=heads,
        num_kv_heads=integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=metadata.number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        max_position_embeddings=integer("context_length"),
        rope=rope,
        qkv_bias="layers.0.self_attn.q_proj.bias" in shapes,
        o_bias="layers.0.self_attn.o_proj.bias" in shapes,
        mlp_bias="layers.0.mlp.down_proj.bias" in shapes,
        qk_norm="layers.0.self_attn.q_norm.weight" in shapes,
        tie_word_embeddings=tied,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        mask_token_id=None if mask is None else metadata.integer(mask_key),
    )


def _unpermute(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """Undo the query and key row order that files of some families use for interleaved RoPE.

    In such a file, row 2j + s of a head is row s * head_dim / 2 + j of the original.
    """
    if ".q_proj." in name:
        heads = config.num_heads
    elif ".k_proj." in name:
        heads = config.num_kv_heads
    else:
        return weight
    grouped = weight.unflatten(0, (heads, config.head_dim // 2, 2))
    return grouped.transpose(1, 2).reshape(weight.shape).contiguous()


def _tokenizer(metadata: _Metadata) -> Tokenizer:
    model = metadata.need("tokenizer.ggml.model")
    if model != "gpt2":
        raise CheckpointError(
            "tokenizer.ggml.model", repr(model), "supported: gpt2 (byte-level BPE)"
        )
    tokens, types, merges = (
        metadata.strings("tokenizer.ggml.tokens"),
        metadata.need("tokenizer.ggml.token_type"),
        metadata.strings("tokenizer.ggml.merges"),
    )
    if not isinstance(types, list) or len(types) != len(tokens):
        allowed = f"one type for each of {len(tokens)} tokens"
        raise CheckpointError("tokenizer.ggml.token_type", "of another length", allowed)
    known = set(tokens)
    for merge in merges:  # the tokenizers library panics on an unknown one
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= known:
            allowed = "a merge and its parts must be tokens"
            raise CheckpointError("tokenizer.ggml.merges", repr(merge), allowed)
    return Tokenizer.from_gguf(
        tokens,
        types,
        merges,
        metadata.get("tokenizer.ggml.pre", "default"),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
    )


def _chat_template(metadata: _Metadata) -> ChatTemplate | None:
    source = metadata.get("tokenizer.chat_template")
    if source is None:
        return None
    tokens = metadata.strings("tokenizer.ggml.tokens")

    def text(kind: str) -> str:
        token = metadata.get(f"tokenizer.ggml.{kind}_token_id")
        return tokens[token] if type(token) is int and token < len(tokens) else ""

    return ChatTemplate(source, bos_token=text("bos"), eos_token=text("eos"))
