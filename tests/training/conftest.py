"""A tiny base model and a little data."""

import json

import pytest

from tests.training.runs import TEXT
from trimode.testing.tiny import write_tiny_checkpoint


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base"
    write_tiny_checkpoint(path, "llama", hidden_size=64, intermediate_size=128)
    return path


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [
        {"prompt": f"line {i}", "completion": TEXT[i : i + 24].strip() + "."} for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
