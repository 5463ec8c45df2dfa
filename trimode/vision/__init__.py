"""Pictures become embeddings that stand in a prompt. It knows no modes and no checkpoints."""

from trimode.vision.config import VISION_ACTIVATIONS, VisionActivation, VisionConfig
from trimode.vision.images import DEFAULT_LIMITS, ImageLimits, ProcessedImage, decode, process
from trimode.vision.model import VisionModel, expected_vision_tensors
from trimode.vision.projector import Projector
from trimode.vision.reader import Vision
from trimode.vision.tokens import ImageTokens
from trimode.vision.tower import VisionTower

__all__ = [
    "DEFAULT_LIMITS",
    "VISION_ACTIVATIONS",
    "ImageLimits",
    "ImageTokens",
    "ProcessedImage",
    "Projector",
    "Vision",
    "VisionActivation",
    "VisionConfig",
    "VisionModel",
    "VisionTower",
    "decode",
    "expected_vision_tensors",
    "process",
]
