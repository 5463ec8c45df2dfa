"""Hugging Face `config.json` to `ModelConfig` and back."""

import json
from pathlib import Path
from typing import Any

from trimode.config import DEFAULT_BLOCK_LENGTH, ModelConfig, RopeConfig
from trimode.errors import CheckpointError

NLD = "nemotron_labs_diffusion"
_FAMILIES = (NLD, "llama", "mistral", "ministral3", "qwen2", "qwen3")
_ARCHITECTURES = {
    NLD: "NemotronLabsDiffusionModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_NESTED = ("mistral3", "nemotron_labs_diffusion_vlm")
"""Multimodal configs whose text part is under `text_config`."""

_ROPE_FIELDS = tuple(
    name for name in RopeConfig.__dataclass_fields__ if name != "frequency_factors"
)


def read_config(path: Path) -> ModelConfig:
    """Read a `config.json`.

    Raises:
        CheckpointError: not readable, or a field's value is not supported.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(str(path), "missing", "a checkpoint needs it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), f"not readable ({error})", "a JSON object") from None
    if not isinstance(fields, dict):
        raise CheckpointError(str(path), type(fields).__name__, "must be a JSON object")
    try:
        return from_hf(fields)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: {error.args[0]}", "missing", "the field is needed"
        ) from None
    except (TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(str(path), str(error), "a value of another type") from None


def from_hf(fields: dict[str, Any]) -> ModelConfig:
    """Our config of a Hugging Face one.

    Raises:
        CheckpointError: a family, activation or quantisation that is not supported.
        KeyError: a field is missing.
    """
    family = fields.get("model_type")
    if family in _NESTED and isinstance(fields.get("text_config"), dict):
        outer = {k: v for k, v in fields.items() if k in ("mask_token_id", "eos_token_id")}
        fields = {**outer, **fields["text_config"]}
        family = fields.get("model_type")
    if family not in _FAMILIES:
        supported = ", ".join(_FAMILIES)
        raise CheckpointError("model_type", repr(family), f"supported: {supported}")
    activation = fields.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError("hidden_act", repr(activation), "supported: silu")
    if fields.get("quantization_config"):
        method = fields["quantization_config"].get("quant_method")
        raise CheckpointError(
            "quantization_config", repr(method), "supported: unquantised weights, or a GGUF file"
        )
    heads = fields["num_attention_heads"]
    eos = fields.get("eos_token_id")
    attention_bias = bool(fields.get("attention_bias", False))
    return ModelConfig(
        family=family,
        vocab_size=fields["vocab_size"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"],
        num_layers=fields["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=fields.get("num_key_value_heads") or heads,
        head_dim=fields.get("head_dim") or fields["hidden_size"] // heads,
        rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
        max_position_embeddings=_context(fields),
        rope=_rope(fields),
        qkv_bias=attention_bias or family == "qwen2",
        o_bias=attention_bias and family in ("llama", "qwen3"),
        mlp_bias=bool(fields.get("mlp_bias", False)) and family == "llama",
        qk_norm=family == "qwen3",
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
        bos_token_id=fields.get("bos_token_id"),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        mask_token_id=fields.get("mask_token_id"),
        block_length=fields.get("block_size") or DEFAULT_BLOCK_LENGTH,
        trained_to_denoise=family == NLD or bool(fields.get("trimode_trained_to_denoise")),
    )


def _context(fields: dict[str, Any]) -> int:
    """Context length; full attention equals sliding attention up to the window, not beyond."""
    length = fields["max_position_embeddings"]
    window = fields.get("sliding_window")
    uses_window = fields.get("use_sliding_window", True)
    return min(length, window) if window and uses_window else length


def _rope(fields: dict[str, Any]) -> RopeConfig:
    """RoPE from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    given = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    given.setdefault("rope_theta", fields.get("rope_theta", 10_000.0))
    given.setdefault("rope_type", given.pop("type", None) or "default")
    if given["rope_type"] in ("yarn", "llama3"):
        given.setdefault("original_max_position_embeddings", fields["max_position_embeddings"])
        if given["original_max_position_embeddings"] is None:
            given["original_max_position_embeddings"] = fields["max_position_embeddings"]
    if not given.get("llama_4_scaling_beta"):
        given.pop("llama_4_scaling_beta", None)
        if given["rope_type"] in ("default", "linear"):  # nothing else counts from it
            given.pop("original_max_position_embeddings", None)
    known = {k: v for k, v in given.items() if k in _ROPE_FIELDS and v is not None}
    return RopeConfig(**known)


def to_hf(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """The `config.json` of a checkpoint; NLD's own fields where the family is NLD.

    Raises:
        CheckpointError: the config cannot be expressed there.
    """
    if config.rope.frequency_factors is not None:
        raise CheckpointError(
            "rope",
            "per-dimension frequency factors of a GGUF file",
            "cannot be saved as config.json",
        )
    eos = list(config.eos_token_ids)
    fields: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": _rope_to_hf(config),
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "sliding_window": None,
        "dtype": dtype,
    }
    if config.mask_token_id is not None:
        fields |= {"mask_token_id": config.mask_token_id, "block_size": config.block_length}
    if config.family == NLD:
        fields |= {"dlm_paradigm": "bidirectional", "ar_loss_weight": 1.0, "attention_dropout": 0.0}
    elif config.trained_to_denoise:
        fields["trimode_trained_to_denoise"] = True
    return fields


def _rope_to_hf(config: ModelConfig) -> dict[str, Any]:
    rope = config.rope
    scaling = {
        "default": (),
        "linear": ("factor",),
        "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale",
                 "mscale_all_dim", "attention_factor", "truncate"),
        "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor",
                   "high_freq_factor"),
    }[rope.rope_type]  # fmt: skip
    names = ("rope_type", "rope_theta", *scaling, "llama_4_scaling_beta")
    values = {name: getattr(rope, name) for name in names}
    if rope.llama_4_scaling_beta or config.family == "ministral3":  # it reads both always
        original = rope.original_max_position_embeddings or config.max_position_embeddings
        values["original_max_position_embeddings"] = original
        values["llama_4_scaling_beta"] = rope.llama_4_scaling_beta or 0.0
    return {name: value for name, value in values.items() if value is not None}
