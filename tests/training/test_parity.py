"""The AR loss that training computes against transformers' own, on tiny models of every family."""

import pytest
import torch
import torch.nn.functional as F

from tests.reference.families import FAMILIES, build
from trimode.model import build_runner
from trimode.training.adapter import export_weights, head_matrix
from trimode.training.data import Batch
from trimode.training.passes import clean_pass
from trimode.training.step import ar_losses

LENGTH = 40


def batch(vocab):
    tokens = torch.randint(vocab, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    documents = torch.zeros_like(tokens)
    return Batch(tokens, documents, torch.ones_like(tokens, dtype=torch.bool))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_ar_loss_equals_that_of_transformers(family):
    """Training multiplies by the head itself: what scales logits must be in the hidden states."""
    oracle, config, tensors = build(family)
    transformer = build_runner(config, tensors.__getitem__, dtype="fp32", plain=True).transformer
    rows = batch(config.vocab_size)
    hidden, _ = clean_pass(transformer, rows.tokens, rows.documents, gradient=False)
    ours = ar_losses(hidden, head_matrix(transformer), rows)
    logits = oracle(rows.tokens).logits[:, :-1].flatten(0, 1)
    theirs = F.cross_entropy(logits, rows.tokens[:, 1:].flatten())
    assert float(ours.mean) == pytest.approx(float(theirs), rel=1e-5)
    assert int(ours.count) == 2 * (LENGTH - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_exported_weights_are_those_that_loading_reads(family):
    _, config, tensors = build(family)
    runner = build_runner(config, tensors.__getitem__, dtype="fp32", plain=True)
    exported = dict(export_weights(runner.transformer))
    assert exported.keys() == tensors.keys()
    for name, tensor in exported.items():
        assert torch.equal(tensor, tensors[name]), name
