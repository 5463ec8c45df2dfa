"""Where pictures come from: files, `data:` URLs, bytes."""

import base64
import binascii
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from PIL import Image

from trimode.errors import InputError
from trimode.vision.images import DEFAULT_LIMITS, ImageLimits, decode, too_many_bytes, upright_rgb

_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?P<options>(?:;[^;,]*)*),", re.IGNORECASE)


def data_url_bytes(url: str, *, limits: ImageLimits = DEFAULT_LIMITS, name: str) -> bytes:
    """The content of a `data:` URL.

    Raises:
        InputError: it is malformed, too large, or says that it is no picture.
    """
    found = _DATA_URL.match(url)
    if found is None:
        raise InputError(name, repr(url[:40]), "must be like data:image/png;base64,iVBORw0...")
    kind = found["type"].lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise InputError(name, f"a data: URL of {kind}", "must be of image/...")
    content = url[found.end() :]
    if ";base64" not in found["options"].lower():
        return unquote_to_bytes(content)
    return base64_bytes(content, limits=limits, name=name)


def base64_bytes(text: str, *, limits: ImageLimits = DEFAULT_LIMITS, name: str) -> bytes:
    """The bytes of a picture in base64, also without padding and in the URL-safe alphabet.

    Raises:
        InputError: it is not base64, or too large.
    """
    if len(text) > limits.bytes * 4 // 3 + limits.bytes // 8 + 8:  # room for line breaks
        raise too_many_bytes(name, f"{len(text) * 3 / 4 / 2**20:.1f} MiB", limits)
    clean = "".join(unquote_to_bytes(text).decode("latin-1").split()) if "%" in text else text
    clean = "".join(clean.split()).rstrip("=").translate({ord("-"): "+", ord("_"): "/"})
    try:
        return base64.b64decode(clean + "=" * (-len(clean) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(name, "not base64", "must be the base64 of a picture's file") from None


def read_source(
    source: Any, *, limits: ImageLimits = DEFAULT_LIMITS, name: str = "image"
) -> Image.Image:
    """The picture that a program or a command line names, upright and in RGB.

    Args:
        source: a Pillow image, the bytes of a file, a path or a `data:` URL.
        limits: of its size.
        name: the field or option that an error names.

    Raises:
        InputError: there is no such file, or it is not a picture that can be read.
    """
    if isinstance(source, Image.Image):
        return upright_rgb(source)
    if isinstance(source, bytes | bytearray):
        return decode(bytes(source), limits=limits, name=name)
    if not isinstance(source, str | Path):
        allowed = "must be a path, bytes, a data: URL or a Pillow image"
        raise InputError(name, type(source).__name__, allowed)
    text = str(source)
    if _is_data_url(text):
        return decode(data_url_bytes(text, limits=limits, name=name), limits=limits, name=name)
    if re.match(r"https?://", text, re.IGNORECASE):
        raise InputError(name, text[:80], "must be a file: fetch the picture first")
    return decode(_file_bytes(Path(text).expanduser(), limits, name), limits=limits, name=name)


def is_file_source(source: Any) -> bool:
    """Whether a source is the path of a file."""
    return isinstance(source, Path) or (isinstance(source, str) and not _is_data_url(source))


def _is_data_url(text: str) -> bool:
    return text[:5].lower() == "data:"


def _file_bytes(path: Path, limits: ImageLimits, name: str) -> bytes:
    try:
        if not path.is_file():
            raise InputError(name, f"{path} is not a file", "must be a picture's file")
        size = path.stat().st_size
        if size > limits.bytes:
            raise too_many_bytes(name, f"{path}: {size / 2**20:.1f} MiB", limits)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(name, f"{str(path)[:80]} ({error})", "must be a readable file") from None
