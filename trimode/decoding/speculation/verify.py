"""Passes that draft and passes that verify, shared by the speculative modes.

A draft follows a known token, the root. The rows of a pass are the root, the nodes of the draft in
order, then the masks: of the root first, then node by node.
"""

from collections.abc import Generator, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from trimode.decoding.context import Before, DecodingContext
from trimode.decoding.events import Committed, Drafted, TokenState
from trimode.decoding.markov import CANDIDATES, Neighbours, tokens_before
from trimode.decoding.sampling import Sampler
from trimode.decoding.span import Logits, Span, SpanKind, causal_span
from trimode.decoding.speculation.draft_tree import (
    MAX_BRANCHES,
    NOTHING,
    ROOT,
    DraftTree,
    Independent,
    likeliest_tree,
)


def first_token(
    prompt: Sequence[int], context: DecodingContext
) -> Generator[Span | Committed, Logits | None, tuple[int, Tensor]]:
    """The pass that reads the prompt, whole into the KV cache.

    Returns:
        The token that it yields, and the hidden state that chose it, `[1, dim]`.
    """
    sampler = context.sampler
    asked = sampler.asks((len(prompt) - 1,))
    logits = yield causal_span("prefill", prompt, 0, keep=True, **asked)
    assert logits is not None
    token = sampler.decide(logits, 0, len(prompt), prompt)
    yield Committed(tokens=(token,), logprobs=sampler.logprobs(logits.rows, (token,)))
    return token, logits.hidden


def verify_span(
    kind: SpanKind, root: int, draft: DraftTree, start: int, masks: int, context: DecodingContext
) -> Span:
    """The root and a draft after it, each of them with `masks` masks that draft what follows it.

    It asks for what decides after the root and the nodes. Without a draft it asks for the logits of
    the masks too, which will be needed. `start`: absolute position of the root.
    """
    nodes = 1 + len(draft)
    asked = context.sampler.asks(range(nodes))
    if not masks and draft.is_line:
        return causal_span(kind, (root, *draft.tokens), start, keep=False, **asked)
    needed = context.predicting(masks_of(ROOT, draft, masks)[1:] if not draft else ())
    depths = (0, *draft.depths)
    last = context.context_length - 1  # masks may reach past it
    after = [min(start + depth + i, last) for depth in depths for i in range(1, masks + 1)]
    visibility, is_mask = tree_visibility(draft.parents, masks)
    return Span(
        kind=kind,
        tokens=(root, *draft.tokens, *[context.mask_token_id] * (nodes * masks)),
        positions=(*(start + depth for depth in depths), *after),
        visibility=visibility,
        adapter=is_mask & context.draft_adapter,
        likeliest=asked["likeliest"],
        logits=(*asked["logits"], *needed),
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
) -> tuple[Tensor, Tensor]:
    """What a node's masks propose but the first, whose token AR decides.

    Returns:
        Logits `[wanted - 1, vocab]` and hidden states `[wanted - 1, dim]`.
    """
    if not draft:
        rows, states = logits.rows, logits.hidden
        return (
            rows[len(rows) - (masks - 1) :][: wanted - 1],
            states[len(states) - (masks - 1) :][: wanted - 1],
        )
    return logits.head(context.predicting(masks_of(node, draft, masks)[1:wanted]))


def follow(
    sampler: Sampler, logits: Logits, start: int, draft: DraftTree, history: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The path of a draft that AR decoding would take.

    Args:
        sampler: of the request.
        logits: of a span that `verify_span` made of the draft.
        start: absolute position of the draft's first tokens.
        draft: what was proposed.
        history: every token before `start`.

    Returns:
        The tokens of the path and the one after it, each of them the verifier's own choice; and
        the nodes of the path.
    """
    if not draft:
        return [sampler.decide(logits, 0, start, history)], []
    choices = logits.likeliest or sampler.row_choices(logits.rows[: 1 + len(draft)])
    accepted: list[int] = []
    path: list[int] = []
    node: int | None = ROOT
    while node is not None:
        before = [*history, *accepted]
        token = sampler.forced(start + len(accepted), before)
        if token is None and choices is not None:
            token = choices[1 + node]
        elif token is None:
            token = sampler.pick(logits.rows[1 + node], start + len(accepted), before)
        accepted.append(token)
        node = draft.child(node, token)
        if node is not None:
            path.append(node)
    return accepted, path


def judged(draft: DraftTree, path: Sequence[int]) -> tuple[int, int]:
    """How many places of a draft are judged by the path that was accepted, and how many were right.

    Nothing was drafted after a leaf, so nothing there could have been wrong.
    """
    node = path[-1] if path else ROOT
    return len(path) + draft.has_children(node), len(path)


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
    rows: Tensor,
    states: Tensor,
    history: Sequence[int],
    nodes: int,
    context: DecodingContext,
) -> DraftTree:
    """A draft after all tokens so far, from the masks that follow them.

    Args:
        rows: logits of the masks, `[n, vocab]`.
        states: their hidden states, `[n, dim]`.
        history: all tokens before them.
        nodes: most tokens of a tree; a line has one for each mask.
        context: the request.
    """
    sampler, start = context.sampler, len(history)
    due = context.forced_offset(start, len(rows), history)
    rows, states = rows[:due], states[:due]
    if not len(rows):
        return DraftTree()
    if context.draft_tree and sampler.constraint is None:
        scores = sampler.scores(rows, start, history)
        before = tokens_before(start, history.__getitem__)
        return _tree(scores, states, before, nodes, context)
    tokens = sampler.sample(rows, start, history)
    chances = sampler.exclude_mask(rows).softmax(-1).gather(-1, tokens[:, None])[:, 0]
    return DraftTree.line(tokens.tolist(), chances.tolist())


def _tree(
    scores: Tensor, states: Tensor, before: Before, nodes: int, context: DecodingContext
) -> DraftTree:
    """The likeliest beginnings of an answer, by the Markov head if there is one."""
    head, sharpness = context.markov_head, context.sampler.sharpness
    if nodes < 1:
        return NOTHING
    if head is None:
        return likeliest_tree(Independent(scores), before, nodes)
    branches = min(MAX_BRANCHES, nodes)
    found = head.tree(
        scores, states, sharpness, before, candidates=CANDIDATES, branches=branches, nodes=nodes
    )
    if found is None:
        return likeliest_tree(Neighbours(scores, states, head, sharpness), before, nodes)
    tokens, parents, chances = found
    return DraftTree(tuple(tokens), tuple(parents), tuple(chances))


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
