"""Token ids to text as they come, never half a character."""

import codecs
from collections.abc import Sequence

from trimode.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_WINDOW = 8
"""Tokens kept as context where text is not a concatenation of bytes."""


class Detokenizer:
    """Incremental decoding of one answer; special tokens are skipped.

    Whatever the split, all pushes and the flush together equal `tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._context: list[int] = []
        self._shown = ""

    def push(self, tokens: Sequence[int]) -> str:
        """Text that these tokens make final."""
        return "".join(map(self._push_one, tokens))

    def flush(self) -> str:
        """What is left at the end; incomplete bytes become U+FFFD."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(b"", final=True)
        text = self._tokenizer.decode(self._context)[len(self._shown) :]
        self._context, self._shown = [], ""
        return text

    def preview(self, tokens: Sequence[int]) -> list[str]:
        """Text each further token would add, without changing state.

        A token that holds only a part of a character adds nothing; the one that completes the
        character adds all of it.
        """
        clone = Detokenizer(self._tokenizer)
        clone._utf8.setstate(self._utf8.getstate())
        clone._context, clone._shown = list(self._context), self._shown
        return [clone._push_one(token) for token in tokens]

    def _push_one(self, token: int) -> str:
        if token in self._tokenizer.special_ids:
            return ""
        if self._tokenizer.byte_level:
            return self._utf8.decode(self._tokenizer.token_bytes(token))
        return self._push_by_difference(token)

    def _push_by_difference(self, token: int) -> str:
        """For tokenizers whose decoding depends on neighbours (leading spaces, byte fallback)."""
        self._context.append(token)
        text = self._tokenizer.decode(self._context)
        if text.endswith(_REPLACEMENT):
            return ""  # the middle of a character, as far as one can tell
        new = text[len(self._shown) :]
        self._shown = text
        if len(self._context) > 2 * _WINDOW:
            shorter = self._context[-_WINDOW:]
            tail = self._tokenizer.decode(shorter)
            if not tail.startswith(_REPLACEMENT) and text.endswith(tail):
                self._context, self._shown = shorter, tail
        return new
