"""Answers letter by letter, in the very tokens that the squares of their page have.

So an answer is a copy, which the base can make almost without training. An answer in the
tokenizer's own words must put them together from letters, which takes it hours to learn.
"""

import json
from collections.abc import Iterator

import numpy as np

from reproduce.documents.pages import Page
from reproduce.documents.targets import Targets, one_token
from trimode.text import Tokenizer
from trimode.training.data import Document


class Speller:
    """Writes answers about one page."""

    def __init__(self, page: Page, seen: Targets, columns: int, tokenizer: Tokenizer) -> None:
        """Take the page apart.

        Args:
            page: what is asked about.
            seen: what stands in its squares.
            columns: of squares.
            tokenizer: of the language model.
        """
        self._page, self._tokenizer = page, tokenizer
        tokens, filled = seen.tokens.view(-1, columns), seen.filled.view(-1, columns)
        rows = [row[stands] for row, stands in zip(tokens, filled, strict=True) if stands.any()]
        self._lines = [[tokenizer.decode([token]) for token in row.tolist()] for row in rows]
        self._pieces = [piece for line in self._lines for piece in (*line, "\n")][:-1]
        self._text = "".join(self._pieces)

    def answer(self, text: str) -> list[int]:
        """The tokens of an answer: the whole page, one of its fields, or some as JSON."""
        if text == self._page.text:
            return self._transcript()
        if not text.startswith("{"):
            return self._copied(text)
        found: list[int] = []
        for name, value in json.loads(text).items():
            found += self._tokenizer.encode(f'{", " if found else "{"}{json.dumps(name)}: "')
            found += [*self._copied(json.dumps(value)[1:-1]), *self._tokenizer.encode('"')]
        return [*found, *self._tokenizer.encode("}")]

    def _transcript(self) -> list[int]:
        found: list[int] = []
        for whole, line in zip(self._page.text.split("\n"), self._lines, strict=True):
            indent = len(whole) - len(whole.lstrip()) - line[0].startswith(" ")
            said = " " * indent + "".join(line)
            left = whole[len(said) :] if whole.startswith(said) else ""
            found += self._tokenizer.encode("\n") if found else []
            found += self._tokenizer.encode(" " * indent)
            for piece in (*line, *left):  # a crowded line may have letters without a square
                found += self._tokens(piece)
        return found

    def _copied(self, text: str) -> list[int]:
        """The tokens of a part of the page, cut where it begins and ends."""
        start = self._text.find(text)
        if start < 0:
            return [token for letter in text for token in self._tokens(letter)]
        end, at = start + len(text), 0
        found: list[int] = []
        for piece in self._pieces:
            part = piece[max(0, start - at) : max(0, end - at)]
            found += self._tokens(part)
            at += len(piece)
        return found

    def _tokens(self, piece: str) -> list[int]:
        if not piece or one_token(piece, self._tokenizer):
            return self._tokenizer.encode(piece)
        return [token for letter in piece for token in self._tokenizer.encode(letter)]


def respelled(document: Document, speller: Speller, tokenizer: Tokenizer) -> Document:
    """A tokenised conversation about a page with its answers letter by letter.

    Args:
        document: pictures stand before the first answer.
        speller: of the page.
        tokenizer: of the language model.
    """
    tokens: list[int] = []
    learn: list[bool] = []
    for answers, part in _runs(document):
        if answers:
            *words, end = part
            part = [*speller.answer(tokenizer.decode(words)), end]
        tokens += part
        learn += [answers] * len(part)
    return Document(
        np.asarray(tokens, dtype=np.int32), np.asarray(learn, dtype=bool), document.images
    )


def _runs(document: Document) -> Iterator[tuple[bool, list[int]]]:
    """Parts of a document that are learned or not, in turn."""
    edges = np.flatnonzero(np.diff(document.learn)) + 1
    parts = np.split(document.tokens, edges)
    starts = [0, *edges.tolist()]
    for start, part in zip(starts, parts, strict=True):
        yield bool(document.learn[start]), part.tolist()
