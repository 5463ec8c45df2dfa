"""Tower and projector against transformers' classes, on random weights."""

from itertools import islice

import pytest
import torch
from PIL import Image

from tests.reference import vision as reference
from trimode.errors import CheckpointError
from trimode.testing import tiny_config, tiny_vision
from trimode.vision import VisionModel, expected_vision_tensors

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""fp32, for values of up to about 10 that are summed in another order."""
SIZES = [(8, 8), (24, 40), (64, 8), (16, 56)]
"""Heights and widths of pictures, from one square to a long one."""


def pictures(sizes=SIZES):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(3, *size, generator=generator) for size in sizes]


def ours(theirs, **changes):
    model = VisionModel(reference.our_config(**changes))
    model.load_state_dict(reference.vision_state(theirs))
    return model.eval().requires_grad_(False)


def collected(slices):
    while True:
        try:
            next(slices)
        except StopIteration as done:
            return done.value


@pytest.fixture(scope="module")
def mistral3():
    return reference.mistral3()


@torch.no_grad()
def test_tower_equals_transformers_for_pictures_of_any_size(mistral3):
    pixels, sizes = reference.padded(pictures())
    expected = mistral3.model.vision_tower(pixels, image_sizes=sizes).last_hidden_state[0]
    torch.testing.assert_close(ours(mistral3).vision_tower(pictures()), expected, **CLOSE)


@torch.no_grad()
def test_embeddings_equal_transformers(mistral3):
    pixels, sizes = reference.padded(pictures())
    expected = mistral3.get_image_features(pixels, image_sizes=sizes).pooler_output
    torch.testing.assert_close(ours(mistral3)(pictures()), list(expected), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, 1])
def test_an_inner_layer_may_be_the_one_that_is_projected(layer):
    theirs = reference.mistral3(vision_feature_layer=layer)
    pixels, sizes = reference.padded(pictures())
    expected = theirs.get_image_features(pixels, image_sizes=sizes).pooler_output
    torch.testing.assert_close(
        ours(theirs, feature_layer=layer)(pictures()), list(expected), **CLOSE
    )


@torch.no_grad()
def test_a_projector_without_merge_equals_llava():
    theirs = reference.llava()
    changes = {
        "merge_size": 1, "merging_layer": False, "projector_norm": False, "projector_bias": True,
    }  # fmt: skip
    pixels, sizes = reference.padded(pictures())
    found = theirs.model.get_image_features(pixels, image_sizes=sizes)
    expected = list(found.pooler_output)
    torch.testing.assert_close(ours(theirs, **changes)(pictures()), expected, **CLOSE)


@torch.no_grad()
def test_slices_make_what_a_whole_pass_makes(mistral3, monkeypatch):
    model = ours(mistral3)
    pixels = pictures([(64, 64 * 5)])[0]  # 1280 patches are ten slices a layer
    monkeypatch.setattr(VisionModel, "slice_rows", 128)
    steps = sum(1 for _ in model.encode([pixels[:, :32], pixels[:, 32:]]))
    assert steps == 2 + 3 * (10 + 10) + 3
    torch.testing.assert_close(
        collected(model.encode([pixels[:, :32], pixels[:, 32:]])), model([pixels])[0], **CLOSE
    )


def test_slices_are_small_whatever_the_size_of_the_tower():
    sizes = {(384, 1536): 192, (1024, 4096): 64, (32, 48): 1024}
    for (size, inner), rows in sizes.items():
        config = reference.our_config(hidden_size=size, intermediate_size=inner, num_layers=1)
        with torch.device("meta"):
            assert VisionModel(config).slice_rows == rows


@torch.no_grad()
def test_a_picture_becomes_the_same_whatever_is_computed_between_its_slices(mistral3):
    model = ours(mistral3)
    first, second = pictures([(24, 40), (64, 8)])
    alone = collected(model.encode([first]))
    one, other = model.encode([first]), model.encode([second])
    list(islice(one, 3)), list(islice(other, 2))
    assert torch.equal(collected(one), alone)


def test_training_reaches_every_weight(mistral3):
    model = ours(mistral3).requires_grad_(True)
    loss = sum(part.square().mean() for part in model(pictures()))
    loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(grad.abs().sum() > 0 for grad in plain.values())
    model.zero_grad()
    sum(part.square().mean() for part in model(pictures(), recompute=True)).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], **CLOSE)


def test_expected_tensors_are_those_of_transformers(mistral3):
    shapes = {name: tuple(t.shape) for name, t in reference.vision_state(mistral3).items()}
    assert expected_vision_tensors(reference.our_config()) == shapes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_heads", 5),
        ("num_heads", 16),
        ("hidden_size", 0),
        ("patch_size", 4.0),
        ("rope_theta", 0),
        ("activation", "relu"),
        ("feature_layer", 4),
        ("feature_layer", [1, 2]),
        ("image_std", (1.0, 0.0, 1.0)),
        ("image_mean", (1.0,)),
    ],
)
def test_sizes_that_cannot_be_are_refused_by_name(field, value):
    with pytest.raises(CheckpointError, match=field):
        reference.our_config(**{field: value})


@torch.no_grad()
def test_a_picture_in_bands_is_the_picture():
    """From pixels, as the engine reads it: bands of patches, then slices of rows."""
    vision = tiny_vision(tiny_config(vocab_size=264), image_size=640)
    image = vision.process(Image.effect_noise((640, 136), 90).convert("RGB"))
    whole = vision.model([image.normalised(vision.config)])[0]
    assert len(list(vision._bands(image))) > 3
    torch.testing.assert_close(collected(vision.encode(image)), whole, **CLOSE)
