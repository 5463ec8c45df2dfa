"""Train the learned commit rule of a converted model and compare it with the threshold rule.

    python reproduce/smollm2/commit_rule.py --adapter DIR --prompts prompts.jsonl
        [--count 300] [--max-tokens 96] [--block-length 16] [--dtype int8] [--save]

Prints the AUC of the rule on held-out blocks, and that of the confidence that the threshold rule
uses. `--save` writes the rule beside the adapter. `benchmarks/quality/conversion.py --commit-rule
learned` plots tokens a pass against quality.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from trimode import load
from trimode.checkpoints.commit_rule import save_commit_rule
from trimode.engine import encode_prompt
from trimode.model.commit_scorer import ScorerConfig
from trimode.training.commit_rule import collect, fit
from trimode.training.self_generate import read_prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--block-length", type=int, default=16)
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    model = load(arguments.model, dtype=arguments.dtype, adapter=arguments.adapter, progress=False)
    texts = read_prompts(arguments.prompts)[: arguments.count]
    prompts = [encode_prompt(model, text) for text in texts]
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("decoding, twice", total=2 * len(prompts))
        examples = collect(
            model,
            prompts,
            max_tokens=arguments.max_tokens,
            block_length=arguments.block_length,
            advance=lambda: progress.advance(task),
        )
    network, result = fit(examples, model.transformer.embedding.matrix(), ScorerConfig())
    size = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{len(examples)} blocks, {size / 1e6:.2f} M parameters, {result.epochs} epochs: "
        f"AUC {result.auc:.4f}, of the confidence alone {result.confidence_auc:.4f}"
    )
    if arguments.save:
        print(save_commit_rule(arguments.adapter, network))


if __name__ == "__main__":
    main()
