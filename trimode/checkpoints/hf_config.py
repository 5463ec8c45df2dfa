"""Hugging Face `config.json` to `ModelConfig` and back."""

import json
from pathlib import Path
from typing import Any

from trimode.checkpoints.families import (
    FAMILIES,
    NLD,
    OUTER_MODELS,
    Family,
    check_switches,
    family_of,
)
from trimode.config import DEFAULT_BLOCK_LENGTH, DRAFT_FORMS, DraftForm, ModelConfig, RopeConfig
from trimode.errors import CheckpointError

_OUTER_FIELDS = ("mask_token_id", "eos_token_id", "block_size", "quantization_config")
"""Fields of a multimodal config that apply to its text part too."""

SAVED_BY_US = "trimode_format"
"""Field that marks a `config.json` of ours: a directory with it may be replaced."""

_ROPE_FIELDS = tuple(
    name for name in RopeConfig.__dataclass_fields__ if name != "frequency_factors"
)


def read_config(path: Path) -> ModelConfig:
    """Read a `config.json`.

    Raises:
        CheckpointError: the file is not readable, or a field's value is not supported.
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
    """Make our config from a Hugging Face one.

    Raises:
        CheckpointError: the family, activation or quantisation is not supported.
        KeyError: a field is missing.
    """
    fields = _text_fields(fields)
    name = fields.get("model_type")
    family = family_of(name)
    activation = fields.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError("hidden_act", repr(activation), "supported: silu")
    if fields.get("quantization_config"):
        quantization = fields["quantization_config"]
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        found = repr(method or quantization)
        raise CheckpointError(
            "quantization_config", found, "supported: unquantised weights, or a GGUF file"
        )
    hidden, heads = _integer(fields, "hidden_size"), _integer(fields, "num_attention_heads")
    if heads < 1:
        raise CheckpointError("num_attention_heads", str(heads), "must be at least 1")
    eos = fields.get("eos_token_id")
    attention_bias = bool(fields.get("attention_bias", False))
    denoises = family.trained_to_denoise or bool(fields.get("trimode_trained_to_denoise"))
    return ModelConfig(
        family=str(name),
        vocab_size=_integer(fields, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_integer(fields, "intermediate_size"),
        num_layers=_integer(fields, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_integer(fields, "num_key_value_heads", heads),
        head_dim=_integer(fields, "head_dim", family.head_dim or hidden // heads),
        rms_norm_eps=fields.get("rms_norm_eps", family.rms_norm_eps),
        max_position_embeddings=_context(fields, family),
        rope=_rope(fields),
        qkv_bias=family.qkv_bias(attention_bias),
        o_bias=family.o_bias(attention_bias),
        mlp_bias=bool(fields.get("mlp_bias", False)) and family.mlp_bias_switch,
        qk_norm=family.qk_norm,
        tie_word_embeddings=bool(fields.get("tie_word_embeddings", False)),
        bos_token_id=fields.get("bos_token_id"),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        mask_token_id=fields.get("mask_token_id"),
        block_length=fields.get("block_size") or DEFAULT_BLOCK_LENGTH,
        trained_to_denoise=denoises,
        token_shift=bool(fields.get("trimode_token_shift")),
        draft_form=_draft_form(fields, denoises=denoises and not family.trained_to_denoise),
    )


def _draft_form(fields: dict[str, Any], *, denoises: bool) -> DraftForm:
    """How the checkpoint drafts; `denoises`: whether our training taught it to.

    Checkpoints that were saved before the field existed have the form of the recipe that made them:
    led if our training made them, NLD's otherwise.
    """
    form = fields.get("trimode_draft_form", "led" if denoises else "seeded")
    if form not in DRAFT_FORMS:
        allowed = f"allowed: {', '.join(DRAFT_FORMS)}"
        raise CheckpointError("trimode_draft_form", repr(form), allowed)
    return form


def _text_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The text model's fields of a multimodal config; other configs are returned as they are."""
    outer, text = fields, fields.get("text_config")
    if outer.get("model_type") not in OUTER_MODELS or not isinstance(text, dict):
        return fields
    merged = {name: outer[name] for name in _OUTER_FIELDS if name in outer} | text
    if outer.get("quantization_config"):
        merged["quantization_config"] = outer["quantization_config"]
    if "tie_word_embeddings" in outer:  # the head belongs to the outer model
        merged["tie_word_embeddings"] = outer["tie_word_embeddings"]
    text_family = OUTER_MODELS[outer["model_type"]]
    return merged if text_family is None else {**merged, "model_type": text_family}


def _integer(fields: dict[str, Any], name: str, default: int | None = None) -> int:
    """A whole number; absent or null means the default, if there is one."""
    value = fields[name] if default is None else fields.get(name)
    value = default if value is None else value
    if type(value) is not int:
        allowed = f"must be a whole number, not a {type(value).__name__}"
        raise CheckpointError(name, repr(value), allowed)
    return value


def _context(fields: dict[str, Any], family: Family) -> int:
    """Context length, at most the sliding window: up to there, full attention is the same."""
    length = _integer(fields, "max_position_embeddings")
    window = fields.get("sliding_window", family.sliding_window)
    if family.window_needs_a_switch:  # most configs list a window, few use it
        kinds = fields.get("layer_types")
        first = fields.get("max_window_layers", 28)
        some = "sliding_attention" in kinds if kinds else first < fields["num_hidden_layers"]
        used = some and fields.get("use_sliding_window", False)
    else:
        used = fields.get("use_sliding_window", True)
    return min(length, window) if window and used else length


def _rope(fields: dict[str, Any]) -> RopeConfig:
    """RoPE from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    given = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
    given.setdefault("rope_theta", fields.get("rope_theta", 10_000.0))
    given.setdefault("rope_type", given.pop("type", None) or "default")
    partial = given.get("partial_rotary_factor") or fields.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise CheckpointError("partial_rotary_factor", repr(partial), "supported: 1.0")
    if given["rope_type"] in ("yarn", "llama3"):
        length = fields["max_position_embeddings"]
        if given.get("original_max_position_embeddings") is None:
            given["original_max_position_embeddings"] = length
        if given.get("factor") is None:  # as transformers infers it
            given["factor"] = length / given["original_max_position_embeddings"]
    if not given.get("llama_4_scaling_beta"):
        given.pop("llama_4_scaling_beta", None)
        if given["rope_type"] in ("default", "linear"):  # nothing else uses it
            given.pop("original_max_position_embeddings", None)
    known = {k: v for k, v in given.items() if k in _ROPE_FIELDS and v is not None}
    return RopeConfig(**known)


def to_hf(config: ModelConfig, *, dtype: str) -> dict[str, Any]:
    """The `config.json` of a checkpoint; with NLD's own fields if the family is NLD.

    Raises:
        CheckpointError: `config.json` cannot express the config.
    """
    if config.rope.frequency_factors is not None:
        raise CheckpointError(
            "rope",
            "per-dimension frequency factors of a GGUF file",
            "cannot be saved as config.json",
        )
    check_switches(config)
    eos = list(config.eos_token_ids)
    fields: dict[str, Any] = {
        "architectures": [FAMILIES[config.family].architecture],
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
        "block_size": config.block_length,
        SAVED_BY_US: 1,
    }
    if config.mask_token_id is not None:
        fields["mask_token_id"] = config.mask_token_id
    if config.family == NLD:
        fields |= {"dlm_paradigm": "bidirectional", "ar_loss_weight": 1.0, "attention_dropout": 0.0}
    elif config.trained_to_denoise:
        fields["trimode_trained_to_denoise"] = True
    if config.token_shift:
        fields["trimode_token_shift"] = True
    if config.trained_to_denoise:
        fields["trimode_draft_form"] = config.draft_form
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
    if rope.llama_4_scaling_beta or FAMILIES[config.family].always_scales_queries:
        original = rope.original_max_position_embeddings or config.max_position_embeddings
        values["original_max_position_embeddings"] = original
        values["llama_4_scaling_beta"] = rope.llama_4_scaling_beta or 0.0
    return {name: value for name, value in values.items() if value is not None}
