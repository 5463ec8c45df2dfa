"""Turns a request into what its decoder needs: resolves every default, makes every refusal.

No code after this point sees an option that may be missing.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, TypeVar

from trimode.checkpoints import LoadedModel
from trimode.config import (
    LED_REVISION_THRESHOLD,
    LED_THRESHOLD,
    ROLLING_THRESHOLD,
    CommitRuleName,
    GenerationOptions,
    ModelConfig,
)
from trimode.decoding import (
    MODE_SPECS,
    RULES,
    DecodingContext,
    Policy,
    Sampler,
    refuse_unread,
)
from trimode.errors import ContextLengthError, InputError
from trimode.model import AdapterScope
from trimode.text import GrammarMatcher

T = TypeVar("T")


def resolve(
    model: LoadedModel,
    prompt: tuple[int, ...],
    options: GenerationOptions,
    *,
    policy: Policy | None = None,
) -> DecodingContext:
    """Check a request against the model and resolve its defaults.

    Args:
        model: what will run it.
        prompt: token ids.
        options: what is asked for.
        policy: of the request, in the mode `auto` and in those that take the block that pays.

    Raises:
        InputError: the prompt is empty, too long or not of this model's vocabulary, the mode does
            not read an option, an option needs another, or the checkpoint lacks what is needed.
    """
    config = model.config
    check_prompt(config, prompt)
    refuse_unread(options)
    _check_checkpoint(model, options)
    form = _Form(options, config)
    form.check()
    stop = {*options.stop_token_ids, *_special_stops(model, options)}
    if not options.ignore_eos or options.grammar is not None:
        stop.update(config.eos_token_ids)
    block_length = options.block_length or config.block_length
    mask = config.mask_token_id
    sampler = Sampler(
        options=options,
        mask_token_id=mask,
        prompt_length=len(prompt),
        think_token_ids=_think_token_ids(model),
        constraint=_constraint(model, options),
        stop_token_ids=frozenset(stop),
    )
    context = DecodingContext(
        sampler=sampler,
        mask_token_id=-1 if mask is None else mask,
        stop_token_ids=frozenset(stop),
        prompt_length=len(prompt),
        max_length=min(len(prompt) + options.max_tokens, config.max_position_embeddings),
        context_length=config.max_position_embeddings,
        block_length=block_length,
        token_shift=config.token_shift,
        draft_adapter=model.adapter_scope is not None,
        denoise_adapter=model.adapter_scope == "denoise",
        commit_rule=form.commit_rule,
        threshold=form.threshold,
        one_pass=form.one_pass,
        max_denoising_steps=options.max_denoising_steps or block_length,
        revision_threshold=form.revision_threshold,
        seed_block=form.seed_block,
        draft_tree=form.draft_tree,
        rolling_block=form.rolling_block,
        led_blocks=form.led_blocks,
        spare_drafts=options.spare_drafts or 0,
        show_drafts=options.show_drafts,
        commit_scorer=model.commit_scorer,
        draft_head=model.draft_head,
        markov_head=model.markov_head,
        policy=policy,
        prediction=options.prediction,
    )
    paying = MODE_SPECS[options.mode].paying_block
    if options.block_length is not None or paying is None:
        return context
    return replace(context, block_length=paying(context))


def settings_in_force(options: GenerationOptions, context: DecodingContext) -> dict[str, Any]:
    """What a request is decoded with, defaults resolved; of a mode's own options, those it reads.

    Args:
        options: of the request.
        context: what `resolve` made of them.
    """
    names = ("max_tokens", "temperature", "top_p", "seed")
    found: dict[str, Any] = {name: getattr(options, name) for name in names}
    has_rule = not context.one_pass
    has_bar = has_rule and context.commit_rule != "quota"
    resolved = {
        "block_length": context.block_length,
        "commit_rule": context.commit_rule if has_rule else None,
        "threshold": context.threshold if has_bar else None,
        "rolling_block": context.rolling_block,
    }
    reads = MODE_SPECS[options.mode].reads
    return found | {name: value for name, value in resolved.items() if name in reads}


class _Form:
    """How blocks and drafts are filled and verified: the options that depend on each other."""

    def __init__(self, options: GenerationOptions, config: ModelConfig) -> None:
        self.options = options
        led = config.draft_form == "led"
        own_form = options.mode == "diffusion" and led and options.seed_block is None
        self.rolling_block = _given(options.rolling_block, own_form)
        self.led_blocks = self.rolling_block or own_form
        self.one_pass = (
            options.mode == "linear" and not options.threshold and options.commit_rule is None
        )
        if options.mode == "linear":
            self.seed_block = _given(options.seed_block, not led)
            can_branch = self.one_pass and not self.seed_block
        else:  # with token shift, the row before a block predicts its first token in any case
            self.seed_block = _given(options.seed_block, True) or config.token_shift
            can_branch = True
        self.draft_tree = can_branch and _given(options.draft_tree, led)
        self.commit_rule: CommitRuleName = options.commit_rule or "threshold"

    @property
    def threshold(self) -> float:
        """The commit rule's bar."""
        if self.options.threshold is not None:
            return self.options.threshold
        if self.led_blocks and self.commit_rule == "threshold":
            return ROLLING_THRESHOLD if self.rolling_block else LED_THRESHOLD
        return RULES[self.commit_rule].threshold

    @property
    def revision_threshold(self) -> float:
        """AR probability below which a filled token falls."""
        default = LED_REVISION_THRESHOLD if self.led_blocks else 0.0
        return _given(self.options.revision_threshold, default)

    def check(self) -> None:
        """Raise InputError for an option that would have no effect with the others."""
        options = self.options
        for name, beside, allowed in self._without_effect():
            if getattr(options, name) is not None:
                raise InputError(name, f"given {beside} in mode {options.mode}", allowed)
        if options.draft_tree and options.grammar is not None:
            allowed = "leave it out: what fits depends on the token before, so drafts are lines"
            raise InputError("draft_tree", "given with a grammar", allowed)
        if options.draft_tree and not self.draft_tree:
            found = "given with a seeded draft" if self.seed_block else "given with several passes"
            allowed = "set seed_block to false, and leave out threshold and commit_rule"
            raise InputError("draft_tree", f"{found} in mode {options.mode}", allowed)

    def _without_effect(self) -> Iterator[tuple[str, str, str]]:
        """Options that would have no effect: the name, what it is given with, and what to do."""
        if self.commit_rule == "quota":
            yield "threshold", "with commit_rule quota", "leave it out: this rule has no bar"
        if self.one_pass:
            allowed = "give threshold or commit_rule too"
            yield "max_denoising_steps", "with a draft of one pass", allowed
        if self.rolling_block:
            fixed = "set rolling_block to false"
            yield "seed_block", "with a rolling block", f"leave it out, or {fixed}"
            if self.commit_rule != "quota":
                allowed = f"only commit_rule quota reads it there; or {fixed}"
                yield "max_denoising_steps", "with a rolling block", allowed
            if not self.revision_threshold:
                allowed = "leave it out: nothing is revised"
                yield "spare_drafts", "with revision_threshold 0", allowed
        else:
            yield "spare_drafts", "with a fixed block", "leave it out, or set rolling_block to true"


def _special_stops(model: LoadedModel, options: GenerationOptions) -> list[int]:
    """Stop strings that are special tokens: those have no text for a stop string to be found in."""
    spelled = model.tokenizer.special_tokens_in(options.stop)
    return [token for token, text in spelled.items() if text in options.stop]


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


def check_mode(
    config: ModelConfig, adapter_scope: AdapterScope | None, name: str, options: GenerationOptions
) -> None:
    """Raise InputError if a model cannot run the mode; needs none of its weights.

    Args:
        config: of the model with its adapter.
        adapter_scope: of the adapter; None if there is none.
        name: of the model.
        options: what is asked for.
    """
    mode = options.mode
    if config.mask_token_id is None and MODE_SPECS[mode].needs_mask:
        allowed = "use ar or auto, or an --adapter; `trimode convert` makes one"
        raise InputError("mode", f"{mode} on {name}, which has no mask token", allowed)
    can_denoise = config.trained_to_denoise or adapter_scope == "denoise"
    if mode == "diffusion" and not can_denoise and not options.force:
        raise InputError(
            "mode",
            f"diffusion on {name}, which was not trained for denoising",
            "use ar, linear or quadratic, or --force to see what comes out",
        )
    if mode == "diffusion" and options.min_tokens:
        allowed = "use another mode: diffusion commits tokens before those on their left"
        raise InputError("min_tokens", "given with mode diffusion", allowed)


def _check_checkpoint(model: LoadedModel, options: GenerationOptions) -> None:
    """Raise InputError if the checkpoint lacks what a request needs."""
    config = model.config
    check_mode(config, model.adapter_scope, model.name, options)
    if options.commit_rule == "learned" and model.commit_scorer is None:
        raise InputError(
            "commit_rule",
            f"learned on {model.name}, which has no learned rule",
            "use threshold or another rule, or an adapter that brings one",
        )
    if options.max_thinking_tokens is not None and _think_token_ids(model) is None:
        raise InputError(
            "max_thinking_tokens", "set", "this model's vocabulary has no </think> token"
        )
    wrong = next((t for t, _ in options.logit_bias if t >= config.vocab_size), None)
    if wrong is not None:
        raise InputError("logit_bias", f"token {wrong}", f"ids are 0..{config.vocab_size - 1}")


def _think_token_ids(model: LoadedModel) -> tuple[int | None, int] | None:
    """The tokens that begin and end a thought; None if the vocabulary has no end."""
    end = model.tokenizer.token_id("</think>")
    return None if end is None else (model.tokenizer.token_id("<think>"), end)


def _constraint(model: LoadedModel, options: GenerationOptions) -> GrammarMatcher | None:
    """What the answer must fit."""
    if options.grammar is None:
        return None
    if options.mode == "diffusion":
        allowed = "use another mode: diffusion commits tokens before those on their left"
        raise InputError("grammar", "given with mode diffusion", allowed)
    return GrammarMatcher(
        options.grammar,
        model.tokenizer,
        vocab_size=model.config.vocab_size,
        stop_token_ids=model.config.eos_token_ids,
        shown_special_ids=options.shown_special_ids,
    )


def check_prompt(config: ModelConfig, prompt: tuple[int, ...], *, room: int = 1) -> None:
    """Raise InputError unless the model can read the prompt and `room` tokens after it."""
    limit = config.max_position_embeddings
    if not prompt:
        raise InputError("prompt", "empty", "must have at least one token")
    if len(prompt) > limit - room:
        raise ContextLengthError.of(f"{len(prompt)} tokens", limit)
    wrong = next((token for token in prompt if not 0 <= token < config.vocab_size), None)
    if wrong is not None:
        raise InputError("prompt", f"token id {wrong}", f"ids are 0..{config.vocab_size - 1}")
