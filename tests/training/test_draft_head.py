"""Training a draft head: what it learns from, and that it learns."""

import pytest
import torch

from trimode.engine import generate
from trimode.errors import InputError
from trimode.model.draft_head import DraftHeadConfig, DraftHeadNet, head_rows
from trimode.testing.tiny import tiny_model
from trimode.training import draft_head
from trimode.training.draft_head import Answers, DraftHeadTraining, collect, fit

SMALL = DraftHeadTraining(inner=64, words=64, batch_size=32, sampled_words=16, steps=2)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def test_states_are_those_that_chose_the_tokens(model, monkeypatch):
    monkeypatch.setattr(draft_head, "LEAST_TOKENS", 1)
    prompts = [(5, 6, 7), (9, 8)]
    answers = [
        generate(model, p, max_tokens=n).token_ids for p, n in zip(prompts, (6, 9), strict=True)
    ]
    found = collect(model, list(zip(prompts, answers, strict=True)))
    assert found.lengths == [6, 9]
    chosen = model.runner.logits(found.states.float()).argmax(-1)
    assert chosen.tolist() == found.tokens.tolist() == [*answers[0], *answers[1]]


def test_places_have_a_token_after_them():
    answers = Answers(torch.arange(9), torch.zeros(9, 4), [3, 4, 2])
    where, after = answers.places(range(3))
    assert where.tolist() == [0, 1, 3, 4, 5, 7]
    assert after.tolist() == [2, 1, 3, 2, 1, 1]
    assert answers.places(range(1, 2))[0].tolist() == [3, 4, 5]


def chain(model, count):
    """Answers in which a token decides the next one, and states that say what they chose."""
    torch.manual_seed(1)
    follows = torch.randperm(40)
    lines = []
    for _ in range(count):
        line = [int(torch.randint(0, 40, ()))]
        while len(line) < 20:
            line.append(int(follows[line[-1]]))
        lines.append(line)
    tokens = torch.tensor(lines).flatten()
    rows = head_rows(model.runner, tokens)
    states = (40 * rows / rows.norm(dim=-1, keepdim=True)).half()
    return Answers(tokens, states, [20] * count)


def test_it_learns_what_follows(model):
    seen = []
    net, words, last = fit(
        model, chain(model, 200), DraftHeadTraining(
            inner=64, words=48, batch_size=64, sampled_words=16, steps=2, epochs=20
        ), report=seen.append
    )  # fmt: skip
    assert min(last.hits) > 0.95
    assert last.step == last.steps == seen[-1].step
    assert len(words) == 48
    assert not net.training


def test_a_sample_of_all_words_is_the_exact_loss(model):
    answers = chain(model, 20)
    asked = DraftHeadTraining(inner=16, words=48, steps=2, sampled_words=10**6)
    words = draft_head._frequent(answers.tokens, 48, model.config.vocab_size)
    config = DraftHeadConfig(dim=model.config.hidden_size, inner=16, state_scale=3.0)
    task = draft_head._Task(model, answers, words, asked)
    net = DraftHeadNet(config)
    where, after = answers.places(range(20))
    exact = torch.zeros(())
    state = answers.states[where].float()
    for k in range(2):
        state = net(state, task.embedding[answers.tokens[where + k]])
        left = after > k
        taught = answers.states[(where + k + 1)[left]].float()
        said = (state[left] @ task.head.T).log_softmax(-1)
        wanted = (taught @ task.head.T).softmax(-1)
        apart = torch.nn.functional.smooth_l1_loss(state[left] / 3, taught / 3)
        exact = exact + 0.8**k * (-(wanted * said).sum(-1).mean() + 6 * apart)
    with torch.no_grad():
        assert float(task.loss(net, (where, after))) == pytest.approx(float(exact), rel=1e-5)


def test_a_batch_may_have_every_word(model):
    asked = DraftHeadTraining(inner=64, words=32, sampled_words=16, steps=2, epochs=1)
    assert min(fit(model, chain(model, 200), asked)[2].hits) > 0


def test_a_head_goes_on_from_another(model):
    answers = chain(model, 200)
    asked = DraftHeadTraining(inner=64, words=48, sampled_words=16, steps=2, epochs=20)
    net, words, _ = fit(model, answers, asked)
    again = DraftHeadTraining(inner=64, words=48, sampled_words=16, steps=2, epochs=0.1)
    _, same, last = fit(model, answers, again, start=(net, words))
    assert min(last.hits) > 0.95
    assert same is words
    assert last.loss < 0.5 * fit(model, answers, again)[2].loss


def test_too_little_text_is_refused(model):
    with pytest.raises(InputError, match="at least 1000"):
        collect(model, [((1, 2), (3, 4, 5))])


@pytest.mark.parametrize("field", ["inner", "words", "steps", "batch_size", "sampled_words"])
def test_sizes_are_checked(field):
    with pytest.raises(InputError, match=field):
        DraftHeadTraining(**{field: 0})
