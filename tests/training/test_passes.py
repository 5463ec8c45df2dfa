"""The two passes against one dense pass over [clean | noisy], the form in which NLD writes it."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from trimode.model import build_runner
from trimode.testing.tiny import tiny_config, tiny_tensors
from trimode.training.masks import grid_blocks, places_in_document, random_blocks
from trimode.training.passes import clean_pass, noisy_pass

MASK = 256


class DenseAttention:
    """Every row against every row of one sequence, under a bool mask `[T, T]`."""

    def __init__(self, visible, positions, windows):
        self.visible, self.windows = visible, windows
        self.distance = positions[:, None] - positions[None, :]

    def __call__(self, layer, queries, keys, values):
        window = self.windows[layer] if self.windows else None
        near = self.distance < window if window else torch.ones_like(self.visible)
        groups = queries.shape[1] // keys.shape[1]
        keys, values = (x.repeat_interleave(groups, 1).transpose(0, 1) for x in (keys, values))
        output = F.scaled_dot_product_attention(
            queries.transpose(0, 1), keys, values, attn_mask=self.visible & near
        )
        return output.transpose(0, 1).flatten(1)


def build(family="llama", **overrides):
    config = tiny_config(family, **overrides)
    tensors = tiny_tensors(config)
    return build_runner(config, tensors.__getitem__, dtype="fp32", plain=True).transformer


def dense_oracle(model, tokens, documents, blocks, noisy_tokens):
    """Hidden states of each row's [clean | noisy blocks] by a brute-force visibility rule."""
    positions = places_in_document(documents)
    outputs = []
    for row in range(len(tokens)):
        items = [("clean", None, j, int(positions[row, j])) for j in range(tokens.shape[1])]
        ids = tokens[row].tolist()
        for n in range(blocks.starts.shape[1]):
            start = int(blocks.starts[row, n])
            for b in range(blocks.index.shape[2]):
                items.append(("noisy", n, start, int(positions[row, start]) + b))
                ids.append(int(noisy_tokens[row, n, b]))
        visible = torch.zeros(len(items), len(items), dtype=torch.bool)
        document = documents[row].tolist()
        for i, (kind, block, place, _) in enumerate(items):
            for j, (other, other_block, other_place, _) in enumerate(items):
                if kind == "clean" and other == "clean":
                    same = document[place] == document[other_place]
                    seen = same and other_place <= place and document[place] >= 0
                    visible[i, j] = seen or i == j
                elif kind == "noisy" and other == "clean":
                    same = document[place] == document[other_place] and document[place] >= 0
                    visible[i, j] = same and other_place < place
                elif kind == "noisy":
                    visible[i, j] = block == other_block
        where = torch.tensor([p for *_, p in items])
        attend = DenseAttention(visible, where, model.config.layer_windows)
        hidden = model(torch.tensor(ids), where, attend)
        outputs.append(hidden)
    return torch.stack(outputs)


@st.composite
def packings(draw):
    """Documents of random lengths packed into rows, with padding at the end."""
    length = draw(st.integers(6, 24))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row = []
        number = 0
        while len(row) < length and draw(st.booleans()):
            size = min(draw(st.integers(1, 10)), length - len(row))
            row += [number] * size
            number += 1
        rows.append(row + [-1] * (length - len(row)))
    return torch.tensor(rows)


@pytest.mark.parametrize("family", ["llama", "qwen3", "nemotron_labs_diffusion", "gemma3_text"])
@given(documents=packings(), block_length=st.integers(1, 7), seed=st.integers(0, 99))
def test_two_passes_equal_one_dense_pass(family, documents, block_length, seed):
    model = build(family)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 250, documents.shape, generator=generator)
    if seed % 2:
        learn = torch.rand(documents.shape, generator=generator) < 0.7
        blocks = random_blocks(documents, learn, block_length, 3, generator)
    else:
        blocks = grid_blocks(documents, block_length, copies=2, offset=seed % block_length)
    noisy = torch.where(
        torch.rand(blocks.index.shape, generator=generator) < 0.5,
        MASK,
        tokens.gather(1, blocks.index.flatten(1)).view_as(blocks.index),
    )
    hidden, clean = clean_pass(model, tokens, documents)
    out = noisy_pass(model, noisy, blocks, documents, clean)
    oracle = dense_oracle(model, tokens, documents, blocks, noisy)
    length = tokens.shape[1]
    torch.testing.assert_close(hidden, oracle[:, :length], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(out.flatten(1, 2), oracle[:, length:], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("family", ["llama", pytest.param("gemma3_text", marks=pytest.mark.slow)])
@given(documents=packings(), block_length=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_flex_attention_computes_the_same(family, documents, block_length, seed):
    model = build(family)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 250, documents.shape, generator=generator)
    blocks = grid_blocks(documents, block_length)
    noisy = torch.where(blocks.inside, 3, MASK)
    results = []
    for flex in (False, True):
        hidden, clean = clean_pass(model, tokens, documents, gradient=False, flex=flex)
        with torch.no_grad():
            out = noisy_pass(model, noisy, blocks, documents, clean, flex=flex)
        results.append((hidden, out))
    for ours, flexed in zip(*results, strict=True):
        torch.testing.assert_close(flexed, ours, atol=2e-5, rtol=2e-5)


def test_gradients_flow_through_the_clean_keys_when_the_base_learns():
    model = build()
    documents = torch.zeros(1, 12, dtype=torch.long)
    tokens = torch.arange(12)[None]
    for parameter in model.parameters():
        parameter.requires_grad_()
    blocks = grid_blocks(documents, 4)
    noisy = torch.full_like(blocks.index, MASK)

    def gradient(detach):
        model.zero_grad()
        _, clean = clean_pass(model, tokens, documents, gradient=not detach)
        noisy_pass(model, noisy, blocks, documents, clean).square().sum().backward()
        return model.layers[0].attention.qkv.linear.weight.grad.clone()

    assert not torch.allclose(gradient(detach=False), gradient(detach=True))


def test_gradients_equal_those_of_the_dense_pass():
    model = build()
    documents = torch.tensor([[0] * 7 + [1] * 4 + [-1]])
    tokens = torch.arange(12)[None]
    blocks = grid_blocks(documents, 3)
    noisy = torch.full_like(blocks.index, MASK)
    for parameter in model.parameters():
        parameter.requires_grad_()
    weights = torch.randn(blocks.index.numel(), model.config.hidden_size)

    def collect(run):
        model.zero_grad()
        (run() * weights).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    def ours():
        _, clean = clean_pass(model, tokens, documents)
        return noisy_pass(model, noisy, blocks, documents, clean).flatten(0, 2)

    def dense():
        return dense_oracle(model, tokens, documents, blocks, noisy)[0, 12:]

    found, wanted = collect(ours), collect(dense)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)
