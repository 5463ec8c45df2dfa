"""The model families, one row each. Reading and saving checkpoints depend on it.

If the layers of a new family differ in more than these switches, `ModelConfig` and `trimode.model`
need new switches too. The C++ pass refuses the family until it knows them
(`model/runners/native.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trimode.config import NormKind, NormPlacement, QKNormOver
from trimode.errors import CheckpointError

AttentionBias = Literal["never", "qkv", "qkv_switch", "switch"]
"""Biases of the attention's linears: none; always on q, k and v; on these or on q, k, v and o if
the config says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Prefixes of a checkpoint's tensor names."""

    body: str
    head: str


HUGGING_FACE = Layout(body="model.", head="lm_head.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What sets a family apart. Defaults are those of transformers' config class."""

    architecture: str
    """transformers' class, written into a saved config."""
    layout: Layout = HUGGING_FACE
    """Tensor names of a saved checkpoint."""
    gguf_architecture: str | None = None
    interleaved_gguf_rope: bool = False
    """Whether its GGUF files hold query and key rows in the order of interleaved RoPE."""
    head_dim: int | None = None
    """Used if the config has none. None: hidden size / heads."""
    rms_norm_eps: float = 1e-6
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of `config.json` fields that the family's files leave out."""
    activation_field: str = "hidden_act"
    norm: NormKind = "rms"
    norm_eps_field: str = "rms_norm_eps"
    norm_placement: NormPlacement = "before"
    fused_linears: bool = False
    """Whether its files hold q, k and v in one tensor, and gate and up in one."""
    local_rope: bool = False
    """Whether some layers have a window and a RoPE of their own."""
    skips_rotation: bool = False
    """Whether some layers do not rotate."""
    partial_rotation: bool = False
    """Whether the config's `partial_rotary_factor` is computed."""
    scales_embeddings: bool = False
    """Whether embeddings are multiplied by the root of the hidden size."""
    multipliers: bool = False
    """Whether the config's multipliers of embeddings, residuals, scores and logits are read."""
    scaled_context: bool = False
    """Whether `max_position_embeddings` already counts what RoPE scaling adds."""
    window_layers: bool = False
    """Whether sliding windows are computed. Else the window limits the context."""
    sliding_window: int | None = None
    """Used if the config has none and windows limit the context."""
    window_needs_a_switch: bool = False
    """Whether a window in the config counts only with `use_sliding_window` and for some layers."""
    attention_bias: AttentionBias = "never"
    attention_bias_field: str = "attention_bias"
    mlp_bias_switch: bool = False
    """Whether the config's `mlp_bias` is read."""
    qk_norm: bool = False
    qk_norm_over: QKNormOver = "head"
    always_scales_queries: bool = False
    """Whether a saved config must hold the fields of the Llama-4 query scale."""
    trained_to_denoise: bool = False

    def qkv_bias(self, attention_bias: bool) -> bool:
        """Whether q, k and v have biases."""
        switch = self.attention_bias in ("switch", "qkv_switch")
        return self.attention_bias == "qkv" or (switch and attention_bias)

    def o_bias(self, attention_bias: bool) -> bool:
        """Whether the output linear of the attention has a bias."""
        return self.attention_bias == "switch" and attention_bias


NLD = "nemotron_labs_diffusion"
NLD_VLM = "nemotron_labs_diffusion_vlm"

FAMILIES: dict[str, Family] = {
    NLD: Family(
        architecture="NemotronLabsDiffusionModel",
        layout=Layout(body="encoder.", head="diffusion_head."),
        head_dim=128,
        rms_norm_eps=1e-5,
        trained_to_denoise=True,
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        gguf_architecture="llama",
        interleaved_gguf_rope=True,
        attention_bias="switch",
        mlp_bias_switch=True,
    ),
    "mistral": Family(architecture="MistralForCausalLM", sliding_window=4096),
    "ministral3": Family(
        architecture="Ministral3ForCausalLM",
        gguf_architecture="mistral3",
        interleaved_gguf_rope=True,
        head_dim=128,
        rms_norm_eps=1e-5,
        always_scales_queries=True,
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        gguf_architecture="qwen2",
        attention_bias="qkv",
        window_needs_a_switch=True,
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        gguf_architecture="qwen3",
        head_dim=128,
        attention_bias="switch",
        window_needs_a_switch=True,
        qk_norm=True,
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM",
        gguf_architecture="gemma3",
        head_dim=256,
        defaults={
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "bos_token_id": 2,
            "eos_token_id": 1,
        },
        activation_field="hidden_activation",
        norm="offset_rms",
        norm_placement="both",
        scales_embeddings=True,
        local_rope=True,
        scaled_context=True,
        window_layers=True,
        attention_bias="switch",
        qk_norm=True,
    ),
    "phi3": Family(
        architecture="Phi3ForCausalLM",
        gguf_architecture="phi3",
        rms_norm_eps=1e-5,
        fused_linears=True,
        partial_rotation=True,
        window_layers=True,
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM",
        gguf_architecture="smollm3",
        interleaved_gguf_rope=True,
        defaults={"num_key_value_heads": 4, "rope_theta": 2_000_000.0, "tie_word_embeddings": True},
        skips_rotation=True,
        window_needs_a_switch=True,
        attention_bias="switch",
        mlp_bias_switch=True,
    ),
    "olmo2": Family(
        architecture="Olmo2ForCausalLM",
        gguf_architecture="olmo2",
        rms_norm_eps=1e-5,
        norm_placement="after",
        attention_bias="switch",
        qk_norm=True,
        qk_norm_over="projection",
    ),
    "granite": Family(
        architecture="GraniteForCausalLM",
        gguf_architecture="granite",
        interleaved_gguf_rope=True,
        multipliers=True,
        attention_bias="switch",
        mlp_bias_switch=True,
    ),
    "stablelm": Family(
        architecture="StableLmForCausalLM",
        gguf_architecture="stablelm",
        rms_norm_eps=1e-5,
        defaults={"partial_rotary_factor": 0.25},
        norm="layer",
        norm_eps_field="layer_norm_eps",
        partial_rotation=True,
        attention_bias="qkv_switch",
        attention_bias_field="use_qkv_bias",
    ),
}

OUTER_MODELS: dict[str, str | None] = {
    "mistral3": None,
    "llava": None,
    "gemma3": "gemma3_text",
    NLD_VLM: NLD,
}
"""Multimodal models whose text part is under `text_config`, and the family of that part; None if
the part names its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLayout:
    """How a model with a Pixtral tower is saved."""

    architecture: str
    """Its class, written into a saved config."""
    text: Layout
    """Tensor names of the language model."""
    vision: str
    """Prefix of the names of tower and projector."""


_PUBLISHED = Layout(body="language_model.model.", head="language_model.lm_head.")

VISION_LAYOUTS: dict[str, VisionLayout] = {
    "mistral3": VisionLayout(
        architecture="Mistral3ForConditionalGeneration", text=_PUBLISHED, vision=""
    ),
    "llava": VisionLayout(architecture="LlavaForConditionalGeneration", text=_PUBLISHED, vision=""),
    NLD_VLM: VisionLayout(
        architecture="NemotronLabsDiffusionVLMModel",
        text=FAMILIES[NLD].layout,
        vision="encoder.",
    ),
}
"""By `model_type`. transformers saves its classes under the names that Mistral published."""


def family_of(model_type: object) -> Family:
    """The family that a config names.

    Raises:
        CheckpointError: the family is not supported.
    """
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    supported = f"supported: {', '.join(FAMILIES)}"
    raise CheckpointError("model_type", repr(model_type), supported)


def family_of_gguf(architecture: object) -> str:
    """The name of the family whose GGUF files have this architecture.

    Raises:
        CheckpointError: the architecture is not supported.
    """
    names = {family.gguf_architecture: name for name, family in FAMILIES.items()}
    known = [name for name in names if name is not None]
    if isinstance(architecture, str) and architecture in known:
        return names[architecture]
    supported = f"supported: {', '.join(known)}"
    raise CheckpointError("general.architecture", repr(architecture), supported)
