"""The tensors a model is made of, by their canonical names."""

from typing import NamedTuple

from trimode.config import ModelConfig, NormPlacement


class LayerNorms(NamedTuple):
    """Names of a layer's norms; None where there is none."""

    before_attention: str | None
    after_attention: str | None
    before_mlp: str | None
    after_mlp: str | None


LAYER_NORMS: dict[NormPlacement, LayerNorms] = {
    "before": LayerNorms("input_layernorm", None, "post_attention_layernorm", None),
    "after": LayerNorms(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": LayerNorms(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}
"""By placement. The names are Hugging Face's: `post_attention_layernorm` has two meanings there."""


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor; linears are `[out, in]`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    tensors: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, hidden)}

    def linear(name: str, rows: int, columns: int, *, bias: bool) -> None:
        tensors[f"{name}.weight"] = (rows, columns)
        if bias:
            tensors[f"{name}.bias"] = (rows,)

    def norm(name: str, size: int) -> None:
        tensors[f"{name}.weight"] = (size,)
        if config.norm == "layer":
            tensors[f"{name}.bias"] = (size,)

    for layer in (f"layers.{i}" for i in range(config.num_layers)):
        for name in LAYER_NORMS[config.norm_placement]:
            if name is not None:
                norm(f"{layer}.{name}", hidden)
        linear(f"{layer}.self_attn.q_proj", queries, hidden, bias=config.qkv_bias)
        linear(f"{layer}.self_attn.k_proj", keys, hidden, bias=config.qkv_bias)
        linear(f"{layer}.self_attn.v_proj", keys, hidden, bias=config.qkv_bias)
        linear(f"{layer}.self_attn.o_proj", hidden, queries, bias=config.o_bias)
        if config.qk_norm:
            whole = config.qk_norm_over == "projection"
            norm(f"{layer}.self_attn.q_norm", queries if whole else config.head_dim)
            norm(f"{layer}.self_attn.k_norm", keys if whole else config.head_dim)
        linear(f"{layer}.mlp.gate_proj", inner, hidden, bias=config.mlp_bias)
        linear(f"{layer}.mlp.up_proj", inner, hidden, bias=config.mlp_bias)
        linear(f"{layer}.mlp.down_proj", hidden, inner, bias=config.mlp_bias)
    norm("norm", hidden)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, hidden)
    return tensors
