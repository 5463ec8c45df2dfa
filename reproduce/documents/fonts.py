"""The fonts that documents are drawn in: free ones, of Debian's packages that the Makefile names.

Three families are never trained on: one without serifs, one with serifs, one of equal widths.
"""

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

_FOLDER = Path("/usr/share/fonts")
_TRAINED = {
    "DejaVuSans": "truetype/dejavu/DejaVuSans.ttf",
    "DejaVuSans-Bold": "truetype/dejavu/DejaVuSans-Bold.ttf",
    "DejaVuSerif": "truetype/dejavu/DejaVuSerif.ttf",
    "DejaVuSansMono": "truetype/dejavu/DejaVuSansMono.ttf",
    "LiberationSans": "truetype/liberation/LiberationSans-Regular.ttf",
    "LiberationSans-Bold": "truetype/liberation/LiberationSans-Bold.ttf",
    "LiberationSerif": "truetype/liberation/LiberationSerif-Regular.ttf",
    "LiberationSerif-Bold": "truetype/liberation/LiberationSerif-Bold.ttf",
    "LiberationMono": "truetype/liberation/LiberationMono-Regular.ttf",
    "FreeSans": "truetype/freefont/FreeSans.ttf",
    "FreeSerif": "truetype/freefont/FreeSerif.ttf",
    "FreeMono-Bold": "truetype/freefont/FreeMonoBold.ttf",
    "OpenSans": "truetype/open-sans/OpenSans-Regular.ttf",
    "OpenSans-Semibold": "truetype/open-sans/OpenSans-Semibold.ttf",
    "Roboto": "truetype/roboto/unhinted/RobotoTTF/Roboto-Regular.ttf",
    "Roboto-Medium": "truetype/roboto/unhinted/RobotoTTF/Roboto-Medium.ttf",
    "Inconsolata": "truetype/inconsolata/Inconsolata.otf",
    "Carlito": "truetype/crosextra/Carlito-Regular.ttf",
    "Hack": "truetype/hack/Hack-Regular.ttf",
    "EBGaramond": "opentype/ebgaramond/EBGaramond12-Regular.otf",
    "LinuxLibertine": "opentype/linux-libertine/LinLibertine_R.otf",
    "LinuxBiolinum": "opentype/linux-libertine/LinBiolinum_R.otf",
    "Cantarell": "opentype/cantarell/Cantarell-Regular.otf",
    "FiraCode": "truetype/firacode/FiraCode-Regular.ttf",
}
_HELD_OUT = {
    "Lato": "truetype/lato/Lato-Regular.ttf",
    "Caladea": "truetype/crosextra/Caladea-Regular.ttf",
    "CourierPrime": "opentype/courier-prime/Courier Prime.otf",
}
TRAINED = tuple(_TRAINED)
HELD_OUT = tuple(_HELD_OUT)
EQUAL_WIDTHS = ("DejaVuSansMono", "LiberationMono", "FreeMono-Bold", "Inconsolata", "Hack",
                "FiraCode", "CourierPrime")  # fmt: skip


_SAMPLE = (
    "thesearelettersasoftenastheyareinenglishtextwhichhasnogapshereandafewcapitalsTSAM20189457"
)


@lru_cache
def letter_width(name: str) -> float:
    """How wide a font's letters are on average, as a share of its size."""
    return font(name, 100).getlength(_SAMPLE) / len(_SAMPLE) / 100


@lru_cache(maxsize=512)
def font(name: str, size: float) -> ImageFont.FreeTypeFont:
    """A font by its name here, in pixels.

    Raises:
        SystemExit: its package is not installed.
    """
    path = _FOLDER / {**_TRAINED, **_HELD_OUT}[name]
    if not path.exists():
        raise SystemExit(f"{path}: not installed; `make documents` installs it")
    # The basic layout places characters one after the other, so their places are known.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
