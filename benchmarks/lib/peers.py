"""The engines that benchmarks/compare/engines.py compares, each in a server process.

llama.cpp reads files of the built-in model that `benchmarks/lib/gguf_files.py` makes.

Run as a program, it is the server of another engine:

    python benchmarks/lib/peers.py llama PATH SLOTS [ngram_simple | ngram_map_k | ngram_mod]
    python benchmarks/lib/peers.py transformers fp32 | bf16
"""

import concurrent.futures
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lib.clients import SERVED, HttpClient
from benchmarks.lib.gguf_files import KINDS, gguf_file
from benchmarks.lib.machine import megabytes
from trimode.checkpoints import resolve


@dataclass(frozen=True)
class Mode:
    """A way to decode that an engine offers."""

    name: str
    request: dict[str, Any] = field(default_factory=dict)
    """Decoding options of each request."""
    server: tuple[str, ...] = ()
    """Arguments the server is started with."""
    alone: bool = False
    """Whether the engine can do it for one request at a time only."""


def _ours(*modes: tuple[str, int | None]) -> list[Mode]:
    found = []
    for mode, block_length in modes:
        options = {"mode": mode} | ({"block_length": block_length} if block_length else {})
        found.append(Mode(f"{mode} {block_length or ''}".strip(), options))
    return found


_LLAMA = [
    Mode("ar"),
    # llama.cpp's speculation without a second model, except ngram_cache: that one drafts from
    # statistics of earlier text and made no draft in such short answers.
    *(Mode(kind, server=(kind,)) for kind in ("ngram_simple", "ngram_map_k", "ngram_mod")),
]
_OURS = _ours(
    ("ar", None), ("linear", 5), ("linear", 8), ("linear", 16), ("quadratic", 2),
    ("quadratic", 4), ("diffusion", 8), ("auto", None),
)  # fmt: skip
_TRANSFORMERS = [
    Mode("ar"),
    Mode("prompt lookup", {"prompt_lookup_num_tokens": 8}, alone=True),
    # The first 24 of the model's 30 layers draft. It was not trained to exit early: with half of
    # its layers hardly any draft is right.
    Mode("early exit 24", {"assistant_early_exit": 24}, alone=True),
]
OURS = "trimode"
"""Our engines are `trimode-DTYPE`, with any dtype that `--dtype` takes."""
PEERS: dict[str, list[Mode]] = {
    **{f"llama-{kind}": _LLAMA for kind in KINDS},
    "transformers-fp32": [Mode("ar")],
    "transformers-bf16": _TRANSFORMERS,
}
"""Engines of others, and how they decode."""
LLAMA_FILE = "llama-file"
"""llama.cpp with the very GGUF file that our engines load."""


def modes_of(name: str) -> list[Mode]:
    """The ways to decode of an engine."""
    if name == LLAMA_FILE:
        return _LLAMA
    return _OURS if name.partition("-")[0] == OURS else PEERS[name]


_NGRAM, _DRAFT = 3, 8
"""llama.cpp drafts 8 tokens after a repetition of 3, as our lookup does. Its own defaults of 12 and
48 are for much longer answers."""


def _environment(threads: int | None) -> dict[str, str] | None:
    """The environment of a server; every engine here reads OpenMP's variable."""
    return None if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}


_GATHER = 0.05
"""Seconds that a batch waits for more requests."""

_ADDRESS = re.compile(r"https?://[^\s:/]+:\d+")
"""Of a server, in its first lines. A line of its log may follow at once."""

Answer = concurrent.futures.Future[bytes]


class HttpEngine(HttpClient):
    """A client of a server that runs in a child process."""

    def __init__(
        self,
        command: list[str],
        marker: str,
        *,
        keep_open: float = 2.0,
        threads: int | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_environment(threads),
        )
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            address = _ADDRESS.search(line)
            if marker in line and address:
                super().__init__(address[0], keep_open=keep_open)
                break
        else:
            raise SystemExit("".join(seen[-20:]))
        drain = concurrent.futures.ThreadPoolExecutor(1)
        drain.submit(lambda: [None for _ in self.process.stdout or ()])

    def megabytes(self, field: str) -> float:
        """See `machine.megabytes`."""
        return megabytes(field, self.process.pid)

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class PipeEngine(HttpEngine):
    """transformers' `generate` in a process that reads batches of requests as lines.

    Requests that come within `_GATHER` seconds of each other are one batch. The next batch begins
    when all its answers have ended.
    """

    def __init__(self, dtype: str, slots: int, *, threads: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "transformers", dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_environment(threads),
        )
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise SystemExit(f"transformers-{dtype} did not start")
        self._slots = slots
        self._asked: queue.SimpleQueue[tuple[dict[str, Any], Answer] | None] = queue.SimpleQueue()
        self._batches = threading.Thread(target=self._answer, daemon=True)
        self._batches.start()

    def received(self, prompt: str, max_tokens: int, decoding: dict) -> list[tuple[float, bytes]]:
        """One piece, which holds all times."""
        answer: Answer = concurrent.futures.Future()
        self._asked.put(({"prompt": prompt, "max_tokens": max_tokens, **decoding}, answer))
        return [(0.0, answer.result())]

    def parsed(self, pieces: list[tuple[float, bytes]]) -> tuple[int, list[float]]:
        """As for a server."""
        found = json.loads(pieces[0][1])
        return found["tokens"], found["times"]

    def close(self) -> None:
        """End the process."""
        self._asked.put(None)
        super().close()

    def _answer(self) -> None:
        """Send batches to the process until the queue ends."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        while (first := self._asked.get()) is not None:
            batch = [first]
            while len(batch) < self._slots:
                try:
                    more = self._asked.get(timeout=_GATHER)
                except queue.Empty:
                    break
                if more is None:
                    return
                batch.append(more)
            self.process.stdin.write(json.dumps([asked for asked, _ in batch]) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            for i, (_, answer) in enumerate(batch):
                if line:
                    answer.set_result(json.dumps(json.loads(line)[i]).encode())
                else:
                    answer.set_exception(RuntimeError("transformers ended"))


def start(
    name: str,
    slots: int,
    folder: Path,
    *,
    server: tuple[str, ...] = (),
    model: str | None = None,
    adapter: str | None = None,
    threads: int | None = None,
) -> HttpEngine:
    """Start an engine by name.

    Args:
        name: `trimode-DTYPE`, or of an engine in `PEERS`.
        slots: requests it decodes at once.
        folder: for files that it needs.
        server: the mode's own arguments.
        model: what our engines and `LLAMA_FILE` load, by default the built-in model.
        adapter: likewise, by default the one that comes with the model.
        threads: of its passes, by default as many as it takes by itself.
    """
    family, kind = name.split("-")
    if family == "transformers":
        return PipeEngine(kind, slots, threads=threads)
    if family == OURS:
        program = str(Path(sys.executable).with_name("trimode"))
        command = [program, "serve", "--port", "0", "--dtype", kind, "--mode", "auto",
                   "--served-model-name", SERVED, "--max-sequences", str(slots),
                   "--log", "warnings", "--no-progress"]  # fmt: skip
        command += ["--model", model] if model else []
        command += ["--adapter", adapter] if adapter else []
        return HttpEngine(command, "/v1, mode", threads=threads)
    path = model if name == LLAMA_FILE else str(gguf_file(kind, folder))
    assert path is not None
    command = [sys.executable, __file__, "llama", path, str(slots), *server]
    # It promises "Keep-Alive: timeout=5", but closes each connection when a stream ends.
    return HttpEngine(command, "listening", keep_open=0.0, threads=threads)


def serve_llama(path: str, slots: int, speculation: str | None = None) -> None:
    """llama.cpp's own server on a free port, until it is terminated."""
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path = path
    asked.n_parallel, asked.n_ctx = slots, slots * 2048
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = threads
    asked.port = 0
    if speculation:
        kind = f"COMMON_SPECULATIVE_TYPE_{speculation.upper()}"
        asked.speculative.types = [xllamacpp.common_speculative_type[kind]]
        options = getattr(asked.speculative, speculation)
        if speculation == "ngram_mod":
            options.n_match, options.n_min, options.n_max = _NGRAM, 1, _DRAFT
        else:
            options.size_n, options.size_m = _NGRAM, _DRAFT
    server = xllamacpp.Server(asked)
    print("listening", server.listening_address, flush=True)
    while True:
        time.sleep(60)


def serve_transformers(dtype: str) -> None:
    """Answer requests on stdin until it ends."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.generation.streamers import BaseStreamer

    path = resolve("smollm2-135m-instruct").path
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=kind)

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.began, self.times = time.perf_counter(), []

        def put(self, value: Any) -> None:
            del value
            self.times.append(time.perf_counter() - self.began)

        def end(self) -> None:
            pass

    tokenizer.padding_side = "left"
    ends = set(_listed(model.generation_config.eos_token_id))
    print("ready", flush=True)
    for line in sys.stdin:
        batch = json.loads(line)
        inputs = tokenizer.apply_chat_template(
            [[{"role": "user", "content": asked.pop("prompt")}] for asked in batch],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            padding=len(batch) > 1,
        )
        clock, asked = Clock(), batch[0]
        options = {"max_new_tokens": asked.pop("max_tokens"), "do_sample": False, **asked}
        found = model.generate(**inputs, **options, streamer=clock)
        times = clock.times[1:]  # the first is the prompt
        answers = []
        for row in found[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((i for i, token in enumerate(row, 1) if token in ends), len(row))
            answers.append({"tokens": end, "times": times[:end]})
        print(json.dumps(answers), flush=True)


def _listed(value: int | list[int] | None) -> list[int]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


if __name__ == "__main__":
    if sys.argv[1] == "llama":
        serve_llama(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    else:
        serve_transformers(sys.argv[2])
