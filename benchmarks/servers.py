"""A load of requests on a server: what `engines.py` and `serve.py` measure."""

import concurrent.futures
import itertools
import time
from dataclasses import dataclass, field

from peers import HttpClient


@dataclass
class Load:
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

    def __add__(self, other: "Load") -> "Load":
        """Both, one after the other."""
        return Load(
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
) -> Load:
    """Ask all prompts, `together` at a time; the first of them begin over `ramp` seconds.

    Answers are parsed when all have come: clients run on the cores of what is measured.
    """

    def ask(numbered: tuple[int, str]) -> list[tuple[float, bytes]]:
        number, prompt = numbered
        if number < together:
            time.sleep(ramp * number / together)
        return engine.heard(prompt, max_tokens, decoding)

    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(together) as pool:
        heard = list(pool.map(ask, enumerate(prompts)))
    seconds = time.perf_counter() - began
    found = [engine.understood(pieces) for pieces in heard]
    return Load(
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
