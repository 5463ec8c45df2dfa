"""A runner whose logits a script decides from exactly what each row sees.

It attends like a real one: its values spell out which token stands at which position, so what a
row gets back from attention tells which tokens were visible to it, cache included. So a test can
steer acceptance, and it catches wrong masks, positions and caches without any rounding.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.reference.tiny import MASK, letters
from trimode.checkpoints import LoadedModel
from trimode.config import ModelConfig
from trimode.model import CachedAttention

CONTEXT = 126
"""Positions the spelling has room for; one more dimension counts the visible rows."""


@dataclass(frozen=True)
class Row:
    """One row of a pass as the script gets to see it."""

    position: int
    token: int
    visible: dict[int, int]
    """Position -> token of everything the row attends to, itself included."""
    adapted: bool

    @property
    def history(self) -> tuple[int, ...]:
        """The visible tokens of a causal row, which must be all tokens up to itself."""
        assert sorted(self.visible) == list(range(self.position + 1)), "holes in a causal view"
        assert MASK not in self.visible.values(), "a causal row sees a mask"
        return tuple(self.visible[i] for i in range(self.position + 1))


Script = Callable[[Row], Tensor]
"""Logits `[vocab]` of a row: of the next token, or for a mask of the token in its place."""


class ScriptedRunner:
    """Takes the place of a `trimode.model.Runner` in an engine."""

    kv_dtype = torch.float32
    device = "cpu"

    def __init__(self, config: ModelConfig, script: Script) -> None:
        self.config, self.script = config, script
        self.rows_run: list[list[tuple[int, int]]] = []
        """(token, position) of every row, pass by pass."""

    def run(
        self,
        tokens: Tensor,
        positions: Tensor,
        segments: Any,
        adapter_rows: Any = None,
        given: Any = None,  # noqa: ARG002
    ) -> Tensor:
        rows = torch.arange(len(tokens))
        self.rows_run.append(list(zip(tokens.tolist(), positions.tolist(), strict=True)))
        values = torch.zeros(len(tokens), 1, self.config.head_dim)
        values[rows, 0, positions] = tokens.float() + 1
        values[:, 0, CONTEXT] = (positions == 0).float()  # one row, so its mean is 1 / visible
        attend = CachedAttention(segments, self.kv_dtype, self.device)
        seen = attend(0, torch.zeros_like(values), torch.zeros_like(values), values)
        adapted = torch.zeros(len(tokens), 1)
        if adapter_rows is not None:
            adapted[adapter_rows] = 1
        return torch.cat([seen, tokens[:, None], positions[:, None], adapted], dim=-1)

    def likeliest(self, hidden: Tensor) -> None:
        pass

    def logits(self, hidden: Tensor) -> Tensor:
        if not len(hidden):
            return torch.zeros(0, self.config.vocab_size)
        return torch.stack([self.script(self._row(row)).clone() for row in hidden])

    def _row(self, row: Tensor) -> Row:
        token, position, adapted = (round(v) for v in row[-3:].tolist())
        spelled = (row[:CONTEXT] / row[CONTEXT]).round().int().tolist()
        visible = {i: value - 1 for i, value in enumerate(spelled) if value}
        return Row(position, token, visible, bool(adapted))


def scripted(
    script: Script,
    *,
    vocab: int = 20,
    eos: tuple[int, ...] = (),
    scope: str | None = None,
    context: int = CONTEXT,
    thinks: bool = True,
    token_shift: bool = False,
) -> LoadedModel:
    """A loaded model that runs a script."""
    config = ModelConfig(
        family="llama",
        vocab_size=vocab,
        hidden_size=1,
        intermediate_size=1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=CONTEXT + 2,
        rms_norm_eps=1e-5,
        max_position_embeddings=context,
        mask_token_id=MASK,
        eos_token_ids=eos,
        trained_to_denoise=True,
        token_shift=token_shift,
        draft_form="led" if scope == "denoise" else "seeded",
    )
    return LoadedModel(
        name="scripted",
        config=config,
        runner=ScriptedRunner(config, script),
        tokenizer=letters(thinks=thinks),
        chat_template=None,
        adapter_scope=scope,
    )


def spelled_cache(cache: Any) -> list[int]:
    """The tokens in a scripted model's KV cache, which must lie in order of position."""
    values = cache.values[0, 0, : cache.length, :CONTEXT]
    tokens = []
    for i, row in enumerate(values):
        (positions,) = row.nonzero(as_tuple=True)
        assert positions.tolist() == [i], f"cache row {i} holds position {positions.tolist()}"
        tokens.append(round(float(row[i])) - 1)
    return tokens


def peaked(token: int, probability: float, vocab: int = 20) -> Tensor:
    """Logits of a token with a given probability; the others share the rest, the mask has none."""
    rest = (1 - probability) / (vocab - 2)
    logits = torch.full((vocab,), rest).log()
    logits[token] = torch.tensor(probability).log()
    logits[MASK] = -torch.inf
    return logits


def word(*key: Any, avoid: tuple[int, ...] = (), vocab: int = 20) -> int:
    """A token that looks random but is a function of the key; never the mask."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(key).encode()))
    while True:
        token = int(torch.randint(vocab, (), generator=generator))
        if token != MASK and token not in avoid:
            return token


def speculative(
    right: Callable[[int], bool], *, avoid: tuple[int, ...] = (), token_shift: bool = False
) -> Script:
    """AR tokens that depend on the whole history; a draft is right if `right(position)` is true.

    With token shift a row that sees masks predicts the token after its own, whatever it holds.
    """

    def after(history: tuple[int, ...]) -> int:
        return word(history, avoid=avoid)

    def script(row: Row) -> Tensor:
        if row.token != MASK and not (token_shift and MASK in row.visible.values()):
            return peaked(after(row.history), 0.9)
        place = row.position + token_shift
        known: tuple[int, ...] = ()
        while len(known) < place:  # what greedy decoding would put before this mask
            visible = row.visible.get(len(known), MASK)
            known += (visible if visible != MASK else after(known),)
        true = after(known)
        return peaked(true if right(place) else (true + 1) % 6 + 8, 0.8)

    return script
