"""Answers that must fit a grammar: which tokens may come next.

llguidance defines and matches the grammars. This module makes them from what a request asks, and
has a matcher that can be asked about any continuation, which verifying drafts needs.
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import gbnf_to_lark as converted
from numpy.typing import NDArray

from trimode.errors import GrammarError, InputError
from trimode.text.grammar_child import reason
from trimode.text.tokenizer import Tokenizer

JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One line, with a space after commas and colons. If white space is free, small models write it
without end."""

_MASK_SECONDS = 0.5
"""A mask that takes more of the processor's time ends its answer. Usual ones take a tenth of a
millisecond."""
_KEPT = 32
"""Compiled grammars that are kept: programs repeat their schemas."""
_KEPT_SECONDS = 5.0
"""Most seconds that the kept grammars took to compile, together: their memory grows with it."""
_Limits = llguidance.LLParserLimits
_LIMITS = _Limits(precompute_large_lexemes=False, verbose_errors=False)
"""llguidance's own limits on the work of a mask. Without precomputing, the time to compile a
grammar does not depend on the vocabulary, so that it can be measured without one."""


def json_grammar(schema: dict[str, Any] | None = None) -> str:
    """The grammar of JSON that fits a schema; any JSON object by default.

    Raises:
        InputError: the schema is not JSON.
    """
    source = json.dumps(schema or {"type": "object"})
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(source, overrides=JSON_STYLE)
    except ValueError as error:  # for example a number that only Python's JSON has
        raise _no_grammar(str(error)) from None


def lark_grammar(source: str) -> str:
    """A grammar in llguidance's Lark dialect."""
    return llguidance.LLMatcher.grammar_from_lark(source)


def regex_grammar(pattern: str) -> str:
    """The grammar of texts that match a regular expression from end to end."""
    return llguidance.LLMatcher.grammar_from_regex(pattern)


def gbnf_to_lark(source: str) -> str:
    """A grammar in llama.cpp's form (GBNF) as Lark.

    Raises:
        InputError: it cannot be converted.
    """
    try:
        return converted(source)
    except Exception as error:  # noqa: BLE001 - the converter is a program on foreign text
        raise _no_grammar(f"not GBNF ({error})") from None


def _no_grammar(reason: str) -> InputError:
    return InputError("grammar", reason, "must be a grammar that llguidance takes")


class GrammarMatcher:
    """Follows one answer through a grammar; goes back if a draft is dropped."""

    def __init__(
        self,
        grammar: str,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        stop_token_ids: Sequence[int],
        shown_special_ids: Collection[int] = (),
    ) -> None:
        """Compile the grammar, unless it is known already.

        Args:
            grammar: in llguidance's form.
            tokenizer: of the model.
            vocab_size: of the logits.
            stop_token_ids: allowed where the grammar may end.
            shown_special_ids: special tokens that are text here. The grammar forbids the others.

        Raises:
            InputError: the grammar is not valid, or the model has no stop token.
        """
        if not stop_token_ids:
            raise InputError("grammar", "given", "this model has no token to end an answer with")
        shown = frozenset(shown_special_ids)
        self._compiled = _compiled(grammar, tokenizer, vocab_size, tuple(stop_token_ids), shown)
        self._matcher = self._compiled.deep_copy()
        self._vocab_size = vocab_size
        self._stops = list(stop_token_ids)
        self._consumed: list[int] = []

    def allowed(self, answer: Sequence[int]) -> NDArray[np.bool_] | None:
        """Which tokens may follow, bool `[vocab]`.

        None if the answer itself does not fit, which can happen with an unverified draft.

        Raises:
            GrammarError: the grammar is too costly to follow at this place.
        """
        if not self._go_to(answer):
            return None
        found = np.zeros(self._vocab_size, dtype=bool)
        if self._matcher.is_stopped():
            found[self._stops] = True
            return found
        began = time.thread_time()
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        took = time.thread_time() - began
        if self._matcher.is_error():
            raise self._failed()
        if took > _MASK_SECONDS:
            raise GrammarError(f"the grammar took {took:.1f} seconds for one token")
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
        if self._matcher.is_error():
            raise self._failed()
        return taken == len(wanted)

    def _failed(self) -> GrammarError:
        """The matcher's error. It never recovers from one, so the next question gets a new one."""
        why = reason(self._matcher.get_error())
        self._matcher, self._consumed = self._compiled.deep_copy(), []
        return GrammarError(f"the grammar cannot be followed: {why}")


_lock = threading.Lock()
_matchers: OrderedDict[tuple[Any, ...], tuple[Any, float]] = OrderedDict()
"""Compiled grammars and the seconds that they took, the latest last."""
_tokenizers: dict[tuple[Any, ...], Any] = {}
"""Built once for each tokenizer: it takes a second and serves every request."""


def _compiled(
    grammar: str,
    tokenizer: Tokenizer,
    vocab_size: int,
    stops: tuple[int, ...],
    shown: frozenset[int],
) -> Any:
    """A matcher at the beginning of an answer, to be copied."""
    model = (id(tokenizer.backend), vocab_size, stops, shown)
    key = (*model, grammar)
    with _lock:
        if key in _matchers:
            _matchers.move_to_end(key)
            return _matchers[key][0]
    if model not in _tokenizers:
        _tokenizers[model] = _llguidance_tokenizer(tokenizer, *model[1:])
    began = time.perf_counter()
    matcher = llguidance.LLMatcher(_tokenizers[model], grammar, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise _no_grammar(reason(matcher.get_error()))
    with _lock:
        _matchers[key] = matcher, time.perf_counter() - began
        while len(_matchers) > 1 and _kept_too_much():
            _matchers.popitem(last=False)
    return matcher


def _kept_too_much() -> bool:
    seconds = sum(took for _, took in _matchers.values())
    return len(_matchers) > _KEPT or seconds > _KEPT_SECONDS


class _Vocabulary:
    """A tokenizer as llguidance reads one: the bytes of every token, and which are special.

    Added tokens that text shows, such as `<tool_call>` in Qwen's vocabularies, are bytes like all
    others, so a grammar need not know whether a tag is one token.
    """

    bos_token_id = None

    def __init__(
        self, tokenizer: Tokenizer, vocab_size: int, stops: tuple[int, ...], shown: frozenset[int]
    ) -> None:
        size = max(vocab_size, tokenizer.vocab_size)
        special = (tokenizer.special_ids | set(stops)) - shown
        self.tokens = [tokenizer.token_bytes(i) for i in range(size)]
        self.special_token_ids = sorted(special)
        self.eos_token_id = stops[0]
        self._tokenizer = tokenizer

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace"), add_bos=False)


def _llguidance_tokenizer(
    tokenizer: Tokenizer, vocab_size: int, stops: tuple[int, ...], shown: frozenset[int]
) -> Any:
    vocabulary = _Vocabulary(tokenizer, vocab_size, stops, shown)
    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(vocabulary), n_vocab=len(vocabulary.tokens), eos_token=[*stops]
    )
