"""Passes that draft and passes that verify, shared by the speculative modes.

The first masks of a draft stand behind a known token, the root. Rows of a pass: the root, the nodes
of the draft in order, then the masks, node by node where each has its own.
"""

from collections.abc import Generator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from trimode.decoding.context import DecodingContext
from trimode.decoding.draft_tree import ROOT, DraftTree, likeliest_tree
from trimode.decoding.events import Committed, Drafted, TokenState
from trimode.decoding.span import Logits, Span, SpanKind, causal_span


def first_token(
    prompt: Sequence[int], context: DecodingContext
) -> Generator[Span | Committed, Logits | None, int]:
    """The pass that reads the prompt, whole into the KV cache, and the token it yields."""
    logits = yield causal_span("prefill", prompt, 0, keep=True, logits=(len(prompt) - 1,))
    assert logits is not None
    token = context.sampler.pick(logits.rows[0], len(prompt), prompt)
    yield Committed(tokens=(token,), logprobs=context.sampler.logprobs(logits.rows, (token,)))
    return token


def verify_span(
    kind: SpanKind, root: int, draft: DraftTree, start: int, masks: int, context: DecodingContext
) -> Span:
    """The root and a draft behind it, each of them with `masks` masks that draft what follows it.

    Logits: of the root and the nodes, then, where there is no draft, of the masks that will be
    needed. `start`: absolute position of the root.
    """
    nodes = 1 + len(draft)
    if not masks and draft.is_line:
        tokens = (root, *draft.tokens)
        return causal_span(kind, tokens, start, keep=False, logits=range(nodes))
    needed = context.predicting(masks_of(ROOT, draft, masks)[1:] if not draft else ())
    depths = (0, *draft.depths)
    last = context.context_length - 1  # masks may reach past it
    behind = [min(start + depth + i, last) for depth in depths for i in range(1, masks + 1)]
    visibility, is_mask = tree_visibility(draft.parents, masks)
    return Span(
        kind=kind,
        tokens=(root, *draft.tokens, *[context.mask_token_id] * (nodes * masks)),
        positions=(*(start + depth for depth in depths), *behind),
        visibility=visibility,
        adapter=is_mask & context.draft_adapter,
        logits=(*range(nodes), *needed),
    )


def masks_of(node: int, draft: DraftTree, masks: int) -> range:
    """Rows of a node's masks in such a pass; the root is node -1."""
    first = 1 + len(draft) + (1 + node) * masks
    return range(first, first + masks)


def proposals_of(
    node: int,
    draft: DraftTree,
    masks: int,
    wanted: int,
    logits: Logits,
    context: DecodingContext,
) -> Tensor:
    """Logits `[wanted - 1, vocab]` of a node's masks but the first, where AR decides."""
    if not draft:
        return logits.rows[1:wanted]
    return logits.head(context.predicting(masks_of(node, draft, masks)[1:wanted]))


@lru_cache(maxsize=64)
def tree_visibility(parents: tuple[int, ...], masks: int) -> tuple[Tensor, Tensor]:
    """Who sees whom in the pass of a draft with these parents.

    The root and a node see the path that leads to them. A mask sees what its node sees, and all
    masks of that node.

    Returns:
        visibility bool `[n, n]` and the rows that are masks, bool `[n]`.
    """
    nodes = 1 + len(parents)
    paths = DraftTree(parents, parents).visibility().numpy()
    seen = np.zeros((nodes * (1 + masks), nodes * (1 + masks)), dtype=bool)
    seen[:nodes, :nodes] = paths
    seen[nodes:, :nodes] = paths.repeat(masks, axis=0)
    seen[nodes:, nodes:] = np.kron(np.eye(nodes, dtype=bool), np.ones((masks, masks), dtype=bool))
    return torch.from_numpy(seen), torch.arange(len(seen)) >= nodes


def draft_from(
    rows: Tensor, start: int, history: Sequence[int], nodes: int, context: DecodingContext
) -> DraftTree:
    """A draft from the logits `[n, vocab]` of masks; `start`: absolute position of the first.

    `nodes`: most tokens of a tree; a line has one for each mask.
    """
    sampler = context.sampler
    due = context.forced_offset(start, len(rows), history)
    rows = rows[:due]
    if not len(rows):
        return DraftTree()
    if context.draft_tree and sampler.constraint is None:
        return likeliest_tree(sampler.scores(rows, start, history), nodes)
    tokens = sampler.sample(rows, start, history)
    chances = sampler.exclude_mask(rows).softmax(-1).gather(-1, tokens[:, None])[:, 0]
    return DraftTree.line(tokens.tolist(), chances.tolist())


def draft_snapshot(start: int, root: int, draft: DraftTree) -> Drafted:
    """The likeliest line of a draft as a user may see it; the root is verified already."""
    tokens, chances = draft.main_line()
    new: tuple[TokenState, ...] = ("new",) * len(tokens)
    return Drafted(
        start=start,
        tokens=(root, *tokens),
        confidences=(1.0, *chances),
        states=("kept", *new),
    )
