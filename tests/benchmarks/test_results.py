"""Committed results can be made again by whoever has the repository."""

import json

import pytest

from benchmarks.lib.machine import RESULTS, ROOT


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.stem)
def test_the_command_of_a_result_names_files_of_the_repository(path):
    command = json.loads(path.read_text()).get("command", "")
    assert str(ROOT) not in command
    words = command.split()
    if words[:1] == ["python"]:
        assert (ROOT / words[1]).is_file()
