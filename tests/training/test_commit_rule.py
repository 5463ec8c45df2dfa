"""The learned commit rule: what it reads, how it is trained, saved and used."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimode import GenerationOptions, generate, load
from trimode.checkpoints import save_adapter
from trimode.checkpoints.commit_rule import as_scorer, read_commit_rule, save_commit_rule
from trimode.errors import CheckpointError, InputError
from trimode.model.commit_scorer import (
    CommitScorerNet,
    ScorerConfig,
    block_features,
    principal_directions,
)
from trimode.testing.tiny import tiny_model, write_tiny_checkpoint
from trimode.training.adapter import AdapterConfig, new_adapter
from trimode.training.commit_rule import Example, auc, collect, fit

SMALL = ScorerConfig(semantic=4, hidden=16, layers=1, heads=2)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def network(model, seed=0):
    torch.manual_seed(seed)
    return CommitScorerNet(SMALL, model.transformer.embedding.matrix()).eval()


def test_features_of_a_block_are_what_they_are_called():
    probabilities = torch.tensor([[0.5, 0.3, 0.1, 0.05, 0.03, 0.02], [0.0, 0, 0, 0, 0, 1.0]])
    ids, scalars = block_features((7, 9, 4, 9), (1, 3), probabilities)
    assert ids.tolist() == [[7, -1, -1, -1], [-1, 0, 1, 2], [4, -1, -1, -1], [-1, 5, *ids[3, 2:]]]
    entropy = -(probabilities[0] * probabilities[0].log()).sum()
    spread = 1 - probabilities[0].square().sum()
    expected = [0.5, 0.3, 0.1, 0.05, 0.03, 0.2, 0.9, entropy, torch.tensor(0.5).log(), spread]
    expected += [1, 0.5, torch.tensor(3.0).log(), 0.25]
    torch.testing.assert_close(scalars[1], torch.tensor(expected))
    assert scalars[0, :11].tolist() == [0] * 11


def test_principal_directions_are_orthogonal_and_of_unit_variance():
    embedding = torch.randn(500, 12) * torch.arange(1, 13)
    projected = (embedding - embedding.mean(0)) @ principal_directions(embedding, 3).T
    torch.testing.assert_close(projected.T @ projected / 500, torch.eye(3), atol=1e-3, rtol=1e-3)
    assert embedding[:, -1].var() > embedding[:, 0].var()
    assert principal_directions(embedding, 1)[0].abs().argmax() == 11


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_auc_equals_counting_pairs(pairs):
    scores = torch.tensor([float(score) for score, _ in pairs])
    labels = torch.tensor([float(label) for _, label in pairs])
    wins = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a, x in pairs for b, y in pairs if x and not y
    ]
    assert auc(scores, labels) == pytest.approx(sum(wins) / len(wins) if wins else 0.5)


def test_it_learns_what_the_candidate_says_and_its_probability_does_not(model):
    """Candidates with an even token are final; probabilities are noise."""
    generator = torch.Generator().manual_seed(1)
    examples = []
    for _ in range(300):
        logits = torch.randn(3, model.config.vocab_size, generator=generator)
        logits[:, 40:] = -10  # few tokens, so that each is seen often
        probabilities = (3 * logits).softmax(-1)
        tokens, scalars = block_features((1, 2, 256, 256, 256), (2, 3, 4), probabilities)
        masked = torch.tensor([False, False, True, True, True])
        final = torch.zeros(5)
        final[2:] = (probabilities.argmax(-1) % 2 == 0).float()
        examples.append(Example(tokens, scalars, masked, final))
    embedding = torch.randn(model.config.vocab_size, 16, generator=generator)
    config = ScorerConfig(semantic=16, hidden=32, layers=1, heads=2)
    _, result = fit(examples, embedding, config, epochs=40, patience=40, learning_rate=3e-3)
    assert result.auc > 0.95
    assert result.confidence_auc < 0.7


def test_recorded_blocks_are_labelled_by_what_the_model_settles_on(model):
    prompts = [[5, 6, 7], [8, 9], [5, 6, 7]]
    done = []
    examples = collect(
        model, prompts, max_tokens=16, block_length=4, advance=lambda: done.append(1)
    )
    assert len(done) == 4  # two prompts, twice
    assert examples
    for example in examples:
        assert example.tokens.shape == (4, 4)
        assert example.masked.any()
        assert not example.final[~example.masked].any()
        assert (example.tokens[example.masked, 0] == -1).all()
    slow = GenerationOptions(mode="diffusion", max_tokens=16, block_length=4, threshold=2.0)
    settled = generate(model, prompts[0], mode="diffusion", max_tokens=16, block_length=4,
                       threshold=slow.threshold)  # fmt: skip
    first = next(e for e in examples if e.tokens[0, 0] == settled.token_ids[0])
    finals = {i for i in range(4) if first.final[i]}
    agreeing = {
        i for i in range(4) if first.masked[i] and first.tokens[i, 1] == settled.token_ids[i]
    }
    assert finals == agreeing


def test_a_saved_rule_scores_as_before_and_decodes(model, tmp_path):
    net = network(model)
    save_commit_rule(tmp_path, net)
    again = read_commit_rule(tmp_path, model.transformer.embedding.matrix)
    options = {"mode": "diffusion", "max_tokens": 12, "commit_rule": "learned", "threshold": 0.3}
    results = [
        generate(replace(model, commit_scorer=scorer), [1, 2, 3], **options)
        for scorer in (as_scorer(net.half().float()), again)
    ]
    assert results[0].token_ids == results[1].token_ids
    assert results[0].stats.nfe == results[1].stats.nfe


def test_a_higher_bar_takes_more_passes(model):
    scored = replace(model, commit_scorer=as_scorer(network(model)))
    options = {"mode": "diffusion", "max_tokens": 24, "commit_rule": "learned"}
    passes = [generate(scored, [1, 2], threshold=bar, **options).stats.nfe for bar in (0.0, 1.1)]
    assert passes[0] < passes[1]


def test_without_a_rule_the_request_is_refused(model):
    with pytest.raises(InputError, match="no learned rule"):
        generate(model, [1, 2], mode="diffusion", commit_rule="learned")


def test_an_adapter_directory_brings_its_rule(tmp_path):
    base = write_tiny_checkpoint(tmp_path / "base", "llama")
    plain = load(base, dtype="fp32")
    embedding = plain.transformer.embedding.matrix()
    adapter = new_adapter(plain.config, AdapterConfig(rank=2), embedding[256], 0)
    save_adapter(tmp_path / "adapter", adapter, plain.config)
    assert load(base, adapter=tmp_path / "adapter").commit_scorer is None
    save_commit_rule(tmp_path / "adapter", CommitScorerNet(SMALL, embedding))
    assert load(base, adapter=tmp_path / "adapter").commit_scorer is not None


@pytest.mark.parametrize("damage", ["cut", "other model", "no metadata"])
def test_a_damaged_rule_is_named(model, tmp_path, damage):
    path = save_commit_rule(tmp_path, network(model))
    embedding = model.transformer.embedding.matrix()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other model":
        embedding = torch.randn(50, 8)
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"commit_rule\.safetensors"):
        read_commit_rule(tmp_path, lambda: embedding)
