"""Drafts from text already seen: what followed the last time these tokens stood in a row.

Source: prompt lookup decoding (Saxena, 2023) and the n-gram drafts of vLLM and llama.cpp.
"""

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Sequence

NGRAM = 3
"""Tokens that must match."""
MAX_DRAFT = 16


class Lookup:
    """Finds earlier occurrences of a growing sequence's last tokens."""

    def __init__(self, prediction: Sequence[int] = ()) -> None:
        """`prediction`: text that the answer is expected to resemble; it is looked up first."""
        self._prediction = _Prediction(prediction)
        self._text: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        self._indexed = 0
        self._prompt_read = False

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens that are final; the first are the prompt."""
        if self._prompt_read:
            self._prediction.follow(tokens)
        self._text.extend(tokens)
        self._prompt_read = True

    def draft(self, most: int) -> tuple[list[int], bool]:
        """At most `most` tokens that may come next, and whether they are from the prediction.

        There are none if nothing matches.
        """
        most = min(most, MAX_DRAFT)
        if most < 1:
            return [], False
        if predicted := self._prediction.following(most):
            return predicted, True
        self._index()
        place = self._next.get(tuple(self._text[-NGRAM:]))
        return ([], False) if place is None else (self._text[place : place + most], False)

    def _index(self) -> None:
        """Note what follows each n-gram but the last, the latest occurrence winning."""
        text = self._text
        for end in range(max(self._indexed, NGRAM), len(text)):
            self._next[tuple(text[end - NGRAM : end])] = end
        self._indexed = max(self._indexed, len(text))


class _Prediction:
    """Text that an answer is expected to resemble, and where the answer stands in it.

    An answer that runs along is followed from where it stands, however often its last tokens occur.
    An answer that has left the text is found again at the first place after that one at which its
    last tokens stand, or at the last place before.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._places: dict[tuple[int, ...], list[int]] = defaultdict(list)
        """What follows each n-gram, in order."""
        for end in range(NGRAM, len(self._tokens)):
            self._places[tuple(self._tokens[end - NGRAM : end])].append(end)
        self._last: deque[int] = deque(maxlen=NGRAM)
        """The answer's last tokens."""
        self._place = 0
        """The token that should come next."""
        self._along = bool(self._tokens)

    def follow(self, tokens: Sequence[int]) -> None:
        """Take note of the answer's next tokens."""
        for token in tokens if self._tokens else ():
            self._last.append(token)
            if self._along and self._tokens[self._place : self._place + 1] == [token]:
                self._place += 1
                continue
            places = self._places.get(tuple(self._last), [])
            self._along = bool(places)
            if places:
                self._place = places[min(bisect_left(places, self._place), len(places) - 1)]

    def following(self, most: int) -> list[int]:
        """What should come next; nothing if the answer is not found in the text."""
        return self._tokens[self._place : self._place + most] if self._along else []
