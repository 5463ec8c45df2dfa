import pytest

from trimode.checkpoints.names import check_tensors, from_gguf, from_published, to_published
from trimode.errors import CheckpointError
from trimode.model import expected_tensors

from .files import gguf_name, small_config


@pytest.mark.parametrize("family", ["llama", "nemotron_labs_diffusion"])
def test_every_tensor_finds_its_way_out_and_back(family):
    for name in expected_tensors(small_config(family=family)):
        assert from_published(to_published(name, family)) == name


@pytest.mark.parametrize(
    ("published", "canonical"),
    [
        ("model.layers.3.mlp.up_proj.weight", "layers.3.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("encoder.embed_tokens.weight", "embed_tokens.weight"),
        ("diffusion_head.weight", "lm_head.weight"),
        ("language_model.model.norm.weight", "norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.norm.weight", "norm.weight"),
        ("encoder.vision_tower.layers.0.weight", None),
        ("encoder.multi_modal_projector.linear_1.weight", None),
        ("multi_modal_projector.linear_1.weight", None),
        ("base_model.model.encoder.layers.0.self_attn.o_proj.lora_A.weight", None),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
    ],
)
def test_published_names_become_canonical_ones(published, canonical):
    assert from_published(published) == canonical


def test_gguf_names_become_canonical_ones():
    config = small_config(qkv_bias=True, qk_norm=True)
    for name in expected_tensors(config):
        assert from_gguf(gguf_name(name)) == name


@pytest.mark.parametrize("name", ["blk.0.weight", "blk.weight", "weight", "blk.0.new.weight", ""])
def test_a_strange_gguf_name_is_left_for_the_check_to_report(name):
    assert from_gguf(name) not in expected_tensors(small_config())


def test_missing_unknown_and_misshapen_tensors_are_each_named():
    config = small_config()
    found = dict(expected_tensors(config))
    del found["norm.weight"]
    found["layers.0.mlp.up_projj.weight"] = (1,)
    found["layers.1.mlp.down_proj.weight"] = (2, 3)
    with pytest.raises(CheckpointError) as caught:
        check_tensors(config, found, "here")
    message = str(caught.value)
    assert "1 missing (norm.weight)" in message
    assert "1 unknown (layers.0.mlp.up_projj.weight" in message
    assert "nearest expected name layers.0.mlp.up_proj.weight" in message
    assert "1 misshapen (layers.1.mlp.down_proj.weight is [2, 3], expected [64, 96])" in message
