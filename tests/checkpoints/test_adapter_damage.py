import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.reference import families
from tests.reference.tiny import random_adapter
from trimode.checkpoints import read_adapter, save_adapter
from trimode.errors import CheckpointError
from trimode.model import AdapterWeights

from .files import edit_json, small_config

CONFIG = small_config()
NLD = small_config(family="nemotron_labs_diffusion", trained_to_denoise=True)


def same(left: AdapterWeights, right: AdapterWeights) -> bool:
    pairs = [(left.targets[n], right.targets[n]) for n in left.targets]
    return (
        (left.scale, left.scope) == (right.scale, right.scope)
        and left.targets.keys() == right.targets.keys()
        and all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)
        and (left.mask_embedding is None) == (right.mask_embedding is None)
    )


@pytest.fixture
def saved(tmp_path):
    save_adapter(tmp_path / "a", random_adapter(CONFIG), CONFIG)
    return tmp_path / "a"


@pytest.mark.parametrize("scope", ["draft", "denoise"])
@pytest.mark.parametrize("config", [CONFIG, NLD], ids=["llama", "nld"])
def test_what_is_written_is_read(config, scope, tmp_path):
    adapter = random_adapter(config, scope=scope)
    save_adapter(tmp_path / "a", adapter, config)
    again = read_adapter(tmp_path / "a")
    assert same(again, adapter)
    assert adapter.mask_embedding is not None
    assert torch.equal(again.mask_embedding, adapter.mask_embedding)


def test_nvidias_draft_adapter_is_read_as_draft_only(tmp_path):
    path = tmp_path / "linear_spec_lora"
    path.mkdir()
    a, b = torch.randn(8, 64), torch.randn(64, 8)
    stem = "base_model.model.encoder.layers.1.self_attn.o_proj"
    tensors = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": ["o_proj"],'
        ' "bias": "none", "inference_mode": true, "lora_dropout": 0.0, "use_dora": false}'
    )
    adapter = read_adapter(path)
    assert (adapter.scale, adapter.scope, adapter.mask_embedding) == (4.0, "draft", None)
    assert list(adapter.targets) == ["layers.1.self_attn.o_proj"]
    assert torch.equal(adapter.targets["layers.1.self_attn.o_proj"][1], b)


def test_rank_stabilised_scaling_divides_by_the_root(saved):
    edit_json(saved / "adapter_config.json", use_rslora=True, lora_alpha=6)
    assert read_adapter(saved).scale == 3.0


@pytest.mark.parametrize("names", ["all", "o_proj of one layer"])
def test_peft_computes_with_our_adapter_what_we_mean(names, tmp_path):
    peft = pytest.importorskip("peft")
    oracle, config, _ = families.build("llama")
    adapter = random_adapter(config)
    if names != "all":
        only = "layers.1.self_attn.o_proj"
        adapter = AdapterWeights(adapter.scale, {only: adapter.targets[only]}, "draft")
    save_adapter(tmp_path / "a", adapter, config)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        wrapped = peft.PeftModel.from_pretrained(oracle, tmp_path / "a")
        actual = wrapped(tokens).logits
        merged, _, _ = families.build("llama")
        for name, (a, b) in adapter.targets.items():
            merged.get_submodule("model." + name).weight += adapter.scale * b @ a
        torch.testing.assert_close(actual, merged(tokens).logits, rtol=1e-3, atol=1e-3)


def test_what_peft_saves_is_read(tmp_path):
    peft = pytest.importorskip("peft")
    oracle, config, _ = families.build("llama")
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(oracle, lora)
    wrapped.save_pretrained(tmp_path / "a")
    adapter = read_adapter(tmp_path / "a")
    assert adapter.scale == 2.0
    assert len(adapter.targets) == config.num_layers
    layer = wrapped.get_submodule("base_model.model.model.layers.1.self_attn.o_proj")
    down, up = adapter.targets["layers.1.self_attn.o_proj"]
    assert torch.equal(down, layer.lora_A["default"].weight)
    assert torch.equal(up, layer.lora_B["default"].weight)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "use_dora: True; supported: False"),
        ({"bias": "all"}, "bias: 'all'; supported: 'none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"o_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"o_proj": 2}}, "alpha_pattern"),
        ({"peft_type": "LOHA"}, "peft_type: 'LOHA'; supported: 'LORA'"),
        ({"r": 0}, "r: 0"),
        ({"r": 8}, "r is 8: it belongs to another model"),
        ({"lora_alpha": "x"}, "lora_alpha: 'x'"),
    ],
)
def test_options_that_change_the_arithmetic_are_refused(fields, words, saved):
    edit_json(saved / "adapter_config.json", **fields)
    with pytest.raises(CheckpointError) as caught:
        read_adapter(saved)
    assert words in str(caught.value)


def test_half_a_pair_and_unknown_tensors_are_refused(saved):
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    gone = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({k: v for k, v in tensors.items() if k != gone}, path)
    with pytest.raises(CheckpointError, match="need both"):
        read_adapter(saved)
    save_file({**tensors, "base_model.model.odd": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="unknown tensor"):
        read_adapter(saved)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("data", [None, b"", b"{", b"[]"])
def test_a_missing_or_damaged_file_is_named(name, data, saved):
    (saved / name).unlink()
    if data is not None:
        (saved / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        read_adapter(saved)


def test_an_adapter_is_not_written_over_other_files(saved, tmp_path):
    save_adapter(saved, random_adapter(CONFIG, seed=1), CONFIG)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds something else"):
        save_adapter(tmp_path / "b", random_adapter(CONFIG), CONFIG)
