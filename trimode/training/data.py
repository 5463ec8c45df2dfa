"""From files to batches: tokenise, pack, and hand out rows in an order that a seed fixes."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimode.errors import InputError
from trimode.text import ChatTemplate, Tokenizer
from trimode.training.conversations import Conversation, parse_conversation, read_jsonl
from trimode.training.masks import PADDING

LearnFrom = Literal["answers", "everything"]
"""Loss on assistant turns only (SFT), or on every token (pre-training)."""


@dataclass(frozen=True, slots=True)
class Document:
    """A tokenised training example."""

    tokens: NDArray[np.int32]
    learn: NDArray[np.bool_]
    """Whether a token is trained on: the AR loss predicts it, the noisy copy may mask it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed documents, all `[R, L]`."""

    tokens: Tensor
    documents: Tensor
    """Number of the document within its row; -1 is padding."""
    learn: Tensor


def tokenise(
    conversation: Conversation,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    eos_token_ids: Sequence[int],
    learn_from: LearnFrom = "answers",
) -> Document:
    """Tokens of an example and which of them are trained on.

    An answer is tokenised apart from the text before it, as when it is generated. Its end of turn
    is trained on. What the template writes after that is not.

    Raises:
        InputError: messages without a chat template, or a template that rewrites earlier turns.
    """
    tokens: list[int] = []
    learn: list[bool] = []

    def add(text: str, *, answer: bool) -> None:
        ids = tokenizer.encode(text, add_bos=False)
        last = max((i for i, token in enumerate(ids) if token in eos_token_ids), default=len(ids))
        tokens.extend(ids)
        learn.extend(learn_from == "everything" or (answer and i <= last) for i in range(len(ids)))

    if conversation.text:
        ids = tokenizer.encode(conversation.text)
        tokens, learn = ids, [True] * len(ids)
    else:
        if template is None:
            raise InputError("messages", "given", "the model has no chat template; use text")
        messages = conversation.messages
        done = ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = template.render(messages[:i])
            after = template.render(messages[: i + 1], add_generation_prompt=False)
            if not before.startswith(done) or not after.startswith(before):
                raise InputError(
                    "chat_template",
                    "rewrites earlier turns",
                    "cannot tell which tokens to train on",
                )
            add(before.removeprefix(done), answer=False)
            answer = after.removeprefix(before)
            if conversation.truncated and i == len(messages) - 1:
                written = message["content"].strip()
                found = answer.rfind(written)
                answer = answer if found < 0 else answer[: found + len(written)]
            add(answer, answer=True)
            done = after
    return Document(np.asarray(tokens, dtype=np.int32), np.asarray(learn, dtype=bool))


def read_documents(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    eos_token_ids: Sequence[int],
    max_length: int,
    overlong: Literal["error", "truncate"] = "error",
    learn_from: LearnFrom = "answers",
) -> list[Document]:
    """Every example of the files (`.jsonl`, `.parquet`, `.txt`), tokenised.

    Args:
        paths: read in this order.
        tokenizer: the model's.
        template: the model's, for conversations.
        eos_token_ids: tokens that end a turn.
        max_length: most tokens of a document.
        overlong: what to do with a longer one: refuse it, or cut its end off.
        learn_from: which tokens are trained on.

    Raises:
        InputError: names the file and the line.
    """
    documents = []
    for path in paths:
        for where, conversation in _examples(path):
            try:
                document = tokenise(
                    conversation,
                    tokenizer,
                    template,
                    eos_token_ids=eos_token_ids,
                    learn_from=learn_from,
                )
            except InputError as error:
                raise InputError(f"{where}: {error.field}", error.found, error.allowed) from None
            if conversation.text:
                documents.extend(_pieces(document, max_length))
                continue
            if len(document.tokens) > max_length:
                if overlong == "error":
                    allowed = f"at most sequence_length ({max_length}), or set overlong: truncate"
                    raise InputError(where, f"{len(document.tokens)} tokens", allowed)
                document = Document(document.tokens[:max_length], document.learn[:max_length])
            if document.learn.any():
                documents.append(document)
    if not documents:
        names = ", ".join(map(str, paths))
        raise InputError("data", f"nothing to train on in {names}", "needs at least one answer")
    return documents


def _examples(path: Path) -> Iterator[tuple[str, Conversation]]:
    if path.suffix == ".txt":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(str(path), f"not readable ({error})", "UTF-8 text") from None
        if text.strip():
            yield str(path), Conversation(text=text)
        return
    rows = _parquet(path) if path.suffix == ".parquet" else read_jsonl(path)
    for where, row in rows:
        if "skipped" not in row:
            yield where, parse_conversation(row, where)


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a parquet file, by the `datasets` package."""
    try:
        from datasets import Dataset  # type: ignore[import-not-found]
    except ImportError:
        raise InputError(
            str(path), "parquet needs the datasets package", "pip install 'trimode[data]'"
        ) from None
    try:
        rows = Dataset.from_parquet(str(path))
    except Exception as error:  # noqa: BLE001 - any failure of the reader means the same
        raise InputError(str(path), f"not readable ({error})", "a parquet file") from None
    for number, row in enumerate(rows, 1):
        assert isinstance(row, dict)
        yield f"{path} row {number}", row


def _pieces(document: Document, length: int) -> Iterator[Document]:
    """Plain text cut into documents that fill a row."""
    for start in range(0, len(document.tokens), length):
        tokens = document.tokens[start : start + length]
        if len(tokens) > 1:
            yield Document(tokens, document.learn[start : start + length])


def fingerprint(paths: Sequence[Path]) -> str:
    """SHA-256 over the files' bytes, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class PackedRows:
    """Endless packed rows in an order that the seed fixes; row i is a function of (seed, i)."""

    def __init__(self, documents: Sequence[Document], length: int, seed: int) -> None:
        self.documents, self.length, self.seed = documents, length, seed
        self._epochs: list[list[list[int]]] = []
        self._begins = [0]

    def batch(self, first: int, count: int) -> Batch:
        """Rows `first` to `first + count`."""
        shape = (count, self.length)
        tokens = torch.zeros(shape, dtype=torch.long)
        numbers = torch.full(shape, PADDING)
        learn = torch.zeros(shape, dtype=torch.bool)
        for row in range(count):
            place = 0
            for number, chosen in enumerate(self._row(first + row)):
                document = self.documents[chosen]
                span = slice(place, place + len(document.tokens))
                tokens[row, span] = torch.from_numpy(document.tokens.astype(np.int64))
                learn[row, span] = torch.from_numpy(document.learn)
                numbers[row, span] = number
                place = span.stop
        return Batch(tokens, numbers, learn)

    def epoch_of(self, row: int) -> float:
        """How many times the data has been gone through before this row."""
        self._row(row)
        epoch = next(i for i, begin in enumerate(self._begins[1:]) if row < begin)
        size = self._begins[epoch + 1] - self._begins[epoch]
        return epoch + (row - self._begins[epoch]) / size

    def _row(self, row: int) -> list[int]:
        """The documents of a row."""
        while self._begins[-1] <= row:
            packed = self._pack(len(self._epochs))
            self._epochs.append(packed)
            self._begins.append(self._begins[-1] + len(packed))
        epoch = next(i for i, begin in enumerate(self._begins[1:]) if row < begin)
        return self._epochs[epoch][row - self._begins[epoch]]

    def _pack(self, epoch: int) -> list[list[int]]:
        """All documents, shuffled, each in the first of a few open rows that has room."""
        order = list(range(len(self.documents)))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        rows: list[list[int]] = []
        open_rows: list[tuple[int, int]] = []  # (row, room)
        for chosen in order:
            size = len(self.documents[chosen].tokens)
            for slot, (row, room) in enumerate(open_rows):
                if size <= room:
                    rows[row].append(chosen)
                    open_rows[slot] = (row, room - size)
                    break
            else:
                rows.append([chosen])
                open_rows = [*open_rows[-7:], (len(rows) - 1, self.length - size)]
        return rows
