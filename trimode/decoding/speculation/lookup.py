"""Drafts from text already seen: the answer is followed through the text that it repeats.

A text is found by its last tokens, as in prompt lookup decoding (Saxena, 2023) and the n-gram
drafts of vLLM and llama.cpp. Then it is followed from where the answer stands, over insertions,
deletions and replaced tokens, so that a better match elsewhere does not lead away.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

NGRAM = 3
"""Tokens that must match where a text is found."""
MAX_DRAFT = 32
_NEAR = 24
"""Tokens after the place where the answer left a text in which a single match finds it again."""
_PATIENCE = 48
"""Tokens of the answer for which it is looked for near that place."""
_SURE = NGRAM
"""Tokens that must have matched in a row before drafts have any length."""
_CANDIDATES = 8
"""Occurrences of the last tokens that are compared by how much before them matches too: those
nearest to the place left, else the latest."""


class Lookup:
    """Drafts for a growing sequence from its prediction and from itself."""

    def __init__(self, prediction: Sequence[int] = ()) -> None:
        """`prediction`: text that the answer is expected to resemble; it is looked up first."""
        self._prediction = _Followed(prediction) if prediction else None
        if self._prediction is not None:
            self._prediction.stand_at(0)
        self._text = _Followed()
        self._answer: list[int] = []
        self._prompt_read = False

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens that are final; the first are the prompt."""
        for token in tokens if self._prompt_read else ():
            self._answer.append(token)
            if self._prediction is not None:
                self._prediction.follow(token, self._answer)
            self._text.append(token)
            self._text.follow(token, self._text.tokens)
        if not self._prompt_read:
            self._text.extend(tokens)
            self._text.find(tokens)
            self._prompt_read = True

    def draft(self, most: int) -> tuple[list[int], bool]:
        """At most `most` tokens that may come next, and whether they are from the prediction.

        There are none if nothing matches.
        """
        most = min(most, MAX_DRAFT)
        if most < 1:
            return [], False
        if self._prediction is not None and (found := self._prediction.following(most)):
            return found, True
        return self._text.following(most), False


class _Followed:
    """A text, and where an answer that repeats it stands in it."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = defaultdict(list)
        """Where each n-gram ends, in order."""
        self._indexed = 0
        self._place: int | None = None
        """The token that should come next."""
        self._matched = 0
        """Tokens before it that matched in a row, as far as they were counted."""
        self._left: int | None = None
        """Where the answer left the text."""
        self._since = 0
        """Tokens of the answer since then."""
        self.extend(tokens)

    def append(self, token: int) -> None:
        """Add a token to the text."""
        self.tokens.append(token)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens to the text."""
        self.tokens.extend(tokens)

    def stand_at(self, place: int) -> None:
        """The answer is expected to go on at a place."""
        self._place, self._matched = place, _SURE

    def follow(self, token: int, answer: Sequence[int]) -> None:
        """Take note of the next token of the answer, the last one of `answer`."""
        place = self._place
        if place is not None and self._at(place) == token:
            self._place, self._matched = place + 1, self._matched + 1
            return
        if place is not None:
            # What was found by one or two tokens was a guess; the place left before still counts.
            if self._matched >= NGRAM or self._left is None:
                self._left, self._since = place, 0
            self._place = None
        self._since += 1
        self.find(answer)

    def find(self, answer: Sequence[int]) -> None:
        """Look for the last tokens of an answer: anywhere, or near the place where it left."""
        best = self._longest(answer)
        if best is None:
            best = self._near(answer[-1]) if answer else None
        if best is not None:
            self._place, self._matched = best

    def following(self, most: int) -> list[int]:
        """What should come next; shorter where few tokens say so."""
        if self._place is None:
            return []
        if self._matched < _SURE:
            most = min(most, 2 * self._matched)
        return self.tokens[self._place : self._place + most]

    def _at(self, place: int) -> int | None:
        return self.tokens[place] if place < len(self.tokens) else None

    def _longest(self, answer: Sequence[int]) -> tuple[int, int] | None:
        """Where the answer's last tokens ended before, with most of what is before them."""
        if len(answer) < NGRAM:
            return None
        self._index()
        ends = self._ends.get(tuple(answer[-NGRAM:]), ())
        left = len(self.tokens) if self._left is None else self._left
        best: tuple[int, int] | None = None
        place = bisect_left(ends, left)
        near = ends[max(0, place - _CANDIDATES) : place + _CANDIDATES]
        for end in sorted(near, key=lambda end: abs(end - left))[:_CANDIDATES]:
            matched = NGRAM
            while (
                matched < _NEAR
                and matched < min(end, len(answer))
                and self.tokens[end - 1 - matched] == answer[-1 - matched]
            ):
                matched += 1
            if best is None or matched > best[1]:
                best = end, matched
        return best

    def _near(self, token: int) -> tuple[int, int] | None:
        """The first place after the one left at which the answer's last token stands."""
        if self._left is None or self._since > _PATIENCE:
            return None
        for place in range(self._left, min(self._left + _NEAR, len(self.tokens) - 1)):
            if self.tokens[place] == token:
                return place + 1, 1
        return None

    def _index(self) -> None:
        """Note where each n-gram but the last ends."""
        for end in range(max(self._indexed, NGRAM), len(self.tokens)):
            self._ends[tuple(self.tokens[end - NGRAM : end])].append(end)
        self._indexed = max(self._indexed, len(self.tokens))
