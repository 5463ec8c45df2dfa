"""Draft adapters in PEFT's layout, with peft as the oracle."""

import json
from dataclasses import replace

import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trimode import generate, load
from trimode.checkpoints import read_adapter, save_adapter
from trimode.errors import CheckpointError, InputError
from trimode.model import AdapterWeights, CachedAttention, KVCache, Segment, expected_tensors
from trimode.testing import tiny_config, write_tiny_checkpoint
from trimode.training.adapter import AdapterConfig, first_adapter, new_adapter, size_of_a

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapter(config, *, targets=TARGETS, scope="denoise", rank=4, embedding=False):
    generator = torch.Generator().manual_seed(1)
    parts = {}
    for name, shape in expected_tensors(config).items():
        stem = name.removesuffix(".weight")
        if stem.rpartition(".")[2] in targets:
            down = torch.randn(rank, shape[1], generator=generator) * 0.1
            parts[stem] = (down, torch.randn(shape[0], rank, generator=generator) * 0.1)
    mask = torch.randn(config.hidden_size, generator=generator) if embedding else None
    return AdapterWeights(2.0, parts, scope, mask)


@torch.inference_mode()
def logits(model, tokens, rows):
    transformer = model.transformer
    cache = KVCache(model.config, len(tokens))
    attend = CachedAttention([Segment(0, len(tokens), cache, "causal")], transformer.dtype, "cpu")
    return transformer.logits(transformer(tokens, torch.arange(len(tokens)), attend, rows))


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_an_adapter_survives_saving_and_reading(tmp_path, embedding, shift):
    config = tiny_config("llama")
    written = replace(adapter(config, embedding=embedding), token_shift=shift)
    save_adapter(tmp_path / "a", written, config)
    again = read_adapter(tmp_path / "a")
    assert (again.scale, again.scope) == (written.scale, written.scope)
    assert again.token_shift == shift
    assert again.targets.keys() == written.targets.keys()
    for name, (down, up) in written.targets.items():
        assert torch.equal(again.targets[name][0], down)
        assert torch.equal(again.targets[name][1], up)
    if embedding:
        assert torch.equal(again.mask_embedding, written.mask_embedding)


def test_training_can_start_from_an_adapter_in_eight_bits(tmp_path):
    """It has a scale of its own, and sides that are hundreds of times as large."""
    config = tiny_config("llama")
    stored = adapter(config, embedding=True).in_eight_bits()
    save_adapter(tmp_path / "a", stored, config)
    asked = AdapterConfig(rank=4, scale=0.5, start_from=str(tmp_path / "a"))
    embedding = torch.randn(config.vocab_size, config.hidden_size)
    started = first_adapter(config, asked, embedding[0], 0)
    assert started.scale == 0.5
    for name, (down, up) in stored.to(torch.float32).targets.items():
        found = started.targets[name]
        assert torch.equal(0.5 * (found[1] @ found[0]), stored.scale * (up @ down))
    usual = new_adapter(config, replace(asked, start_from=None), embedding[0], 0)
    assert 0.7 < size_of_a(started) / size_of_a(usual) < 1.5


def test_in_eight_bits_an_adapter_loses_a_sixteenth_of_a_weight_at_most(tmp_path):
    config = tiny_config("llama")
    written = adapter(config, embedding=True)
    save_adapter(tmp_path / "wide", written, config)
    save_adapter(tmp_path / "a", written.in_eight_bits(), config)
    again = read_adapter(tmp_path / "a")
    assert torch.equal(again.mask_embedding, written.mask_embedding)
    for name, pair in written.targets.items():
        kept = again.targets[name]
        exact = written.scale * pair[1] @ pair[0]
        found = again.scale * kept[1].float() @ kept[0].float()
        assert float((found - exact).norm() / exact.norm()) < 0.06
    sizes = [(tmp_path / n / "adapter_model.safetensors").stat().st_size for n in ("a", "wide")]
    assert sizes[0] < 0.6 * sizes[1]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        write_tiny_checkpoint(tmp_path / "m", "llama")
    )
    wrapped = peft.PeftModel.from_pretrained(model, tmp_path / "a")
    loaded = wrapped.get_submodule("base_model.model.model.layers.0.self_attn.o_proj")
    down = again.targets["layers.0.self_attn.o_proj"][0].float()
    assert torch.equal(loaded.lora_A["default"].weight, down)


@pytest.mark.parametrize("scope", ["draft", "denoise"])
@pytest.mark.parametrize("form", ["seeded", "led"])
def test_an_adapter_says_how_it_drafts_whatever_its_scope(tmp_path, scope, form):
    config = tiny_config("llama")
    written = replace(adapter(config), scope=scope, draft_form=form)
    save_adapter(tmp_path / "a", written, config)
    assert read_adapter(tmp_path / "a").draft_form == form
    base = write_tiny_checkpoint(tmp_path / "base", "llama")
    assert load(base, adapter=tmp_path / "a").config.draft_form == form


@pytest.mark.parametrize(("scope", "form"), [("draft", "seeded"), ("denoise", "led")])
def test_an_adapter_from_before_the_field_has_the_form_of_its_scope(tmp_path, scope, form):
    config = tiny_config("llama")
    save_adapter(tmp_path / "a", replace(adapter(config), scope=scope), config)
    path = tmp_path / "a" / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = {k: v for k, v in file.metadata().items() if k != "trimode_draft_form"}
    save_file(tensors, path, metadata=metadata)
    assert read_adapter(tmp_path / "a").draft_form == form


def test_a_draft_form_that_is_none_is_refused(tmp_path):
    config = tiny_config("llama")
    save_adapter(tmp_path / "a", replace(adapter(config), draft_form="sideways"), config)
    with pytest.raises(
        CheckpointError, match="trimode_draft_form: 'sideways'; allowed: seeded, led"
    ):
        read_adapter(tmp_path / "a")


@pytest.mark.parametrize("targets", [TARGETS, ("o_proj",), ("q_proj", "v_proj", "down_proj")])
def test_peft_loads_it_and_computes_the_same(tmp_path, targets):
    config = tiny_config("llama")
    path = write_tiny_checkpoint(tmp_path / "model", "llama")
    save_adapter(tmp_path / "a", adapter(config, targets=targets), config)
    ours = load(path, dtype="fp32", adapter=tmp_path / "a")
    base = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    tokens = torch.arange(12) * 9
    with torch.inference_mode():
        oracle = theirs(tokens[None]).logits[0]
    torch.testing.assert_close(logits(ours, tokens, slice(None)), oracle, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(ours, tokens, None), oracle, atol=1e-2)


def test_rows_with_the_adapter_off_are_those_of_the_plain_model(tmp_path):
    config = tiny_config("llama")
    path = write_tiny_checkpoint(tmp_path / "model", "llama")
    save_adapter(tmp_path / "a", adapter(config, embedding=True), config)
    tokens = torch.arange(12) * 9
    plain = logits(load(path), tokens, None)
    with_adapter = load(path, adapter=tmp_path / "a")
    assert torch.equal(logits(with_adapter, tokens, None), plain)


def test_the_mask_embedding_stands_in_for_the_mask_token_on_adapted_rows_only(tmp_path):
    config = tiny_config("llama")
    path = write_tiny_checkpoint(tmp_path / "model", "llama")
    given = adapter(config, targets=("o_proj",), embedding=True)
    for _, up in given.targets.values():
        up.zero_()
    save_adapter(tmp_path / "a", given, config)
    model, plain = load(path, adapter=tmp_path / "a"), load(path)
    mask = config.mask_token_id
    tokens = torch.tensor([5, mask, 7, mask])
    changed = logits(model, tokens, torch.tensor([3]))
    assert torch.equal(changed[:3], logits(plain, tokens, None)[:3])
    assert not torch.allclose(changed[3], logits(plain, tokens, None)[3])


def test_an_nld_checkpoint_brings_its_draft_adapter(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "model")
    config = tiny_config()
    save_adapter(
        path / "linear_spec_lora", adapter(config, targets=("o_proj",), scope="draft"), config
    )
    weights = path / "linear_spec_lora" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file(tensors, weights)  # NVIDIA's file says nothing of a scope
    names = tensors.keys()
    assert "base_model.model.encoder.layers.0.self_attn.o_proj.lora_A.weight" in names
    assert load(path).adapter_scope == "draft"


def damage(tmp_path, *, fields=None, tensors=None):
    config = tiny_config("llama")
    save_adapter(tmp_path / "a", adapter(config, targets=("o_proj",)), config)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (fields or {})))
    if tensors:
        weights = tmp_path / "a" / "adapter_model.safetensors"
        content = load_file(weights)
        tensors(content)
        save_file(content, weights)
    with pytest.raises(CheckpointError) as error:
        load(write_tiny_checkpoint(tmp_path / "model", "llama"), adapter=tmp_path / "a")
    return str(error.value)


A = "base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "use_dora: True"),
        ({"bias": "all"}, "bias: 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"x": 3}}, "rank_pattern"),
        ({"r": None}, "r and lora_alpha"),
    ],
)
def test_an_option_that_would_change_the_arithmetic_is_refused(tmp_path, fields, words):
    assert words in damage(tmp_path, fields=fields)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (lambda t: t.pop(A), "lora_A without lora_B or the reverse"),
        (lambda t: t.update(odd=torch.zeros(1)), "odd: unknown tensor"),
        (lambda t: t.update({A: torch.zeros(4, 31)}), "it belongs to another model"),
        (lambda t: t.update({A: torch.zeros(3, 32)}), "it belongs to another model"),
        (
            lambda t: t.update({n.replace("layers.1.", "layers.9."): t.pop(n) for n in list(t)}),
            "layers.9.self_attn.o_proj: no such linear",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, tensors, words):
    assert words in damage(tmp_path, tensors=tensors)


def test_a_missing_adapter_directory_is_refused(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "model", "llama")
    with pytest.raises(
        ValueError, match=r"adapter: .*must be none or a directory in PEFT's layout"
    ):
        load(path, adapter=tmp_path / "none")


def test_an_unknown_scope_is_refused(tmp_path):
    config = tiny_config("llama")
    save_adapter(tmp_path / "a", adapter(config), config)
    weights = tmp_path / "a" / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"trimode_scope": "always"})
    with pytest.raises(CheckpointError, match="trimode_scope: 'always'; allowed: draft, denoise"):
        read_adapter(tmp_path / "a")


@pytest.mark.filterwarnings("error::UserWarning")
def test_peft_reads_the_config_without_a_warning(tmp_path):
    config = tiny_config("llama")
    save_adapter(tmp_path / "a", adapter(config), config)
    assert peft.PeftConfig.from_pretrained(tmp_path / "a").r == 4


def test_rslora_scales_by_the_root_of_the_rank(tmp_path):
    config = tiny_config("llama")
    save_adapter(tmp_path / "a", adapter(config), config)
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_rslora": True}))
    assert read_adapter(tmp_path / "a").scale == 8.0 / 4**0.5


def lora(tmp_path, name="lora", seed=3, **options):
    """An ordinary LoRA as PEFT saves it, and PEFT's model with it."""
    path = tmp_path / "model"
    if not path.exists():
        write_tiny_checkpoint(path, "llama")
    base = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **options
    )
    torch.manual_seed(seed)
    model = peft.get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / name)
    return path, tmp_path / name, model


@torch.inference_mode()
def test_an_ordinary_lora_is_on_in_all_rows(tmp_path):
    path, adapter_path, theirs = lora(tmp_path)
    tokens = torch.arange(12) * 9
    ours = load(path, dtype="fp32", adapter=adapter_path)
    expected = theirs(tokens[None]).logits[0]
    for rows in (None, slice(None), torch.tensor([1, 2])):
        torch.testing.assert_close(logits(ours, tokens, rows), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(load(path, dtype="fp32"), tokens, None), expected, atol=1e-2)
    assert ours.adapter_scope is None


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_a_lora_gives_the_answers_of_the_merged_checkpoint(tmp_path, dtype):
    path, adapter_path, theirs = lora(tmp_path)
    theirs.merge_and_unload().save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "merged" / name).write_bytes((path / name).read_bytes())
    options = {"max_tokens": 12, "ignore_eos": True}
    ours = generate(load(path, dtype=dtype, adapter=adapter_path), [5, 90, 30], **options)
    merged = generate(load(tmp_path / "merged", dtype=dtype), [5, 90, 30], **options)
    assert ours.token_ids == merged.token_ids


@torch.inference_mode()
def test_loras_stand_beside_each_other_and_beside_a_drafting_adapter(tmp_path):
    path, first, _ = lora(tmp_path)
    _, second, _ = lora(tmp_path, "second", seed=4)
    config = tiny_config("llama")
    save_adapter(tmp_path / "draft", adapter(config), config)
    model = load(path, dtype="fp32", adapter=[first, tmp_path / "draft", second])
    assert model.adapter_scope == "denoise"
    tokens = torch.arange(12) * 9
    both = load(path, dtype="fp32", adapter=[second, first])
    assert torch.allclose(logits(model, tokens, None), logits(both, tokens, None), atol=1e-5)
    one = load(path, dtype="fp32", adapter=first)
    assert not torch.allclose(logits(one, tokens, None), logits(both, tokens, None), atol=1e-2)


def test_two_drafting_adapters_are_refused(tmp_path):
    config = tiny_config("llama")
    path = write_tiny_checkpoint(tmp_path / "model", "llama")
    for name in ("a", "b"):
        save_adapter(tmp_path / name, adapter(config), config)
    with pytest.raises(InputError, match="at most one may be a drafting adapter"):
        load(path, adapter=[tmp_path / "a", tmp_path / "b"])


def test_a_lora_leaves_the_checkpoints_own_drafting_adapter_on(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "model")
    config = tiny_config()
    save_adapter(path / "linear_spec_lora", adapter(config, scope="draft"), config)
    save_adapter(tmp_path / "lora", adapter(config, targets=("v_proj",)), config)
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    save_file(load_file(weights), weights)
    assert load(path, adapter=tmp_path / "lora").adapter_scope == "draft"
    assert load(path, adapter=["none", tmp_path / "lora"]).adapter_scope is None


def test_a_lora_of_another_model_is_refused(tmp_path):
    _, adapter_path, _ = lora(tmp_path)
    other = write_tiny_checkpoint(tmp_path / "other", "llama", hidden_size=16)
    with pytest.raises(CheckpointError, match="it belongs to another model"):
        load(other, adapter=adapter_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: 'olora'"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"lora_alpha": 1e308}, "overflows"),
    ],
)
def test_an_adapter_that_means_something_else_is_refused_by_name(tmp_path, fields, words):
    assert words in damage(tmp_path, fields=fields)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.full((4, 32), float("nan")), "NaN or infinite"),
        (torch.full((4, 32), float("inf")), "NaN or infinite"),
        (torch.ones(4, 32, dtype=torch.int32), "int32; must be of floats"),
        (torch.ones(4, 32, dtype=torch.bool), "bool; must be of floats"),
    ],
)
def test_tensors_that_are_no_finite_floats_are_named(tmp_path, value, words):
    message = damage(tmp_path, tensors=lambda t: t.update({A: value}))
    assert "o_proj.lora_A.weight" in message
    assert words in message


@pytest.mark.parametrize("length", ["2000", str(10**30)])
def test_a_block_length_beyond_the_context_is_refused(tmp_path, length):
    config = tiny_config("llama")
    save_adapter(tmp_path / "a", adapter(config), config)
    weights = tmp_path / "a" / "adapter_model.safetensors"
    metadata = {"trimode_scope": "denoise", "trimode_block_length": length}
    save_file(load_file(weights), weights, metadata=metadata)
    with pytest.raises(InputError, match=r"blocks of 2000|trimode_block_length"):
        load(write_tiny_checkpoint(tmp_path / "model", "llama"), adapter=tmp_path / "a")


def test_deep_json_in_an_adapters_config_is_named(tmp_path):
    config = tiny_config("llama")
    save_adapter(tmp_path / "a", adapter(config), config)
    (tmp_path / "a" / "adapter_config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: not readable"):
        read_adapter(tmp_path / "a")
