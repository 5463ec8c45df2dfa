"""The tensors a model is made of, by their canonical names."""

from trimode.config import ModelConfig


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

    for layer in (f"layers.{i}" for i in range(config.num_layers)):
        tensors[f"{layer}.input_layernorm.weight"] = (hidden,)
        linear(f"{layer}.self_attn.q_proj", queries, hidden, bias=config.qkv_bias)
        linear(f"{layer}.self_attn.k_proj", keys, hidden, bias=config.qkv_bias)
        linear(f"{layer}.self_attn.v_proj", keys, hidden, bias=config.qkv_bias)
        linear(f"{layer}.self_attn.o_proj", hidden, queries, bias=config.o_bias)
        if config.qk_norm:
            tensors[f"{layer}.self_attn.q_norm.weight"] = (config.head_dim,)
            tensors[f"{layer}.self_attn.k_norm.weight"] = (config.head_dim,)
        tensors[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        linear(f"{layer}.mlp.gate_proj", inner, hidden, bias=config.mlp_bias)
        linear(f"{layer}.mlp.up_proj", inner, hidden, bias=config.mlp_bias)
        linear(f"{layer}.mlp.down_proj", hidden, inner, bias=config.mlp_bias)
    tensors["norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, hidden)
    return tensors
