"""How many of a draft head's guesses are right on answers to prompts that it was not trained on.

    python benchmarks/quality/draft_head.py --data data [--prompts 96] [--max-tokens 128]
        [--adapter DIR]

The prompts are user instructions of self_instruct, GSM8K test questions, IFEval prompts and MBPP
tasks, in turn. The model answers greedily in `ar`. At each place of its answers the head guesses
from the hidden state there, and goes on with the true tokens: hits one, two and three tokens ahead.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.lib.machine import header, save
from benchmarks.lib.prompts import mixed_prompts
from trimode import generate_batch, load
from trimode.engine import encode_prompt
from trimode.training.draft_head import collect

STEPS = 3


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=128)
    arguments = parser.parse_args()
    model = load(arguments.model, adapter=arguments.adapter, dtype=arguments.dtype, progress=False)
    head = model.draft_head
    if head is None:
        raise SystemExit(f"{model.name} has no draft head")
    texts = mixed_prompts(arguments.data, arguments.prompts)
    prompts = [encode_prompt(model, text) for text in texts]
    written = generate_batch(model, prompts, mode="ar", max_tokens=arguments.max_tokens)
    answers = collect(model, zip(prompts, (each.token_ids for each in written), strict=True))
    places, after = answers.places(range(len(answers.lengths)))
    hits, tries = [0] * STEPS, [0] * STEPS
    for place, count in zip(places.tolist(), after.tolist(), strict=True):
        state = answers.states[place].to(model.transformer.dtype)
        for k in range(min(STEPS, count)):
            state, logits = head.step(state, int(answers.tokens[place + k]))
            guess = int(head.tokens[logits.argmax()])
            hits[k] += guess == int(answers.tokens[place + k + 1])
            tries[k] += 1
    shares = [hit / max(1, tried) for hit, tried in zip(hits, tries, strict=True)]
    Console().print(
        f"{len(answers.tokens)} tokens: "
        + ", ".join(f"{share:.1%} {k + 1} ahead" for k, share in enumerate(shares))
    )
    asked = {"prompts": arguments.prompts, "max_tokens": arguments.max_tokens}
    save("draft_head", {**header(), **asked, "tokens": len(answers.tokens), "hits": shares})


if __name__ == "__main__":
    main()
