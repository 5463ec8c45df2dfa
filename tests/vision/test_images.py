"""Picture files: sized as transformers does, pixel for pixel, and refused with a reason."""

import io
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from tests.reference import vision as reference
from trimode.errors import InputError
from trimode.vision import ImageLimits, decode, process

CONFIG = reference.our_config()


def noise(mode, size=(37, 23), seed=0):
    """A picture of a mode with random content."""
    generator = np.random.default_rng(seed)
    colours = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8))
    if mode == "I;16":
        deep = generator.integers(0, 2**16, (size[1], size[0]), dtype=np.uint16)
        return Image.fromarray(deep)
    if mode in ("RGBA", "LA"):
        return colours.convert(mode)
    return colours.convert("RGB").convert(mode)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    return encoded(noise("RGB"), "JPEG", exif=exif)


def see_through_palette():
    return encoded(noise("P"), "PNG", transparency=bytes(range(256)))


FILES = {
    "png": encoded(noise("RGB"), "PNG"),
    "jpeg": encoded(noise("RGB"), "JPEG"),
    "jpeg-cmyk": encoded(noise("CMYK"), "JPEG"),
    "jpeg-grey": encoded(noise("L"), "JPEG"),
    "webp": encoded(noise("RGB"), "WEBP"),
    "webp-alpha": encoded(noise("RGBA"), "WEBP", lossless=True),
    "palette": encoded(noise("P"), "PNG"),
    "palette-alpha": see_through_palette(),
    "grey": encoded(noise("L"), "PNG"),
    "grey-alpha": encoded(noise("LA"), "PNG"),
    "alpha": encoded(noise("RGBA"), "PNG"),
    "one-bit": encoded(noise("1"), "PNG"),
    "16-bit": encoded(noise("I;16"), "PNG"),
    "still-gif": encoded(noise("P"), "GIF"),
    "bmp": encoded(noise("RGB"), "BMP"),
    "tiff": encoded(noise("RGB"), "TIFF"),
    "1x1": encoded(noise("RGB", (1, 1)), "PNG"),
    "exact": encoded(noise("RGB", (64, 64)), "PNG"),
    "long": encoded(noise("RGB", (5, 300)), "PNG"),
    "wide": encoded(noise("RGB", (300, 5)), "PNG"),
    "large": encoded(noise("RGB", (641, 333)), "PNG"),
    **{f"exif-{turn}": oriented(turn) for turn in range(1, 9)},
}


def transformers_pixels(image):
    """What transformers' processor makes of a picture, `[3, height, width]`."""
    processor = PixtralImageProcessorPil(
        size={"longest_edge": CONFIG.image_size}, patch_size={"height": 8, "width": 8}
    )
    return processor(image, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("name", FILES)
def test_pixels_equal_those_of_transformers(name):
    theirs = Image.open(io.BytesIO(FILES[name]))
    if name.startswith("exif"):  # the processor itself leaves them as they lie
        theirs = ImageOps.exif_transpose(theirs)
    found = process(decode(FILES[name]), CONFIG)
    assert torch.equal(found.normalised(CONFIG), transformers_pixels(theirs))
    assert (found.rows * 8, found.columns * 8) == (found.height, found.width)


def test_a_side_that_would_vanish_is_one_square():
    found = process(decode(encoded(noise("RGB", (1, 900)), "PNG")), CONFIG)
    assert (found.rows, found.columns) == (8, 1)


def test_low_detail_is_a_smaller_picture():
    image = decode(FILES["large"])
    assert process(image, CONFIG, longest=16).read().shape == (8, 16, 3)


def test_equal_pixels_have_equal_keys_and_others_have_other_keys():
    image = decode(FILES["png"])
    again = process(decode(encoded(image, "TIFF")), CONFIG)
    key = process(image, CONFIG).key
    assert key == again.key
    assert 0 <= key < 2**62
    changed = image.copy()
    changed.putpixel((0, 0), (0, 0, 0) if image.getpixel((0, 0)) != (0, 0, 0) else (255, 0, 0))
    assert process(changed, CONFIG).key != key
    tall = Image.new("RGB", (8, 16))
    assert process(tall, CONFIG).key != process(tall.rotate(90, expand=True), CONFIG).key


def animated(kind):
    frames = [noise("RGB", seed=i) for i in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def heic(brand):
    return b"\0\0\0\x18ftyp" + brand + b"\0" * 40


REFUSED = {
    "empty": (b"", "an empty file"),
    "text": (b"hello, this is no picture", "not readable as a picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    "svg-xml": (
        b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made -->\n<svg width='1'>",
        "an SVG drawing",
    ),
    "svg-doctype": (b"<?xml version='1.0'?><!DOCTYPE svg PUBLIC 'a'><svg>", "an SVG drawing"),
    "heic": (heic(b"heic"), "a HEIC picture"),
    "heif": (heic(b"mif1"), "a HEIC picture"),
    "avif": (heic(b"avif"), "an AVIF picture"),
    "pdf": (b"%PDF-1.7", "a PDF document"),
    "gif": (animated("GIF"), "a GIF of 3 frames"),
    "webp": (animated("WEBP"), "a WEBP of 3 frames"),
    "apng": (animated("PNG"), "a PNG of 3 frames"),
    "pages": (animated("TIFF"), "a TIFF of 3 pages"),
    "truncated-png": (FILES["large"][:-400], "a damaged or truncated PNG"),
    "truncated-jpeg": (FILES["jpeg"][:-300], "a damaged or truncated JPEG"),
    "header-only": (FILES["png"][:20], "not readable as a picture"),
    "icon": (encoded(noise("RGB", (16, 16)), "ICO"), "not readable as a picture"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_by_name(name):
    data, reason = REFUSED[name]
    with pytest.raises(InputError, match=f"photo.png: {reason}"):
        decode(data, name="photo.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged metadata
@pytest.mark.parametrize(
    "name", ["png", "jpeg", "webp", "palette-alpha", "tiff", "still-gif", "bmp"]
)
def test_damage_anywhere_is_an_error_or_a_picture(name):
    """Whatever byte is wrong: no exception but ours."""
    generator = np.random.default_rng(1)
    for _ in range(60):
        data = bytearray(FILES[name])
        for place in generator.integers(0, len(data), 4):
            data[place] = generator.integers(0, 256)
        with suppress(InputError):
            decode(bytes(data), limits=ImageLimits(pixels=10**5))


def test_limits_name_what_was_given_and_what_is_allowed():
    with pytest.raises(InputError, match=r"image: 641 x 333 pixels; at most 0 million"):
        decode(FILES["large"], limits=ImageLimits(pixels=1000))
    with pytest.raises(InputError, match=r"image: 0\.\d MiB; at most 0\.125 MiB a picture"):
        decode(FILES["large"], limits=ImageLimits(bytes=2**17))


def test_a_bomb_is_refused_before_it_is_decoded():
    header = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    for size in (60_000, 10**9):
        header[16:24] = size.to_bytes(4, "big") * 2
        header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
        with pytest.raises(InputError, match="million pixels"):
            decode(bytes(header))


def test_a_photograph_with_previews_is_its_first_picture():
    photo, depth = noise("RGB"), noise("L", seed=4)
    data = encoded(photo, "MPO", save_all=True, append_images=[depth.convert("RGB")])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert decode(data).size == photo.size
