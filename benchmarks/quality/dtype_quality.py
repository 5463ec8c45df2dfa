"""How far each format's distribution is from fp32's, on fp32's own greedy answers.

    python benchmarks/quality/dtype_quality.py --data data [--prompts 8] [--max-tokens 64]
        [--llama Q4_1 Q8_0]

Perplexity ratio: the answers' AR perplexity in a format / in fp32. Agreement: share of the answers'
tokens that the format's AR would choose after the same prefix. Divergence: Kullback-Leibler
divergence of the format's distribution from fp32's, mean over the tokens, in nats.

`--llama`: llama.cpp on the built-in model's file in these formats, for comparison (`pip install
xllamacpp`). It is asked for the likeliest tokens after each prefix, so it has no divergence. "fp32"
is the file's Q4_1 dequantised: the built-in model comes in no other form.
"""

import argparse
import json
import math
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.lib.machine import header, save
from benchmarks.lib.peers import start
from benchmarks.lib.prompts import prompt_sets
from trimode import LoadedModel, generate_batch, load
from trimode.engine import encode_prompt
from trimode.evaluation.lossless import prefill_logits

DTYPES = ("bf16", "int8", "int4")
_LIKELIEST = 400
"""Tokens whose probabilities llama.cpp is asked for."""
_RARE = -12.0
"""Log-probability of a token that is not among them."""

Pairs = list[tuple[list[int], list[int]]]
"""Prompt and answer, as tokens."""


class Quality(NamedTuple):
    """Figures of one format."""

    loss: float
    """Mean negative log-likelihood of the answers' tokens."""
    agreement: float
    divergence: float | None


@torch.inference_mode()
def answer_logits(model: LoadedModel, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probabilities `[len(answer), V]` of what follows each prefix of an answer."""
    logits = prefill_logits(model, prompt + answer[:-1], first=len(prompt) - 1)
    return logits.float().log_softmax(-1)


def measure(model: LoadedModel, pairs: Pairs, expected: list[torch.Tensor]) -> Quality:
    """One of our formats; `expected`: fp32's log-probabilities of each answer."""
    loss = agreed = divergence = 0.0
    for (prompt, answer), wanted in zip(pairs, expected, strict=True):
        found, targets = answer_logits(model, prompt, answer), torch.tensor(answer)
        loss += float(F.nll_loss(found, targets, reduction="sum"))
        agreed += int((found.argmax(-1) == targets).sum())
        divergence += float(F.kl_div(found, wanted, log_target=True, reduction="sum"))
    count = sum(len(answer) for _, answer in pairs)
    return Quality(loss / count, agreed / count, divergence / count)


def measure_llama(kind: str, pairs: Pairs) -> Quality:
    """llama.cpp on the built-in model in a format."""
    loss, agreed = 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        engine = start(f"llama-{kind}", 1, Path(folder))
        try:
            for prompt, answer in track(pairs, f"llama.cpp {kind}", transient=True):
                for i, token in enumerate(answer):
                    likely = _likeliest(engine.url, prompt + answer[:i])
                    loss -= likely.get(token, _RARE)
                    agreed += next(iter(likely), None) == token
        finally:
            engine.close()
    count = sum(len(answer) for _, answer in pairs)
    return Quality(loss / count, agreed / count, None)


def _likeliest(url: str, prompt: list[int]) -> dict[int, float]:
    """Token -> log-probability of what follows a prompt, the likeliest first.

    Empty if llama.cpp would end the text here: it gives no probabilities then.
    """
    body = {"prompt": prompt, "n_predict": 1, "n_probs": _LIKELIEST, "temperature": 0.0}
    request = urllib.request.Request(
        f"{url}/completion",
        json.dumps(body | {"cache_prompt": True}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer).get("completion_probabilities", [])
    return {each["id"]: each["logprob"] for one in found for each in one["top_logprobs"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=8, help="of each set")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--llama", nargs="*", default=[], help="formats of llama.cpp")
    arguments = parser.parse_args()
    model = load(arguments.model, dtype="fp32", progress=False)
    texts = [t for part in prompt_sets(arguments.data, arguments.prompts).values() for t in part]
    prompts = [encode_prompt(model, text) for text in texts]
    answers = generate_batch(model, prompts, max_tokens=arguments.max_tokens)
    ends = set(model.config.eos_token_ids)  # llama.cpp gives no probability of an end
    pairs = [
        (prompt, [token for token in answer.token_ids if token not in ends])
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    expected = [answer_logits(model, *pair) for pair in pairs]
    found = {"fp32": measure(model, pairs, expected)}
    for dtype in DTYPES:
        model = load(arguments.model, dtype=dtype, progress=False)
        found[dtype] = measure(model, pairs, expected)
    for kind in arguments.llama:
        found[f"llama.cpp {kind}"] = measure_llama(kind, pairs)
    table = Table("format", "perplexity ratio", "agreement", "divergence")
    rows = {}
    for name, quality in found.items():
        rows[name] = {
            "perplexity_ratio": round(math.exp(quality.loss - found["fp32"].loss), 4),
            "agreement": round(quality.agreement, 4),
            "divergence": None if quality.divergence is None else round(quality.divergence, 5),
        }
        table.add_row(name, *("" if v is None else str(v) for v in rows[name].values()))
    Console().print(table)
    tokens = sum(len(answer) for _, answer in pairs)
    save("dtype_quality", {**header(), "tokens": tokens, "formats": rows})


if __name__ == "__main__":
    main()
