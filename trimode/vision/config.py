"""Sizes of a vision tower and projector."""

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

from trimode.errors import CheckpointError

VisionActivation = Literal["gelu", "gelu_tanh", "silu"]
VISION_ACTIVATIONS: tuple[VisionActivation, ...] = get_args(VisionActivation)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the channels, by which Pixtral's processor normalises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """A Pixtral tower and the projector after it.

    Defaults are the published sizes of NLD's VLM-8B. `checkpoints.vision` says what a checkpoint's
    missing fields mean.
    """

    text_size: int
    """Hidden size of the language model, which the projector writes."""
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    patch_size: int = 14
    """Pixels of a patch's side."""
    image_size: int = 1540
    """Most pixels of a picture's longer side; larger pictures are scaled down to it."""
    rope_theta: float = 10_000.0
    activation: VisionActivation = "gelu"
    feature_layer: int = -1
    """Whose output the projector reads: -1 is the last layer, 0 what enters the first one."""
    merge_size: int = 2
    """Patches on each side of the square that becomes one token."""
    merging_layer: bool = True
    """Whether a linear turns the patches of a square into one. Else they are concatenated."""
    projector_norm: bool = True
    """Whether an RMSNorm stands before the merge."""
    projector_norm_eps: float = 1e-5
    projector_activation: VisionActivation = "gelu"
    projector_bias: bool = False
    image_mean: tuple[float, ...] = CLIP_MEAN
    image_std: tuple[float, ...] = CLIP_STD

    def __post_init__(self) -> None:
        sizes = ("text_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
                 "patch_size", "image_size", "merge_size")  # fmt: skip
        for name in sizes:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise CheckpointError(name, repr(value), "must be a whole number of at least 1")
        if self.hidden_size % self.num_heads or self.head_dim % 4:
            allowed = "must divide hidden_size into heads whose size is a multiple of 4"
            raise CheckpointError("num_heads", str(self.num_heads), allowed)
        for name in ("rope_theta", "projector_norm_eps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise CheckpointError(name, repr(value), "must be a number above 0")
        for name in ("activation", "projector_activation"):
            if getattr(self, name) not in VISION_ACTIVATIONS:
                allowed = f"supported: {', '.join(VISION_ACTIVATIONS)}"
                raise CheckpointError(name, repr(getattr(self, name)), allowed)
        if type(self.feature_layer) is not int or not 0 <= self.layers_run <= self.num_layers:
            allowed = f"must be one layer, -{self.num_layers + 1} to {self.num_layers}"
            raise CheckpointError("feature_layer", repr(self.feature_layer), allowed)
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            numbers = all(isinstance(v, int | float) and isfinite(v) for v in values)
            if len(values) != 3 or not numbers or (name == "image_std" and 0 in values):
                raise CheckpointError(name, repr(values), "must be three numbers, one a channel")

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.hidden_size // self.num_heads

    @property
    def layers_run(self) -> int:
        """How many layers come before the output that the projector reads."""
        last = self.feature_layer
        return last if last >= 0 else self.num_layers + 1 + last

    @property
    def merged_patch(self) -> int:
        """Pixels of the side of the square that becomes one token."""
        return self.patch_size * self.merge_size

    @property
    def features(self) -> int:
        """Width of what the projector's first linear reads."""
        return self.hidden_size if self.merging_layer else self.hidden_size * self.merge_size**2
