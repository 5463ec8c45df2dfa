"""Servers as processes of their own, and a load of requests on one of them.

What `engines.py` and `serve.py` share.
"""

import concurrent.futures
import itertools
import json
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from trimode.checkpoints import resolve

MODEL = "smollm2-135m-instruct"


class HttpEngine:
    """A server that speaks OpenAI's protocol."""

    def __init__(self, command: list[str], marker: str) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert self.process.stdout is not None
        seen = []
        for line in self.process.stdout:
            seen.append(line)
            if marker in line:
                self.url = next(word for word in line.split() if word.startswith("http"))
                self.url = self.url.rstrip(",").removesuffix("/v1")
                break
        else:
            raise SystemExit("".join(seen[-20:]))
        drain = concurrent.futures.ThreadPoolExecutor(1)
        drain.submit(lambda: [None for _ in self.process.stdout or ()])

    def ask(self, prompt: str, max_tokens: int, decoding: dict) -> tuple[int, list[float]]:
        """Tokens of the answer, and when text came: seconds since the request was sent."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if decoding:
            body["decoding"] = decoding
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        began, times, tokens = time.perf_counter(), [], 0
        with urllib.request.urlopen(request) as answer:
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if any(c["delta"].get("content") for c in chunk["choices"]):
                    times.append(time.perf_counter() - began)
                if chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
        return tokens, times

    def megabytes(self, field: str) -> float:
        """Memory of the process: VmRSS now, VmHWM the most it has held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(field))
        return int(line.split()[1]) / 1024

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


def serve_llama(path: str, slots: int) -> None:
    """llama.cpp's own server on a free port, until it is terminated."""
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path = path
    asked.n_parallel, asked.n_ctx = slots, slots * 2048
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 2
    asked.port = 0
    server = xllamacpp.Server(asked)
    print("listening", server.listening_address, flush=True)
    while True:
        time.sleep(60)


def q8_of(gguf_path: Path, folder: Path) -> Path:
    """The GGUF with its matrices as Q8_0; norms stay as they are."""
    import gguf

    target = folder / "model.Q8_0.gguf"
    reader = gguf.GGUFReader(gguf_path)
    writer = gguf.GGUFWriter(target, "llama")
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = entry.types[0]
        inner = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, entry.contents(), kind, inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values)
            continue
        packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(tensor.name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def start_server(name: str, slots: int, folder: Path) -> HttpEngine:
    """Start a server by name: trimode-DTYPE or llama-FORMAT."""
    family, kind = name.split("-")
    if family == "trimode":
        program = str(Path(sys.executable).with_name("trimode"))
        command = [program, "serve", "--port", "0", "--dtype", kind, "--mode", "auto",
                   "--max-sequences", str(slots), "--log", "warnings", "--no-progress"]  # fmt: skip
        return HttpEngine(command, "/v1, mode")
    gguf_path = next(resolve(MODEL).path.glob("*.gguf"))
    path = gguf_path if kind == "Q4_1" else q8_of(gguf_path, folder)
    return HttpEngine([sys.executable, __file__, str(path), str(slots)], "listening")


@dataclass
class Load:
    """What the clients of one load saw; times in seconds."""

    rate: float = 0.0
    """Completion tokens of all requests / time from the first request to the last answer."""
    first: list[float] = field(default_factory=list)
    """To the first text, a request each."""
    gaps: list[float] = field(default_factory=list)
    """Between a text and the next; a text may be several tokens."""
    per_token: list[float] = field(default_factory=list)
    """(last text - first text) / (tokens - 1), a request each."""

    def pooled(self, other: "Load") -> "Load":
        """The times of both; no rate."""
        return Load(
            first=self.first + other.first,
            gaps=self.gaps + other.gaps,
            per_token=self.per_token + other.per_token,
        )


def measure(
    engine: HttpEngine, prompts: list[str], max_tokens: int, decoding: dict, together: int
) -> Load:
    """Ask all prompts, `together` at a time."""
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(together) as pool:
        found = list(pool.map(lambda p: engine.ask(p, max_tokens, decoding), prompts))
    seconds = time.perf_counter() - began
    return Load(
        rate=sum(tokens for tokens, _ in found) / seconds,
        first=[times[0] for _, times in found if times],
        gaps=[b - a for _, times in found for a, b in itertools.pairwise(times)],
        per_token=[(t[-1] - t[0]) / (n - 1) for n, t in found if t and n > 1],
    )


def percentile(values: list[float], share: float) -> float:
    """Milliseconds."""
    if not values:
        return float("nan")
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1e3


if __name__ == "__main__":
    serve_llama(sys.argv[1], int(sys.argv[2]))
