"""Weight formats: one file each, chosen by dtype and device in `trimode.model.build`."""

from trimode.model.formats.fbgemm import FbgemmFormat
from trimode.model.formats.format import Embedding, WeightFormat
from trimode.model.formats.int4 import Int4Format
from trimode.model.formats.int8 import Int8Format
from trimode.model.formats.onednn import OneDnnFormat
from trimode.model.formats.plain import PlainFormat

__all__ = [
    "Embedding",
    "FbgemmFormat",
    "Int4Format",
    "Int8Format",
    "OneDnnFormat",
    "PlainFormat",
    "WeightFormat",
]
