"""The model families, one row each. Reading and saving checkpoints depend on it.

If the layers of a new family differ in more than these switches, `ModelConfig` and `trimode.model`
need new switches too. The C++ pass refuses the family until it knows them
(`model/runners/native.py`).
"""

from dataclasses import dataclass
from typing import Literal

from trimode.config import ModelConfig
from trimode.errors import CheckpointError

AttentionBias = Literal["never", "qkv", "switch"]
"""Biases of the attention's linears: none; always on q, k and v; on q, k, v and o if the config's
`attention_bias` says so."""


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
    sliding_window: int | None = None
    window_needs_a_switch: bool = False
    """Whether a window in the config counts only with `use_sliding_window` and for some layers."""
    attention_bias: AttentionBias = "never"
    mlp_bias_switch: bool = False
    """Whether the config's `mlp_bias` is read."""
    qk_norm: bool = False
    always_scales_queries: bool = False
    """Whether a saved config must hold the fields of the Llama-4 query scale."""
    trained_to_denoise: bool = False

    def qkv_bias(self, attention_bias: bool) -> bool:
        """Whether q, k and v have biases."""
        return self.attention_bias == "qkv" or self.o_bias(attention_bias)

    def o_bias(self, attention_bias: bool) -> bool:
        """Whether the output linear of the attention has a bias."""
        return self.attention_bias == "switch" and attention_bias


NLD = "nemotron_labs_diffusion"

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
}

OUTER_MODELS: dict[str, str | None] = {"mistral3": None, "nemotron_labs_diffusion_vlm": NLD}
"""Multimodal models whose text part is under `text_config`, and the family of that part; None if
the part names its own."""


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


def check_switches(config: ModelConfig) -> None:
    """Raise CheckpointError if the family's `config.json` cannot express the config's switches."""
    family = FAMILIES[config.family]
    biased = config.o_bias or (config.qkv_bias and family.attention_bias != "qkv")
    expected = (family.qkv_bias(biased), family.o_bias(biased))
    fits = (config.qkv_bias, config.o_bias) == expected
    if not fits or (config.mlp_bias and not family.mlp_bias_switch):
        found = f"qkv {config.qkv_bias}, o {config.o_bias}, mlp {config.mlp_bias}"
        raise CheckpointError("biases", found, f"config.json of {config.family} cannot hold them")
    if config.qk_norm != family.qk_norm:
        raise CheckpointError("qk_norm", str(config.qk_norm), f"not what {config.family} has")
