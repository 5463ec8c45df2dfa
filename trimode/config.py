"""What a model is and what a request asks: frozen dataclasses, validated once."""

from dataclasses import dataclass, field, fields, replace
from functools import cache
from math import isfinite
from typing import Literal, Self, cast, get_args

from trimode.errors import CheckpointError, InputError

Mode = Literal["ar", "diffusion", "linear", "quadratic", "auto"]
MODES: tuple[Mode, ...] = get_args(Mode)
MODE_ALIASES = {
    "autoregressive": "ar",
    "dlm": "diffusion",
    "linear_spec": "linear",
    "linear_speculative": "linear",
    "quadratic_spec": "quadratic",
}

CommitRuleName = Literal[
    "threshold", "quota", "factor", "margin", "entropy", "cumulative_error", "learned"
]
COMMIT_RULES: tuple[CommitRuleName, ...] = get_args(CommitRuleName)

DraftForm = Literal["seeded", "led"]
"""How a checkpoint was trained to draft (docs/design/0006).

`seeded`: the newest token is the first token of the block and is seen both ways (NLD). `led`: the
newest token is a causal row before the block, the lead, and the block is all masks.
"""
DRAFT_FORMS: tuple[DraftForm, ...] = get_args(DraftForm)

RopeType = Literal["default", "linear", "yarn", "llama3"]

Activation = Literal["silu", "gelu_tanh"]
NormKind = Literal["rms", "offset_rms", "layer"]
"""`rms`: RMSNorm. `offset_rms`: the scale is 1 + weight (Gemma). `layer`: LayerNorm with a bias."""
NormPlacement = Literal["before", "after", "both"]
"""Whether attention and MLP have a norm before them, after them (OLMo 2), or both (Gemma)."""
QKNormOver = Literal["head", "projection"]
LayerRope = Literal["global", "local", "none"]
"""How a layer rotates: as `rope` says, as `local_rope` says, or not at all."""

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The built-in model that is used if none is named."""

SERVED_MAX_TOKENS = 1024
"""Most tokens of an answer of a server, if neither it nor the request is given a limit."""

DEFAULT_BLOCK_LENGTH = 32
DEFAULT_THRESHOLD = 0.9
"""NLD's model card value for diffusion decoding."""
ROLLING_THRESHOLD = 0.5
"""Default of a rolling block. AR revises what it fills, so filling may be bold (docs/lab.md)."""
LED_THRESHOLD = 0.3
"""Default of a fixed block that the next one's first pass closes."""
LED_REVISION_THRESHOLD = 0.15
"""Default of both."""

MOST_BLOCK_LENGTH = 256
"""A block runs in one pass, which all other requests wait for."""
MOST_DENOISING_STEPS = 65_536
"""A block's schedule is a list of so many numbers, so a request must not choose any length."""

DECODING_FIELDS: dict[str, str] = {
    "mode": f"{', '.join(MODES[:-1])} or {MODES[-1]}.",
    "block_length": "Tokens of a draft or of a diffusion block [linear, quadratic: what makes most "
    "tokens a second here; else, and at most, the model's own; the built-in one's: 16].",
    "commit_rule": f"What decides which tokens of a pass are final: {', '.join(COMMIT_RULES)} "
    "[threshold].",
    "threshold": "Bar of the commit rule, in the rule's unit; a probability above 1 commits one "
    f"token a pass [the rule's own; for the rule threshold {ROLLING_THRESHOLD} in a rolling block "
    f"(the built-in model's), {LED_THRESHOLD} in a fixed one of the led form, "
    f"{DEFAULT_THRESHOLD} in NLD's, and in linear none: one pass fills the draft].",
    "max_denoising_steps": "Passes that a block may take [the block length].",
    "revision_threshold": "Drop a filled token, and those after it, if AR finds it less probable "
    "than this when they are closed; 0 is never "
    f"[{LED_REVISION_THRESHOLD} for models that draft in the led form, else 0].",
    "seed_block": "Begin a block with the AR prediction of its first token, or with masks only; "
    "either, in diffusion, asks for NLD's form [the model's own draft form].",
    "draft_tree": "Verify a tree of the likeliest beginnings, or the one line of likeliest tokens "
    "[a tree for models that draft in the led form].",
    "rolling_block": "Diffusion: move the block on after every pass, or keep it until it is full "
    "[rolling for models that draft in the led form].",
    "spare_drafts": "Rolling block: after how many more of the filled tokens masks stand too, so "
    "that a revision there wastes no pass. A pass gets so many blocks of rows more [0].",
    "show_drafts": "Report the open block after every pass.",
}
"""The decoding options as users meet them: name and help, defaults in brackets.

The command line, the `decoding` object of a request, its error names and docs/decoding.md are made
from this table. A mode's `ModeSpec` says which of them it reads.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding. Field names are those of transformers' `rope_parameters`."""

    rope_type: RopeType = "default"
    rope_theta: float = 10_000.0
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    """Trained context; YaRN, llama3 and the Llama-4 query scale count from it."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    """Factor on cos and sin; None is the type's own."""
    truncate: bool = True
    """YaRN: round the correction range to whole dimensions."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    llama_4_scaling_beta: float | None = None
    """Multiply queries by 1 + beta * ln(1 + floor(position / original_max))."""
    frequency_factors: tuple[float, ...] | None = None
    """Per-dimension divisors of the inverse frequencies (GGUF `rope_freqs.weight`)."""

    def __post_init__(self) -> None:
        if self.rope_type not in get_args(RopeType):
            raise CheckpointError(
                "rope_type", repr(self.rope_type), f"supported: {', '.join(get_args(RopeType))}"
            )
        for name, positive in _ROPE_NUMBERS.items():
            value = getattr(self, name)
            if value is not None:
                _check_number(name, value, positive=positive)
        original = self.original_max_position_embeddings
        if original is not None and (type(original) is not int or original < 1):
            allowed = "must be a whole number of at least 1"
            raise CheckpointError("original_max_position_embeddings", repr(original), allowed)
        needs_original = self.rope_type in ("yarn", "llama3") or self.llama_4_scaling_beta
        if needs_original and not self.original_max_position_embeddings:
            raise CheckpointError(
                "original_max_position_embeddings",
                "missing",
                f"rope_type {self.rope_type} needs the trained context length",
            )

    def context_length(self, trained: int) -> int:
        """Positions that a model may use which the config says was trained on `trained`.

        Linear and YaRN scaling stretch the trained context by their factor.
        """
        if self.rope_type not in ("linear", "yarn"):
            return trained
        original = self.original_max_position_embeddings or trained
        return max(trained, int(original * self.factor))


_ROPE_NUMBERS = {
    "rope_theta": True,
    "factor": True,
    "beta_fast": True,
    "beta_slow": True,
    "mscale": False,
    "mscale_all_dim": False,
    "attention_factor": True,
    "low_freq_factor": True,
    "high_freq_factor": True,
    "llama_4_scaling_beta": False,
}
"""Fields of `RopeConfig` that are numbers, and whether they must be above zero."""


def _check_number(name: str, value: object, *, positive: bool = True) -> None:
    """Raise CheckpointError unless a config's value is a finite number, above zero if it must."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
    if not ok or (positive and value <= 0):  # type: ignore[operator]
        allowed = "must be a number above 0" if positive else "must be a number"
        raise CheckpointError(name, repr(value), allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The dimensions and switches of a decoder-only transformer."""

    family: str
    """`model_type` of the checkpoint: nemotron_labs_diffusion, llama, mistral, ..."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig = field(default_factory=RopeConfig)
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm on queries and keys before RoPE (qwen3)."""
    qk_norm_over: QKNormOver = "head"
    """Whether that norm is over each head, or over all heads together (OLMo 2)."""
    activation: Activation = "silu"
    norm: NormKind = "rms"
    norm_placement: NormPlacement = "before"
    embedding_multiplier: float = 1.0
    """Multiplied into the embeddings, rounded to their dtype."""
    residual_multiplier: float = 1.0
    """Multiplied into what attention and MLP add."""
    logit_multiplier: float = 1.0
    """Multiplied into the hidden states before the head."""
    attention_scale: float | None = None
    """Multiplied into the scores; None is head_dim ** -0.5."""
    rotary_dim: int | None = None
    """How many dimensions of a head are rotated, the first ones; None is all."""
    layer_ropes: tuple[LayerRope, ...] = ()
    """How each layer rotates; empty: all as `rope` says."""
    local_rope: RopeConfig | None = None
    """RoPE of the layers that rotate locally."""
    layer_windows: tuple[int | None, ...] = ()
    """How many tokens back each layer sees, itself included; None is all. Empty: all see all."""
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    mask_token_id: int | None = None
    """The token that stands for "not yet decided" in a block."""
    block_length: int = DEFAULT_BLOCK_LENGTH
    """Block length the checkpoint was trained with, the default of a request."""
    trained_to_denoise: bool = False
    """Whether the base weights fill masks without an adapter (NLD checkpoints)."""
    token_shift: bool = False
    """Whether the row before a token predicts it in denoising passes too (docs/design/0011)."""
    draft_form: DraftForm = "seeded"
    """How it was trained to draft (docs/design/0006)."""

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads",
                 "num_kv_heads", "head_dim", "max_position_embeddings", "block_length")  # fmt: skip
        for name in sizes:
            if getattr(self, name) < 1:
                raise CheckpointError(name, str(getattr(self, name)), "must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                "num_kv_heads", str(self.num_kv_heads), f"must divide num_heads {self.num_heads}"
            )
        self._check_switches()
        if self.head_dim % 2:
            raise CheckpointError("head_dim", str(self.head_dim), "must be even for RoPE")
        named = {"mask_token_id": (self.mask_token_id,), "eos_token_id": self.eos_token_ids}
        for name, ids in named.items():
            for token in ids:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise CheckpointError(name, str(token), f"must be in 0..{self.vocab_size - 1}")

    def _check_switches(self) -> None:
        _check_number("rms_norm_eps", self.rms_norm_eps)
        for name in ("embedding_multiplier", "residual_multiplier", "logit_multiplier"):
            _check_number(name, getattr(self, name))
        if self.attention_scale is not None:
            _check_number("attention_scale", self.attention_scale)
        for name in ("layer_ropes", "layer_windows"):
            if len(getattr(self, name)) not in (0, self.num_layers):
                found = f"{len(getattr(self, name))} values"
                raise CheckpointError(name, found, f"must be one for each of {self.num_layers}")
        if self.rotary_dim is not None and not (
            0 < self.rotary_dim <= self.head_dim and self.rotary_dim % 2 == 0
        ):
            allowed = f"must be even and at most head_dim {self.head_dim}"
            raise CheckpointError("rotary_dim", str(self.rotary_dim), allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What one request asks for. `None` means "the mode's or the model's default"."""

    mode: Mode = "ar"
    max_tokens: int = 256
    temperature: float = 0.0
    """0 is greedy, in every command and in the server: a small model at 1 writes nonsense."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    """Taken off a token's logit for each time it is in the answer so far."""
    presence_penalty: float = 0.0
    """Taken off the logit of each token that is in the answer so far."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit). Given as pairs or as a mapping."""
    grammar: str | None = None
    """What the answer must fit, in llguidance's form (`trimode.text.grammar` makes them). It ends
    where the grammar does, `ignore_eos` or not."""
    prediction: tuple[int, ...] = ()
    """Tokens that the answer may resemble: drafts for the mode `auto`."""
    shown_special_ids: tuple[int, ...] = ()
    """Special tokens that the answer's text shows; the others are left out."""
    seed: int = 0
    min_tokens: int = 0
    """Tokens before the first that may end the answer, unless a grammar allows no other."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """Report each token's AR log-probability and this many alternatives."""
    # What the following mean, and their defaults: DECODING_FIELDS.
    block_length: int | None = None
    commit_rule: CommitRuleName | None = None
    threshold: float | None = None
    max_denoising_steps: int | None = None
    revision_threshold: float | None = None
    seed_block: bool | None = None
    draft_tree: bool | None = None
    """A tree has as many tokens as the line it stands for, so a pass has as many rows."""
    rolling_block: bool | None = None
    spare_drafts: int | None = None
    show_drafts: bool = False
    max_thinking_tokens: int | None = None
    force: bool = False
    """Run diffusion on a checkpoint that was not trained to denoise."""

    def __post_init__(self) -> None:
        mode = MODE_ALIASES.get(self.mode, self.mode)
        if mode not in MODES:
            raise InputError("mode", repr(self.mode), f"allowed: {', '.join(MODES)}")
        object.__setattr__(self, "mode", cast(Mode, mode))
        if self.commit_rule is not None and self.commit_rule not in COMMIT_RULES:
            raise InputError(
                "commit_rule", repr(self.commit_rule), f"allowed: {', '.join(COMMIT_RULES)}"
            )
        check_range("max_tokens", self.max_tokens, 1, None)
        check_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        check_range("temperature", self.temperature, 0.0, None)
        check_range("top_k", self.top_k, 0, None)
        check_range("top_p", self.top_p, 0.0, 1.0, exclusive_low=True)
        check_range("min_p", self.min_p, 0.0, 1.0)
        check_range("repetition_penalty", self.repetition_penalty, 0.0, None, exclusive_low=True)
        check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        for token, bias in self.logit_bias:
            check_range("logit_bias: token id", token, 0, None)
            check_range(f"logit_bias: bias of {token}", bias, -100.0, 100.0)
        check_range("seed", self.seed, 0, 2**63 - 1)
        check_range("logprobs", self.logprobs, 0, 20)
        check_range("block_length", self.block_length, 1, MOST_BLOCK_LENGTH)
        check_range("threshold", self.threshold, 0.0, None)
        check_range("max_denoising_steps", self.max_denoising_steps, 1, MOST_DENOISING_STEPS)
        check_range("revision_threshold", self.revision_threshold, 0.0, 1.0)
        check_range("spare_drafts", self.spare_drafts, 0, MOST_BLOCK_LENGTH)
        check_range("max_thinking_tokens", self.max_thinking_tokens, 0, None)
        if any(not text for text in self.stop):
            raise InputError(
                "stop", "an empty string", "each stop string needs at least one character"
            )
        for name, annotation in _annotations(type(self)).items():
            value = getattr(self, name)
            if "float" in annotation and type(value) is int:  # a tensor takes no large one
                object.__setattr__(self, name, float(value))

    @classmethod
    def from_mapping(cls, values: dict[str, object]) -> Self:
        """Options from JSON-like values; lists become tuples, unknown names are refused."""
        return cls().updated(values)

    def updated(self, values: dict[str, object]) -> Self:
        """A copy with the given fields replaced; with another commit rule, the old bar is dropped.

        Raises:
            InputError: a name is unknown, a type is wrong or a value is out of range.
        """
        known = _annotations(type(self))
        clean: dict[str, object] = {}
        for name, value in values.items():
            if name not in known:
                raise InputError(name, "unknown option", f"known: {', '.join(known)}")
            if name == "stop" and isinstance(value, str):
                value = (value,)
            if name == "logit_bias":
                value = _pairs(value)
            clean[name] = tuple(value) if isinstance(value, list) else value
            _check_type(name, clean[name], known[name])
        if "commit_rule" in clean:  # a bar is in its rule's unit: it does not go over to another
            clean.setdefault("threshold", None)
        return replace(self, **clean)  # type: ignore[arg-type]


@cache
def _annotations(options: type[GenerationOptions]) -> dict[str, str]:
    """Types of its fields by name, an optional one as `... | None`."""
    found = {field.name: str(field.type) for field in fields(options)}
    return {
        name: f"{text[len('typing.Optional[') : -1]} | None"
        if text.startswith("typing.Optional[")
        else text
        for name, text in found.items()
    }


def _pairs(value: object) -> object:
    """A mapping or a list of pairs as a tuple of pairs, token ids as numbers."""
    items = value.items() if isinstance(value, dict) else value
    try:
        return tuple((int(token), float(bias)) for token, bias in items)  # type: ignore[union-attr]
    except (TypeError, ValueError, OverflowError):
        allowed = "must map token ids to numbers"
        raise InputError("logit_bias", repr(value), allowed) from None


def _check_type(name: str, value: object, annotation: str) -> None:
    wanted: tuple[type, ...]
    if annotation.startswith("tuple[tuple"):
        ok = isinstance(value, tuple)
    elif annotation.startswith("tuple[str"):
        ok = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
    elif annotation.startswith("tuple[int"):
        ok = isinstance(value, tuple) and all(type(item) is int for item in value)
    else:
        optional = annotation.endswith("| None")
        base = annotation.removesuffix("| None").strip().removeprefix("<class '").removesuffix("'>")
        wanted = {"int": (int,), "float": (int, float), "bool": (bool,)}.get(base, (str,))
        boolean = isinstance(value, bool) and bool not in wanted
        ok = (optional and value is None) or (isinstance(value, wanted) and not boolean)
    if not ok:
        raise InputError(name, repr(value), f"must be {_in_words(annotation)}")


def _in_words(annotation: str) -> str:
    """A field's type as a user would say it."""
    base = annotation.removesuffix("| None").strip().removeprefix("<class '").removesuffix("'>")
    if base.startswith("tuple"):
        return "a list of texts" if "str" in base else "a list of whole numbers"
    words = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    return words.get(base, "a name") + (" or null" if annotation.endswith("| None") else "")


def _finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # an integer beyond floats
        return False


def check_range(
    name: str,
    value: float | None,
    low: float,
    high: float | None,
    *,
    exclusive_low: bool = False,
) -> None:
    """Raise InputError naming the field unless the value is finite and in range; None passes."""
    if value is None:
        return
    above = value > low if exclusive_low else value >= low
    if above and _finite(value) and (high is None or value <= high):
        return
    bound = f"above {low:g}" if exclusive_low else f"at least {low:g}"
    raise InputError(
        name,
        str(value),
        f"must be {bound}" + (f" and at most {high:g}" if high is not None else ""),
    )
