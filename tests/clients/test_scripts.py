"""Libraries that are clients: a script each, in an environment of its own."""

import json
import shutil
from pathlib import Path

import pytest

from tests.clients.catalogue import CLIENTS, HERE
from tests.clients.conftest import INSTALLED, installed

pytestmark = [pytest.mark.clients, pytest.mark.real]
SCRIPTS = HERE / "scripts"
LIBRARIES = [client for client in CLIENTS if client.script is not None]


@pytest.mark.parametrize("client", LIBRARIES, ids=lambda client: client.script)
def test_library(client, urls, run, tmp_path):
    script = SCRIPTS / client.script
    if client.group == "npm":
        modules = Path(INSTALLED) / "npm" / "node_modules"
        if not INSTALLED or not (modules / client.package).exists():
            pytest.skip(f"needs npm's {client.package}: make clients")
        (tmp_path / "node_modules").symlink_to(modules)
        shutil.copy(SCRIPTS / "common.mjs", tmp_path)
        command = ["node", shutil.copy(script, tmp_path)]
    else:
        command = [installed(client.group, "python"), script]
    addresses = {"TRIMODE_URLS": json.dumps(urls), "OLLAMA_HOST": urls["real"]}
    run(command, **addresses)


def test_every_script_is_in_the_catalogue():
    known = {client.script for client in LIBRARIES}
    assert {path.name for path in SCRIPTS.glob("use_*")} == known
