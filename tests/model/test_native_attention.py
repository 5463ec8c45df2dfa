"""Attention of the C++ pass at real head sizes: the same bits whatever is beside a row."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import families
from trimode.model import KVCache, Segment, build_runner, native
from trimode.model.runners import RowwiseRunner

HEADS = [(16, 6, 2), (32, 6, 2), (64, 9, 3), (64, 17, 1), (96, 4, 2), (128, 8, 2)]
"""Head size, query heads, key heads. 16: no tiles; 17 heads of a key: more than a tile's rows."""
TOKENS = torch.randint(8, 131, (180,), generator=torch.Generator().manual_seed(0))

pytestmark = pytest.mark.skipif(native.library() is None, reason="not built here")


@pytest.fixture(scope="module", params=[(*h, d) for h in HEADS for d in ("int8", "int4")], ids=str)
def model(request):
    return build(*request.param)


def build(dim, heads, kv_heads, dtype):
    sizes = {"head_dim": dim, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    sizes["hidden_size"] = 16 * heads
    _, config, tensors = families.build("llama", **sizes, num_hidden_layers=2)
    return build_runner(config, tensors.__getitem__, dtype=dtype)


@pytest.fixture(scope="module")
def alone(model):
    """Logits of every token, each in a pass of its own."""
    with torch.inference_mode():
        return prefill(model, len(TOKENS), cuts=range(1, len(TOKENS)))[0]


def prefill(model, count, cuts=()):
    """Logits of the first tokens, computed in chunks that end at `cuts`, and their cache."""
    cache = KVCache(model.transformer.config, 256, dtype=model.kv_dtype)
    cache.keys.fill_(float("nan"))  # memory that nobody wrote must not be read
    cache.values.fill_(float("nan"))
    parts = [torch.empty(0, model.transformer.config.vocab_size)]
    for start, stop in zip((0, *cuts), (*cuts, count), strict=True):
        if start == stop:
            continue
        segments = [Segment(0, stop - start, cache, "causal")]
        hidden = model.run(TOKENS[start:stop], torch.arange(start, stop), segments)
        parts.append(model.logits(hidden))
        cache.keep(range(stop - start))
    return torch.cat(parts), cache


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, len(TOKENS) - 1), max_size=4))
@torch.inference_mode()
def test_in_chunks_of_any_size(model, alone, cuts):
    assert torch.equal(prefill(model, len(TOKENS), sorted(cuts))[0], alone)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), prefix=st.integers(0, 140), rows=st.integers(1, 24))
@torch.inference_mode()
def test_as_a_path_through_a_tree_beside_another_sequence(model, alone, data, prefix, rows):
    path = sorted(data.draw(st.sets(st.integers(0, rows - 1), min_size=1, max_size=rows)))
    depth = len(path)
    other = data.draw(st.integers(0, 70))
    tokens, positions = torch.full((rows,), 11), torch.full((rows,), prefix)
    tokens[path] = TOKENS[prefix : prefix + depth]
    positions[path] = torch.arange(prefix, prefix + depth)
    visible = torch.rand(rows, rows, generator=torch.Generator().manual_seed(rows)) < 0.5
    visible.fill_diagonal_(True)
    for i, row in enumerate(path):
        visible[row] = False
        visible[row, path[: i + 1]] = True
    _, cache = prefill(model, prefix)
    _, beside = prefill(model, other)
    segments = [Segment(0, 5, beside, "block"), Segment(5, 5 + rows, cache, visible)]
    hidden = model.run(
        torch.cat((TOKENS[other : other + 5], tokens)),
        torch.cat((torch.arange(other, other + 5), positions)),
        segments,
    )
    expected = alone[prefix : prefix + depth]
    assert torch.equal(model.logits(hidden[5:][path]), expected)


@torch.inference_mode()
def test_agrees_with_the_pytorch_operators(model, alone, request):
    with patch("trimode.model.runners.native.library", return_value=None):
        operators = build(*request.node.callspec.params["model"])
    assert isinstance(operators, RowwiseRunner)
    theirs, _ = prefill(operators, 150)
    assert float((alone[:150] - theirs).norm() / theirs.norm()) < 0.02
