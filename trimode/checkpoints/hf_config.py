"""Hugging Face `config.json` to `ModelConfig` and back."""

from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

from trimode.checkpoints.families import FAMILIES, NLD, OUTER_MODELS, Family, family_of
from trimode.checkpoints.special_tokens import token_ids
from trimode.config import (
    DEFAULT_BLOCK_LENGTH,
    DRAFT_FORMS,
    Activation,
    DraftForm,
    LayerRope,
    ModelConfig,
    RopeConfig,
)
from trimode.errors import CheckpointError
from trimode.files import read_json_object

_OUTER_FIELDS = ("mask_token_id", "eos_token_id", "block_size", "quantization_config")
"""Fields of a multimodal config that apply to its text part too."""

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_NOT_COMPUTED = (
    "final_logit_softcapping",
    "attn_logit_softcapping",
    "use_bidirectional_attention",
    "qk_layernorm",
    "use_parallel_residual",
)
"""Fields of some families that change the arithmetic in a way that the model does not know."""

_NONE_MEANS_NONE = ("sliding_window", "bos_token_id", "eos_token_id")
"""Fields in which null is a value. In the others it means that the field is not given."""

SAVED_BY_US = "trimode_format"
"""Field that marks a `config.json` of ours: a directory with it may be replaced."""

_ROPE_FIELDS = tuple(
    name for name in RopeConfig.__dataclass_fields__ if name != "frequency_factors"
)


def read_config(path: Path) -> ModelConfig:
    """Read a `config.json`.

    Raises:
        CheckpointError: the file is not readable, or a field's value is not supported. It names
            both.
    """
    fields = read_json_object(path)
    try:
        return from_hf(fields)
    except KeyError as error:
        raise CheckpointError(
            f"{path}: {error.args[0]}", "missing", "the field is needed"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.field}", error.found, error.allowed) from None


def from_hf(fields: dict[str, Any]) -> ModelConfig:
    """Make our config from a Hugging Face one.

    Raises:
        CheckpointError: the family or a field's value is not supported.
        KeyError: a field is missing.
    """
    fields = _text_fields(fields)
    name = fields.get("model_type")
    family = family_of(name)
    given = {k: v for k, v in fields.items() if v is not None or k in _NONE_MEANS_NONE}
    fields = {**family.defaults, **given}
    if fields.get("quantization_config"):
        quantization = fields["quantization_config"]
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        found = repr(method or quantization)
        raise CheckpointError(
            "quantization_config", found, "supported: unquantised weights, or a GGUF file"
        )
    for other in _NOT_COMPUTED:
        if fields.get(other):
            raise CheckpointError(other, repr(fields[other]), "supported: none")
    hidden, heads = _integer(fields, "hidden_size"), _integer(fields, "num_attention_heads")
    if heads < 1:
        raise CheckpointError("num_attention_heads", str(heads), "must be at least 1")
    head_dim = _integer(fields, "head_dim", family.head_dim or hidden // heads)
    attention_bias = _flag(fields, family.attention_bias_field)
    denoises = family.trained_to_denoise or _flag(fields, "trimode_trained_to_denoise")
    rope = _rope(fields)
    layers = _Layers(fields, family, rope)
    return ModelConfig(
        family=str(name),
        vocab_size=_integer(fields, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_integer(fields, "intermediate_size"),
        num_layers=layers.count,
        num_heads=heads,
        num_kv_heads=_integer(fields, "num_key_value_heads", heads),
        head_dim=head_dim,
        rms_norm_eps=fields.get(family.norm_eps_field, family.rms_norm_eps),
        max_position_embeddings=layers.context,
        rope=rope,
        qkv_bias=family.qkv_bias(attention_bias),
        o_bias=family.o_bias(attention_bias),
        mlp_bias=_flag(fields, "mlp_bias") and family.mlp_bias_switch,
        qk_norm=family.qk_norm,
        qk_norm_over=family.qk_norm_over,
        activation=_activation(fields, family),
        norm=family.norm,
        norm_placement=family.norm_placement,
        embedding_multiplier=_embedding_multiplier(fields, family, hidden),
        residual_multiplier=_multiplier(fields, "residual_multiplier", family),
        logit_multiplier=1.0 / _multiplier(fields, "logits_scaling", family),
        attention_scale=_attention_scale(fields, family, head_dim),
        rotary_dim=_rotary_dim(fields, family, head_dim),
        layer_ropes=layers.ropes,
        local_rope=layers.local_rope,
        layer_windows=layers.windows,
        tie_word_embeddings=_flag(fields, "tie_word_embeddings"),
        bos_token_id=_token_id(fields, "bos_token_id"),
        eos_token_ids=token_ids(fields, "eos_token_id", ""),
        mask_token_id=_token_id(fields, "mask_token_id"),
        block_length=_integer(fields, "block_size", DEFAULT_BLOCK_LENGTH),
        trained_to_denoise=denoises,
        token_shift=_flag(fields, "trimode_token_shift"),
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
    if outer.get("model_type") not in OUTER_MODELS:
        return fields
    text_family = OUTER_MODELS[outer["model_type"]]
    if not isinstance(text, dict):  # the text part's fields may stand beside the others
        return fields if text_family is None else {**fields, "model_type": text_family}
    merged = {name: outer[name] for name in _OUTER_FIELDS if name in outer} | text
    ends = (*token_ids(text, "eos_token_id", ""), *token_ids(outer, "eos_token_id", ""))
    if ends:
        merged["eos_token_id"] = list(dict.fromkeys(ends))
    if outer.get("quantization_config"):
        merged["quantization_config"] = outer["quantization_config"]
    if "tie_word_embeddings" in outer:  # the head belongs to the outer model
        merged["tie_word_embeddings"] = outer["tie_word_embeddings"]
    return merged if text_family is None else {**merged, "model_type": text_family}


def _integer(fields: dict[str, Any], name: str, default: int | None = None) -> int:
    """A whole number; absent or null means the default, if there is one."""
    value = fields[name] if default is None else fields.get(name)
    value = default if value is None else value
    if type(value) is not int:
        allowed = f"must be a whole number, not a {type(value).__name__}"
        raise CheckpointError(name, repr(value), allowed)
    return value


def _number(fields: dict[str, Any], name: str, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value:
        raise CheckpointError(name, repr(value), "must be a number other than 0")
    return value


def _flag(fields: dict[str, Any], name: str) -> bool:
    """True or false; absent or null means false."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(name, repr(value), "must be true or false")
    return bool(value)


def _token_id(fields: dict[str, Any], name: str) -> int | None:
    """A token id. Some configs list several, of which the first counts."""
    ids = token_ids({name: fields.get(name)}, name, "")
    return ids[0] if ids else None


def _activation(fields: dict[str, Any], family: Family) -> Activation:
    name = fields.get(family.activation_field, "silu")
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        supported = f"supported: {', '.join(_ACTIVATIONS)}"
        raise CheckpointError(family.activation_field, repr(name), supported)
    return _ACTIVATIONS[name]


def _multiplier(fields: dict[str, Any], name: str, family: Family) -> float:
    return _number(fields, name, 1.0) if family.multipliers else 1.0


def _embedding_multiplier(fields: dict[str, Any], family: Family, hidden: int) -> float:
    if family.scales_embeddings:
        return hidden**0.5
    return _multiplier(fields, "embedding_multiplier", family)


def _attention_scale(fields: dict[str, Any], family: Family, head_dim: int) -> float | None:
    """What scores are multiplied by; None if it is the usual head_dim ** -0.5."""
    scale = head_dim**-0.5
    if family.multipliers:
        scale = _number(fields, "attention_multiplier", 1.0)
    if "query_pre_attn_scalar" in family.defaults:
        scalar = _number(fields, "query_pre_attn_scalar", 1.0)
        if scalar < 0:
            raise CheckpointError("query_pre_attn_scalar", repr(scalar), "must be above 0")
        scale = scalar**-0.5
    return None if scale == head_dim**-0.5 else scale


def _rotary_dim(fields: dict[str, Any], family: Family, head_dim: int) -> int | None:
    """How many dimensions of a head are rotated; None if all."""
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    given = scaling.get("partial_rotary_factor") if isinstance(scaling, dict) else None
    partial = _number({"partial_rotary_factor": given or fields.get("partial_rotary_factor", 1.0)},
                      "partial_rotary_factor", 1.0)  # fmt: skip
    if partial == 1.0:
        return None
    if not family.partial_rotation:
        raise CheckpointError("partial_rotary_factor", repr(partial), "supported: 1.0")
    return int(head_dim * partial)


class _Layers:
    """What sets the layers of a model apart: windows and rotation. It gives the context too."""

    def __init__(self, fields: dict[str, Any], family: Family, rope: RopeConfig) -> None:
        self.count = _integer(fields, "num_hidden_layers")
        length = _integer(fields, "max_position_embeddings")
        self.context = length if family.scaled_context else rope.context_length(length)
        self.ropes: tuple[LayerRope, ...] = ()
        self.windows: tuple[int | None, ...] = ()
        self.local_rope: RopeConfig | None = None
        if family.local_rope:
            self._mixed(fields)
        elif family.window_layers:
            self._windowed(fields)
        else:
            self._limited(fields, family)
        if family.skips_rotation:
            rotates = fields.get("no_rope_layers")
            if rotates is None:
                every = _integer(fields, "no_rope_layer_interval", 4)
                rotates = [(i + 1) % every for i in range(self.count)]
            if not isinstance(rotates, list) or len(rotates) < self.count:
                allowed = "must be a list of one number for each layer"
                raise CheckpointError("no_rope_layers", repr(rotates), allowed)
            self.ropes = tuple("global" if some else "none" for some in rotates[: self.count])

    def _mixed(self, fields: dict[str, Any]) -> None:
        """Layers with a window and a RoPE of their own between layers that see all."""
        kinds = fields.get("layer_types")
        if kinds is None:
            every = _integer(fields, "sliding_window_pattern", 6)
            kinds = [
                "full_attention" if every and (i + 1) % every == 0 else "sliding_attention"
                for i in range(self.count)
            ]
        known = ("full_attention", "sliding_attention")
        if (
            not isinstance(kinds, list)
            or len(kinds) != self.count
            or any(kind not in known for kind in kinds)
        ):
            allowed = f"must be {' or '.join(known)} for each of {self.count} layers"
            raise CheckpointError("layer_types", repr(kinds), allowed)
        window = _window(fields)
        local = [kind == "sliding_attention" for kind in kinds]
        self.ropes = tuple("local" if some else "global" for some in local)
        self.windows = tuple(window if some else None for some in local) if window else ()
        scaling = fields.get("rope_parameters")
        given = scaling.get("sliding_attention") if isinstance(scaling, dict) else None
        base = {"rope_theta": fields["rope_local_base_freq"], **(given or {})}
        self.local_rope = _rope_config(base, "rope_parameters.sliding_attention", fields)

    def _windowed(self, fields: dict[str, Any]) -> None:
        """A window for all layers, unless it is no shorter than the context."""
        window = _window(fields)
        if window is not None and window < self.context:
            self.windows = (window,) * self.count

    def _limited(self, fields: dict[str, Any], family: Family) -> None:
        """A context that is at most the window: up to there, full attention is the same."""
        window = _window(fields, family.sliding_window)
        if family.window_needs_a_switch:  # most configs list a window, few use it
            kinds = fields.get("layer_types")
            first = _integer(fields, "max_window_layers", 28)
            some = "sliding_attention" in kinds if kinds else first < self.count
            used = some and _flag(fields, "use_sliding_window")
        else:
            used = "use_sliding_window" not in fields or _flag(fields, "use_sliding_window")
        if window and used:
            self.context = min(self.context, window)


def _window(fields: dict[str, Any], default: int | None = None) -> int | None:
    value = fields.get("sliding_window", default)
    if value is not None and type(value) is not int:
        raise CheckpointError("sliding_window", repr(value), "must be a whole number or null")
    return value or None


def _rope(fields: dict[str, Any]) -> RopeConfig:
    """RoPE from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    section = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    given = fields.get(section) or {}
    if isinstance(given, dict) and "full_attention" in given:  # one for each kind of layer
        section, given = f"{section}.full_attention", given["full_attention"]
    return _rope_config(given, section, fields)


def _rope_config(given: Any, section: str, fields: dict[str, Any]) -> RopeConfig:
    if not isinstance(given, dict):
        raise CheckpointError(section, repr(given), "must be an object")
    given = {"rope_theta": fields.get("rope_theta", 10_000.0), **given}
    old = given.pop("type", None)
    given.setdefault("rope_type", old or "default")
    if given["rope_type"] in ("yarn", "llama3"):
        length = _integer(fields, "max_position_embeddings")
        if given.get("original_max_position_embeddings") is None:
            given["original_max_position_embeddings"] = length
        if given.get("factor") is None and given["original_max_position_embeddings"]:
            # as transformers infers it
            given["factor"] = length / given["original_max_position_embeddings"]
    if not given.get("llama_4_scaling_beta"):
        given.pop("llama_4_scaling_beta", None)
        if given["rope_type"] == "default":  # nothing else uses it
            given.pop("original_max_position_embeddings", None)
    if given["rope_type"] != "yarn":  # the other types ignore it
        given.pop("attention_factor", None)
    known = {k: v for k, v in given.items() if k in _ROPE_FIELDS and v is not None}
    try:
        return RopeConfig(**known)
    except CheckpointError as error:
        raise CheckpointError(f"{section}: {error.field}", error.found, error.allowed) from None


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
    family = FAMILIES[config.family]
    eos = list(config.eos_token_ids)
    fields: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        family.activation_field: next(
            name for name, ours in _ACTIVATIONS.items() if ours == config.activation
        ),
        family.norm_eps_field: config.rms_norm_eps,
        "max_position_embeddings": _trained_context(config, family),
        "rope_parameters": _rope_to_hf(config.rope, config),
        family.attention_bias_field: config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": None,  # the tokenizer's; some classes have one that may be out of range
        "sliding_window": None,
        "dtype": dtype,
        "block_size": config.block_length,
        SAVED_BY_US: 1,
        **_switches(config, family),
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
    _check_expressed(config, fields)
    return fields


def _trained_context(config: ModelConfig, family: Family) -> int:
    """`max_position_embeddings`: what `_Layers` makes the context of."""
    length, rope = config.max_position_embeddings, config.rope
    stretched = rope.rope_type == "linear" and not rope.original_max_position_embeddings
    return int(length / rope.factor) if stretched and not family.scaled_context else length


def _switches(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Fields that only some families have."""
    fields: dict[str, Any] = {}
    head_dim, scale = config.head_dim, config.attention_scale
    scale = head_dim**-0.5 if scale is None else scale
    if family.multipliers:
        fields |= {
            "embedding_multiplier": config.embedding_multiplier,
            "residual_multiplier": config.residual_multiplier,
            "logits_scaling": 1.0 / config.logit_multiplier,
            "attention_multiplier": scale,
        }
    if "query_pre_attn_scalar" in family.defaults:
        fields["query_pre_attn_scalar"] = round(scale**-2)
    if family.local_rope:
        local = [kind == "local" for kind in config.layer_ropes]
        fields["layer_types"] = [f"{'sliding' if some else 'full'}_attention" for some in local]
        rope: dict[str, Any] = {"full_attention": _rope_to_hf(config.rope, config)}
        if config.local_rope is not None:
            rope["sliding_attention"] = _rope_to_hf(config.local_rope, config)
        fields["rope_parameters"] = rope
    if family.window_layers:
        windows = (window for window in config.layer_windows if window is not None)
        fields["sliding_window"] = next(windows, None)
    if family.skips_rotation:
        rotates = [int(kind != "none") for kind in config.layer_ropes]
        fields["no_rope_layers"] = rotates or [1] * config.num_layers
    if config.rotary_dim is not None:
        partial = config.rotary_dim / head_dim
        fields["partial_rotary_factor"] = partial
        rope = {**_rope_to_hf(config.rope, config), "partial_rotary_factor": partial}
        fields["rope_parameters"] = rope
    return fields


def _check_expressed(config: ModelConfig, fields: dict[str, Any]) -> None:
    """Raise CheckpointError unless reading the fields gives the config again."""
    again = from_hf(fields)
    for field in fields_of(config):
        ours, read = getattr(config, field.name), getattr(again, field.name)
        if ours != read and field.name != "max_position_embeddings":
            allowed = f"config.json of {config.family} cannot hold it"
            raise CheckpointError(field.name, repr(ours), allowed)


def _rope_to_hf(rope: RopeConfig, config: ModelConfig) -> dict[str, Any]:
    scaling = {
        "default": (),
        "linear": ("factor", "original_max_position_embeddings"),
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
