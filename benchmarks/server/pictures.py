"""How long text streams wait while pictures are read.

    python benchmarks/server/pictures.py [--streams 4] [--pictures 8] [--layers 12]
        [--size 384] [--pixels 448]

The built-in model streams texts in mode `ar`. It gets a random tower, of `--layers` layers of
`--size`, and requests with pictures of `--pixels` a side come one after the other. Gaps are times
between two tokens of a text. They are compared with those of the same texts without pictures. How
long a pass takes is measured without pictures. What a tower of VLM-8B's size takes for one picture
is measured too, with `--layers 24 --size 1024`.
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.lib.machine import header, save
from trimode import load
from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.engine import Engine, PromptImage, encode_prompt
from trimode.engine.costs import cost_curve
from trimode.vision import ImageTokens, Vision, VisionConfig, VisionModel

IMAGE_TOKEN = 4
"""A token that no text has; a random tower needs no other sign."""
TOKENS = 400
"""Of each text."""


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--pixels", type=int, default=448)
    asked = parser.parse_args()
    model = with_tower(load(), asked.layers, asked.size)
    pictures = [picture(model, seed, asked.pixels) for seed in range(asked.pictures)]
    began = time.perf_counter()
    for _ in model.require_vision("pictures").encode(pictures[0].image):
        pass
    alone = time.perf_counter() - began
    quiet, _ = run(model, asked.streams, [])
    busy, first_tokens = run(model, asked.streams, pictures)
    result = {
        "machine": header(),
        "asked": vars(asked),
        "tokens_of_a_picture": pictures[0].image.tokens,
        "seconds_of_a_picture_alone": round(alone, 3),
        "gaps_ms_without_pictures": figures(quiet),
        "gaps_ms_with_pictures": figures(busy),
        "seconds_to_first_tokens_of_pictures": [round(s, 3) for s in first_tokens],
    }
    table = Table("gaps in texts, ms", "median", "p99", "most")
    for name in ("without", "with"):
        found = result[f"gaps_ms_{name}_pictures"]
        table.add_row(f"{name} pictures", *(f"{found[k]:.1f}" for k in ("median", "p99", "most")))
    Console().print(table)
    Console().print(
        f"a picture of {pictures[0].image.tokens} tokens takes {alone:.2f} s alone; beside texts "
        f"its first token comes after {np.median(first_tokens):.2f} s (median)"
    )
    Console().print(f"saved {save('pictures', result)}")


def with_tower(model: LoadedModel, layers: int, size: int) -> LoadedModel:
    """The model with a random tower."""
    config = VisionConfig(
        text_size=model.config.hidden_size,
        hidden_size=size,
        intermediate_size=4 * size,
        num_layers=layers,
        num_heads=size // 64,
    )
    torch.manual_seed(0)
    tower = VisionModel(config).requires_grad_(False).eval()
    tokens = ImageTokens(IMAGE_TOKEN)
    return replace(
        model, vision=Vision(config=config, tokens=tokens, layout="mistral3", model=tower)
    )


def picture(model: LoadedModel, seed: int, pixels: int) -> PromptImage:
    """A random picture at the beginning of a prompt."""
    colours = np.random.default_rng(seed).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)
    return PromptImage(model.require_vision("pictures").process(Image.fromarray(colours)), 0)


def run(
    model: LoadedModel, streams: int, pictures: list[PromptImage]
) -> tuple[list[float], list[float]]:
    """Gaps in the texts, and seconds from each picture to the first token of its answer."""
    slots = streams + len(pictures)
    engine = Engine(model, max_sequences=slots, costs=cost_curve(model), interactive=True)
    options = GenerationOptions(max_tokens=TOKENS, ignore_eos=True)
    texts = [
        engine.add(encode_prompt(model, f"Tell a long story about the number {i}."), options)
        for i in range(streams)
    ]
    while not all(text.tokens for text in texts):
        engine.step()
    asked: dict[str, float] = {}
    question = encode_prompt(model, "What is it?")
    vision = model.require_vision("pictures")
    waiting, last, gaps, first_tokens = list(pictures), {}, [], []
    while any(text.finish_reason is None for text in texts):
        if waiting and not engine.images.waiting:
            image = waiting.pop(0)
            tokens = (*vision.prompt_tokens(image.image), *question)
            added = engine.add(tokens, GenerationOptions(max_tokens=1), images=[image])
            asked[added.id] = time.perf_counter()
        updates = engine.step()
        now = time.perf_counter()
        for update in updates:
            sequence = update.sequence
            if sequence.id in asked:
                first_tokens.append(now - asked.pop(sequence.id))
            elif sequence.tokens:
                if sequence.id in last:
                    gaps.append(now - last[sequence.id])
                last[sequence.id] = now
    return gaps, first_tokens


def figures(gaps: list[float]) -> dict[str, Any]:
    """Median, 99th percentile and most, in milliseconds."""
    values = np.asarray(gaps) * 1e3
    found = {"median": np.median(values), "p99": np.percentile(values, 99), "most": values.max()}
    return {name: round(float(value), 2) for name, value in found.items()}


if __name__ == "__main__":
    main()
