"""GGUF files: every quantisation, the row permutation, and damage."""

import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch

from tests.reference.families import build
from trimode import generate, load
from trimode.checkpoints.gguf_file import open_gguf
from trimode.errors import CheckpointError
from trimode.model import KVCache, Segment, as_floats, build_runner

from .files import random_tensors, small_config, write_gguf

Q = gguf.GGMLQuantizationType
NAMES = {
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
TOKENS = [chr(0x100 + i) for i in range(128)] + ["\u0100\u0101", "<|im_start|>", "<|im_end|>"]


def permute(weight, heads):
    """The row order llama.cpp's converter gives q and k of llama-architecture files."""
    grouped = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return grouped.swapaxes(1, 2).reshape(weight.shape)


def published(name):
    stem, _, kind = name.rpartition(".")
    if stem.startswith("layers."):
        _, layer, part = stem.split(".", 2)
        return f"blk.{layer}.{NAMES[part]}.{kind}"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[
        stem
    ] + f".{kind}"


def write(path, config, tensors, *, architecture="llama", edit=None, quantise=None, pre="smollm"):
    """A GGUF file of a tiny model; `edit(writer)` and `quantise(name, array)` change it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope.rope_theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * 129 + [3, 3])
    writer.add_token_merges([f"{TOKENS[0]} {TOKENS[1]}"])
    writer.add_eos_token_id(130)
    writer.add_chat_template("{{ messages[0].content }}{{ eos_token }}")
    for name, tensor in tensors.items():
        array = tensor.numpy()
        if architecture == "llama" and name.endswith(("q_proj.weight", "q_proj.bias")):
            array = permute(array, config.num_heads)
        if architecture == "llama" and name.endswith(("k_proj.weight", "k_proj.bias")):
            array = permute(array, config.num_kv_heads)
        kind = None
        if quantise is not None:
            array, kind = quantise(name, array)
        writer.add_tensor(published(name), np.ascontiguousarray(array), raw_dtype=kind)
    if edit is not None:
        edit(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.inference_mode()
def logits(config, read, tokens):
    model = build_runner(config, read, dtype="fp32")
    segments = [Segment(0, len(tokens), KVCache(config, len(tokens)), "causal")]
    return model.logits(model.run(tokens, torch.arange(len(tokens)), segments))


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("llama", "llama"), ("llama-tied", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")],
)
def test_a_gguf_file_gives_the_logits_of_the_model_it_was_made_from(tmp_path, family, architecture):
    oracle, config, tensors = build(family)
    model = open_gguf(write(tmp_path / "m.gguf", config, tensors, architecture=architecture))
    for name, tensor in tensors.items():
        assert torch.equal(as_floats(model.read(name)), tensor), name
    tokens = torch.arange(20) * 5
    theirs = oracle(tokens[None]).logits[0].detach()
    torch.testing.assert_close(
        logits(model.config, model.read, tokens), theirs, rtol=1e-4, atol=1e-3
    )


def random_blocks(kind, array):
    """Valid random blocks of a quantisation that gguf can only read."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = array.shape
    data = np.random.default_rng(0).integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    halves = {Q.Q4_K: (0, 4), Q.Q6_K: (208, 210)}[kind]  # where the fp16 scales are
    scales = np.full((rows, columns // block, (halves[1] - halves[0]) // 2), 0.01, dtype=np.float16)
    data[:, :, halves[0] : halves[1]] = scales.view(np.uint8)
    return data.reshape(rows, -1)


@pytest.mark.parametrize(
    "kind", [Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q6_K]
)
def test_every_quantisation_is_read_as_gguf_dequantises_it(tmp_path, kind):
    from trimode.config import ModelConfig
    from trimode.testing import tiny_tensors

    config = ModelConfig(
        family="llama", vocab_size=131, hidden_size=256, intermediate_size=256, num_layers=1,
        num_heads=4, num_kv_heads=4, head_dim=64, rms_norm_eps=1e-5, max_position_embeddings=64,
    )  # fmt: skip
    tensors = tiny_tensors(config)
    expected = {}

    def quantise(name, array):
        if array.ndim == 1:
            return array, None
        known = kind in (Q.Q4_K, Q.Q6_K)
        data = random_blocks(kind, array) if known else gguf.quantize(array, kind)
        expected[name] = gguf.dequantize(data, kind)
        return data, kind

    model = open_gguf(write(tmp_path / "m.gguf", config, tensors, quantise=quantise))
    for name, array in expected.items():
        ours = as_floats(model.read(name)).float().numpy()
        heads = {"q_proj": 4, "k_proj": 4}.get(name.split(".")[-2])
        assert np.array_equal(permute(ours, heads) if heads else ours, array), name


def test_tokenizer_template_and_ids_come_from_the_file(tmp_path):
    _, config, tensors = build("llama")
    model = open_gguf(write(tmp_path / "m.gguf", config, tensors))
    assert model.config.eos_token_ids == (130,)
    assert model.tokenizer.special_ids == {129, 130}
    assert model.chat_template.render([{"role": "user", "content": "x"}]) == "x<|im_end|>"


def test_a_gguf_path_loads_and_generates(tmp_path):
    _, config, tensors = build("llama")
    path = write(tmp_path / "m.gguf", config, tensors)
    assert len(generate(load(path), [1, 2, 3], max_tokens=4, ignore_eos=True).token_ids) == 4


@pytest.mark.parametrize(("kind", "imported"), [("Q4_K", False), ("Q2_K", True)])
def test_the_slow_package_is_imported_for_rare_types_only(tmp_path, kind, imported):
    config = small_config(hidden_size=256, intermediate_size=256, num_heads=16, num_layers=1)
    path = write_gguf(tmp_path / "m.gguf", config, random_tensors(config), kind=kind)
    code = """
import sys
from trimode.checkpoints import load
load(sys.argv[1], dtype="fp32")
print("gguf" in sys.modules)
"""
    run = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(imported)


def test_rope_factors_divide_the_frequencies(tmp_path):
    _, config, tensors = build("llama")
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    path = write(tmp_path / "m.gguf", config, tensors,
                 edit=lambda w: w.add_tensor("rope_freqs.weight", factors))  # fmt: skip
    assert open_gguf(path).config.rope.frequency_factors == tuple(factors.tolist())


def refusal(path):
    with pytest.raises(CheckpointError) as error:
        open_gguf(path)
    return str(error.value)


def test_an_unknown_architecture_is_named(tmp_path):
    _, config, tensors = build("llama")
    message = refusal(write(tmp_path / "m.gguf", config, tensors, architecture="gemma2"))
    assert "general.architecture: 'gemma2'; supported: llama" in message


def test_an_unknown_pre_tokenizer_is_named(tmp_path):
    _, config, tensors = build("llama")
    assert "tokenizer.ggml.pre: 'odd'" in refusal(
        write(tmp_path / "m.gguf", config, tensors, pre="odd")
    )


def test_a_missing_tensor_is_named(tmp_path):
    _, config, tensors = build("llama")
    del tensors["layers.2.mlp.up_proj.weight"]
    assert "1 missing (layers.2.mlp.up_proj.weight)" in refusal(
        write(tmp_path / "m.gguf", config, tensors)
    )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_a_checkpoint_error(tmp_path, share):
    _, config, tensors = build("llama")
    path = write(tmp_path / "m.gguf", config, tensors)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "m.gguf" in refusal(path)


def test_another_file_is_not_taken_for_gguf(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"PK" + bytes(100))
    assert "not a GGUF file" in refusal(path)
