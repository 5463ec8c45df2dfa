"""A server under rude clients for a while: no wrong text, no stuck slot, no leak.

    python benchmarks/server/soak.py --data data --minutes 20 [--clients 16]

Clients ask in mixed modes and compare each answer with the answer that the same request got alone
before. In int8 these are equal. Between such requests clients hang up in the middle, send garbage,
send bodies that are too large, and read slowly. Memory and slots are read at the end.
"""

import argparse
import http.client
import json
import random
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import track

from benchmarks.lib.clients import SERVED
from benchmarks.lib.machine import header, save
from benchmarks.lib.peers import start
from benchmarks.lib.prompts import prompt_sets

MODES = [("ar", None), ("linear", 5), ("linear", 16), ("quadratic", 3), ("diffusion", 8),
         ("auto", None)]  # fmt: skip


def body_of(case: dict, *, stream: bool) -> bytes:
    """The request of a case."""
    mode, block_length = case["mode"]
    decoding = {"mode": mode, **({"block_length": block_length} if block_length else {})}
    fields = {
        "model": SERVED,
        "messages": [{"role": "user", "content": case["prompt"]}],
        "temperature": case["temperature"],
        "seed": case["seed"],
        "max_tokens": 48,
        "stream": stream,
        "decoding": decoding,
    }
    return json.dumps(fields).encode()


def post(url: str, body: bytes, *, pause: float = 0.0, hang_up_after: int = 0) -> tuple[int, str]:
    """Status and body, read slowly or only in part if asked."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=300)
    try:
        connection.request(
            "POST", "/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        if hang_up_after:
            return answer.status, answer.read(hang_up_after).decode(errors="replace")
        parts = []
        while piece := answer.read(512):
            parts.append(piece)
            time.sleep(pause)
        return answer.status, b"".join(parts).decode()
    finally:
        connection.close()


def text_of(answer: str) -> str:
    """The text of a whole answer or of a stream."""
    if answer.startswith("{"):
        return json.loads(answer)["choices"][0]["message"]["content"]
    chunks = [json.loads(line[6:]) for line in answer.splitlines() if line.startswith("data: {")]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def rude(url: str, draw: random.Random, counts: Counter) -> None:
    """Something no client should do."""
    kind = draw.choice(["garbage", "wrong", "huge", "gone"])
    if kind == "garbage":
        status, _ = post(url, draw.randbytes(200))
    elif kind == "wrong":
        status, _ = post(url, b'{"messages": 3}')
    elif kind == "huge":
        try:
            status, _ = post(url, b" " * (9 * 2**20))
        except (ConnectionError, http.client.HTTPException):
            status = 413  # the server closes before it has read all
    else:
        case = {"prompt": "Tell me a long story.", "mode": draw.choice(MODES), "temperature": 0,
                "seed": 0}  # fmt: skip
        status, _ = post(url, body_of(case, stream=True), hang_up_after=200)
    counts[f"{kind} {status}"] += 1


def client(
    url: str, cases: list[dict], until: float, seed: int, counts: Counter, wrong: list
) -> None:
    """Ask until the time is over."""
    draw = random.Random(seed)
    while time.monotonic() < until:
        if draw.random() < 0.3:
            rude(url, draw, counts)
            continue
        case = draw.choice(cases)
        stream = draw.random() < 0.5
        pause = 0.05 if draw.random() < 0.2 else 0.0
        status, answer = post(url, body_of(case, stream=stream), pause=pause)
        counts[f"asked {status}"] += 1
        if status == 200 and text_of(answer) != case["expected"]:
            wrong.append({"case": case, "found": text_of(answer)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=16)
    arguments = parser.parse_args()
    console = Console()
    engine = start("trimode-int8", 16, Path())
    try:
        draw = random.Random(0)
        sets = prompt_sets(arguments.data, 8)
        cases = [
            {"prompt": text, "mode": MODES[i % len(MODES)], "temperature": draw.choice([0, 0.8]),
             "seed": i}
            for i, text in enumerate(t for texts in sets.values() for t in texts)
        ]  # fmt: skip
        for case in track(cases, "alone", console=Console(stderr=True), transient=True):
            case["expected"] = text_of(post(engine.url, body_of(case, stream=False))[1])
        counts, wrong = Counter[str](), []
        warm = engine.megabytes("VmRSS")
        memory = []
        until = time.monotonic() + 60 * arguments.minutes
        threads = [
            threading.Thread(
                target=client, args=(engine.url, cases, until, seed, counts, wrong), daemon=True
            )
            for seed in range(arguments.clients)
        ]
        for thread in threads:
            thread.start()
        while time.monotonic() < until:
            time.sleep(min(15.0, max(0.1, until - time.monotonic())))
            memory.append(round(engine.megabytes("VmRSS")))
        for thread in threads:
            thread.join(300)
        stuck = sum(thread.is_alive() for thread in threads)
        time.sleep(1)
        connection = http.client.HTTPConnection(urlsplit(engine.url).netloc)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        slots = [line for line in lines if line.startswith("trimode_requests_running")]
        result = {
            "minutes": arguments.minutes,
            "clients": arguments.clients,
            "counts": dict(sorted(counts.items())),
            "wrong_answers": len(wrong),
            "server_errors": sum(n for key, n in counts.items() if key.split()[-1] >= "500"),
            "stuck_clients": stuck,
            "running_at_the_end": slots,
            "megabytes": {"before": round(warm), "during": memory},
        }
        console.print(result)
        save("soak", {**header(), **result})
    finally:
        began = time.monotonic()
        engine.close()
        console.print(f"ended {time.monotonic() - began:.1f} s after SIGTERM", highlight=False)


if __name__ == "__main__":
    main()
