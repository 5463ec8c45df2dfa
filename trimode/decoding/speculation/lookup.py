"""Drafts from text already seen: what followed the last time these tokens stood in a row.

Source: prompt lookup decoding (Saxena, 2023) and the n-gram drafts of vLLM and llama.cpp.
"""

from collections.abc import Sequence

NGRAM = 3
"""Tokens that must match."""
MAX_DRAFT = 16


class Lookup:
    """Finds earlier occurrences of a growing sequence's last tokens."""

    def __init__(self, prediction: Sequence[int] = ()) -> None:
        """`prediction`: text that the answer is expected to resemble; it is looked up too."""
        self._text = list(prediction)
        self._first = len(self._text)
        """Where the sequence itself begins."""
        self._next: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._prompt_end = 0
        self._index()

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens that are final; the first are the prompt."""
        self._text.extend(tokens)
        self._prompt_end = self._prompt_end or len(self._text)

    def draft(self, most: int) -> tuple[list[int], bool]:
        """At most `most` tokens that may come next, and whether they are from the prediction.

        There are none if nothing matches. The beginning of an answer is compared with that of the
        prediction.
        """
        text = self._text
        most = min(most, MAX_DRAFT)
        if most < 1:
            return [], False
        self._index()
        place = None
        if len(text) - self._first >= NGRAM:
            place = self._next.get(tuple(text[-NGRAM:]))
        begun = len(text) - self._prompt_end
        if place is None and begun < min(NGRAM, self._first):
            place = begun if text[self._prompt_end :] == text[:begun] else None
        if place is None:
            return [], False
        predicted = place < self._first
        end = self._first if predicted else len(text)
        return text[place : min(place + most, end)], predicted

    def _index(self) -> None:
        """Note what follows each n-gram but the last, the latest occurrence winning."""
        text = self._text
        for end in range(max(self._indexed, NGRAM), len(text)):
            if end - NGRAM < self._first <= end:  # would straddle prediction and sequence
                continue
            self._next[tuple(text[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, len(text))
