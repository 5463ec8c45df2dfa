"""Programs that are clients: coding agents, mostly, with long prompts of their own."""

import json

import pytest

from tests.clients.catalogue import MODEL
from tests.clients.conftest import LONGEST, installed

pytestmark = [pytest.mark.clients, pytest.mark.real]


def test_codex_runs_a_command(long_url, run, tmp_path):
    codex = installed("npm", "codex")
    (tmp_path / "work").mkdir()
    (tmp_path / "config.toml").write_text(
        f"""
        model = "{MODEL}"
        model_provider = "trimode"
        [model_providers.trimode]
        name = "trimode"
        base_url = "{long_url("coder")}/v1"
        wire_api = "responses"
        """
    )
    alone = "--dangerously-bypass-approvals-and-sandbox"  # the model says one fixed command
    said = run(
        [codex, "exec", "--skip-git-repo-check", alone, "Make a file."],
        cwd=tmp_path / "work",
        CODEX_HOME=str(tmp_path),
    )
    assert said.strip() == "It is done."
    assert (tmp_path / "work" / "made.txt").read_text() == "made\n"


def test_opencode(long_url, run, tmp_path):
    opencode = installed("npm", "opencode")
    limit = {"context": LONGEST, "output": 400}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{long_url('teller')}/v1", "apiKey": "none"},
        "models": {MODEL: {"limit": limit}},
    }
    config = {
        "model": f"trimode/{MODEL}",
        "small_model": f"trimode/{MODEL}",
        "autoupdate": False,
        "share": "disabled",
        "provider": {"trimode": provider},
    }
    path = tmp_path / "opencode.json"
    path.write_text(json.dumps(config))
    assert "It is done." in run([opencode, "run", "Hello."], OPENCODE_CONFIG=str(path))


def test_continue(urls, run, tmp_path):
    cn = installed("npm", "cn")
    model = {
        "name": "trimode",
        "provider": "openai",
        "model": MODEL,
        "apiBase": f"{urls['real']}/v1",
        "apiKey": "none",
        "roles": ["chat"],
    }
    config = {"name": "t", "version": "0.0.1", "schema": "v1", "models": [model]}
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config))  # YAML reads JSON
    environment = {"CONTINUE_TELEMETRY_ENABLED": "0"}
    assert run([cn, "--config", path, "-p", "Say hello."], **environment).strip()


def test_aider_edits_a_file(long_url, run, tmp_path):
    aider = installed("aider", "aider")
    file = tmp_path / "a.py"
    file.write_text("print(1)\n")
    quiet = ("--no-git", "--no-show-model-warnings", "--no-check-update", "--analytics-disable")
    command = [
        aider,
        "--model",
        f"openai/{MODEL}",
        *quiet,
        "--yes-always",
        "--edit-format",
        "whole",
    ]
    run(
        [*command, "--message", "Print 2.", "a.py"],
        OPENAI_API_BASE=f"{long_url('editor')}/v1",
    )
    assert file.read_text() == "print(2)\n"
