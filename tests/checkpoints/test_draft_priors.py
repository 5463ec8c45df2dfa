"""How often drafts are right, as an adapter's directory says."""

import json

import pytest

from trimode.checkpoints import DraftPriors
from trimode.checkpoints.draft_priors import FILE, read_draft_priors, save_draft_priors
from trimode.config import GenerationOptions
from trimode.engine import Engine, drain
from trimode.errors import CheckpointError
from trimode.testing import tiny_model
from trimode.training.evaluate import measure_priors


def test_they_are_read_as_they_were_saved(tmp_path):
    priors = DraftPriors(by_place=(0.7, 0.5), head_nodes=2.5, head_accepted=0.9)
    save_draft_priors(tmp_path, priors)
    assert read_draft_priors(tmp_path) == priors
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_without_a_file_they_are_ordinary(tmp_path):
    assert read_draft_priors(tmp_path) == DraftPriors()


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"by_place": 3},
        {"by_place": [1.5]},
        {"by_place": ["a"]},
        {"by_place": [0.5], "head_nodes": -1},
        {"by_place": [0.5], "other": 1},
        {"by_place": [0.5], "head_accepted": "much"},
    ],
    ids=str,
)
def test_what_is_no_prior_is_named(tmp_path, found):
    (tmp_path / FILE).write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=FILE):
        read_draft_priors(tmp_path)


def test_measured_priors_are_what_drafts_bring():
    model = tiny_model()
    measured = measure_priors(model, ["a", "bc"], max_tokens=24)
    assert len(measured.by_place) == model.config.block_length - 2
    assert all(0 <= chance <= 1 for chance in measured.by_place)
    engine = Engine(model)
    sequence = engine.add((1, 2), GenerationOptions(mode="linear", block_length=8, max_tokens=24))
    for _ in drain(engine):
        pass
    assert sequence.stats.acceptance_length is not None
