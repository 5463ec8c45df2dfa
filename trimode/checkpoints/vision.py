"""The vision part of a checkpoint: its config, its tokens and its weights, to and from files.

Three layouts are read: `mistral3` (Mistral Small 3.1, Ministral 3), `llava` with a Pixtral tower
(Pixtral 12B), and NVIDIA's `nemotron_labs_diffusion_vlm`. What a config leaves out has the default
of transformers' class. NVIDIA's complete config is not public, so there it has the published sizes
of VLM-8B, which are those of `VisionConfig`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimode.checkpoints.families import NLD_VLM, OUTER_MODELS, VISION_LAYOUTS
from trimode.checkpoints.names import compare_tensors, to_published_vision
from trimode.checkpoints.safetensors_dir import open_vision_weights
from trimode.config import ModelConfig
from trimode.errors import CheckpointError
from trimode.files import read_json_object, read_json_object_if_there
from trimode.text import Tokenizer
from trimode.vision import (
    NO_VISION,
    ImageTokens,
    PictureFormat,
    Vision,
    VisionActivation,
    VisionConfig,
    VisionModel,
    expected_vision_tensors,
)

_PIXTRAL = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 16,
    "image_size": 1024,
}
"""Defaults of transformers' PixtralVisionConfig."""
_NLD_SIZES = {**_PIXTRAL, "patch_size": 14, "image_size": 1540}
"""Published of VLM-8B; also what transformers' Mistral3Config takes without a `vision_config`."""
_ACTIVATIONS: dict[str, VisionActivation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
}
_TOKEN_NAMES = {
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}
"""Names by which processors and tokenizers call the tokens of pictures, and their usual texts."""
_FIXED: dict[str, Any] = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": False,
    "do_convert_rgb": True,
    "resample": 3,  # bicubic
}
"""Settings of a processor, and the only value of each that is computed."""
PROCESSOR_FILE = "processor_config.json"
_PREPROCESSOR_FILE = "preprocessor_config.json"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class VisionCheckpoint(PictureFormat):
    """The vision part of an open checkpoint: everything but the weights is read."""

    read: Callable[[str], Tensor]
    """Reads a weight by canonical name."""

    def build(self, *, dtype: torch.dtype, device: str) -> Vision:
        """Read the weights.

        Raises:
            CheckpointError: a weight is not finite.
        """
        with torch.device("meta"):
            model = VisionModel(self.config)
        weights = {name: self._weight(name, dtype, device) for name in model.state_dict()}
        model.load_state_dict(weights, assign=True)
        model = model.eval().requires_grad_(False)
        return Vision(config=self.config, tokens=self.tokens, layout=self.layout, model=model)

    def _weight(self, name: str, dtype: torch.dtype, device: str) -> Tensor:
        weight = self.read(name)
        if not weight.isfinite().all():
            raise CheckpointError(name, "NaN or infinite", "must be finite numbers")
        return weight.to(device=device, dtype=dtype, copy=True)


def open_vision(directory: Path, text: ModelConfig, tokenizer: Tokenizer) -> VisionCheckpoint | str:
    """The vision part of a checkpoint, or the reason why pictures cannot be read.

    Args:
        directory: of the checkpoint.
        text: its language model.
        tokenizer: the checkpoint's.

    Raises:
        CheckpointError: there is a Pixtral tower, but a field or tensor of it is not supported.
    """
    path = directory / "config.json"
    fields = read_json_object(path)
    layout, given = fields.get("model_type"), fields.get("vision_config")
    shapes, read = open_vision_weights(directory)
    if not shapes:
        return NO_VISION
    if layout not in VISION_LAYOUTS:
        return f"the vision part of {layout} is not supported"
    kind = given.get("model_type", "pixtral") if isinstance(given, dict) else "pixtral"
    if kind != "pixtral":
        return f"a vision tower of the type {kind} is not supported"
    try:
        config = vision_config(fields, text, shapes, _processor_fields(directory))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.field}", error.found, error.allowed) from None
    what = f"the tensors of a Pixtral tower of {config.num_layers} layers and its projector"
    compare_tensors(expected_vision_tensors(config), shapes, str(directory), what)
    tokens = _image_tokens(directory, fields, text, tokenizer)
    return VisionCheckpoint(config=config, tokens=tokens, layout=layout, read=read)


def vision_config(
    fields: Mapping[str, Any],
    text: ModelConfig,
    tensors: Mapping[str, tuple[int, ...]],
    processor: Mapping[str, Any],
) -> VisionConfig:
    """Make the config of tower and projector.

    Args:
        fields: the outer `config.json`.
        text: the language model.
        tensors: canonical names and shapes. They say whether the projector has a norm and a
            merging layer, which no config does.
        processor: fields of the processor's files.

    Raises:
        CheckpointError: a field's value is not supported.
    """
    layout = fields.get("model_type")
    tower = fields.get("vision_config")
    defaults = _PIXTRAL if isinstance(tower, dict) and layout != NLD_VLM else _NLD_SIZES
    given = {k: v for k, v in (tower if isinstance(tower, dict) else {}).items() if v is not None}
    sizes = {name: _side(name, given.get(name, default)) for name, default in defaults.items()}
    rope = given.get("rope_parameters") or given.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError("vision_config.rope_parameters", repr(rope), "must be an object")
    kind = rope.get("rope_type", rope.get("type", "axial"))
    if kind not in ("axial", "default"):
        raise CheckpointError("vision_config.rope_type", repr(kind), "supported: axial")
    if given.get("num_channels", 3) != 3:
        found = repr(given["num_channels"])
        raise CheckpointError("vision_config.num_channels", found, "supported: 3")
    heads = sizes["num_attention_heads"]
    head_dim = given.get("head_dim", sizes["hidden_size"] // heads if heads else None)
    if heads and head_dim != sizes["hidden_size"] / heads:
        allowed = "hidden_size / num_attention_heads"
        raise CheckpointError("vision_config.head_dim", repr(head_dim), allowed)
    strategy = fields.get("vision_feature_select_strategy", "full")
    if strategy != "full":
        allowed = "supported: full; the tower has no token for the whole picture"
        raise CheckpointError("vision_feature_select_strategy", repr(strategy), allowed)
    llava = layout == "llava"
    return VisionConfig(
        text_size=text.hidden_size,
        hidden_size=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        num_layers=sizes["num_hidden_layers"],
        num_heads=heads,
        patch_size=sizes["patch_size"],
        image_size=_longest(processor, sizes["image_size"]),
        rope_theta=rope.get("rope_theta", given.get("rope_theta", 10_000.0)),
        activation=_activation(given, "hidden_act"),
        feature_layer=_given(fields, "vision_feature_layer", -2 if llava else -1),
        merge_size=1 if llava else _given(fields, "spatial_merge_size", 2),
        merging_layer="multi_modal_projector.patch_merger.merging_layer.weight" in tensors,
        projector_norm="multi_modal_projector.norm.weight" in tensors,
        projector_norm_eps=text.rms_norm_eps,
        projector_activation=_activation(fields, "projector_hidden_act"),
        projector_bias=_given(fields, "multimodal_projector_bias", llava),
        **_colours(processor),
    )


def _given(fields: Mapping[str, Any], name: str, default: Any) -> Any:
    """A field's value; absent or null means the default."""
    value = fields.get(name)
    return default if value is None else value


def _side(name: str, value: Any) -> int:
    """A size; some configs give height and width, which must be the same."""
    if isinstance(value, list) and value and all(side == value[0] for side in value):
        value = value[0]
    if type(value) is not int:
        raise CheckpointError(f"vision_config.{name}", repr(value), "must be a whole number")
    return value


def _activation(fields: Mapping[str, Any], name: str) -> VisionActivation:
    value = _given(fields, name, "gelu")
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise CheckpointError(name, repr(value), f"supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def _processor_fields(directory: Path) -> dict[str, Any]:
    """What the processor's files say, those of the picture part on top."""
    whole = read_json_object_if_there(directory / PROCESSOR_FILE)
    inner = whole.get("image_processor")
    older = read_json_object_if_there(directory / _PREPROCESSOR_FILE)
    found = {**whole, **older, **(inner if isinstance(inner, dict) else {})}
    for name, value in _FIXED.items():
        if found.get(name) not in (None, value):
            where = f"{directory / PROCESSOR_FILE}: {name}"
            raise CheckpointError(where, repr(found[name]), f"supported: {value}")
    return found


def _longest(processor: Mapping[str, Any], default: int) -> int:
    """Most pixels of the longer side."""
    size = processor.get("size")
    longest = size.get("longest_edge") if isinstance(size, dict) else None
    return default if longest is None else longest


def _colours(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and deviation of the channels, as far as the processor's files give them."""
    found = {}
    for name in ("image_mean", "image_std"):
        value = processor.get(name)
        if value is not None:
            if not isinstance(value, list):
                raise CheckpointError(name, repr(value), "must be three numbers, one a channel")
            found[name] = tuple(value)
    return found


def _image_tokens(
    directory: Path, fields: Mapping[str, Any], text: ModelConfig, tokenizer: Tokenizer
) -> ImageTokens:
    """The tokens of pictures: named by the processor, else by the tokenizer, else as usual.

    The id of the picture's own token is the config's, if it gives one.
    """
    processor = read_json_object_if_there(directory / PROCESSOR_FILE)
    names = {**_TOKEN_NAMES, **_texts(tokenizer.named_tokens or {}), **_texts(processor)}
    ids = {name: tokenizer.token_id(spelled) for name, spelled in names.items()}
    image = fields.get("image_token_index", fields.get("image_token_id"))
    image = ids["image_token"] if image is None else image
    if image is None:
        found = f"no image_token_index, and the tokenizer has no {names['image_token']}"
        raise CheckpointError(f"{directory / 'config.json'}", found, "pictures need a token")
    if type(image) is not int or not 0 <= image < text.vocab_size:
        where = f"{directory / 'config.json'}: image_token_index"
        raise CheckpointError(where, repr(image), f"must be in 0..{text.vocab_size - 1}")
    return ImageTokens(image, ids["image_break_token"], ids["image_end_token"])


def _texts(fields: Mapping[str, Any]) -> dict[str, str]:
    return {name: fields[name] for name in _TOKEN_NAMES if isinstance(fields.get(name), str)}


def vision_fields(vision: Vision, text: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a checkpoint with a vision part, around that of its language model.

    Raises:
        CheckpointError: the layout is for language models of another family.
    """
    family = OUTER_MODELS[vision.layout]
    if family not in (None, text["model_type"]):
        allowed = f"{vision.layout} holds a language model of {family}"
        raise CheckpointError("model_type", str(text["model_type"]), allowed)
    config = vision.config
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    llava = vision.layout == "llava"
    outer = {
        "architectures": [VISION_LAYOUTS[vision.layout].architecture],
        "model_type": vision.layout,
        "text_config": dict(text),
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "head_dim": config.head_dim,
            "num_channels": 3,
            "patch_size": config.patch_size,
            "image_size": config.image_size,
            "hidden_act": names[config.activation],
            "rope_parameters": {"rope_type": "axial", "rope_theta": config.rope_theta},
        },
        "image_token_index": vision.tokens.image,
        "vision_feature_layer": config.feature_layer,
        "projector_hidden_act": names[config.projector_activation],
        "multimodal_projector_bias": config.projector_bias,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }
    own = (
        {"vision_feature_select_strategy": "full"}
        if llava
        else {"spatial_merge_size": config.merge_size}
    )
    return outer | own


def vision_tensors(vision: Vision) -> dict[str, Tensor]:
    """Published names and weights of tower and projector."""
    state = vision.model.state_dict()
    return {
        to_published_vision(name, vision.layout): tensor.contiguous()
        for name, tensor in state.items()
    }


def save_processor(directory: Path, vision: Vision, tokenizer: Tokenizer) -> None:
    """Write the file from which transformers makes the processor of text and pictures."""
    config, tokens = vision.config, vision.tokens
    ids = zip(_TOKEN_NAMES, (tokens.image, tokens.row_break, tokens.end), strict=True)
    names = {name: tokenizer.token_text(i) for name, i in ids if i is not None}
    side = config.patch_size
    fields = {
        "processor_class": "PixtralProcessor",
        "patch_size": side,
        "spatial_merge_size": config.merge_size,
        **names,
        "image_processor": {
            "image_processor_type": "PixtralImageProcessor",
            **_FIXED,
            "size": {"longest_edge": config.image_size},
            "patch_size": {"height": side, "width": side},
            "image_mean": list(config.image_mean),
            "image_std": list(config.image_std),
        },
    }
    (directory / PROCESSOR_FILE).write_text(json.dumps(fields, indent=2) + "\n")
