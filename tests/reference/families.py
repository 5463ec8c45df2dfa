"""Tiny random models of every family, from transformers' own classes: the outside oracle."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from trimode.config import ModelConfig, RopeConfig

SIZES: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 16.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

SMALL_IDS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 2}
"""For families whose default ids are beyond a tiny vocabulary."""

# name -> (transformers config class, its extra arguments, extra fields of our ModelConfig)
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}, {}),
    "llama-biased-llama3-rope": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
        {"qkv_bias": True, "o_bias": True, "mlp_bias": True},
    ),
    "llama-linear-rope": (
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        {"max_position_embeddings": 4 * 4096},
    ),
    "llama-yarn-plain": (
        "LlamaConfig",
        {"rope_parameters": {k: v for k, v in YARN.items() if not k.startswith("mscale")}},
        {},
    ),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}, {}),
    "mistral": ("MistralConfig", {"sliding_window": None}, {}),
    "ministral3": (
        "Ministral3Config",
        {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}, "sliding_window": None},
        {},
    ),
    "qwen2": ("Qwen2Config", {}, {"qkv_bias": True}),
    "qwen3": ("Qwen3Config", {}, {"qk_norm": True}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "tie_word_embeddings": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {
            "activation": "gelu_tanh",
            "norm": "offset_rms",
            "norm_placement": "both",
            "qk_norm": True,
            "embedding_multiplier": 48**0.5,
            "attention_scale": 24**-0.5,
            "layer_ropes": ("local", "global", "local"),
            "local_rope": RopeConfig(rope_theta=1e4),
            "layer_windows": (9, None, 9),
        },
    ),
    "phi3": ("Phi3Config", SMALL_IDS, {}),
    "phi3-window-partial": (
        "Phi3Config",
        {
            **SMALL_IDS,
            "sliding_window": 11,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            },
        },
        {"layer_windows": (11, 11, 11), "rotary_dim": 8},
    ),
    "smollm3": (
        "SmolLM3Config",
        {
            **SMALL_IDS,
            "no_rope_layers": [1, 0, 1],
            "attention_bias": True,
            "mlp_bias": True,
        },
        {
            "layer_ropes": ("global", "none", "global"),
            "qkv_bias": True,
            "o_bias": True,
            "mlp_bias": True,
        },
    ),
    "olmo2": (
        "Olmo2Config",
        SMALL_IDS,
        {"norm_placement": "after", "qk_norm": True, "qk_norm_over": "projection"},
    ),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.25,
            "logits_scaling": 0.25,
            "attention_multiplier": 0.125,
        },
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.25,
            "logit_multiplier": 4.0,
            "attention_scale": 0.125,
        },
    ),
    "stablelm": (
        "StableLmConfig",
        {"use_qkv_bias": True, "partial_rotary_factor": 0.25},
        {"norm": "layer", "qkv_bias": True, "rotary_dim": 4},
    ),
}


BY_OPERATORS: frozenset[str] = frozenset(
    {"gemma3", "phi3", "phi3-window-partial", "smollm3", "olmo2", "granite", "stablelm"}
)
"""Those of them that the C++ pass does not know yet: it must refuse them."""


def build(
    name: str, seed: int = 0, **other_sizes: int
) -> tuple[nn.Module, ModelConfig, dict[str, Tensor]]:
    """A random transformers model, our config of it, and its tensors by canonical name."""
    class_name, extra, fields = FAMILIES[name]
    sizes = SIZES | other_sizes
    layers = sizes["num_hidden_layers"]
    extra = {k: v[:layers] if isinstance(v, list) else v for k, v in extra.items()}
    fields = {k: v[:layers] if isinstance(v, tuple) else v for k, v in fields.items()}
    head_dim = sizes["head_dim"]
    if class_name in ("Qwen2Config", "StableLmConfig"):  # their heads share out the hidden size
        del sizes["head_dim"]
        sizes["hidden_size"] = 96
    hf_config = getattr(transformers, class_name)(**sizes, **extra, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(hf_config).eval()
    with torch.no_grad():  # transformers starts biases and norms at 0 and 1, which hides mistakes
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() > 1 else 0.5))
    tied = bool(hf_config.tie_word_embeddings)
    if tied:
        model.tie_weights()
    rope = dict(hf_config.rope_parameters)
    rope = {"rope_theta": 1e4, **rope.get("full_attention", rope)}
    names = set(RopeConfig.__dataclass_fields__)
    ours = {
        "family": hf_config.model_type,
        "vocab_size": hf_config.vocab_size,
        "hidden_size": hf_config.hidden_size,
        "intermediate_size": hf_config.intermediate_size,
        "num_layers": hf_config.num_hidden_layers,
        "num_heads": hf_config.num_attention_heads,
        "num_kv_heads": hf_config.num_key_value_heads,
        "head_dim": head_dim,
        "rms_norm_eps": getattr(hf_config, "rms_norm_eps", None) or hf_config.layer_norm_eps,
        "max_position_embeddings": hf_config.max_position_embeddings,
        "rope": RopeConfig(**{k: v for k, v in rope.items() if k in names}),
        "tie_word_embeddings": tied,
        "mask_token_id": 7,
        "eos_token_ids": (2,),
    }
    config = ModelConfig(**ours | fields)
    tensors = {
        key.removeprefix("model."): value.detach()
        for key, value in model.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    return model, config, dict(_split(tensors, config))


def _split(tensors: dict[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The linears that Phi-3 keeps in one tensor, one by one."""
    queries, keys = (n * config.head_dim for n in (config.num_heads, config.num_kv_heads))
    for name, tensor in tensors.items():
        if "qkv_proj" in name:
            parts = tensor.split((queries, keys, keys))
            yield from zip((name.replace("qkv", x) for x in "qkv"), parts, strict=True)
        elif "gate_up_proj" in name:
            parts = tensor.chunk(2)
            yield from zip((name.replace("gate_up", x) for x in ("gate", "up")), parts, strict=True)
        else:
            yield name, tensor
