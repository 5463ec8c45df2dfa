"""The step loop: schedule, run one forward pass, hand each decoder its logits."""

import itertools
import logging
import time
from collections import deque
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import torch

from trimode.checkpoints import DraftPriors, LoadedModel
from trimode.config import GenerationOptions
from trimode.decoding import (
    MODE_SPECS,
    Acceptance,
    BatchLoad,
    Committed,
    CostCurve,
    DecodingContext,
    DraftRecord,
    Event,
    Keep,
    Logits,
    Policy,
    Span,
)
from trimode.engine import costs as pass_costs
from trimode.engine.cost_check import CostCheck, TimedPass
from trimode.engine.forward import Slice, run
from trimode.engine.image_queue import ImageQueue
from trimode.engine.kv_pool import KVPool
from trimode.engine.pictures import PromptImage, place
from trimode.engine.request import resolve
from trimode.engine.scheduler import RowLimits, Scheduler
from trimode.engine.sequence import FinishReason, Sequence
from trimode.errors import InputError, TrimodeError
from trimode.text import TextStream

logger = logging.getLogger(__name__)

DEFAULT_KV_CACHE_BYTES = 2 * 2**30
DEFAULT_IMAGE_BYTES = 2**30
"""Of the embeddings of all pictures: some 60,000 tokens of a model with a hidden size of 4096."""
DEFAULT_MAX_SEQUENCES = 16
MOST_SCRATCH_ROWS = 1200
"""Rows after the KV cache that a pass of one request may need: `quadratic` takes the square of its
block length, and attention the square of that."""
DEFAULT_MAX_ROWS = 512
"""Rows of one pass; a longer prompt is prefilled in chunks of this size."""
_READING_SECONDS = 0.05
"""Seconds of a step in which pictures are read while nothing is decoded."""
_MOST_READING_SECONDS = 0.12
"""Most seconds for which texts wait after a pass while pictures are read."""


@dataclass(frozen=True, slots=True)
class Update:
    """What happened to a sequence: an event, and the text it makes final."""

    sequence: Sequence
    event: Event
    """An empty commit if the sequence failed (`Sequence.error`)."""
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
        image_bytes: int = DEFAULT_IMAGE_BYTES,
        costs: CostCurve | None = None,
        interactive: bool = False,
    ) -> None:
        """Nothing runs before `step`.

        Args:
            model: what decodes.
            max_sequences: decoded at once.
            max_rows: of one pass.
            kv_cache_bytes: memory of all KV caches.
            image_bytes: memory of what pictures became.
            costs: time of a pass; by default measured for the first request in mode `auto`. They
                are replaced only by `measure_again`.
            interactive: whether somebody waits for each token: long prompts are then read in
                passes that are short by `costs`. Otherwise a batch is done sooner.
        """
        for name, value in (("max_sequences", max_sequences), ("max_rows", max_rows)):
            if value < 1:
                raise InputError(name, str(value), "must be at least 1")
        self.model = model
        self.max_rows, self.interactive = max_rows, interactive
        runner = model.runner
        pool = KVPool(model.config, kv_cache_bytes, dtype=runner.kv_dtype, device=runner.device)
        self.scheduler = Scheduler(pool, max_sequences=max_sequences, limits=RowLimits(max_rows))
        self.images = ImageQueue(model.vision_or_none, image_bytes)
        self._pass_seconds = 0.0
        """Of the latest pass that read no prompt: passes that do may take much longer."""
        self._costs: CostCurve | None = None
        self._check: CostCheck | None = None
        self._warned = False
        if costs is not None:
            self._set_costs(costs)
        self._load = BatchLoad()
        priors = model.draft_priors
        self._drafts = Acceptance(keep=0.99, known=priors.by_place)
        self._lookups = Acceptance(keep=0.99)
        self._predictions = Acceptance(keep=0.99, first=0.9)
        self._heads = DraftRecord(
            keep=0.99, first_nodes=priors.head_nodes, first_accepted=priors.head_accepted
        )
        self._steps = 0
        self._ids = itertools.count()

    @property
    def max_sequences(self) -> int:
        """Sequences decoded at once."""
        return self.scheduler.max_sequences

    @property
    def waiting(self) -> deque[Sequence]:
        """Sequences that are not admitted yet or were preempted; the next one first."""
        return self.scheduler.waiting

    @property
    def live(self) -> list[Sequence]:
        """Sequences that are being decoded, in order of admission."""
        return self.scheduler.live

    @property
    def pool(self) -> KVPool:
        """The memory of all KV caches."""
        return self.scheduler.pool

    @property
    def busy(self) -> bool:
        """Whether there is work to do."""
        return bool(self.waiting or self.live or self.images.waiting)

    @property
    def queued(self) -> int:
        """How many requests wait, for a place or for their pictures to be read."""
        return len(self.waiting) + len(self.images.waiting)

    def add(
        self,
        prompt: tuple[int, ...] | list[int],
        options: GenerationOptions,
        *,
        images: Seq[PromptImage] = (),
        sequence_id: str | None = None,
    ) -> Sequence:
        """Queue a request.

        Args:
            prompt: token ids.
            options: what is asked for.
            images: the prompt's pictures, in order.
            sequence_id: any name for it; a number by default.

        Raises:
            InputError: see `request.resolve`, the request can never fit the KV pool, or its
                pictures do not fit the prompt, the model or the memory.
        """
        prompt = tuple(prompt)
        placed = ()
        if images:
            placed = place(prompt, images, self.model.require_vision("images").tokens)
            self.images.check(placed)
        context = self._resolve(prompt, options)
        spec = MODE_SPECS[options.mode]
        scratch = spec.scratch_rows(context)
        if scratch > MOST_SCRATCH_ROWS:
            found = f"{context.block_length}, which needs {scratch} rows a pass in {options.mode}"
            raise InputError("block_length", found, f"at most {MOST_SCRATCH_ROWS} rows")
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
            decoder=spec.decode(prompt, context),
            text_stream=TextStream(
                self.model.tokenizer,
                options.stop,
                prompt,
                shown_special_ids=options.shown_special_ids,
            ),
            images=placed,
        )
        if placed:
            self.images.add(sequence)
        else:
            self.waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Drop a request at once; what it has produced stays readable."""
        if sequence.finish_reason is None:
            self._finish(sequence, "cancelled")

    @torch.inference_mode()  # decoders run inside too: they edit logits in place
    def step(self) -> list[Update]:
        """Admit what fits, run one forward pass, and return what it made of the sequences.

        A sequence that fails is ended (`Sequence.error`); the others do not notice.
        """
        updates = self._read_images()
        slices = self.scheduler.plan()
        if not slices:
            return updates
        self._load.sequences = len(self.live)
        self._steps += 1
        began, reads_prompts = time.monotonic(), any(part.sequence.splittable for part in slices)
        try:
            results = self._run(slices)
        except Exception as error:  # noqa: BLE001 - the sequence at fault is found below
            return updates + self._run_alone(slices, error)
        if not reads_prompts:
            self._pass_seconds = time.monotonic() - began
        return updates + self._deliver(slices, results)

    def _read_images(self) -> list[Update]:
        """Read pictures for as long as a pass takes, so that texts wait no longer than for one."""
        if not self.images.waiting:
            return []
        beside = min(self._pass_seconds, _MOST_READING_SECONDS)
        ready, failed = self.images.run(beside if self.live else _READING_SECONDS)
        self.waiting.extend(ready)
        return [self._fail(sequence, error) for sequence, error in failed]

    def _run(self, slices: list[Slice]) -> list[Logits | None]:
        """Run a pass, and compare its time with what decisions take it for."""
        if self._check is None:
            return run(self.model.runner, slices)
        rows = sum(part.stop - part.start for part in slices)
        drafting = any(part.uses_adapter for part in slices)
        context = sum(part.context for part in slices) / len(slices)
        results, time_ = pass_costs.timed(self.model, lambda: run(self.model.runner, slices))
        self._observe(
            TimedPass(
                rows=rows,
                sequences=len(slices),
                drafting=drafting,
                context=context,
                seconds=time_.seconds,
                waited=time_.waited,
                at=time.monotonic(),
            )
        )
        return results

    def _observe(self, timed: TimedPass) -> None:
        """Compare a pass with the curve; say once, and note in the cache, if they disagree."""
        assert self._check is not None
        before = self._check.doubt
        self._check.observe(timed)
        doubt = self._check.doubt
        if (doubt is None) == (before is None):
            return
        pass_costs.mark(self.model, self._check.curve, doubted=doubt is not None)
        if doubt is not None and not self._warned:
            self._warned = True
            logger.warning(
                "mode auto decides by costs that passes disagree with: %s. They are measured again "
                "at the next start, and by a server that is idle",
                doubt,
            )

    @property
    def doubts_costs(self) -> bool:
        """Whether passes disagree with the costs that decisions are made by."""
        return self._check is not None and self._check.doubt is not None

    def measure_again(self) -> Generator[None, None, bool]:
        """Measure what a pass costs, stopping after each timed pass; only while nothing is decoded.

        Returns:
            Whether the new costs are taken: not if the machine is too busy to measure.
        """
        measured = yield from pass_costs.measuring(self.model)
        if measured.doubt is not None:
            logger.info("the cost of a pass cannot be measured again yet: %s", measured.doubt)
            return False
        pass_costs.keep(self.model, measured)
        self._set_costs(measured.curve)
        logger.warning("the cost of a pass was measured again; mode auto decides by it")
        return True

    def _run_alone(self, slices: list[Slice], error: Exception) -> list[Update]:
        """Run the parts of a failed pass one by one, and end the sequences that fail alone."""
        updates: list[Update] = []
        for part in slices:
            try:
                if len(slices) == 1:
                    raise error
                results = run(self.model.runner, [part])
            except Exception as fault:  # noqa: BLE001 - whatever it is, only this one has it
                updates.append(self._fail(part.sequence, fault))
            else:
                updates += self._deliver([part], results)
        return updates

    def _deliver(self, slices: list[Slice], results: list[Logits | None]) -> list[Update]:
        """Hand each decoder its logits."""
        updates: list[Update] = []
        for part, logits in zip(slices, results, strict=True):
            sequence = part.sequence
            sequence.last_step = self._steps
            if logits is not None and sequence.suspended_span is not None:
                sequence.span, sequence.rows_done = sequence.suspended_span
                sequence.suspended_span = None
            elif logits is not None:
                assert sequence.span is not None
                sequence.stats.count_pass(sequence.span.kind)
                try:
                    updates += self._advance(sequence, logits)
                except Exception as error:  # noqa: BLE001 - a decoder's fault is its request's
                    updates.append(self._fail(sequence, error))
        return updates

    def _fail(self, sequence: Sequence, error: Exception) -> Update:
        """End a sequence because of a fault; its memory is freed as at any end."""
        if not isinstance(error, TrimodeError):
            logger.error("request %s failed", sequence.id, exc_info=error)
        sequence.error = error
        return Update(sequence, Committed(tokens=()), self._finish(sequence, "error"))

    def _set_costs(self, costs: CostCurve) -> None:
        """Set what a pass costs. What is short enough for those who wait follows from it."""
        if self.model.markov_head is not None:
            self.model.markov_head.prepare()  # or the first draft would wait for it
        self._costs, self._check = costs, CostCheck(costs)
        if self.interactive:
            self.scheduler.limits = RowLimits.measured(self.max_rows, costs)

    def draft_priors(self, places: int) -> DraftPriors:
        """What drafts have been worth so far, the first `places` tokens of the model's own.

        The chance of a place that was never reached is that of the one before it.
        """
        chances = tuple(round(chance, 4) for chance in self._drafts.chances(max(1, places)))
        nodes, accepted = round(self._heads.nodes, 3), round(self._heads.accepted, 3)
        return DraftPriors(by_place=chances, head_nodes=nodes, head_accepted=accepted)

    def preview(self, options: GenerationOptions) -> DecodingContext:
        """What a request with these options would be decoded with, alone and now.

        Nothing is measured for it, so it may be called from any thread.

        Raises:
            InputError: see `request.resolve`.
        """
        policy = None if self._costs is None else self._policy()
        return resolve(self.model, (0,), options, policy=policy)  # no default depends on a prompt

    def _resolve(self, prompt: tuple[int, ...], options: GenerationOptions) -> DecodingContext:
        by_costs = MODE_SPECS[options.mode].paying_block is not None and not options.block_length
        if options.mode != "auto" and not by_costs:
            return resolve(self.model, prompt, options)
        policy = self._policy()
        self._load.sequences = min(len(self.live) + self.queued + 1, self.max_sequences)
        return resolve(self.model, prompt, options, policy=policy)

    def _policy(self) -> Policy:
        """How one `auto` request decides; it learns from all of them."""
        if self._costs is None:
            self._set_costs(pass_costs.cost_curve(self.model))
        assert self._costs is not None
        return Policy(
            costs=self._costs,
            drafts=Acceptance(prior=self._drafts),
            lookups=Acceptance(prior=self._lookups),
            predictions=Acceptance(prior=self._predictions),
            load=self._load,
            can_draft=self.model.can_draft,
            heads=None if self.model.draft_head is None else DraftRecord(prior=self._heads),
        )

    def _advance(self, sequence: Sequence, logits: Logits) -> list[Update]:
        """Let the decoder run until it wants another pass or its sequence is finished."""
        updates: list[Update] = []
        sequence.span, sequence.rows_done = None, 0
        request = sequence.decoder.send(logits)
        while not isinstance(request, Span):
            if isinstance(request, Keep):
                assert sequence.cache is not None
                sequence.cache.keep(request.rows)
            elif isinstance(request, Committed):
                updates.append(self._commit(sequence, request))
                if sequence.finish_reason is not None:
                    return updates
            else:
                updates.append(Update(sequence, request))
            request = next(sequence.decoder)
        sequence.span = request
        return updates

    def _commit(self, sequence: Sequence, event: Committed) -> Update:
        """Append tokens one by one until a stop token, a stop string or the budget ends it."""
        text, reason, taken = "", None, 0
        for token in event.tokens:
            sequence.tokens.append(token)
            taken += 1
            if token in sequence.context.stop_token_ids:
                reason = "stop"
                break
            text += sequence.text_stream.push(token)
            if sequence.text_stream.stopped:
                reason = "stop"
                break
            if len(sequence.tokens) == sequence.budget:
                reason = "length"
                break
        kept = replace(event, tokens=event.tokens[:taken], logprobs=event.logprobs[:taken])
        sequence.logprobs.extend(kept.logprobs)
        sequence.stats.count(kept, offered=len(event.tokens))
        if sequence.stats.first_token_at is None:
            sequence.stats.first_token_at = time.monotonic()
        if reason is not None:
            text += self._finish(sequence, reason)
        return Update(sequence, kept, text)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> str:
        """End a sequence, free its cache, and return the text that was held back."""
        sequence.finish_reason = reason
        sequence.stats.finished_at = time.monotonic()
        sequence.decoder.close()
        sequence.span = None
        self.scheduler.remove(sequence)
        self.images.remove(sequence)
        return sequence.text_stream.finish()


def drain(engine: Engine) -> Iterator[Update]:
    """Step until nothing is left to do.

    Raises:
        Exception: what made a sequence fail.
    """
    while engine.busy:
        for update in engine.step():
            if update.sequence.error is not None:
                raise update.sequence.error
            yield update
