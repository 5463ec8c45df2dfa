"""The two passes of a training step through the transformer.

The clean pass runs the rows as they are and keeps each layer's keys and values. The noisy pass runs
the noisy blocks against them. See `masks` for who sees whom.

Axis letters: R rows of a batch, L tokens of a row, N blocks of a row, B tokens of a block,
D hidden, H query heads, K key heads, G = H / K, d head dimension.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from trimode.model import Transformer
from trimode.training.masks import (
    Blocks,
    CleanContext,
    clean_visibility,
    context_visibility,
    places_in_document,
)


class CleanAttention:
    """Attention of the clean pass; keeps its keys and values for the noisy pass."""

    def __init__(self, visible: Tensor) -> None:
        """`visible`: bool `[R, L, L]`."""
        self._visible = visible[:, None]
        self._rows = len(visible)
        self.keys: list[Tensor] = []
        """Of each layer, `[R, K, L, d]`."""
        self.values: list[Tensor] = []

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `trimode.model.attention.Attend`; T = R * L."""
        del layer
        queries, keys, values = (
            x.unflatten(0, (self._rows, -1)).transpose(1, 2) for x in (queries, keys, values)
        )
        self.keys.append(keys)
        self.values.append(values)
        output = self._attend(queries, keys, values)
        return output.transpose(1, 2).flatten(2).flatten(0, 1)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=self._visible, enable_gqa=True
        )


class FlexCleanAttention(CleanAttention):
    """The same with FlexAttention, which skips keys that no row sees; for CUDA."""

    def __init__(self, visible: Tensor) -> None:
        """`visible`: bool `[R, L, L]`."""
        super().__init__(visible)
        rows, length, _ = visible.shape

        def mask(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            del head
            return visible[row, query, key]

        self._mask = create_block_mask(mask, rows, None, length, length, visible.device)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return _flex(queries, keys, values, self._mask)


class NoisyAttention:
    """Attention of the noisy pass: a block sees itself both ways, and the clean copy before it.

    Scores against the clean copy and within the block are computed apart and share one softmax. So
    no key is copied, and no block is multiplied with another.
    """

    def __init__(self, clean: CleanAttention, visible: Tensor, block_length: int) -> None:
        """`visible`: blocks to clean tokens, bool `[R, N, L]`."""
        self._clean = clean
        self._block_length = block_length
        self._hidden = ~visible[:, None, None, :, None, :]  # [R, 1, 1, N, 1, L]

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `trimode.model.attention.Attend`; T = R * N * B."""
        rows, _, _, blocks, _, length = self._hidden.shape
        kv_heads, head_dim = keys.shape[1:]
        shape = (rows, blocks, self._block_length, kv_heads, -1, head_dim)
        queries = queries.view(shape).permute(0, 3, 4, 1, 2, 5)  # [R, K, G, N, B, d]
        queries = queries * head_dim**-0.5
        keys = keys.view(shape).permute(0, 3, 4, 1, 2, 5)  # [R, K, 1, N, B, d]
        values = values.view(shape).permute(0, 3, 4, 1, 2, 5)
        groups = queries.shape[2]
        flat = queries.reshape(rows, kv_heads, -1, head_dim)  # [R, K, G * N * B, d]
        clean_keys, clean_values = self._clean.keys[layer], self._clean.values[layer]
        outside = flat @ clean_keys.transpose(-1, -2)
        outside = outside.view(rows, kv_heads, groups, blocks, -1, length)
        outside = outside.masked_fill(self._hidden, float("-inf"))
        inside = queries @ keys.transpose(-1, -2)  # [R, K, G, N, B, B]
        scores = torch.cat((outside, inside), dim=-1).softmax(-1)
        outside, inside = scores.split((length, self._block_length), dim=-1)
        output = (outside.reshape(rows, kv_heads, -1, length) @ clean_values).view_as(queries)
        output = output + inside @ values
        return output.permute(0, 3, 4, 1, 2, 5).reshape(rows * blocks * self._block_length, -1)


class FlexNoisyAttention:
    """The same with FlexAttention over [clean | noisy] keys; for CUDA."""

    def __init__(self, clean: CleanAttention, visible: Tensor, block_length: int) -> None:
        """`visible`: blocks to clean tokens, bool `[R, N, L]`."""
        self._clean = clean
        self._rows, blocks, length = visible.shape
        noisy = blocks * block_length

        def mask(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            del head
            block = query // block_length
            before = (key < length) & visible[row, block, key.clamp(max=length - 1)]
            return before | ((key >= length) & ((key - length) // block_length == block))

        self._mask = create_block_mask(
            mask, self._rows, None, noisy, length + noisy, visible.device
        )

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `trimode.model.attention.Attend`; T = R * N * B."""
        queries, keys, values = (
            x.unflatten(0, (self._rows, -1)).transpose(1, 2) for x in (queries, keys, values)
        )
        keys = torch.cat((self._clean.keys[layer], keys), dim=2)
        values = torch.cat((self._clean.values[layer], values), dim=2)
        output = _flex(queries, keys, values, self._mask)
        return output.transpose(1, 2).flatten(2).flatten(0, 1)


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
    """
    visible = clean_visibility(documents, context, block_length).to(tokens.device)
    attend = (FlexCleanAttention if _or_default(flex, tokens) else CleanAttention)(visible)
    positions = places_in_document(documents).flatten().to(tokens.device)
    scope: AbstractContextManager = nullcontext() if gradient else torch.no_grad()
    with scope:
        hidden = transformer(tokens.flatten(), positions, attend)
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
    length = tokens.shape[2]
    visible = context_visibility(blocks, documents).to(tokens.device)
    kind = FlexNoisyAttention if _or_default(flex, tokens) else NoisyAttention
    attend = kind(clean, visible, length)
    starts = places_in_document(documents).gather(1, blocks.starts)
    positions = starts[:, :, None] + torch.arange(length)
    hidden = transformer(
        tokens.flatten(),
        positions.flatten().to(tokens.device),
        attend,
        slice(None),
        recompute=recompute and torch.is_grad_enabled(),
    )
    return hidden.view(*tokens.shape, -1)


def _or_default(flex: bool | None, tokens: Tensor) -> bool:
    return tokens.is_cuda if flex is None else flex
