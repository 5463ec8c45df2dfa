"""Picture files to pixels: decoded under limits, sized as transformers' Pixtral processor does.

Files come from strangers. So the format is known by its content and must be one of a few, and
sizes are checked before pixels are decoded.
"""

import hashlib
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from trimode.errors import InputError
from trimode.vision.config import VisionConfig

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_SNIFFED = 4096
"""Bytes at the beginning of a file that tell what it is."""
LOW_DETAIL = 512
"""Most pixels of the longer side of a picture that is asked for in low detail."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one picture may be."""

    bytes: int = 20 * 2**20
    """Of its file."""
    pixels: int = 2**26
    """When decoded: 8192 x 8192."""


DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedImage:
    """A picture as a tower reads it, before its colours are normalised."""

    height: int
    width: int
    """In pixels, a multiple of `merged_patch`, as the height is."""
    read: Callable[[], np.ndarray]
    """Returns the pixels, uint8 `[height, width, 3]`."""
    merged_patch: int
    """Pixels of the side of the square that becomes one token."""
    key: int
    """At least 0 and below 2**62, from the pixels: equal pictures have equal keys."""

    @property
    def rows(self) -> int:
        """Rows of tokens."""
        return self.height // self.merged_patch

    @property
    def columns(self) -> int:
        """Tokens of a row."""
        return self.width // self.merged_patch

    @property
    def tokens(self) -> int:
        """How many embeddings it becomes; breaks and the end are not counted."""
        return self.rows * self.columns

    def normalised(self, config: VisionConfig) -> Tensor:
        """Pixels as floats `[3, height, width]`, as the tower reads them."""
        return normalised(self.read(), config)


def normalised(pixels: np.ndarray, config: VisionConfig) -> Tensor:
    """Pixels `[height, width, 3]` as normalised floats `[3, height, width]`."""
    scaled = (pixels.astype(np.float64) / 255).astype(np.float32)
    mean, std = (np.array(v, dtype=np.float32) for v in (config.image_mean, config.image_std))
    return torch.from_numpy((scaled - mean) / std).permute(2, 0, 1).contiguous()


def decode(
    data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS, name: str = "image"
) -> Image.Image:
    """The picture of a file, upright and in RGB, transparency on white.

    Args:
        data: the whole file.
        limits: of its size.
        name: the field or file that an error names.

    Raises:
        InputError: the file is too large, damaged, animated, or of another format.
    """
    if len(data) > limits.bytes:
        raise too_many_bytes(name, f"{len(data) / 2**20:.1f} MiB", limits)
    _refuse_by_name(data, name)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise _too_many_pixels(name, "a picture of very many pixels", limits) from None
    except Exception:  # noqa: BLE001 - a damaged header fails in any way
        raise InputError(name, "not readable as a picture", _allowed()) from None
    with image:
        width, height = image.size
        if width * height > limits.pixels:
            raise _too_many_pixels(name, f"{width} x {height} pixels", limits)
        _refuse_frames(image, name)
        try:
            image.load()
            return upright_rgb(image)
        except Exception as error:  # noqa: BLE001 - damaged data fails in any way
            found = f"a damaged or truncated {image.format} ({error})"
            raise InputError(name, found, "a whole file") from None


def too_many_bytes(name: str, found: str, limits: ImageLimits) -> InputError:
    """The error of a file that is too large."""
    return InputError(name, found, f"at most {limits.bytes / 2**20:g} MiB a picture")


def _too_many_pixels(name: str, found: str, limits: ImageLimits) -> InputError:
    allowed = f"at most {limits.pixels / 1e6:.0f} million pixels; scale it down"
    return InputError(name, found, allowed)


def _allowed() -> str:
    return f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def _refuse_by_name(data: bytes, name: str) -> None:
    """Raise InputError for empty files and for formats that people try and that are not read."""
    start = data[:_SNIFFED]
    found = None
    if not data:
        found = "an empty file"
    elif re.match(rb"(\xef\xbb\xbf)?\s*(<\?xml.*?)?(<!--.*?-->\s*)*(<!DOCTYPE svg.*?)?<svg[\s/>]",
                  start, re.DOTALL):  # fmt: skip
        found = "an SVG drawing"
    elif start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        found = "a HEIC picture"
    elif start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis"):
        found = "an AVIF picture"
    elif start.startswith(b"%PDF"):
        found = "a PDF document"
    if found is not None:
        raise InputError(name, found, f"{_allowed()}; convert it first")


def _refuse_frames(image: Image.Image, name: str) -> None:
    """Raise InputError if a file has several frames or pages; which one is meant is not known.

    Cameras put previews and depth maps after a photograph (MPO): of these, the first is meant.
    """
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        what = "pages" if image.format == "TIFF" else "frames (animated)"
        raise InputError(name, f"a {image.format} of {frames} {what}", "one frame as a picture")


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture turned as its EXIF data say, in RGB, transparency on white."""
    return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data say; as it is if those are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - damaged metadata fails in any way, the picture is whole
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def process(
    image: Image.Image, config: VisionConfig, *, longest: int | None = None
) -> ProcessedImage:
    """Size an RGB picture as transformers' Pixtral processor does, pixel for pixel.

    The longer side becomes at most `image_size`, and both sides are stretched to the next multiple
    of `merged_patch`. A side that this would make 0 is one square, which transformers refuses.

    Args:
        image: as `decode` makes it.
        config: of the tower.
        longest: most pixels of the longer side, if less than `image_size`.
    """
    most = min(config.image_size, longest or config.image_size)
    square = config.merged_patch
    ratio = max(1.0, image.width / most, image.height / most)
    sides = (max(1, math.floor(side / ratio)) for side in image.size)
    width, height = (-(-side // square) * square for side in sides)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    digest = hashlib.blake2b(f"{width}x{height}:".encode(), digest_size=8)
    digest.update(pixels.tobytes())
    key = int.from_bytes(digest.digest(), "big") >> 2
    return ProcessedImage(height, width, lambda: pixels, square, key)
