"""The commands of docs/bench-others.md, run as they stand there against the built-in model."""

import functools
import http.server
import json
import re
import shlex
import threading

import pytest

from tests.clients.catalogue import MODEL, ROOT
from tests.clients.conftest import installed
from trimode.checkpoints import plan_export, resolve, write_export

pytestmark = [pytest.mark.clients, pytest.mark.real]
PAGE = ROOT / "docs" / "bench-others.md"
SERVED = "smollm2-135m-instruct"
BOOK = "The sea was calm, and nobody on the shore had seen the ship before. " * 400
REQUESTS = 6


def command_of(tool, url):
    """The command that the page has for a tool, with the address of a server of the tests."""
    blocks = re.findall(r"```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    text = next(block for block in blocks if block.startswith(f"{tool} "))
    text = text.replace("http://127.0.0.1:8000", url).replace(f"model={SERVED}", f"model={MODEL}")
    return shlex.split(text.replace("\\\n", " ").replace(f"--model {SERVED}", f"--model {MODEL}"))


@pytest.fixture
def folder(real_cache, tmp_path):
    """What the page tells its reader to have: a tokenizer's folder and a file of prompts."""
    write_export(plan_export(resolve(SERVED), "ar"), tmp_path / "exported")
    prompts = [f"Name {number} colours." for number in range(2, 2 + REQUESTS)]
    lines = [json.dumps({"text": prompt}) + "\n" for prompt in prompts]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def book(tmp_path):
    """The address of a text that a tool takes prompts from."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "book.txt").write_text(BOOK)
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web")
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/book.txt"
        server.shutdown()


def test_guidellm(urls, run, folder):
    program = installed("guidellm", "guidellm")
    run([program, *command_of("guidellm", urls["real"])[1:]])
    (benchmark,) = json.loads((folder / "guidellm.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (REQUESTS, 0)


def test_aiperf(urls, run, folder):
    program = installed("aiperf", "aiperf")
    run([program, *command_of("aiperf", urls["real"])[1:]])
    found = json.loads((folder / "aiperf" / "profile_export_aiperf.json").read_text())
    assert found["request_count"]["avg"] == REQUESTS
    assert found["time_to_first_token"]["avg"] > 0


def test_llama_benchy(urls, run, folder, book):
    program = installed("llama-benchy", "llama-benchy")
    run([program, *command_of("llama-benchy", urls["real"])[1:], "--book-url", book])
    found = json.loads((folder / "benchy.json").read_text())["benchmarks"]
    assert [each["concurrency"] for each in found] == [1, 2]
    assert all(each["tg_throughput"]["mean"] > 0 for each in found)
