"""GGUF files of every family, written by the names and keys of the gguf package."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from tests.reference.families import FAMILIES, SIZES, build
from trimode import load
from trimode.checkpoints.families import FAMILIES as ROWS
from trimode.checkpoints.gguf_file import open_gguf
from trimode.config import RopeConfig
from trimode.errors import CheckpointError
from trimode.model import KVCache, Segment, as_floats, build_runner

from .files import permute

TOKENS = ["a", "b", "ab", *(f"<{i}>" for i in range(128))]
INTERLEAVED = ("llama", "mistral3", "smollm3", "granite")
NAMES = ("llama", "llama-yarn-plain", "llama-tied", "ministral3", "qwen2", "qwen3", "phi3",
         "phi3-window-partial", "olmo2", "granite", "stablelm")  # fmt: skip
"""Families whose files can say all that the reference's switches do."""


def add_switches(writer, config, hf):
    rope = config.rope
    writer.add_rope_freq_base(rope.rope_theta)
    if rope.rope_type != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.rope_type))
        writer.add_rope_scaling_factor(rope.factor)
        if rope.original_max_position_embeddings:
            writer.add_rope_scaling_orig_ctx_len(rope.original_max_position_embeddings)
    if rope.mscale_all_dim:
        writer.add_rope_scaling_yarn_log_mul(rope.mscale_all_dim)
    if rope.llama_4_scaling_beta:
        writer.add_attn_temperature_scale(rope.llama_4_scaling_beta)
    if config.rotary_dim:
        writer.add_rope_dimension_count(config.rotary_dim)
    windows = [w for w in config.layer_windows if w]
    if windows:
        writer.add_sliding_window(windows[0])
    if config.family == "granite":
        writer.add_embedding_scale(hf.embedding_multiplier)
        writer.add_residual_scale(hf.residual_multiplier)
        writer.add_logit_scale(hf.logits_scaling)
        writer.add_attention_scale(hf.attention_multiplier)


def add_tokens(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * len(TOKENS))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)


def write(path, name, edit=None, tokens=add_tokens):
    """A GGUF file of a family, as llama.cpp's converter writes it."""
    oracle, config, _ = build(name)
    hf = oracle.config
    architecture = ROWS[config.family].gguf_architecture
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(hf.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    if config.norm == "layer":
        writer.add_layer_norm_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_switches(writer, config, hf)
    tokens(writer)
    if edit is not None:
        edit(writer)
    add_tensors(writer, oracle, config, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tensors(writer, oracle, config, architecture):
    mapping = gguf.get_tensor_name_map(
        next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == architecture), config.num_layers
    )
    for published, tensor in oracle.state_dict().items():
        if config.tie_word_embeddings and published == "lm_head.weight":
            continue
        if architecture in INTERLEAVED and "q_proj" in published:
            tensor = permute(tensor, config.num_heads)
        if architecture in INTERLEAVED and "k_proj" in published:
            tensor = permute(tensor, config.num_kv_heads)
        if architecture == "gemma3" and published.endswith("norm.weight"):
            tensor = tensor + 1
        name = mapping.get_name(published, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(name, np.ascontiguousarray(tensor.detach().numpy()))


@torch.inference_mode()
def logits(model, tokens):
    runner = build_runner(model.config, model.read, dtype="fp32")
    segments = [Segment(0, len(tokens), KVCache(model.config, len(tokens)), "causal")]
    return runner.logits(runner.run(tokens, torch.arange(len(tokens)), segments))


@pytest.mark.parametrize("name", NAMES)
def test_a_gguf_file_gives_the_logits_of_transformers(tmp_path, name):
    oracle, config, _ = build(name)
    model = open_gguf(write(tmp_path / "m.gguf", name))
    tokens = torch.arange(60) * 7 % config.vocab_size
    theirs = oracle(tokens[None]).logits[0].detach()
    assert model.config.max_position_embeddings == config.max_position_embeddings
    torch.testing.assert_close(logits(model, tokens), theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["gemma3", "smollm3"])
def test_architectures_with_a_fixed_pattern_of_layers(tmp_path, name, monkeypatch):
    class_name, extra, fields = FAMILIES[name]
    layers = 8
    if name == "gemma3":
        local = [(i + 1) % 6 != 0 for i in range(layers)]
        extra = {
            **extra,
            "query_pre_attn_scalar": 16,
            "layer_types": [f"{'sliding' if some else 'full'}_attention" for some in local],
        }
        fields = {
            **fields,
            "attention_scale": None,
            "layer_ropes": tuple("local" if some else "global" for some in local),
            "layer_windows": tuple(9 if some else None for some in local),
        }
    else:
        turns = [(i + 1) % 4 != 0 for i in range(layers)]
        extra = {
            "pad_token_id": None, "bos_token_id": None, "eos_token_id": 2,
            "no_rope_layers": list(map(int, turns)),
        }  # fmt: skip
        fields = {"layer_ropes": tuple("global" if some else "none" for some in turns)}
    monkeypatch.setitem(FAMILIES, name, (class_name, extra, fields))
    monkeypatch.setitem(SIZES, "num_hidden_layers", layers)
    oracle, config, _ = build(name)
    model = open_gguf(write(tmp_path / "m.gguf", name))
    for field in ("layer_ropes", "layer_windows", "local_rope", "attention_scale", "rope"):
        assert getattr(model.config, field) == getattr(config, field), field
    tokens = torch.arange(40) * 7 % config.vocab_size
    theirs = oracle(tokens[None]).logits[0].detach()
    torch.testing.assert_close(logits(model, tokens), theirs, rtol=1e-4, atol=2e-3)


def rope_of(tmp_path, edit):
    return open_gguf(write(tmp_path / "m.gguf", "llama", edit)).config


def test_a_factor_without_a_type_is_linear(tmp_path):
    config = rope_of(tmp_path, lambda w: w.add_rope_scaling_factor(4.0))
    assert config.rope == RopeConfig(rope_type="linear", factor=4.0)
    assert config.max_position_embeddings == 4 * 4096


def test_the_old_key_of_the_factor_is_read(tmp_path):
    config = rope_of(tmp_path, lambda w: w.add_float32("llama.rope.scale_linear", 2.0))
    assert config.rope == RopeConfig(rope_type="linear", factor=2.0)


def test_the_type_none_scales_nothing(tmp_path):
    def edit(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(4.0)

    assert replace(rope_of(tmp_path, edit).rope, factor=1.0) == RopeConfig()


def yarn(**keys):
    def edit(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        for key, value in keys.items():
            writer.add_float32(f"llama.rope.scaling.{key}", value)

    return edit


def test_yarn_without_an_original_context_stretches_all_of_it(tmp_path):
    config = rope_of(tmp_path, yarn())
    assert config.rope.original_max_position_embeddings == 4096
    assert config.max_position_embeddings == 4 * 4096


def test_yarns_own_keys_are_read(tmp_path):
    keys = {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0, "yarn_log_multiplier": 0.5}
    rope = rope_of(tmp_path, yarn(**keys)).rope
    assert (rope.beta_fast, rope.beta_slow) == (16.0, 2.0)
    assert (rope.mscale, rope.mscale_all_dim) == (1.0, 0.5)


@pytest.mark.parametrize(("multiplier", "own"), [(0.0, 1 + 0.1 * np.log(4)), (1.0, 1.0)])
def test_an_attention_factor_multiplies_yarns_own(tmp_path, multiplier, own):
    rope = rope_of(tmp_path, yarn(attn_factor=2.0, yarn_log_multiplier=multiplier)).rope
    assert rope.attention_factor == pytest.approx(2 * own)


def test_an_attention_factor_counts_without_yarn_too(tmp_path):
    edit = lambda w: w.add_float32("llama.rope.scaling.attn_factor", 0.5)  # noqa: E731
    config = rope_of(tmp_path, edit)
    runner = build_runner(config, open_gguf(tmp_path / "m.gguf").read, dtype="fp32").transformer
    cos, _ = runner.rope(torch.zeros(1), torch.float32)
    assert cos.unique().tolist() == [0.5]


@pytest.mark.parametrize("key", ["yarn_ext_factor", "yarn_attn_factor"])
def test_a_key_that_is_not_computed_is_refused_by_name(tmp_path, key):
    with pytest.raises(CheckpointError, match=key):
        rope_of(tmp_path, yarn(**{key: 0.25}))


def test_long_rope_is_refused_by_name(tmp_path):
    def edit(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)

    with pytest.raises(CheckpointError, match="'longrope'"):
        rope_of(tmp_path, edit)


def split(tmp_path, count=3):
    """A file in parts, each with a share of the tensors, as llama-gguf-split writes them."""
    whole = gguf.GGUFReader(write(tmp_path / "whole.gguf", "llama"))
    parts = []
    for number in range(count):
        path = tmp_path / f"m-{number + 1:05}-of-{count:05}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            for field in whole.fields.values():
                if field.name.startswith("GGUF.") or field.name == "general.architecture":
                    continue
                kind, value = field.types[0], field.contents()
                if kind == gguf.GGUFValueType.ARRAY:
                    if value:
                        writer.add_array(field.name, value)
                else:
                    writer.add_key_value(field.name, value, kind)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        for tensor in whole.tensors[number::count]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(path)
    return parts


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_of_a_split_file_opens_all_of_it(tmp_path, given):
    parts = split(tmp_path)
    ours, whole = open_gguf(parts[given]), open_gguf(tmp_path / "whole.gguf")
    assert ours.config == whole.config
    for name in build("llama")[2]:
        assert torch.equal(as_floats(ours.read(name)), as_floats(whole.read(name)))
    assert load(parts[given], dtype="fp32").config.num_layers == 3


def test_a_missing_part_is_named(tmp_path):
    parts = split(tmp_path)
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf: missing; all 3 parts"):
        open_gguf(parts[0])


def byte_level(pre="gpt-2", control=(), **keys):
    """Adds a byte-level vocabulary with control tokens, and keys of `tokenizer.ggml`."""

    def add(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        tokens = [*TOKENS[: len(TOKENS) - len(control)], *control]
        writer.add_token_list(tokens)
        writer.add_token_types([1] * (len(tokens) - len(control)) + [3] * len(control))
        writer.add_token_merges(["a b"])
        for key, value in keys.items():
            kind = writer.add_bool if isinstance(value, bool) else writer.add_uint32
            kind(f"tokenizer.ggml.{key}", value)

    return add


def opened(tmp_path, tokens):
    return open_gguf(write(tmp_path / "m.gguf", "llama", tokens=tokens))


def test_an_answer_ends_at_eos_eot_eom_and_at_known_ends_of_turns(tmp_path):
    control = ("<|im_end|>", "<|python_tag|>", "<|endoftext|>")
    ids = {"eos_token_id": 130, "eot_token_id": 5, "eom_token_id": 6}
    config = opened(tmp_path, byte_level(control=control, **ids)).config
    assert config.eos_token_ids == (130, 5, 6, 128)


@pytest.mark.parametrize(
    ("pre", "keys", "begins"),
    [
        ("llama-bpe", {}, True),
        ("llama3", {}, True),
        ("tekken", {}, True),
        ("llama-bpe", {"add_bos_token": False}, False),
        ("gpt-2", {}, False),
        ("gpt-2", {"add_bos_token": True}, True),
    ],
)
def test_the_pre_tokenizer_says_whether_a_text_begins_with_bos_unless_the_file_does(
    tmp_path, pre, keys, begins
):
    model = opened(tmp_path, byte_level(pre, ("<s>",), bos_token_id=130, **keys))
    assert model.tokenizer.encode("ab") == ([130] if begins else []) + [2]


def test_templates_see_all_named_tokens_of_the_file(tmp_path):
    def add(writer):
        byte_level(control=("<s>", "<p>"), bos_token_id=129, padding_token_id=130)(writer)
        writer.add_chat_template("{{ bos_token }}|{{ pad_token }}|{{ eos_token }}")

    template = opened(tmp_path, add).chat_template
    assert template.render([{"role": "user", "content": "x"}]) == "<s>|<p>|"


PIECES = ["<unk>", "<s>", "</s>", "\u2581", "a", "b", "ab", "\u2581ab", "\n\n"]


def spm_tokens(**flags):
    def add(writer):
        size = 131 - len(PIECES)
        writer.add_tokenizer_model("llama")
        writer.add_token_list([*PIECES, *(f"<0x{i:02X}>" for i in range(size))])
        writer.add_token_scores([0.0] * 6 + [-1.0, -2.0, 0.0] + [0.0] * size)
        writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1, 4] + [6] * size)
        for key, value in flags.items():
            writer.add_bool(f"tokenizer.ggml.{key}", value)

    return add


def test_a_sentencepiece_vocabulary_is_read(tmp_path):
    model = opened(tmp_path, spm_tokens())
    assert model.tokenizer.encode("ab\n\nab!") == [1, 7, 8, 7, 9 + ord("!")]
    assert model.tokenizer.decode([1, 7, 8, 6]) == "ab\n\nab"
    assert model.config.eos_token_ids == (2,)
    assert model.tokenizer.bos_token_id == 1


def test_a_sentencepiece_vocabulary_may_do_without_prefix_and_bos(tmp_path):
    model = opened(tmp_path, spm_tokens(add_space_prefix=False, add_bos_token=False))
    assert model.tokenizer.encode("ab ab") == [6, 7]
