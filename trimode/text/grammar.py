"""Answers that must fit a grammar: which tokens may come next.

llguidance defines and matches the grammars. This module makes them from what a request asks, and
has a matcher that can be asked about any continuation, which verifying drafts needs.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimode.errors import InputError
from trimode.text.tokenizer import Tokenizer

JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One line, with a space after commas and colons. If white space is free, small models write it
without end."""
INSTALL = "pip install 'trimode[grammar]'"


def json_grammar(schema: dict[str, Any] | None = None) -> str:
    """The grammar of JSON that fits a schema; any JSON object by default.

    Raises:
        InputError: llguidance is not installed, or does not accept the schema.
    """
    matcher = _llguidance().LLMatcher
    source = json.dumps(schema or {"type": "object"})
    try:
        return matcher.grammar_from_json_schema(source, overrides=JSON_STYLE)
    except ValueError as error:  # for example a number that only Python's JSON has
        raise _no_grammar(str(error)) from None


def lark_grammar(source: str) -> str:
    """A grammar in llguidance's Lark dialect."""
    return _llguidance().LLMatcher.grammar_from_lark(source)


def regex_grammar(pattern: str) -> str:
    """The grammar of texts that match a regular expression from end to end."""
    return _llguidance().LLMatcher.grammar_from_regex(pattern)


def _no_grammar(reason: str) -> InputError:
    return InputError("grammar", reason, "must be a grammar that llguidance takes")


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise InputError("grammar", "llguidance is not installed", INSTALL) from None
    return llguidance


class GrammarMatcher:
    """Follows one answer through a grammar; goes back if a draft is dropped."""

    def __init__(
        self,
        grammar: str,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        stop_token_ids: Sequence[int],
    ) -> None:
        """`stop_token_ids` are allowed where the grammar may end.

        Raises:
            InputError: the grammar is not valid, or the model has no stop token.
        """
        if not stop_token_ids:
            raise InputError("grammar", "given", "this model has no token to end an answer with")
        backend = _tokenizer(tokenizer, vocab_size, tuple(stop_token_ids))
        self._matcher = _llguidance().LLMatcher(backend, grammar, log_level=0)
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().splitlines()[0]
            raise _no_grammar(reason)
        self._vocab_size = vocab_size
        self._stops = list(stop_token_ids)
        self._consumed: list[int] = []

    def allowed(self, answer: Sequence[int]) -> NDArray[np.bool_] | None:
        """Which tokens may follow, bool `[vocab]`.

        None if the answer itself does not fit, which can happen with an unverified draft.
        """
        if not self._go_to(answer):
            return None
        found = np.zeros(self._vocab_size, dtype=bool)
        if self._matcher.is_stopped():
            found[self._stops] = True
            return found
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        known = np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(bool)
        found[: len(known)] = known
        return found

    def _go_to(self, answer: Sequence[int]) -> bool:
        shared = 0
        for ours, theirs in zip(self._consumed, answer, strict=False):
            if ours != theirs:
                break
            shared += 1
        if shared < len(self._consumed):
            self._matcher.rollback(len(self._consumed) - shared)
            del self._consumed[shared:]
        wanted = list(answer[shared:])
        taken = self._matcher.try_consume_tokens(wanted) if wanted else 0
        self._consumed += wanted[:taken]
        return taken == len(wanted)


_tokenizers: dict[tuple[int, int, tuple[int, ...]], Any] = {}
"""Built once for each tokenizer: it takes a second and serves every request."""


def _tokenizer(tokenizer: Tokenizer, vocab_size: int, stops: tuple[int, ...]) -> Any:
    key = (id(tokenizer.backend), vocab_size, stops)
    if key not in _tokenizers:
        source = tokenizer.backend.to_str()
        size = max(vocab_size, tokenizer.vocab_size)
        _tokenizers[key] = _llguidance().LLTokenizer(source, n_vocab=size, eos_token=list(stops))
    return _tokenizers[key]
