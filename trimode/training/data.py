"""From files to batches: tokenise, pack, and hand out rows in an order that a seed fixes."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimode.errors import InputError
from trimode.rows import image_sources, read_rows, read_text
from trimode.text import ChatTemplate, Tokenizer
from trimode.training.conversations import (
    Conversation,
    Message,
    message_fields,
    parse_conversation,
    unread_columns,
)
from trimode.training.masks import PADDING, text_runs
from trimode.training.pictures import DocumentImage, Pictures, take_pictures
from trimode.vision import NO_VISION, PictureFormat

LearnFrom = Literal["answers", "everything"]
"""Loss on assistant turns only (SFT), or on every token (pre-training)."""

_MARK = "\N{BLACK DIAMOND}answer\N{BLACK DIAMOND}"
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's thoughts; templates are given all of them if a message has one."""
_LINKS = ("name", "tool_call_id")
"""Fields that say which call a message belongs to. Many templates need not show them."""


@dataclass(frozen=True, slots=True)
class Document:
    """A tokenised training example."""

    tokens: NDArray[np.int32]
    learn: NDArray[np.bool_]
    """Whether a token is trained on: the AR loss predicts it, the noisy copy may mask it."""
    images: tuple[DocumentImage, ...] = ()


@dataclass(frozen=True, slots=True)
class Examples:
    """The documents of some files, and what became of every row."""

    documents: list[Document] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    """Rows by file."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows without a document, by the reason."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Rows with a column that says nothing to training, by the column."""
    cut: Counter[str] = field(default_factory=Counter)
    """Documents that were changed to fit, by the change."""

    def notes(self) -> list[str]:
        """What a user has to know of their files, a line each."""
        count, unused = self.rows.total(), self.left_out.total()
        found = [f"data: {count - unused} of {count} rows used, {len(self.documents)} examples"]
        if unused:
            found.append(f"data: {unused} of {count} rows not used: {_listed(self.left_out)}")
        found += [f"data: {n} {what}" for what, n in self.cut.most_common()]
        if self.ignored:
            found.append(f"data: columns not read: {', '.join(sorted(self.ignored))}")
        return found


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of packed documents, all `[R, L]`."""

    tokens: Tensor
    documents: Tensor
    """Number of the document within its row; -1 is padding."""
    learn: Tensor
    images: tuple[DocumentImage, ...] = ()

    @property
    def runs(self) -> Tensor:
        """Number of each run of text in its row, int64 `[R, L]`; see `masks.text_runs`."""
        return text_runs(self.documents, [(part.row, part.span) for part in self.images])


def tokenise(
    conversation: Conversation,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    eos_token_ids: Sequence[int],
    learn_from: LearnFrom = "answers",
    vision: PictureFormat | str = NO_VISION,
) -> list[Document]:
    """Tokens of an example and which of them are trained on.

    A conversation is one document, tokenised whole, as a prompt is when it is decoded. An answer
    is what stands after the generation prompt, and its end of turn. What the template writes after
    that is not trained on.

    Some templates show an answer in another way once it is an earlier turn (they drop its
    thoughts), or end the generation prompt with words that they do not repeat in a finished turn
    (`<think>`). Then each answer is a document of its own: the prompt that decoding would have
    given, and the answer.

    Raises:
        InputError: messages without a chat template, a field that the template does not show, or a
            picture that cannot be read.
    """
    if conversation.text:
        ids = tokenizer.encode(conversation.text)
        end = _end_of_text(tokenizer, eos_token_ids)
        if end is not None and ids[-1] not in eos_token_ids:
            ids.append(end)
        return [Document(np.asarray(ids, dtype=np.int32), np.ones(len(ids), dtype=bool))]
    if template is None:
        raise InputError("messages", "given", "the model has no chat template; use text")
    conversation, pictures = take_pictures(conversation, tokenizer, vision)
    _refuse_unshown(conversation, template)
    shown = _Shown(conversation, template, pictures)
    return [
        _document(text, spans, tokenizer, eos_token_ids, learn_from, pictures)
        for text, spans in shown.texts()
    ]


Span = tuple[int, int]
"""First and last character (exclusive) of an answer in a text."""


class _Shown:
    """A conversation as its template shows it."""

    def __init__(
        self, conversation: Conversation, template: ChatTemplate, pictures: Pictures
    ) -> None:
        self._conversation, self._template = conversation, template
        self._pictures = pictures
        self._messages = list(conversation.messages)

    def texts(self) -> Iterator[tuple[str, list[Span]]]:
        """Texts to train on, and the answers in each."""
        # Decoding never asks for an answer to nothing, so an opening greeting is only context.
        answers = [i for i in self._conversation.answers if i > 0]
        if not answers:
            return
        whole = self._whole(answers)
        if whole is not None:
            yield whole
            return
        for i in answers:
            text, span = self._alone(i)
            yield text, [span]

    def _whole(self, answers: list[int]) -> tuple[str, list[Span]] | None:
        """All of it as one text; None if a prompt of an earlier turn is not a part of it."""
        text = self._after(answers[-1])
        spans = []
        for i in answers:
            before, after = self._before(i), self._after(i)
            if not text.startswith(before) or not text.startswith(after):
                return None
            if not after.startswith(before):
                return None
            spans.append((len(before), len(after)))
        start, end = spans[-1]
        if self._is_cut(answers[-1]):
            spans[-1] = start, end = start, self._end_of_words(text, answers[-1], start, end)
            text = text[:end]
        return text, spans

    def _alone(self, i: int) -> tuple[str, Span]:
        """The prompt that decoding would have given for an answer, and the answer."""
        before, after = self._before(i), self._after(i)
        if after.startswith(before):
            text = after
        else:  # the generation prompt goes on after the header of the turn
            text = before + self._words(i, before) + self._closing(i)
        end = len(text)
        if self._is_cut(i):
            end = self._end_of_words(text, i, len(before), end)
        return text[:end], (len(before), end)

    def _before(self, i: int) -> str:
        """The prompt that decoding gives for message `i`."""
        return self._render(self._messages[:i], add_generation_prompt=True)

    def _after(self, i: int) -> str:
        return self._render(self._messages[: i + 1], add_generation_prompt=False)

    def _render(self, messages: list[Message], *, add_generation_prompt: bool) -> str:
        return self._template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=self._conversation.tools,
            pictures=self._pictures.marks_in(messages),
            image_token=self._pictures.image_token,
            **self._conversation.variables,
        )

    def _words(self, i: int, before: str) -> str:
        """What follows a generation prompt that opens a section of thoughts."""
        message = self._messages[i]
        if message.get("tool_calls"):
            found = "ends its generation prompt with words that no finished turn has"
            raise InputError("chat_template", found, "cannot tell where tool calls begin")
        content = _joined(message["content"])
        thoughts = next((message[name] for name in _THOUGHTS if message.get(name)), None)
        if thoughts is None:
            return content
        opened = before.rstrip().rpartition("<")[2]
        if not opened.endswith(">"):
            found = "ends its generation prompt with words that no finished turn has"
            raise InputError("chat_template", found, "put the thoughts into the content")
        return f"{thoughts.strip()}\n</{opened}\n\n{content.lstrip()}"

    def _closing(self, i: int) -> str:
        """What the template writes after an answer."""
        marked = {"role": "assistant", "content": _MARK}
        text = self._render([*self._messages[:i], marked], add_generation_prompt=False)
        _, mark, closing = text.partition(_MARK)
        if not mark:
            raise InputError("chat_template", "does not show an answer", "must contain its text")
        return closing

    def _is_cut(self, i: int) -> bool:
        return self._conversation.truncated and i == len(self._messages) - 1

    def _end_of_words(self, text: str, i: int, start: int, end: int) -> int:
        """Where the words of an answer end, its end of turn left out."""
        words = _joined(self._messages[i]["content"]).strip()
        found = text.rfind(words, start, end)
        return end if found < 0 else found + len(words)


def _document(
    text: str,
    spans: Sequence[Span],
    tokenizer: Tokenizer,
    eos_token_ids: Sequence[int],
    learn_from: LearnFrom,
    pictures: Pictures,
) -> Document:
    """A text, tokenised once; a token is learned if it begins inside of an answer."""
    tokens, begins, images = _tokens(text, tokenizer, pictures)
    if learn_from == "everything":
        learn = np.ones(len(tokens), dtype=bool)
        for part in images:
            learn[part.span] = False
        return Document(tokens, learn, images)
    learn = np.zeros(len(tokens), dtype=bool)
    ends = np.isin(tokens, np.asarray(eos_token_ids, dtype=np.int32))
    for start, end in spans:
        inside = (begins >= start) & (begins < end)
        last = np.flatnonzero(inside & ends)
        if len(last):  # what the template writes after the end of a turn is not the model's
            inside[last[-1] + 1 :] = False
        learn |= inside
    return Document(tokens, learn, images)


def _tokens(
    text: str, tokenizer: Tokenizer, pictures: Pictures
) -> tuple[NDArray[np.int32], NDArray[np.int64], tuple[DocumentImage, ...]]:
    """The tokens of a text, the character at which each begins, and the text's pictures."""
    pieces = re.split(f"([{''.join(pictures.images)}])", text) if pictures.images else [text]
    tokens: list[int] = []
    begins: list[int] = []
    images: list[DocumentImage] = []
    place = 0
    for piece in pieces:
        if piece in pictures.images:
            images.append(pictures.placed(piece, len(tokens)))
            layout = images[-1].layout
            tokens += layout.tolist()
            begins += [place] * len(layout)
        elif piece:
            tokens += tokenizer.encode(piece, add_bos=False)
            offsets = tokenizer.backend.encode(piece, add_special_tokens=False).offsets
            begins += [place + begin for begin, _ in offsets]
        place += len(piece)
    return np.asarray(tokens, np.int32), np.asarray(begins, np.int64).reshape(-1), tuple(images)


def _refuse_unshown(conversation: Conversation, template: ChatTemplate) -> None:
    """Raise InputError for a field that the template would drop in silence."""
    source = template.source
    allowed = "the model's chat template does not show it; remove it"
    if conversation.tools is not None:
        messages, variables = conversation.messages, conversation.variables
        with_tools = template.render(messages, tools=conversation.tools, **variables)
        if with_tools == template.render(messages, **variables):
            raise InputError("tools", "given", allowed)
    for name in conversation.variables:
        if name not in source:
            raise InputError(f"chat_template_kwargs.{name}", "given", allowed)
    for name in message_fields(conversation.messages):
        names = _THOUGHTS if name in _THOUGHTS else (name,)
        if name not in _LINKS and not any(each in source for each in names):
            raise InputError(f"messages: {name}", "given", allowed)


def _joined(content: Any) -> str:
    """A message's content as one text."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def _end_of_text(tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> int | None:
    """The token that ends a plain text."""
    if tokenizer.eos_token_id is not None:
        return tokenizer.eos_token_id
    return eos_token_ids[0] if eos_token_ids else None


def read_documents(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    eos_token_ids: Sequence[int],
    max_length: int,
    mask_token_id: int | None = None,
    overlong: Literal["error", "truncate"] = "error",
    learn_from: LearnFrom = "answers",
    vision: PictureFormat | str = NO_VISION,
) -> Examples:
    """Every example of the files (`trimode.rows`, and `.txt`), tokenised.

    Args:
        paths: read in this order.
        tokenizer: the model's.
        template: the model's, for conversations.
        eos_token_ids: tokens that end a turn.
        max_length: most tokens of a document.
        mask_token_id: a token that no example may hold.
        overlong: what to do with a longer one: refuse it, or cut its end off.
        learn_from: which tokens are trained on.
        vision: what the model reads pictures with, or the reason why it reads none.

    Raises:
        InputError: names the file and the line; or nothing can be trained on, and says why.
    """
    for path in paths:  # a wrong column of the last file is found before the first one is tokenised
        for where, row in islice(_rows(path), 1):
            if "skipped" not in row:
                parse_conversation(row, where)
    examples = Examples()
    for path in paths:
        for where, row in _rows(path):
            examples.rows[str(path)] += 1
            if "skipped" in row:
                examples.left_out[str(row["skipped"])] += 1
                continue
            examples.ignored.update(unread_columns(row))
            conversation = parse_conversation(row, where)
            try:
                found = tokenise(
                    conversation,
                    tokenizer,
                    template,
                    eos_token_ids=eos_token_ids,
                    learn_from=learn_from,
                    vision=vision,
                )
            except InputError as error:
                raise InputError(f"{where}: {error.field}", error.found, error.allowed) from None
            _refuse_mask(found, mask_token_id, tokenizer, where)
            _add(examples, conversation, found, where, max_length, overlong)
    if not examples.documents:
        names = ", ".join(map(str, paths))
        count = examples.rows.total()
        reasons = _listed(examples.left_out) if count else "it has no rows"
        found = (
            f"nothing to train on in {names}: {examples.left_out.total()} of {count} rows unusable"
        )
        raise InputError("data", found, reasons)
    return examples


def _add(
    examples: Examples,
    conversation: Conversation,
    documents: list[Document],
    where: str,
    max_length: int,
    overlong: str,
) -> None:
    """Add the documents of a row, none of them longer than `max_length`."""
    if conversation.text:
        pieces = [piece for each in documents for piece in _pieces(each, max_length)]
        examples.documents.extend(pieces)
        if not pieces:
            examples.left_out["a text of one token"] += 1
        if len(pieces) > 1:
            examples.cut[f"texts cut into pieces of {max_length} tokens"] += 1
        return
    kept = 0
    for document in documents:
        if len(document.tokens) > max_length:
            if overlong == "error":
                allowed = f"at most sequence_length ({max_length}), or set overlong: truncate"
                raise InputError(where, f"{len(document.tokens)} tokens", allowed)
            examples.cut[f"conversations cut to {max_length} tokens (sequence_length)"] += 1
            document = _cut(document, max_length, where)
        if document.learn.any():
            examples.documents.append(document)
            kept += 1
    if not documents:
        only_first = any(i == 0 for i in conversation.answers)
        reason = "the only answer comes first" if only_first else "every answer has weight 0"
        examples.left_out[reason] += 1
    elif not kept:
        examples.left_out["the answer begins after sequence_length"] += 1


def _cut(document: Document, length: int, where: str) -> Document:
    """The beginning of a document; raise InputError if that cuts a picture."""
    images = tuple(part for part in document.images if part.start < length)
    if any(part.span.stop > length for part in images):
        allowed = f"pictures within sequence_length ({length}): none can be cut"
        raise InputError(where, f"{len(document.tokens)} tokens", allowed)
    return Document(document.tokens[:length], document.learn[:length], images)


def _refuse_mask(
    documents: list[Document], mask_token_id: int | None, tokenizer: Tokenizer, where: str
) -> None:
    """Raise InputError if an example holds the token that stands for "not yet decided"."""
    if any((document.tokens == mask_token_id).any() for document in documents):
        assert mask_token_id is not None
        found = f"holds the mask token {tokenizer.token_text(mask_token_id)} (id {mask_token_id})"
        raise InputError(where, found, "choose another one with --mask-token, or remove the row")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix.lower() == ".txt":
        text = read_text(path)
        if text.strip():
            yield str(path), {"text": text}
        return
    for row in read_rows(path):
        if row.fields.get("images"):
            sources = image_sources(row.fields["images"], row, path)
            yield row.where, {**row.fields, "images": list(sources)}
        else:
            yield row.where, row.fields


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.most_common())


def _pieces(document: Document, length: int) -> Iterator[Document]:
    """Plain text cut into documents that fill a row."""
    for start in range(0, len(document.tokens), length):
        tokens = document.tokens[start : start + length]
        if len(tokens) > 1:
            yield Document(tokens, document.learn[start : start + length])


def fingerprint(paths: Sequence[Path], documents: Sequence[Document]) -> str:
    """SHA-256 over the files' bytes, in order, and over the pictures that they name."""
    digest = hashlib.sha256()
    for part in (part for document in documents for part in document.images):
        digest.update(part.image.key.to_bytes(8, "big"))
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
        images: list[DocumentImage] = []
        for row in range(count):
            place = 0
            for number, chosen in enumerate(self._row(first + row)):
                document = self.documents[chosen]
                span = slice(place, place + len(document.tokens))
                tokens[row, span] = torch.from_numpy(document.tokens.astype(np.int64))
                learn[row, span] = torch.from_numpy(document.learn)
                numbers[row, span] = number
                images += [part.moved(row, place) for part in document.images]
                place = span.stop
        return Batch(tokens, numbers, learn, tuple(images))

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
