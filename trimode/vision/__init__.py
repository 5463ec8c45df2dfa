"""Pictures become embeddings that stand in a prompt. It knows no modes and no checkpoints."""

from trimode.vision.config import VISION_ACTIVATIONS, VisionActivation, VisionConfig
from trimode.vision.images import (
    DEFAULT_LIMITS,
    LOW_DETAIL,
    ImageLimits,
    ProcessedImage,
    decode,
    process,
    too_many_bytes,
)
from trimode.vision.model import VisionModel, expected_vision_tensors
from trimode.vision.projector import Projector
from trimode.vision.reader import NO_VISION, PictureFormat, Vision
from trimode.vision.sources import base64_bytes, data_url_bytes, is_file_source, read_source
from trimode.vision.tokens import ImageTokens
from trimode.vision.tower import VisionTower

__all__ = [
    "DEFAULT_LIMITS",
    "LOW_DETAIL",
    "NO_VISION",
    "VISION_ACTIVATIONS",
    "ImageLimits",
    "ImageTokens",
    "PictureFormat",
    "ProcessedImage",
    "Projector",
    "Vision",
    "VisionActivation",
    "VisionConfig",
    "VisionModel",
    "VisionTower",
    "base64_bytes",
    "data_url_bytes",
    "decode",
    "expected_vision_tensors",
    "is_file_source",
    "process",
    "read_source",
    "too_many_bytes",
]
