"""The two passes of a training step through the transformer.

The clean pass runs the rows as they are and keeps each layer's keys and values. The noisy pass runs
the noisy blocks against them. See `masks` for who sees whom.

Axis letters: R rows of a batch, L tokens of a row, N blocks of a row, B tokens of a block,
D hidden, H query heads, K key heads, G = H / K, d head dimension.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from trimode.config import ModelConfig
from trimode.model import GivenRows, Transformer
from trimode.training import chunked_attention
from trimode.training.masks import (
    Blocks,
    CleanContext,
    clean_visibility,
    context_visibility,
    places_in_document,
)

T = TypeVar("T")
U = TypeVar("U")


class ByLayer(Generic[T]):
    """Something that layers with the same sliding window have in common."""

    def __init__(self, config: ModelConfig, by_window: dict[int | None, T]) -> None:
        self._config, self._by_window = config, by_window

    def __getitem__(self, layer: int) -> T:
        windows = self._config.layer_windows
        return self._by_window[windows[layer] if windows else None]

    def map(self, make: Callable[[T], U]) -> "ByLayer[U]":
        """The same, made into something else."""
        made = {window: make(value) for window, value in self._by_window.items()}
        return ByLayer(self._config, made)

    def zip(self, other: "ByLayer[U]") -> "ByLayer[tuple[T, U]]":
        """Pairs of both."""
        pairs = {w: (value, other._by_window[w]) for w, value in self._by_window.items()}
        return ByLayer(self._config, pairs)


def layer_masks(
    config: ModelConfig, visible: Tensor, queries: Tensor, keys: Tensor
) -> ByLayer[Tensor]:
    """A mask narrowed by the windows of a model's layers.

    Args:
        config: the model.
        visible: what a layer without a window sees, bool `[..., query, key]`.
        queries: their positions, broadcastable to `[..., query]`.
        keys: their positions, broadcastable to `[..., key]`.
    """
    distance = queries[..., :, None] - keys[..., None, :]
    windows = set(config.layer_windows) or {None}
    masks = {w: visible if w is None else visible & (distance < w) for w in windows}
    return ByLayer(config, masks)


class CleanAttention:
    """Attention of the clean pass; keeps its keys and values for the noisy pass."""

    def __init__(self, visible: ByLayer[Tensor]) -> None:
        """`visible`: bool `[R, L, L]` for each layer."""
        self._rows = len(visible[0])
        self._masks = visible.map(self._mask)
        self.keys: list[Tensor] = []
        """Of each layer, `[R, K, L, d]`."""
        self.values: list[Tensor] = []

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `trimode.model.attention.Attend`; T = R * L."""
        queries, keys, values = (
            x.unflatten(0, (self._rows, -1)).transpose(1, 2) for x in (queries, keys, values)
        )
        self.keys.append(keys)
        self.values.append(values)
        output = self._attend(layer, queries, keys, values)
        return output.transpose(1, 2).flatten(2).flatten(0, 1)

    def _attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return chunked_attention.attend(queries, [keys], [values], self._masks[layer])

    @staticmethod
    def _mask(visible: Tensor) -> Any:
        """A mask as `_attend` takes it."""
        return chunked_attention.parts([visible])


class FlexCleanAttention(CleanAttention):
    """The same with FlexAttention, which skips keys that no row sees; for CUDA."""

    def _attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return _flex(queries, keys, values, self._masks[layer])

    @staticmethod
    def _mask(visible: Tensor) -> BlockMask:
        rows, length, _ = visible.shape

        def mask(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            del head
            return visible[row, query, key]

        return create_block_mask(mask, rows, None, length, length, visible.device)


class NoisyAttention:
    """Attention of the noisy pass: a block sees itself both ways, and the clean copy before it."""

    def __init__(
        self, clean: CleanAttention, visible: ByLayer[Tensor], inside: ByLayer[Tensor]
    ) -> None:
        """Masks for each layer.

        Args:
            clean: the clean pass.
            visible: blocks to clean tokens, bool `[R, N, B, L]`.
            inside: tokens of a block to each other, bool `[B, B]`.
        """
        self._clean = clean
        self._rows = len(visible[0])
        self._masks = visible.zip(inside).map(self._mask)

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `trimode.model.attention.Attend`; T = R * N * B."""
        queries, keys, values = (
            x.unflatten(0, (self._rows, -1)).transpose(1, 2) for x in (queries, keys, values)
        )
        output = self._attend(layer, queries, keys, values)
        return output.transpose(1, 2).flatten(2).flatten(0, 1)

    def _attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        all_keys = [self._clean.keys[layer], keys]
        all_values = [self._clean.values[layer], values]
        return chunked_attention.attend(queries, all_keys, all_values, self._masks[layer])

    @staticmethod
    def _mask(masks: tuple[Tensor, Tensor]) -> Any:
        """Both masks as `_attend` takes them."""
        visible, inside = masks
        rows, blocks = visible.shape[:2]
        same = torch.block_diag(*[inside] * blocks).bool().expand(rows, -1, -1)
        return chunked_attention.parts([visible.flatten(1, 2), same])


class FlexNoisyAttention(NoisyAttention):
    """The same with FlexAttention over [clean | noisy] keys; for CUDA."""

    def _attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        keys = torch.cat((self._clean.keys[layer], keys), dim=2)
        values = torch.cat((self._clean.values[layer], values), dim=2)
        return _flex(queries, keys, values, self._masks[layer])

    @staticmethod
    def _mask(masks: tuple[Tensor, Tensor]) -> BlockMask:
        visible, inside = masks
        rows, blocks, block_length, length = visible.shape
        noisy = blocks * block_length

        def mask(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            del head
            block, place = query // block_length, query % block_length
            before = (key < length) & visible[row, block, place, key.clamp(max=length - 1)]
            other = key - length
            same = (key >= length) & (other // block_length == block)
            return before | (same & inside[place, other % block_length])

        return create_block_mask(mask, rows, None, noisy, length + noisy, visible.device)


def _flex(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask) -> Tensor:
    kernel = torch.compile(flex_attention) if queries.is_cuda else flex_attention
    output = kernel(queries, keys, values, block_mask=mask, enable_gqa=True)
    assert isinstance(output, Tensor)
    return output


def clean_pass(
    transformer: Transformer,
    tokens: Tensor,
    documents: Tensor,
    *,
    context: CleanContext = "causal",
    block_length: int = 1,
    gradient: bool = True,
    flex: bool | None = None,
    given: GivenRows | None = None,
) -> tuple[Tensor, CleanAttention]:
    """Hidden states of the clean copy `[R, L, D]`, and its keys and values.

    Args:
        transformer: the model; its adapter is off.
        tokens: int64 `[R, L]`.
        documents: int64 `[R, L]`; -1 is padding.
        context: how the copy sees itself.
        block_length: for block-causal context.
        gradient: whether to record the pass for a backward pass.
        flex: whether to use FlexAttention; by default on CUDA.
        given: rows of `[R * L]` whose embeddings are given: those of pictures.
    """
    visible = clean_visibility(documents, context, block_length).to(tokens.device)
    places = places_in_document(documents).to(tokens.device)
    masks = layer_masks(transformer.config, visible, places, places)
    attend = (FlexCleanAttention if _or_default(flex, tokens) else CleanAttention)(masks)
    positions = places.flatten()
    scope: AbstractContextManager = nullcontext() if gradient else torch.no_grad()
    with scope:
        hidden = transformer(tokens.flatten(), positions, attend, given=given)
    return hidden.unflatten(0, tokens.shape), attend


def noisy_pass(
    transformer: Transformer,
    tokens: Tensor,
    blocks: Blocks,
    documents: Tensor,
    clean: CleanAttention,
    *,
    recompute: bool = False,
    flex: bool | None = None,
) -> Tensor:
    """Hidden states of the noisy blocks `[R, N, B, D]`, with the adapter on.

    Args:
        transformer: the model.
        tokens: of the noisy blocks, int64 `[R, N, B]`.
        blocks: where they lie.
        documents: of the clean copy, int64 `[R, L]`.
        clean: keys and values of the clean pass.
        recompute: keep only the inputs of layers for the backward pass.
        flex: whether to use FlexAttention; by default on CUDA.
    """
    places = places_in_document(documents)
    starts = places.gather(1, blocks.starts)
    positions = (starts[:, :, None] + torch.arange(tokens.shape[2])).to(tokens.device)
    visible = context_visibility(blocks, documents).to(tokens.device)[:, :, None]
    visible = visible.expand(*tokens.shape, -1)
    masks = layer_masks(transformer.config, visible, positions, places.to(tokens.device)[:, None])
    within = torch.arange(tokens.shape[2], device=tokens.device)
    whole = torch.ones(len(within), len(within), dtype=torch.bool, device=tokens.device)
    inside = layer_masks(transformer.config, whole, within, within)
    kind = FlexNoisyAttention if _or_default(flex, tokens) else NoisyAttention
    attend = kind(clean, masks, inside)
    hidden = transformer(
        tokens.flatten(),
        positions.flatten(),
        attend,
        slice(None),
        recompute=recompute and torch.is_grad_enabled(),
    )
    return hidden.view(*tokens.shape, -1)


def _or_default(flex: bool | None, tokens: Tensor) -> bool:
    return tokens.is_cuda if flex is None else flex
