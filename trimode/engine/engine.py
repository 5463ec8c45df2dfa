"""The step loop: admit, pack, run, hand each decoder its logits."""

import itertools
import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions, ModelConfig
from trimode.decoding import (
    DECODERS,
    Acceptance,
    Committed,
    CostCurve,
    DecodingContext,
    Event,
    Keep,
    Load,
    Logits,
    Policy,
    Sampler,
    Span,
    causal_span,
    scratch_rows,
)
from trimode.engine.costs import cost_curve
from trimode.engine.kv_pool import KVPool
from trimode.engine.packing import plan, run
from trimode.engine.sequence import FinishReason, Sequence
from trimode.errors import InputError
from trimode.model import KVCache
from trimode.text import GrammarMatcher, TextStream

logger = logging.getLogger(__name__)

DEFAULT_KV_CACHE_BYTES = 2 * 2**30
DEFAULT_MAX_SEQUENCES = 16
_LENT_AHEAD = 256
"""Tokens beyond those it has that a sequence's cache has room for in a crowded pool."""
DEFAULT_MAX_ROWS = 512
"""Rows of one pass; a longer prompt is prefilled in chunks of this size."""
_EFFICIENT_ROWS = 64
"""Where nobody has measured what a pass costs."""
_NEWCOMERS_SHARE = 0.12
"""Seconds of a pass that prompts may take while others wait for it, where its cost is known."""


@dataclass(frozen=True, slots=True)
class Update:
    """What happened to a sequence: an event, and the text it makes final."""

    sequence: Sequence
    event: Event
    text: str = ""


class Engine:
    """Runs any number of sequences, each in its own mode, through one model.

    Not thread-safe: one thread calls `add`, `cancel` and `step`.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_sequences: int = DEFAULT_MAX_SEQUENCES,
        max_rows: int = DEFAULT_MAX_ROWS,
        kv_cache_bytes: int = DEFAULT_KV_CACHE_BYTES,
        costs: CostCurve | None = None,
    ) -> None:
        """`costs`: time of a pass; by default measured for the first request in mode `auto`."""
        for name, value in (("max_sequences", max_sequences), ("max_rows", max_rows)):
            if value < 1:
                raise InputError(name, str(value), "must be at least 1")
        self.model = model
        self.max_sequences, self.max_rows = max_sequences, max_rows
        transformer = model.transformer
        self.pool = KVPool(
            model.config, kv_cache_bytes, dtype=transformer.kv_dtype, device=transformer.device
        )
        self.waiting: deque[Sequence] = deque()
        self.live: list[Sequence] = []
        self._know(costs)
        self._load = Load()
        self._drafts, self._lookups = Acceptance(keep=0.99), Acceptance(keep=0.99)
        self._steps = 0
        self._ids = itertools.count()

    def add(
        self,
        prompt: tuple[int, ...] | list[int],
        options: GenerationOptions,
        *,
        sequence_id: str | None = None,
    ) -> Sequence:
        """Queue a request.

        Args:
            prompt: token ids.
            options: what is asked for.
            sequence_id: any name for it; a number by default.

        Raises:
            InputError: the prompt is empty, too long or not of this model's vocabulary, the
                request can never fit the KV pool, or the checkpoint lacks what the mode needs.
        """
        prompt = tuple(prompt)
        context = self._context(prompt, options)
        options = context.options
        scratch = scratch_rows(
            options.mode, context.block_length, rolling_block=context.rolling_block
        )
        cache_tokens = context.max_length + scratch
        if cache_tokens > self.pool.max_tokens:
            raise InputError(
                "max_tokens",
                f"prompt and answer need {cache_tokens} KV cache tokens in mode {options.mode}",
                f"the pool holds {self.pool.max_tokens}; ask for fewer, or a smaller block_length, "
                "or raise kv_cache_bytes",
            )
        sequence = Sequence(
            id=sequence_id if sequence_id is not None else str(next(self._ids)),
            prompt=prompt,
            options=options,
            context=context,
            scratch=scratch,
            decoder=DECODERS[options.mode](prompt, context),
            stream=TextStream(self.model.tokenizer, options.stop),
        )
        self.waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Drop a request at once; what it has produced stays readable."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.finish_reason is None:
            self._finish(sequence, "cancelled")

    @property
    def busy(self) -> bool:
        """Whether there is work to do."""
        return bool(self.waiting or self.live)

    @torch.inference_mode()  # decoders run inside too: they edit logits in place
    def step(self) -> list[Update]:
        """Admit what fits, run one forward pass, and return what it made of the sequences."""
        self._admit()
        self._make_room()
        self._load.sequences = max(1, len(self.live))
        newcomer_rows = self._newcomer_rows if len(self.live) > 1 else self.max_rows
        slices = plan(self.live, self.max_rows, self._efficient_rows, newcomer_rows)
        if not slices:
            return []
        results = run(self.model.transformer, slices)
        self._steps += 1
        updates: list[Update] = []
        for part, logits in zip(slices, results, strict=True):
            part.sequence.last_step = self._steps
            if logits is not None and part.sequence.interrupted is not None:
                part.sequence.span, part.sequence.rows_done = part.sequence.interrupted
                part.sequence.interrupted = None
            elif logits is not None:
                assert part.sequence.span is not None
                part.sequence.stats.count_pass(part.sequence.span.kind)
                updates.extend(self._advance(part.sequence, logits))
        return updates

    def _know(self, costs: CostCurve | None) -> None:
        """Take what a pass costs, and from it once for all passes how they are shared."""
        self._costs = costs
        self._efficient_rows = costs.efficient_rows if costs else _EFFICIENT_ROWS
        self._newcomer_rows = (
            costs.rows_within(_NEWCOMERS_SHARE, self.max_rows) if costs else self.max_rows
        )

    def _context(self, prompt: tuple[int, ...], options: GenerationOptions) -> DecodingContext:
        """Check a request against the model and resolve its defaults."""
        config = self.model.config
        limit = config.max_position_embeddings
        check_prompt(config, prompt)
        scope = self.model.adapter_scope
        mode = options.mode
        if mode == "diffusion" and not self.model.can_denoise and not options.force:
            raise InputError(
                "mode",
                f"diffusion on {self.model.name}, which was not trained for denoising",
                "use ar, linear or quadratic, or --force to see what comes out",
            )
        mask = config.mask_token_id
        if mask is None and mode not in ("ar", "auto"):
            raise InputError("mode", f"{mode} on a model without a mask token", "use ar")
        if options.commit_rule == "learned" and self.model.commit_scorer is None:
            raise InputError(
                "commit_rule",
                f"learned on {self.model.name}, which has no learned rule",
                "use threshold or another rule, or an adapter that brings one",
            )
        end_think = self.model.tokenizer.token_id("</think>")
        if options.max_thinking_tokens is not None and end_think is None:
            raise InputError(
                "max_thinking_tokens", "set", "this model's vocabulary has no </think> token"
            )
        stop = set(options.stop_token_ids)
        if not options.ignore_eos:
            stop.update(config.eos_token_ids)
        options = replace(options, commit_rule=options.commit_rule or "threshold")
        return DecodingContext(
            options=options,
            sampler=Sampler(options, mask, len(prompt), end_think, self._constraint(options)),
            mask_token_id=-1 if mask is None else mask,
            stop_token_ids=frozenset(stop),
            prompt_length=len(prompt),
            max_length=min(len(prompt) + options.max_tokens, limit),
            context_length=limit,
            block_length=options.block_length or config.block_length,
            draft_adapter=scope is not None,
            denoise_adapter=scope == "denoise",
            token_shift=config.token_shift,
            seed_drafts=scope != "denoise" if options.seed_block is None else options.seed_block,
            draft_tree=scope == "denoise" if options.draft_tree is None else options.draft_tree,
            rolling_block=scope == "denoise" and options.seed_block is None
            if options.rolling_block is None
            else options.rolling_block,
            commit_scorer=self.model.commit_scorer,
            policy=self._policy() if mode == "auto" else None,
            prediction=options.prediction,
        )

    def _constraint(self, options: GenerationOptions) -> GrammarMatcher | None:
        """What the answer must fit; also checks the other fields that hold tokens."""
        config = self.model.config
        wrong = next((t for t, _ in options.logit_bias if t >= config.vocab_size), None)
        if wrong is not None:
            raise InputError("logit_bias", f"token {wrong}", f"ids are 0..{config.vocab_size - 1}")
        if options.prediction and options.mode != "auto":
            raise InputError("prediction", f"given in mode {options.mode}", "use auto")
        if options.grammar is None:
            return None
        if options.mode == "diffusion":
            allowed = "use another mode: diffusion commits tokens before those on their left"
            raise InputError("grammar", "given with mode diffusion", allowed)
        return GrammarMatcher(
            options.grammar,
            self.model.tokenizer,
            vocab_size=config.vocab_size,
            stop_token_ids=config.eos_token_ids,
        )

    def _policy(self) -> Policy:
        """How one `auto` request decides; it learns from all of them."""
        costs = self._costs
        if costs is None:
            costs = cost_curve(self.model)
            self._know(costs)
        return Policy(
            costs=costs,
            drafts=Acceptance(prior=self._drafts),
            lookups=Acceptance(prior=self._lookups),
            load=self._load,
            can_draft=self.model.can_draft,
        )

    def _admit(self) -> None:
        """Start waiting sequences, first come first served, while cache and slots last."""
        while self.waiting and len(self.live) < self.max_sequences:
            sequence = self.waiting[0]
            started = sequence.span is not None
            # Of a new prompt one row at least is left to compute: what follows it must be known.
            held = sequence.lost if started else max(0, len(sequence.prompt) - 2)
            cache = self._lend(sequence, sequence.all_tokens[:held])
            if cache is None:
                return
            self.waiting.popleft()
            sequence.cache = cache
            self.live.append(sequence)
            if started:
                self._restore(sequence)
            else:
                sequence.stats.admitted_at = time.monotonic()
                sequence.stats.cached_tokens = cache.length
                self._advance(sequence, None)
                sequence.rows_done = cache.length

    def _lend(self, sequence: Sequence, prefix: tuple[int, ...]) -> KVCache | None:
        """A cache for all it may ever need where the pool is roomy, else for what comes next."""
        live = ((other.all_tokens, other.cache) for other in self.live if other.cache is not None)
        held = max(sequence.lost, len(sequence.prompt))
        whole = sequence.cache_tokens
        soon = min(whole, held + sequence.scratch + _LENT_AHEAD)
        roomy = self.pool.tokens_lent + whole <= self.pool.max_tokens // 2
        return self.pool.acquire(whole if roomy else soon, prefix, live)

    def _make_room(self) -> None:
        """See that every live sequence's next rows fit its cache; the youngest gives way."""
        for sequence in list(self.live):
            cache = sequence.cache
            if cache is None:  # it gave way to an older one
                continue
            rows = sequence.rows_left
            needed = cache.length + (min(rows, self.max_rows) if sequence.splittable else rows)
            if needed <= cache.capacity:
                continue
            wanted = min(sequence.cache_tokens, max(needed, 2 * cache.capacity))
            while (larger := self.pool.grow(cache, wanted)) is None:
                youngest = self.live[-1]
                self._preempt(youngest)
                if youngest is sequence:
                    break
            else:
                sequence.cache = larger

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's cache away; it is the next to be admitted and goes on where it was."""
        assert sequence.cache is not None
        logger.info("request %s gives way: the KV pool is full", sequence.id)
        self.live.remove(sequence)
        sequence.lost = sequence.cache.length
        self._release(sequence)
        if sequence.interrupted is not None:  # it was still recovering from the last time
            assert sequence.span is not None
            sequence.lost = len(sequence.span.tokens)
            sequence.span, sequence.rows_done = sequence.interrupted
            sequence.interrupted = None
        self.waiting.appendleft(sequence)

    def _restore(self, sequence: Sequence) -> None:
        """Have the tokens that its cache held computed again, but those another cache holds."""
        assert sequence.cache is not None
        assert sequence.span is not None
        lost, sequence.lost = sequence.lost, 0
        if sequence.cache.length < lost:
            sequence.interrupted = sequence.span, sequence.rows_done
            held = sequence.all_tokens[:lost]
            sequence.span = causal_span("prefill", held, 0, keep=True, logits=())
            sequence.rows_done = sequence.cache.length

    def _release(self, sequence: Sequence) -> None:
        assert sequence.cache is not None
        self.pool.release(sequence.cache, sequence.all_tokens[: sequence.cache.length])
        sequence.cache = None

    def _advance(self, sequence: Sequence, logits: Logits | None) -> list[Update]:
        """Let the decoder run until it wants another pass or its sequence is finished."""
        updates: list[Update] = []
        sequence.span, sequence.rows_done = None, 0
        began, plan = time.perf_counter(), None
        request = sequence.decoder.send(logits)
        while not isinstance(request, Span):
            if isinstance(request, Keep):
                assert sequence.cache is not None
                sequence.cache.keep(request.rows)
            elif isinstance(request, Committed):
                updates.append(self._commit(sequence, request))
                plan = request.plan
                if sequence.finish_reason is not None:
                    return updates
            else:
                updates.append(Update(sequence, request))
            request = next(sequence.decoder)
        sequence.span = request
        if plan is not None:
            self._load.took(plan, time.perf_counter() - began)
        return updates

    def _commit(self, sequence: Sequence, event: Committed) -> Update:
        """Append tokens one by one until a stop token, a stop string or the budget ends it."""
        text, reason, taken = "", None, 0
        budget = sequence.context.max_length - len(sequence.prompt)
        for token in event.tokens:
            sequence.tokens.append(token)
            taken += 1
            if token in sequence.context.stop_token_ids:
                reason = "stop"
                break
            text += sequence.stream.push(token)
            if sequence.stream.stopped:
                reason = "stop"
                break
            if len(sequence.tokens) == budget:
                reason = "length"
                break
        event = replace(event, tokens=event.tokens[:taken], logprobs=event.logprobs[:taken])
        sequence.logprobs.extend(event.logprobs)
        sequence.stats.count_commit(taken, event.drafted, new_cycle=event.new_cycle)
        sequence.stats.revisions += event.revisions
        if event.predicted:
            sequence.stats.predicted_tokens += event.predicted
            sequence.stats.accepted_prediction_tokens += min(taken, len(event.tokens) - 1)
        if event.plan is not None:
            sequence.stats.plans[event.plan] += 1
        if sequence.stats.first_token_at is None:
            sequence.stats.first_token_at = time.monotonic()
        if reason is not None:
            text += self._finish(sequence, reason)
        return Update(sequence, event, text)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> str:
        """End a sequence, free its cache, and return the text that was held back."""
        sequence.finish_reason = reason
        sequence.stats.finished_at = time.monotonic()
        sequence.decoder.close()
        sequence.span = None
        if sequence.cache is not None:
            self.live.remove(sequence)
            self._release(sequence)
        return sequence.stream.finish()


def check_prompt(config: ModelConfig, prompt: tuple[int, ...], *, room: int = 1) -> None:
    """Raise InputError unless the model can read the prompt and `room` tokens behind it."""
    limit = config.max_position_embeddings
    if not prompt:
        raise InputError("prompt", "empty", "must have at least one token")
    if len(prompt) > limit - room:
        raise InputError(
            "prompt", f"{len(prompt)} tokens", f"must leave room in a context of {limit}"
        )
    wrong = next((token for token in prompt if not 0 <= token < config.vocab_size), None)
    if wrong is not None:
        raise InputError("prompt", f"token id {wrong}", f"ids are 0..{config.vocab_size - 1}")


def drain(engine: Engine) -> Iterator[Update]:
    """Step until nothing is left to do."""
    while engine.busy:
        yield from engine.step()
