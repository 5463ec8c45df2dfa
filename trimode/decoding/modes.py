"""The modes by name."""

from collections.abc import Callable, Sequence

from trimode.config import Mode
from trimode.decoding.automatic import automatic
from trimode.decoding.autoregressive import autoregressive
from trimode.decoding.context import DecodingContext
from trimode.decoding.diffusion import diffusion
from trimode.decoding.linear import linear_speculation
from trimode.decoding.lookup import MAX_DRAFT
from trimode.decoding.policy import MAX_TREE_MASKS
from trimode.decoding.quadratic import quadratic_speculation
from trimode.decoding.span import Decoder

DECODERS: dict[Mode, Callable[[Sequence[int], DecodingContext], Decoder]] = {
    "ar": autoregressive,
    "diffusion": diffusion,
    "linear": linear_speculation,
    "quadratic": quadratic_speculation,
    "auto": automatic,
}


def scratch_rows(mode: Mode, block_length: int, *, rolling_block: bool = False) -> int:
    """Most rows a pass of this mode writes behind the KV cache."""
    match mode:
        case "quadratic":
            return block_length * (block_length + 1)
        case "ar":
            return 1
        case "auto":
            tree = min(block_length, MAX_TREE_MASKS)
            return max(block_length, tree * tree, MAX_DRAFT) + MAX_TREE_MASKS
        case "linear":
            return max(2, block_length)
        case _:
            # A rolling block runs behind the tokens it has filled.
            return 2 * block_length if rolling_block else block_length
