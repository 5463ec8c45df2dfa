"""GGUF files: config, dequantised weights, tokenizer and chat template."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimode.checkpoints.names import check_tensors, from_gguf
from trimode.config import ModelConfig, RopeConfig
from trimode.errors import CheckpointError
from trimode.text import ChatTemplate, Tokenizer

_FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q6_K")
_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True)
class GgufModel:
    """What a GGUF file holds, checked; weights are read when asked for."""

    name: str
    config: ModelConfig
    read: Callable[[str], Tensor]
    """Canonical tensor name -> fp32 tensor, exactly as llama.cpp dequantises it."""
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None


def open_gguf(path: Path) -> GgufModel:
    """Read a GGUF file's metadata and check its tensors.

    Raises:
        CheckpointError: damaged, an unsupported architecture or quantisation, or wrong tensors.
    """
    import gguf  # slow to import; only needed here

    try:
        with path.open("rb") as file:
            if file.read(4) != _MAGIC:
                raise CheckpointError(str(path), "not a GGUF file", "its first bytes must be GGUF")
        reader = gguf.GGUFReader(path)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - the reader raises whatever a bad offset leads to
        found = f"not readable ({type(error).__name__}: {error}); truncated or damaged"
        raise CheckpointError(str(path), found, "fetch it again") from None
    metadata = _Metadata(reader.fields, path)
    architecture = metadata.need("general.architecture")
    if architecture not in _FAMILIES:
        supported = f"supported: {', '.join(_FAMILIES)}"
        raise CheckpointError("general.architecture", repr(architecture), supported)
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
    config = _config(metadata, architecture, shapes, tied=tied, factors=factors)
    check_tensors(config, shapes, str(path))

    def read(name: str) -> Tensor:
        tensor = tensors[name]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        weight = torch.from_numpy(np.array(values, dtype=np.float32).reshape(shapes[name]))
        if architecture == "llama":
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
    """GGUF key-value pairs, decoded when asked for (decoding all takes seconds)."""

    def __init__(self, fields: dict[str, Any], path: Path) -> None:
        self._fields, self._path = fields, path

    def get(self, key: str, default: Any = None) -> Any:
        return self._fields[key].contents() if key in self._fields else default

    def need(self, key: str) -> Any:
        if key not in self._fields:
            raise CheckpointError(f"{self._path}: {key}", "missing", "the field is needed")
        return self.get(key)


def _config(
    metadata: _Metadata,
    architecture: str,
    shapes: dict[str, tuple[int, ...]],
    *,
    tied: bool,
    factors: tuple[float, ...] | None,
) -> ModelConfig:
    def need(key: str) -> Any:
        return metadata.need(f"{architecture}.{key}")

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{architecture}.{key}", default)

    heads, hidden = need("attention.head_count"), need("embedding_length")
    scaling: Any = get("rope.scaling.type", "none")
    rope = RopeConfig(
        rope_type="default" if scaling == "none" else scaling,
        rope_theta=get("rope.freq_base", 10_000.0),
        factor=get("rope.scaling.factor", 1.0),
        original_max_position_embeddings=get("rope.scaling.original_context_length"),
        frequency_factors=factors,
    )
    ends = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot"))
    return ModelConfig(
        family=_FAMILIES[architecture],
        vocab_size=shapes.get("embed_tokens.weight", (get("vocab_size", 0), 0))[0],
        hidden_size=hidden,
        intermediate_size=need("feed_forward_length"),
        num_layers=need("block_count"),
        num_heads=heads,
        num_kv_heads=get("attention.head_count_kv", heads),
        head_dim=get("attention.key_length") or get("rope.dimension_count") or hidden // heads,
        rms_norm_eps=need("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=need("context_length"),
        rope=rope,
        qkv_bias="layers.0.self_attn.q_proj.bias" in shapes,
        o_bias="layers.0.self_attn.o_proj.bias" in shapes,
        qk_norm="layers.0.self_attn.q_norm.weight" in shapes,
        tie_word_embeddings=tied,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
    )


def _unpermute(name: str, weight: Tensor, config: ModelConfig) -> Tensor:
    """Undo the q/k row order that llama-architecture files use for interleaved RoPE.

    There row 2j + s of a head is row s * head_dim / 2 + j of the original.
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
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", False)
    return Tokenizer.from_gguf(
        metadata.need("tokenizer.ggml.tokens"),
        metadata.need("tokenizer.ggml.token_type"),
        metadata.need("tokenizer.ggml.merges"),
        metadata.get("tokenizer.ggml.pre", "default"),
        add_bos_id=metadata.get("tokenizer.ggml.bos_token_id") if add_bos else None,
    )


def _chat_template(metadata: _Metadata) -> ChatTemplate | None:
    source = metadata.get("tokenizer.chat_template")
    if source is None:
        return None
    tokens = metadata.need("tokenizer.ggml.tokens")

    def text(kind: str) -> str:
        token = metadata.get(f"tokenizer.ggml.{kind}_token_id")
        return "" if token is None else tokens[token]

    return ChatTemplate(source, bos_token=text("bos"), eos_token=text("eos"))
