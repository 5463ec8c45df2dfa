import json
import subprocess
import sys
from dataclasses import replace

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.reference.tiny import letters, random_adapter
from trimode.checkpoints import load, open_checkpoint, resolve, save_adapter, save_checkpoint
from trimode.errors import CheckpointError, InputError
from trimode.model import Transformer, as_floats
from trimode.text import ChatTemplate, Tokenizer

from .files import edit_json, random_tensors, small_config, write_gguf

CONFIG = small_config(mask_token_id=7)
NLD = small_config(
    family="nemotron_labs_diffusion", mask_token_id=7, block_length=8, trained_to_denoise=True
)


def save(directory, config=CONFIG, **options):
    options = {"tokenizer": letters(), **options}
    save_checkpoint(directory, config, random_tensors(config).items(), **options)
    return directory


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test if a model gets built."""

    def built(*_args, **_options):
        raise AssertionError("weights were read")

    monkeypatch.setattr(Transformer, "from_tensors", built)


def test_a_directory_is_loaded_whole(tmp_path):
    template = ChatTemplate("{{ messages[0].content }}{{ eos_token }}")
    model = load(save(tmp_path / "m", chat_template=template), dtype="fp32")
    assert (model.name, model.path, model.config) == ("m", tmp_path / "m", CONFIG)
    assert model.tokenizer.encode("cab") == letters().encode("cab")
    assert model.chat_template is not None
    assert model.chat_template.render([{"role": "user", "content": "x"}]) == "xc"
    assert model.adapter_scope is None
    expected = random_tensors(CONFIG)["embed_tokens.weight"]
    assert torch.equal(model.transformer.embedding.matrix(), expected)


def test_a_gguf_file_is_loaded_directly(tmp_path):
    model = load(write_gguf(tmp_path / "m.gguf", CONFIG, random_tensors(CONFIG)), dtype="fp32")
    assert model.chat_template is None
    assert model.tokenizer.encode("b") == [1]


def test_a_resolved_source_is_loaded_without_looking_again(tmp_path):
    assert load(resolve(str(save(tmp_path / "m")))).name == "m"


def test_an_nld_checkpoint_brings_its_draft_adapter(tmp_path):
    save(tmp_path / "m", NLD)
    save_adapter(tmp_path / "m/linear_spec_lora", random_adapter(NLD), NLD)
    model = load(tmp_path / "m")
    assert model.adapter_scope == "draft"
    assert model.config.trained_to_denoise
    assert load(save(tmp_path / "plain", NLD)).adapter_scope is None


def test_an_adapter_may_be_given(tmp_path):
    save_adapter(tmp_path / "a", random_adapter(CONFIG, scope="denoise"), CONFIG)
    model = load(save(tmp_path / "m"), adapter=tmp_path / "a")
    assert (model.adapter_scope, model.can_denoise) == ("denoise", True)


def test_an_adapter_brings_its_block_length(tmp_path):
    adapter = replace(random_adapter(CONFIG, scope="denoise"), block_length=6)
    save_adapter(tmp_path / "a", adapter, CONFIG)
    assert load(save(tmp_path / "m"), adapter=tmp_path / "a").config.block_length == 6
    assert load(tmp_path / "m").config.block_length == CONFIG.block_length


def test_a_source_may_come_with_an_adapter_and_none_leaves_it_out(tmp_path):
    save_adapter(tmp_path / "a", random_adapter(CONFIG, scope="denoise"), CONFIG)
    source = replace(resolve(str(save(tmp_path / "m"))), adapter=tmp_path / "a")
    assert load(source).adapter_scope == "denoise"
    assert load(source, adapter="none").adapter_scope is None


@pytest.mark.parametrize("length", ["0", "-1", "x", ""])
def test_an_adapters_block_length_must_be_a_length(tmp_path, length):
    save_adapter(tmp_path / "a", random_adapter(CONFIG), CONFIG)
    path = tmp_path / "a/adapter_model.safetensors"
    save_file(load_file(path), path, metadata={"trimode_block_length": length})
    with pytest.raises(CheckpointError, match="trimode_block_length"):
        load(save(tmp_path / "m"), adapter=tmp_path / "a")


def test_stop_tokens_of_the_generation_config_are_added(tmp_path):
    save(tmp_path / "m")
    (tmp_path / "m/generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    assert load(tmp_path / "m").config.eos_token_ids == (2, 5)


def test_the_bos_rule_of_a_gguf_survives_saving(tmp_path):
    letters_with_bos = Tokenizer(letters().backend, bos_token_id=1, add_bos=True)
    save(tmp_path / "m", tokenizer=letters_with_bos)
    assert load(tmp_path / "m").tokenizer.encode("c") == [1, 2]
    assert load(save(tmp_path / "plain")).tokenizer.encode("c") == [2]


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("config.json", None, "config.json: missing"),
        ("config.json", "{", "config.json: not readable"),
        ("model.safetensors", None, "model.safetensors: missing"),
        ("model.safetensors", "x", "model.safetensors: not readable"),
        ("tokenizer.json", None, "tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer.json"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: not readable"),
        ("generation_config.json", "[]", "generation_config.json: not readable"),
        ("generation_config.json", '{"eos_token_id": 999}', "eos_token_id: 999"),
    ],
)
def test_a_bad_file_is_named_before_any_weight_is_read(name, damage, words, tmp_path, no_weights):
    path = save(tmp_path / "m") / name
    path.unlink(missing_ok=True)
    if damage is not None:
        path.write_text(damage)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "m")
    assert words in str(caught.value)


def test_a_config_of_another_size_is_found_before_any_weight_is_read(tmp_path, no_weights):
    edit_json(save(tmp_path / "m") / "config.json", intermediate_size=64)
    with pytest.raises(CheckpointError, match="6 misshapen"):
        load(tmp_path / "m")


def test_a_bad_adapter_is_found_before_any_weight_is_read(tmp_path, no_weights):
    save_adapter(tmp_path / "a", random_adapter(CONFIG), CONFIG)
    (tmp_path / "a/adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="adapter_model"):
        load(save(tmp_path / "m"), adapter=tmp_path / "a")


def test_an_adapter_of_another_model_is_refused(tmp_path):
    other = small_config(hidden_size=32)
    save_adapter(tmp_path / "a", random_adapter(other), other)
    with pytest.raises(CheckpointError):
        load(save(tmp_path / "m"), adapter=tmp_path / "a")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapter": "/no/such"}, "adapter: /no/such"),
        ({"device": "toaster"}, "device: 'toaster'"),
        ({"dtype": "int3"}, "dtype: 'int3'"),
    ],
)
def test_a_bad_option_is_named(options, words, tmp_path):
    with pytest.raises(InputError, match=words):
        load(save(tmp_path / "m"), **options)


@pytest.mark.real
def test_the_real_model_has_its_mask_token_and_the_weights_of_its_file(real_cache):
    checkpoint = open_checkpoint()
    assert checkpoint.config.mask_token_id == 16
    assert checkpoint.config.tie_word_embeddings
    reader = gguf.GGUFReader(checkpoint.path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name, theirs in {
        "embed_tokens.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "layers.7.mlp.down_proj.weight": "blk.7.ffn_down.weight",
    }.items():
        expected = gguf.dequantize(stored[theirs].data, stored[theirs].tensor_type)
        assert torch.equal(as_floats(checkpoint.read(name)), torch.tensor(expected)), name


LOAD = """
import torch
from trimode.checkpoints import load

def megabytes(field):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(field)).split()[1]) / 1024
(torch.ones(64, 64) @ torch.ones(64, 64)).round()  # threads and kernels are PyTorch's, not ours
before = {field: megabytes(field) for field in ("VmRSS", "RssAnon")}
model = load(dtype="int8", offline=True, progress=False)
transformer, head = model.transformer, model.draft_head._parts
modules = [*transformer.modules(), head.enter, head.leave, head.words]
tensors = [t for m in modules for t in vars(m).values() if torch.is_tensor(t)]
weights = sum(t.nbytes for t in (*tensors, head.embedded, *transformer.parameters())) / 2**20
print(*((megabytes(field) - held) / weights for field, held in before.items()))
"""


@pytest.mark.real
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_loaded_model_holds_little_beside_its_int8_weights(real_cache):
    """Neither the mapped fp32 file, nor fp32 copies of the adapter, nor what parsing left."""
    run = [sys.executable, "-c", LOAD]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    held, private = map(float, done.stdout.split())
    assert 0.9 < private < 1.15
    assert held < 1.3
