"""Turns token ids into text as they come, never half a character."""

import codecs
from collections.abc import Collection, Sequence

from trimode.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_WINDOW = 8
"""Tokens kept as context if tokens are not runs of bytes."""


class Detokenizer:
    """Incremental decoding of one answer; special tokens are skipped, except those to be shown.

    However the ids are split, all pushes and the flush together are what the answer adds to the
    decoded text of its prompt. Byte-level vocabularies need no more than a UTF-8 decoder. In the
    others, the text of a token is what it adds to the decoded text of the last few tokens before
    it: decoders drop the space before the first word of a text, and an answer begins inside one.

    Args:
        tokenizer: the model's.
        prompt: tokens before the answer; by default the answer begins a text.
        shown_special_ids: special tokens that are shown.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        *,
        shown_special_ids: Collection[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = frozenset(shown_special_ids)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._before = self._end_of(prompt)
        self._context = list(self._before)
        """The last tokens whose text was shown."""
        self._held: list[int] = []
        """Tokens whose text the next ones may change."""

    def push(self, tokens: Sequence[int]) -> str:
        """Text that these tokens make final."""
        return "".join(map(self._push_one, tokens))

    def flush(self) -> str:
        """The rest of the text; incomplete bytes become U+FFFD. Then another answer may begin."""
        rest = self._utf8.decode(b"", final=True) + self._gain()
        self._utf8.reset()
        self._context, self._held = list(self._before), []
        return rest

    def preview(self, tokens: Sequence[int]) -> list[str]:
        """The text that each further token would add, without changing state.

        A token that holds only a part of a character adds nothing; the one that completes the
        character adds all of it.
        """
        clone = Detokenizer(self._tokenizer, shown_special_ids=self._shown)
        clone._utf8.setstate(self._utf8.getstate())
        clone._context, clone._held = list(self._context), list(self._held)
        pieces = [clone._push_one(token) for token in tokens]
        if pieces and _REPLACEMENT not in (rest := clone.flush()):
            pieces[-1] += rest  # whole characters, held only because more might follow
        return pieces

    def _end_of(self, prompt: Sequence[int]) -> list[int]:
        """The last tokens of a prompt that have visible text; none if all of it has none."""
        if self._tokenizer.byte_level:
            return []
        size = 2 * _WINDOW
        while True:
            found = list(prompt[-size:])
            while found and self._tokenizer.fallback_byte(found[-1]) is not None:
                found.pop()  # perhaps half a character, which the answer must not complete
            if self._tokenizer.decode(found).strip():
                return found
            if size >= len(prompt):
                return []
            size *= 4

    def _push_one(self, token: int) -> str:
        if token in self._tokenizer.special_ids:
            return self.flush() + self._tokenizer.token_text(token) if token in self._shown else ""
        if self._tokenizer.byte_level:
            return self._utf8.decode(self._tokenizer.token_bytes(token))
        if self._tokenizer.is_unknown(token):
            return ""  # decoding leaves it out, so it must not end a run of bytes
        self._held.append(token)
        if self._tokenizer.fallback_byte(token) is not None:
            return ""  # one wrong byte spoils the whole run: nothing is final before its end
        text = self._gain()
        if text.endswith(_REPLACEMENT):
            return ""  # the middle of a character, as far as one can tell
        self._context += self._held
        self._held = []
        if len(self._context) > 2 * _WINDOW:
            shorter = self._context[-_WINDOW:]
            # Decoders treat the beginning of a text specially, so the context needs visible text.
            if self._tokenizer.decode(shorter).strip():
                self._context = shorter
        return text

    def _gain(self) -> str:
        """Text that the held tokens add to the context."""
        if not self._held:
            return ""
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode([*self._context, *self._held])[len(before) :]
