"""Attention in chunks equals PyTorch's, and so do its gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from trimode.training.chunked_attention import attend, parts
from trimode.training.masks import clean_visibility


@st.composite
def problems(draw):
    """Queries, keys, values and a mask."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    key_heads, groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 4
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    ends = torch.rand(rows, length, generator=generator) < 0.2
    documents = ends.cumsum(1)
    if draw(st.booleans()):
        documents[0, length // 2 :] = -1  # padding
    context = draw(st.sampled_from(["causal", "block"]))
    visible = clean_visibility(documents, context, draw(st.integers(1, 5)))
    window = draw(st.sampled_from([None, 3]))
    if window is not None:
        places = torch.arange(length)
        visible &= places[:, None] - places < window
    shapes = [(rows, heads, length, size) for heads in (key_heads * groups, key_heads, key_heads)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return *tensors, visible


@given(problems(), st.integers(1, 9))
@settings(max_examples=60)
def test_it_equals_pytorchs(problem, chunk):
    *tensors, visible = problem
    queries, keys, values = (tensor.requires_grad_() for tensor in tensors)
    cut = keys.shape[2] // 3 if chunk % 2 else 0  # two sources of keys, or one
    sources = [slice(cut), slice(cut, None)] if cut else [slice(None)]
    found = attend(
        queries,
        [keys[:, :, some] for some in sources],
        [values[:, :, some] for some in sources],
        parts([visible[:, :, some] for some in sources], chunk),
    )
    wanted = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=visible[:, None], enable_gqa=True
    )
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    weight = torch.randn_like(wanted)
    ours = torch.autograd.grad((found * weight).sum(), (queries, keys, values))
    theirs = torch.autograd.grad((wanted * weight).sum(), (queries, keys, values))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-6, rtol=1e-6)


def test_keys_that_nobody_sees_are_left_out():
    documents = torch.tensor([[0] * 6 + [1] * 6, [0] * 8 + [1] * 4])
    found = parts([clean_visibility(documents)], 4)
    assert [part.keys for part in found] == [(slice(0, 4),), (slice(0, 8),), (slice(6, 12),)]


@pytest.mark.parametrize("on", [True, False])
def test_autocast_decides_the_dtype(on):
    x = torch.randn(1, 2, 5, 4, requires_grad=True)
    visible = torch.ones(1, 5, 5, dtype=torch.bool).tril()
    with torch.autocast("cpu", torch.bfloat16, enabled=on):
        found = attend(x, [x], [x], parts([visible]))
    assert found.dtype == (torch.bfloat16 if on else torch.float32)
    found.sum().backward()
    assert x.grad.dtype == torch.float32


def test_a_source_that_does_not_learn_gets_no_gradient():
    x, fixed = torch.randn(1, 2, 5, 4, requires_grad=True), torch.randn(1, 2, 3, 4)
    visible = [torch.ones(1, 5, length, dtype=torch.bool) for length in (3, 5)]

    def gradient(first):
        output = attend(x, [first, x], [first, x], parts(visible, 2))
        return torch.autograd.grad(output.square().sum(), x)[0]

    learning = fixed.clone().requires_grad_()
    torch.testing.assert_close(gradient(fixed), gradient(learning))
    assert fixed.grad is None
