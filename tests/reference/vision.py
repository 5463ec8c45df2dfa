"""Tiny random vision-language models from transformers' own classes: the outside oracle."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.reference.families import SIZES, YARN
from trimode.vision import VisionConfig

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 4,
    "image_size": 64,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "axial", "rope_theta": 1e3},
}
TEXT = {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}, "sliding_window": None}
IMAGE_TOKEN = 7
OUR_TOWER: dict[str, Any] = {
    "text_size": SIZES["hidden_size"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 3,
    "num_heads": 4,
    "patch_size": 4,
    "image_size": 64,
    "rope_theta": 1e3,
    "activation": "silu",
}


def mistral3(**outer: Any) -> nn.Module:
    """A random `Mistral3ForConditionalGeneration` with a Ministral-3 text part, fp32."""
    config = transformers.Mistral3Config(
        vision_config=transformers.PixtralVisionConfig(**TOWER),
        text_config=transformers.Ministral3Config(**SIZES, **TEXT, rms_norm_eps=1e-5),
        **{"image_token_index": IMAGE_TOKEN, "tie_word_embeddings": False, **outer},
    )
    return _random(transformers.Mistral3ForConditionalGeneration(config))


def llava() -> nn.Module:
    """A random `LlavaForConditionalGeneration` with a Pixtral tower and a Mistral text part."""
    config = transformers.LlavaConfig(
        vision_config=transformers.PixtralVisionConfig(**TOWER),
        text_config=transformers.MistralConfig(**SIZES, sliding_window=None, rms_norm_eps=1e-5),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return _random(transformers.LlavaForConditionalGeneration(config))


def _random(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        wide = parameter.dim() == 1 or "embed_tokens" in name
        scale = 0.3 if wide else 1.5 * parameter[0].numel() ** -0.5
        parameter.data = torch.randn_like(parameter) * scale + (parameter.dim() == 1)
    return model.eval()


def vision_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights of tower and projector by canonical name."""
    parts = ("vision_tower.", "multi_modal_projector.")
    state = {name.removeprefix("model."): t for name, t in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if name.startswith(parts)}


def padded(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pictures `[3, h, w]` as transformers batches them: padded pixels and their sizes."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = sizes.max(0).values.tolist()
    pixels = torch.zeros(len(images), 3, height, width)
    for i, image in enumerate(images):
        pixels[i, :, : image.shape[1], : image.shape[2]] = image
    return pixels, sizes


def our_config(**changes: Any) -> VisionConfig:
    """The config of the tower that `mistral3` has."""
    return VisionConfig(**{**OUR_TOWER, **changes})
