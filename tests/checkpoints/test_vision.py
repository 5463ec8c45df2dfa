"""Vision parts of checkpoints: read from transformers' files, saved so that it reads them again."""

import json

import pytest
import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.reference import vision as reference
from trimode.checkpoints import (
    load,
    open_checkpoint,
    plan_export,
    resolve,
    save_checkpoint,
    write_export,
)
from trimode.checkpoints.hf_config import to_hf
from trimode.checkpoints.names import to_published
from trimode.checkpoints.save import is_ours
from trimode.checkpoints.vision import PROCESSOR_FILE, vision_config
from trimode.errors import CheckpointError, InputError
from trimode.model import expected_tensors
from trimode.testing import byte_tokenizer, tiny_config, tiny_tensors, write_tiny_checkpoint
from trimode.text import Tokenizer
from trimode.vision import NO_VISION, ImageTokens

PICTURES = [
    torch.randn(3, *size, generator=torch.Generator().manual_seed(1))
    for size in ((24, 40), (64, 8))
]


def letters():
    """131 tokens: single characters, and those of pictures at ids of their own."""
    vocabulary = {chr(33 + i): i for i in range(128)}
    vocabulary["<unk>"] = 128
    for i, name in ((reference.IMAGE_TOKEN, "[IMG]"), (8, "[IMG_BREAK]"), (9, "[IMG_END]")):
        del vocabulary[chr(33 + i)]
        vocabulary[name] = i
    vocabulary |= {"<a>": 129, "<b>": 130}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    return Tokenizer(backend)


@pytest.fixture(scope="module")
def theirs():
    return {"mistral3": reference.mistral3(), "llava": reference.llava()}


@pytest.fixture
def saved(tmp_path, theirs):
    """A function that has transformers save a model, with fields of its config changed."""

    def save(name, **changes):
        theirs[name].save_pretrained(tmp_path / name)
        letters().save(tmp_path / name / "tokenizer.json")
        edit(tmp_path / name, **changes)
        return tmp_path / name

    return save


def edit(directory, **changes):
    path = directory / "config.json"
    fields = json.loads(path.read_text())
    for name, value in changes.items():
        target = fields
        *outer, last = name.split("__")
        for part in outer:
            target = target[part]
        if value is None:
            del target[last]
        else:
            target[last] = value
    path.write_text(json.dumps(fields))


def features(model, pictures):
    pixels, sizes = reference.padded(pictures)
    return model.model.get_image_features(pixels, image_sizes=sizes).pooler_output


@torch.no_grad()
@pytest.mark.parametrize("name", ["mistral3", "llava"])
def test_a_checkpoint_of_transformers_is_read(name, saved, theirs):
    vision = load(saved(name), dtype="fp32").require_vision("image")
    assert vision.tokens == ImageTokens(reference.IMAGE_TOKEN, 8, 9)
    expected = features(theirs[name], PICTURES)
    torch.testing.assert_close(vision.model(PICTURES), list(expected), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mistral3", "llava"])
def test_a_saved_checkpoint_is_the_same_to_transformers(name, saved, theirs, tmp_path):
    model = load(saved(name), dtype="fp32")
    opened = open_checkpoint(saved(name))
    config, read = opened.config, opened.read
    save_checkpoint(
        tmp_path / "ours",
        config,
        ((tensor, read(tensor)) for tensor in expected_tensors(config)),
        tokenizer=letters(),
        vision=model.require_vision("image"),
    )
    again = type(theirs[name]).from_pretrained(tmp_path / "ours")
    state = again.state_dict()
    assert state.keys() == theirs[name].state_dict().keys()
    for key, tensor in theirs[name].state_dict().items():
        assert torch.equal(state[key], tensor), key
    towers = (m.config.vision_config.to_dict() | {"dtype": None} for m in (again, theirs[name]))
    assert next(towers) == next(towers)
    ids = torch.tensor([[40, *[reference.IMAGE_TOKEN] * again_tokens(name), 41]])
    pixels, sizes = reference.padded(PICTURES[:1])
    logits = [
        m(input_ids=ids, pixel_values=pixels, image_sizes=sizes).logits
        for m in (again, theirs[name])
    ]
    assert torch.equal(*logits)


def again_tokens(name):
    """Tokens of the first picture: 6 x 10 patches, merged in squares of four or not."""
    return 15 if name == "mistral3" else 60


def write_nld(directory, theirs, prefix):
    """The tower of transformers in NVIDIA's layout, beside a random NLD model."""
    config = tiny_config(hidden_size=48, vocab_size=264)
    tensors = {}
    for name, tensor in tiny_tensors(config).items():
        tensors[to_published(name, config.family).replace("encoder.", prefix)] = tensor
    for name, tensor in reference.vision_state(theirs).items():
        tensors[f"encoder.{name}"] = tensor
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    tokenizer = byte_tokenizer(("[IMG]", "[IMG_BREAK]", "[IMG_END]"))
    tokenizer.save(directory / "tokenizer.json")
    fields = {
        "model_type": "nemotron_labs_diffusion_vlm",
        "text_config": to_hf(config, dtype="float32"),
        "vision_config": {**reference.TOWER, "model_type": "pixtral"},
        "mask_token_id": config.mask_token_id,
    }
    (directory / "config.json").write_text(json.dumps(fields))
    return directory


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["encoder.", "encoder.language_model."])
def test_nvidias_layout_is_read_with_the_text_part_in_either_place(prefix, tmp_path, theirs):
    model = load(write_nld(tmp_path / "nld", theirs["mistral3"], prefix), dtype="fp32")
    vision = model.require_vision("image")
    assert (model.config.family, vision.layout) == (
        "nemotron_labs_diffusion",
        "nemotron_labs_diffusion_vlm",
    )
    expected = features(theirs["mistral3"], PICTURES)
    torch.testing.assert_close(vision.model(PICTURES), list(expected), rtol=1e-4, atol=1e-4)


def test_nvidias_layout_is_saved_with_its_names(tmp_path, theirs):
    directory = write_nld(tmp_path / "nld", theirs["mistral3"], "encoder.language_model.")
    opened = open_checkpoint(directory)
    model = opened.build(dtype="fp32")
    save_checkpoint(
        tmp_path / "again",
        opened.config,
        ((name, opened.read(name)) for name in expected_tensors(opened.config)),
        tokenizer=opened.tokenizer,
        vision=model.require_vision("image"),
    )
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert {"encoder.embed_tokens.weight", "diffusion_head.weight"} <= found.keys()
    assert "encoder.vision_tower.patch_conv.weight" in found
    again = open_checkpoint(tmp_path / "again")
    assert again.config == opened.config
    assert again.vision.config == opened.vision.config
    assert again.vision.tokens == opened.vision.tokens


def test_missing_fields_have_the_defaults_of_their_class():
    text = tiny_config()
    merged = {"multi_modal_projector.patch_merger.merging_layer.weight": (1,),
              "multi_modal_projector.norm.weight": (1,)}  # fmt: skip
    for layout, given in [
        ("mistral3", {}),
        ("mistral3", {"vision_config": {"model_type": "pixtral"}}),
        ("llava", {"vision_config": {"model_type": "pixtral"}}),
    ]:
        kind = {"mistral3": transformers.Mistral3Config, "llava": transformers.LlavaConfig}[layout]
        expected = kind(**given)
        found = vision_config({"model_type": layout, **given}, text, merged, {})
        tower = expected.vision_config
        assert found.hidden_size == tower.hidden_size
        assert found.intermediate_size == tower.intermediate_size
        assert found.num_layers == tower.num_hidden_layers
        assert found.num_heads == tower.num_attention_heads
        assert (found.patch_size, found.image_size) == (tower.patch_size, tower.image_size)
        assert found.activation == tower.hidden_act
        assert found.rope_theta == tower.rope_parameters["rope_theta"]
        assert found.projector_activation == expected.projector_hidden_act
        assert found.projector_bias == expected.multimodal_projector_bias
        assert found.feature_layer == expected.vision_feature_layer
        assert found.merge_size == getattr(expected, "spatial_merge_size", 1)


def test_nvidias_missing_fields_have_its_published_sizes():
    fields = {"model_type": "nemotron_labs_diffusion_vlm", "vision_config": {"hidden_act": "silu"}}
    found = vision_config(fields, tiny_config(), {}, {})
    sizes = (found.num_layers, found.hidden_size, found.num_heads, found.intermediate_size)
    assert sizes == (24, 1024, 16, 4096)
    assert (found.patch_size, found.image_size, found.rope_theta) == (14, 1540, 10_000.0)
    assert (found.merge_size, found.feature_layer, found.projector_bias) == (2, -1, False)
    assert (found.activation, found.projector_activation) == ("silu", "gelu")


def test_the_processors_files_decide_size_and_colours(saved):
    directory = saved("mistral3")
    processor = {"size": {"longest_edge": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    config = open_checkpoint(directory).vision.config
    assert (config.image_size, config.image_mean, config.image_std) == (32, (0.5,) * 3, (0.25,) * 3)
    (directory / "preprocessor_config.json").unlink()
    (directory / PROCESSOR_FILE).write_text(json.dumps({"image_processor": processor}))
    assert open_checkpoint(directory).vision.config == config


def test_tokens_are_those_that_the_processor_names(saved):
    directory = saved("mistral3", image_token_index=None)
    names = {"image_token": "<a>", "image_break_token": "<b>", "image_end_token": "none"}
    (directory / PROCESSOR_FILE).write_text(json.dumps(names))
    assert open_checkpoint(directory).vision.tokens == ImageTokens(129, 130, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vision_config__num_attention_heads": 3}, "head_dim"),
        ({"vision_config__hidden_size": "x"}, "hidden_size"),
        ({"vision_config__patch_size": [4, 5]}, "patch_size"),
        ({"vision_config__hidden_act": "relu"}, "hidden_act"),
        ({"vision_config__num_channels": 1}, "num_channels"),
        ({"vision_config__rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
        ({"vision_config__num_hidden_layers": 2}, "unknown"),
        ({"vision_config__intermediate_size": 47}, "misshapen"),
        ({"vision_feature_layer": [1, 2]}, "feature_layer"),
        ({"projector_hidden_act": "tanh"}, "projector_hidden_act"),
        ({"multimodal_projector_bias": True}, "missing"),
        ({"image_token_index": 131}, "image_token_index"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
    ],
)
def test_a_field_that_is_not_supported_is_named(changes, field, saved):
    with pytest.raises(CheckpointError, match=field):
        open_checkpoint(saved("mistral3", **changes))


def test_other_settings_of_the_processor_are_refused(saved):
    directory = saved("mistral3")
    (directory / "preprocessor_config.json").write_text('{"resample": 2}')
    with pytest.raises(CheckpointError, match="resample: 2; supported: 3"):
        open_checkpoint(directory)


def test_a_number_that_is_not_finite_is_named(saved):
    directory = saved("mistral3")
    tensors = load_file(directory / "model.safetensors")
    tensors["vision_tower.ln_pre.weight"][3] = float("nan")
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"vision_tower\.ln_pre\.weight: NaN"):
        load(directory, dtype="fp32")


def test_a_tower_of_another_type_leaves_a_model_for_text(saved):
    directory = saved("llava", vision_config__model_type="clip_vision_model")
    model = load(directory, dtype="fp32")
    with pytest.raises(InputError, match=r"image: a picture; .*clip_vision_model is not supported"):
        model.require_vision("image")


def test_a_text_model_says_that_it_reads_no_pictures(tmp_path):
    model = load(write_tiny_checkpoint(tmp_path / "m"), dtype="fp32")
    with pytest.raises(InputError, match=r"image: a picture; .*reads none: it has no vision part"):
        model.require_vision("image")


def test_the_saved_file_is_marked_as_ours(saved, tmp_path, theirs):
    opened = open_checkpoint(saved("mistral3"))
    weights = [(name, opened.read(name)) for name in expected_tensors(opened.config)]
    vision = opened.build(dtype="fp32").require_vision("image")
    for _ in range(2):  # the second replaces the first
        save_checkpoint(tmp_path / "m", opened.config, weights, tokenizer=letters(), vision=vision)
    assert is_ours(tmp_path / "m")
    with safe_open(tmp_path / "m" / "model.safetensors", "pt") as file:
        assert "language_model.model.norm.weight" in file.keys()  # noqa: SIM118


def test_an_export_says_that_it_leaves_the_tower_out(saved, tmp_path):
    plan = plan_export(resolve(str(saved("mistral3"))), "ar")
    assert "left out: the tower and projector that read pictures" in plan.notes
    write_export(plan, tmp_path / "text")
    model = load(tmp_path / "text", dtype="fp32")
    assert model.config.family == "ministral3"
    assert model.vision == NO_VISION
