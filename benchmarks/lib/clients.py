"""Clients of a server, and what they see of it under a load."""

import concurrent.futures
import http.client
import itertools
import json
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SERVED = "measured"
"""What requests call the model."""


class HttpClient:
    """A client of a server that speaks OpenAI's protocol; a connection for each thread.

    Connections are kept open between requests, as OpenAI's own client does.
    """

    def __init__(self, url: str, *, keep_open: float = 2.0) -> None:
        """Connect to nothing yet.

        Args:
            url: of the server.
            keep_open: seconds that a connection may idle and be used again. It is less than the
                server's own limit, since a server closes without a word.
        """
        self.url, self.keep_open = url, keep_open
        self._own = threading.local()

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's."""
        own, now = self._own, time.perf_counter()
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection(urlsplit(self.url).netloc)
            own.used = now
        if now - own.used >= self.keep_open:
            own.connection.close()  # the next request opens it again
        return own.connection

    def ask(self, prompt: str, max_tokens: int, decoding: dict) -> tuple[int, list[float]]:
        """Tokens of the answer, and when text came: seconds since the request was sent."""
        return self.parsed(self.received(prompt, max_tokens, decoding))

    def received(self, prompt: str, max_tokens: int, decoding: dict) -> list[tuple[float, bytes]]:
        """Pieces of the answer, and when they came: seconds since the request was sent."""
        body = {
            "model": SERVED,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if decoding:
            body["decoding"] = decoding
        connection, text = self._connection(), json.dumps(body).encode()
        began = time.perf_counter()
        connection.request(
            "POST", "/v1/chat/completions", text, {"Content-Type": "application/json"}
        )
        with connection.getresponse() as answer:
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {answer.read(1000)!r}")
            pieces = iter(answer.read1, b"")
            received = [(time.perf_counter() - began, piece) for piece in pieces]
        self._own.used = time.perf_counter()
        return received

    def parsed(self, pieces: list[tuple[float, bytes]]) -> tuple[int, list[float]]:
        """Tokens of an answer, and the times of its pieces of text."""
        times, tokens, rest = [], 0, b""
        for seconds, piece in pieces:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if any(c["delta"].get("content") for c in chunk["choices"]):
                    times.append(seconds)
                if chunk.get("usage"):
                    tokens = chunk["usage"]["completion_tokens"]
        return tokens, times


@dataclass
class ClientLoad:
    """What the clients of one load saw; times in seconds."""

    seconds: float = 0.0
    """From the first request to the last answer."""
    tokens: int = 0
    """Of all answers."""
    first: list[float] = field(default_factory=list)
    """To the first text, a request each."""
    gaps: list[float] = field(default_factory=list)
    """Between a text and the next; a text may be several tokens."""
    per_token: list[float] = field(default_factory=list)
    """(last text - first text) / (tokens - 1), a request each."""

    @property
    def rate(self) -> float:
        """Completion tokens of all requests a second."""
        return self.tokens / self.seconds

    def __add__(self, other: "ClientLoad") -> "ClientLoad":
        """Both, one after the other."""
        return ClientLoad(
            seconds=self.seconds + other.seconds,
            tokens=self.tokens + other.tokens,
            first=self.first + other.first,
            gaps=self.gaps + other.gaps,
            per_token=self.per_token + other.per_token,
        )


def measure(
    engine: HttpClient,
    prompts: list[str],
    max_tokens: int,
    decoding: dict,
    together: int,
    ramp: float = 0.0,
) -> ClientLoad:
    """Ask all prompts, `together` at a time; the first of them begin over `ramp` seconds.

    Answers are parsed when all have come: clients run on the cores of what is measured.
    """

    def ask(numbered: tuple[int, str]) -> list[tuple[float, bytes]]:
        number, prompt = numbered
        if number < together:
            time.sleep(ramp * number / together)
        return engine.received(prompt, max_tokens, decoding)

    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(together) as pool:
        received = list(pool.map(ask, enumerate(prompts)))
    seconds = time.perf_counter() - began
    found = [engine.parsed(pieces) for pieces in received]
    return ClientLoad(
        seconds=seconds,
        tokens=sum(n for n, _ in found),
        first=[times[0] for _, times in found if times],
        gaps=[b - a for _, times in found for a, b in itertools.pairwise(times)],
        per_token=[(t[-1] - t[0]) / (n - 1) for n, t in found if t and n > 1],
    )


def percentile(values: list[float], share: float) -> float:
    """Milliseconds."""
    if not values:
        return float("nan")
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1e3
