"""SentencePiece BPE by its definition: merge the best adjacent pair until none is left."""

from itertools import pairwise


def encode(text, pieces, scores, *, add_space_prefix=True):
    """Ids of a text without special tokens; bytes stand for characters without a piece."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    if not text:
        return []
    symbols = list((" " + text if add_space_prefix else text).replace(" ", "\u2581"))
    while True:
        pairs = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(symbols))
                 if a + b in ids]  # fmt: skip
        if not pairs:
            break
        _, at = min(pairs)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    found = []
    for symbol in symbols:
        if symbol in ids:
            found.append(ids[symbol])
        else:
            found += [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return found
