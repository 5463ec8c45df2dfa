"""config.json of every family, against transformers' own config classes."""

import json

import pytest
import transformers

from tests.reference.families import FAMILIES, build
from trimode.checkpoints.hf_config import from_hf, read_config, to_hf
from trimode.errors import CheckpointError
from trimode.testing import tiny_config

BASE = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}
NLD_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_transformers_saves_is_the_one_we_expect(family):
    model, expected, _ = build(family)
    ours = from_hf(json.loads(model.config.to_json_string(use_diff=False)))
    skipped = ("mask_token_id", "eos_token_ids", "bos_token_id")
    for name in ours.__dataclass_fields__:
        if name not in skipped:
            assert getattr(ours, name) == getattr(expected, name), name


@pytest.mark.parametrize(
    "family", ["nemotron_labs_diffusion", "llama", "qwen2", "qwen3", "ministral3"]
)
def test_a_config_survives_saving_and_reading(family):
    fields = {"trained_to_denoise": True, "block_length": 16, "token_shift": True}
    config = tiny_config(family, bos_token_id=1, **fields)
    assert from_hf(json.loads(json.dumps(to_hf(config, dtype="float32")))) == config


@pytest.mark.parametrize("form", ["seeded", "led"])
@pytest.mark.parametrize("family", ["nemotron_labs_diffusion", "llama"])
def test_a_config_says_how_the_model_drafts(family, form):
    config = tiny_config(family, trained_to_denoise=True, draft_form=form)
    fields = to_hf(config, dtype="float32")
    assert fields["trimode_draft_form"] == form
    assert from_hf(fields).draft_form == form


@pytest.mark.parametrize(
    ("family", "form"), [("nemotron_labs_diffusion", "seeded"), ("llama", "led")]
)
def test_a_config_from_before_the_field_has_the_form_of_who_trained_it(family, form):
    """NVIDIA's models draft in the seeded form, those that our training made in the led one."""
    fields = to_hf(tiny_config(family, trained_to_denoise=True), dtype="float32")
    del fields["trimode_draft_form"]
    assert from_hf(fields).draft_form == form


def test_a_draft_form_that_is_none_is_refused():
    fields = to_hf(tiny_config("llama", trained_to_denoise=True), dtype="float32")
    with pytest.raises(CheckpointError, match="trimode_draft_form: 'x'; allowed: seeded, led"):
        from_hf(fields | {"trimode_draft_form": "x"})


def test_the_old_spelling_of_rope_means_the_same():
    scaling = {k: v for k, v in NLD_ROPE.items() if k not in ("rope_type", "rope_theta")}
    old = BASE | {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **scaling}}
    assert from_hf(old) == from_hf(BASE | {"rope_parameters": NLD_ROPE})


def test_nvidias_published_fields_are_understood():
    config = from_hf(
        BASE
        | {
            "model_type": "nemotron_labs_diffusion",
            "rope_parameters": NLD_ROPE,
            "head_dim": 16,
            "mask_token_id": 50,
            "eos_token_id": 11,
            "block_size": 32,
            "dlm_paradigm": "bidirectional",
            "dlm_loss_weight": None,
        }
    )
    assert config.trained_to_denoise
    assert (config.mask_token_id, config.eos_token_ids, config.block_length) == (50, (11,), 32)
    assert config.head_dim == 16
    assert config.rope.llama_4_scaling_beta == 0.1


def test_a_text_config_inside_a_multimodal_one_is_used():
    config = from_hf({"model_type": "mistral3", "text_config": BASE | {"model_type": "ministral3"}})
    assert config.family == "ministral3"


@pytest.mark.parametrize(
    ("fields", "context"),
    [
        ({"sliding_window": 128}, 128),
        ({"sliding_window": 128, "use_sliding_window": False}, 512),
        ({"sliding_window": None}, 512),
    ],
)
def test_a_sliding_window_in_use_limits_the_context(fields, context):
    assert from_hf(BASE | fields).max_position_embeddings == context


def test_several_stop_tokens_are_read():
    assert from_hf(BASE | {"eos_token_id": [3, 4]}).eos_token_ids == (3, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "gpt2"}, "model_type: 'gpt2'; supported: nemotron_labs_diffusion, llama"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu'; supported: silu"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: 'fp8'"),
        ({"hidden_size": "big"}, "str"),
        ({"num_key_value_heads": 3}, "num_kv_heads: 3; must divide num_heads 4"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type: 'longrope'; supported"),
        ({"eos_token_id": 99}, "eos_token_id: 99; must be in 0..63"),
        ({"num_hidden_layers": 0}, "num_layers: 0; must be at least 1"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, change, words):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(BASE | change))
    with pytest.raises(CheckpointError) as error:
        read_config(path)
    assert words in str(error.value)


def test_a_missing_field_is_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in BASE.items() if k != "hidden_size"}))
    with pytest.raises(CheckpointError, match="hidden_size: missing"):
        read_config(path)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_config_is_a_checkpoint_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path / "config.json")


def test_the_saved_config_is_read_by_transformers(tmp_path):
    fields = to_hf(tiny_config("qwen3"), dtype="float32")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.head_dim, config.num_key_value_heads) == ("qwen3", 8, 2)
