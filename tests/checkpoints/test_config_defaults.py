import json

import pytest
import transformers

from tests.reference import families
from tests.reference.families import FAMILIES, LLAMA3, SIZES, YARN
from trimode.checkpoints.hf_config import NLD, from_hf, read_config, to_hf
from trimode.config import RopeConfig
from trimode.errors import CheckpointError

from .files import small_config

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_of_transformers_is_read_as_the_model_it_describes(name, tmp_path):
    oracle, expected, _ = families.build(name)
    oracle.config.eos_token_id = 2
    oracle.config.save_pretrained(tmp_path)
    config = read_config(tmp_path / "config.json")
    for field in ("family", "vocab_size", "hidden_size", "intermediate_size", "num_layers",
                  "num_heads", "num_kv_heads", "head_dim", "rms_norm_eps", "rope", "qkv_bias",
                  "max_position_embeddings", "o_bias", "mlp_bias", "qk_norm",
                  "tie_word_embeddings", "eos_token_ids"):  # fmt: skip
        assert getattr(config, field) == getattr(expected, field), field


@pytest.mark.parametrize("name", FAMILIES)
def test_what_we_write_comes_back_and_transformers_reads_it(name, tmp_path):
    _, config, _ = families.build(name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_hf(config, dtype="float32")))
    assert read_config(path) == config
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.model_type == config.family
    assert theirs.num_hidden_layers == config.num_layers
    rope = theirs.rope_parameters
    assert rope.get("full_attention", rope)["rope_theta"] == config.rope.rope_theta


def test_old_rope_theta_and_rope_scaling_are_read():
    scaling = {k: v for k, v in LLAMA3.items() if k not in ("rope_type", "rope_theta")}
    old = {**LLAMA, "rope_theta": 5e4, "rope_scaling": {"type": "llama3", **scaling}}
    assert from_hf(old).rope == from_hf({**LLAMA, "rope_parameters": LLAMA3}).rope
    assert from_hf({**LLAMA, "rope_theta": 7.0}).rope == RopeConfig(rope_theta=7.0)


def test_an_absent_yarn_factor_is_inferred_as_transformers_does():
    yarn = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32}
    assert from_hf({**LLAMA, "rope_parameters": yarn}).rope.factor == 4.0


@pytest.mark.parametrize(("eos", "ids"), [(None, ()), (2, (2,)), ([2, 5], (2, 5))])
def test_eos_may_be_one_id_or_several(eos, ids):
    assert from_hf({**LLAMA, "eos_token_id": eos}).eos_token_ids == ids


@pytest.mark.parametrize(
    ("family", "head_dim"),
    [("llama", 16), ("mistral", 16), ("qwen2", 16), ("qwen3", 128), ("ministral3", 128)],
)
def test_an_absent_head_dim_is_what_transformers_assumes(family, head_dim):
    assert from_hf({**LLAMA, "model_type": family}).head_dim == head_dim
    theirs = transformers.AutoConfig.for_model(**{**LLAMA, "model_type": family})
    assert theirs.head_dim == head_dim if hasattr(theirs, "head_dim") else family == "qwen2"


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({"model_type": "mistral", "sliding_window": 64}, 64),
        ({"model_type": "mistral", "sliding_window": None}, 128),
        ({"model_type": "mistral", "max_position_embeddings": 9000}, 4096),
        ({"model_type": "qwen2", "sliding_window": 64}, 128),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, 128),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 64,
                "use_sliding_window": True,
                "max_window_layers": 0,
            },
            64,
        ),
    ],
)
def test_a_sliding_window_in_use_limits_the_context(fields, length):
    assert from_hf({**LLAMA, **fields}).max_position_embeddings == length


def test_an_nld_config_carries_mask_block_and_query_scale():
    fields = {
        **LLAMA,
        "model_type": NLD,
        "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1},
        "mask_token_id": 9,
        "block_size": 16,
        "head_dim": 16,
    }
    config = from_hf(fields)
    assert (config.family, config.mask_token_id, config.block_length) == (NLD, 9, 16)
    assert config.trained_to_denoise
    assert config.rope.llama_4_scaling_beta == 0.1
    written = to_hf(config, dtype="bfloat16")
    assert written["architectures"] == ["NemotronLabsDiffusionModel"]
    assert written["dlm_paradigm"] == "bidirectional"
    assert from_hf(written) == config


def test_a_converted_checkpoint_says_so_in_extra_keys():
    config = small_config(mask_token_id=9, block_length=8, trained_to_denoise=True)
    written = to_hf(config, dtype="float32")
    assert written["trimode_trained_to_denoise"] is True
    assert (written["mask_token_id"], written["block_size"]) == (9, 8)
    assert from_hf(written) == config


def test_the_text_part_of_a_multimodal_config_is_read():
    text = transformers.Ministral3Config(**SIZES).to_dict()
    outer = {"model_type": "mistral3", "text_config": text, "tie_word_embeddings": True}
    config = from_hf(outer)
    assert (config.family, config.num_layers) == ("ministral3", SIZES["num_hidden_layers"])
    assert config.tie_word_embeddings


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "gpt2"}, ("model_type", "'gpt2'", "supported: nemotron_labs_diffusion")),
        ({"model_type": None}, ("model_type", "None")),
        ({"hidden_act": "gelu"}, ("hidden_act", "'gelu'", "supported: silu")),
        ({"quantization_config": {"quant_method": "fp8"}}, ("quantization_config", "'fp8'")),
        ({"quantization_config": "fp8"}, ("quantization_config", "'fp8'")),
        ({"hidden_size": "x"}, ("hidden_size", "'x'", "whole number")),
        ({"num_attention_heads": 0}, ("num_attention_heads", "0")),
        ({"rope_parameters": {"rope_type": "longrope"}}, ("rope_type", "'longrope'", "yarn")),
        ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor", "0.5")),
        ({"eos_token_id": 64}, ("eos_token_id", "64", "0..63")),
        ({"mask_token_id": -1}, ("mask_token_id", "-1")),
    ],
)
def test_an_unsupported_value_is_named_with_what_is_supported(fields, words, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, **fields}))
    with pytest.raises(CheckpointError) as caught:
        read_config(path)
    assert all(word in str(caught.value) for word in words)


def test_quantisation_of_the_outer_model_is_refused_too():
    outer = {"model_type": "mistral3", "text_config": {**LLAMA, "model_type": "ministral3"}}
    with pytest.raises(CheckpointError, match="quantization_config"):
        from_hf({**outer, "quantization_config": {"quant_method": "fp8"}})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model_type": "llama"}'])
def test_a_damaged_config_is_an_error_that_names_the_file(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(path)


def test_a_missing_config_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"qkv_bias": True}, "o_bias"),
        ({"family": "qwen2"}, "qkv_bias"),
        ({"family": "mistral", "mlp_bias": True}, "mlp_bias"),
        ({"qk_norm": True}, "qk_norm"),
        ({"residual_multiplier": 0.5}, "residual_multiplier"),
    ],
)
def test_what_a_family_cannot_express_is_not_written(fields, named):
    with pytest.raises(CheckpointError, match=named):
        to_hf(small_config(**fields), dtype="float32")
