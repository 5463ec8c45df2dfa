"""Checkpoints of random numbers in the shape of Qwen2.5-0.5B, for measurements of loading.

What they answer is noise. Their files have the sizes, types, vocabulary and merges of real ones.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from trimode.text.byte_bpe import BYTE_OF

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS, VOCABULARY = 24, 896, 4864, 14, 2, 151_936
_MERGES, _CONTROL = 151_387, 22
_K_SCALES = {"Q4_K": (0, 4), "Q6_K": (208, 210), "Q5_0": (0, 2), "Q8_0": (0, 2)}
"""Where a block has its numbers in fp16; random bytes there would be infinite."""
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and merges, as many as Qwen2.5 has.

    Every merge joins two earlier tokens, short ones more often than long ones.
    """
    generator = np.random.default_rng(0)
    tokens = list(BYTE_OF)
    known, merges = set(tokens), []
    while len(merges) < _MERGES:
        picks = (generator.random((4096, 2)) ** 3 * len(tokens)).astype(int)
        for left, right in ((tokens[i], tokens[j]) for i, j in picks):
            whole = left + right
            if len(whole) <= 12 and whole not in known and len(merges) < _MERGES:
                known.add(whole)
                tokens.append(whole)
                merges.append(f"{left} {right}")
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    control += [f"<|control_{i}|>" for i in range(_CONTROL - len(control))]
    padding = [f"[PAD{i}]" for i in range(len(tokens) + _CONTROL, VOCABULARY)]
    types = [1] * len(tokens) + [3] * len(control) + [5] * len(padding)
    return tokens + control + padding, types, merges


def shapes() -> dict[str, tuple[int, ...]]:
    """Shapes by the names of GGUF files."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, HIDDEN),
        "output.weight": (VOCABULARY, HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    keys = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        for name, shape in {
            "attn_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,),
            "attn_q.weight": (HIDDEN, HIDDEN), "attn_q.bias": (HIDDEN,),
            "attn_k.weight": (keys, HIDDEN), "attn_k.bias": (keys,),
            "attn_v.weight": (keys, HIDDEN), "attn_v.bias": (keys,),
            "attn_output.weight": (HIDDEN, HIDDEN),
            "ffn_gate.weight": (INNER, HIDDEN), "ffn_up.weight": (INNER, HIDDEN),
            "ffn_down.weight": (HIDDEN, INNER),
        }.items():  # fmt: skip
            found[f"blk.{layer}.{name}"] = shape
    return found


def _kind(name: str) -> str:
    """The mix of Q4_K_M: rows of 896 are no whole blocks of 256, so most matrices are Q5_0."""
    if name == "output.weight" or "attn_v" in name:
        return "Q8_0"
    if "ffn_down" in name:
        return "Q6_K" if int(name.split(".")[1]) % 2 else "Q4_K"
    return "Q5_0"


def write_gguf(path: Path) -> Path:
    """A file of 0.5 GB; an older one is kept."""
    import gguf

    if path.exists():
        return path
    generator = np.random.default_rng(1)
    tokens, types, merges = vocabulary()
    temporary = path.with_name(f"{path.name}.partial")
    writer = gguf.GGUFWriter(temporary, "qwen2")
    writer.add_name("synthetic")
    writer.add_block_count(LAYERS)
    writer.add_context_length(32_768)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE)
    for name, shape in shapes().items():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, dtype=np.float32))
            continue
        kind = gguf.GGMLQuantizationType[_kind(name)]
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = generator.integers(0, 256, (shape[0], shape[1] // weights, size), dtype=np.uint8)
        start, end = _K_SCALES[kind.name]
        scale = np.full((*blocks.shape[:2], (end - start) // 2), 1e-4, dtype=np.float16)
        blocks[:, :, start:end] = scale.view(np.uint8)
        writer.add_tensor(name, blocks.reshape(shape[0], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.rename(path)
    return path


def write_directory(path: Path) -> Path:
    """A Hugging Face directory in bf16, 1.3 GB; an older one is kept."""
    import torch
    from safetensors.torch import save_file

    from trimode.checkpoints.names import from_gguf, to_published
    from trimode.text import Tokenizer

    if (path / "model.safetensors").exists():
        return path
    path.mkdir(parents=True, exist_ok=True)
    tokens, types, merges = vocabulary()
    Tokenizer.from_gguf(tokens, types, merges, "qwen2").save(path / "tokenizer.json")
    config: dict[str, Any] = {
        "model_type": "qwen2", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": 32_768, "tie_word_embeddings": False,
        "eos_token_id": tokens.index("<|im_end|>"), "bos_token_id": tokens.index("<|endoftext|>"),
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text(_TEMPLATE)
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in shapes().items():
        weight = torch.ones(shape)
        if len(shape) > 1:
            weight = torch.randn(shape, generator=generator) * 0.02
        tensors[to_published(from_gguf(name, "qwen2") or name, "qwen2")] = weight.bfloat16()
    temporary = path / "model.safetensors.partial"
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.rename(path / "model.safetensors")
    return path
