"""Teaches the tower and the projector to write what they see, without the language model.

    python -m reproduce.documents.teach --data data --output run [--minutes 65]
        [--begin trimode/checkpoints/built_in/smollm2-documents]

A square's embedding is to be the embedding of its token (see targets.py). Pages are easy at first,
and become harder when most letters are read. With `--begin` the tower of a finished reader is
taught further, with the hardest pages. Ctrl-C saves; the same command continues.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from reproduce.documents.kinds import DRILLS, KINDS, draw, eased
from reproduce.documents.pages import PITCH, Page
from reproduce.documents.run import Report, Stop, keep
from reproduce.documents.targets import Targets, spellings, targets
from reproduce.documents.texts import Texts, open_texts
from trimode.checkpoints import Checkpoint, open_checkpoint
from trimode.checkpoints.vision import open_vision
from trimode.model import as_floats
from trimode.model.build import cpu_multiplies_bf16
from trimode.text import Tokenizer
from trimode.vision import ProcessedImage, Vision, VisionConfig, VisionModel, process
from trimode.vision.tower import VisionTower

CONFIG = VisionConfig(
    text_size=576,
    hidden_size=192,
    intermediate_size=384,
    num_layers=3,
    num_heads=8,
    rope_theta=10.0,
    patch_size=5,
    image_size=1000,
    activation="silu",
    merging_layer=False,
    image_mean=(0.3, 0.3, 0.3),
    image_std=(0.3, 0.3, 0.3),
)
MIX = {**dict.fromkeys(KINDS, 1.0), **dict.fromkeys(DRILLS, 2.0), "prose": 3.0}
_VARIANCE = 0.5
_EXACT = 0.5
"""Weight of the squared distance from the wanted embedding. Without it embeddings grow, and point
where only other letters' do not: the language model has never seen such ones."""
_EMPTY = 0.4
"""Weight of squares in which nothing stands."""
_HARDER = 0.002
"""By how much `ease` falls in a step, if this share of the squares with letters is read:"""
_READ = 0.65
_LINES = 2
"""Of a strip."""
_WHOLE = 0.15
"""Share of pages that are not cut into strips."""
_PEAK = 1.5e-3
"""Learning rate."""

Example = tuple[ProcessedImage, Targets]


class Teacher(nn.Module):
    """A tower, and its loss on a batch of pages."""

    def __init__(self, embedding: Tensor, candidates: Tensor) -> None:
        """Make a new tower.

        Args:
            embedding: of the language model, `[vocab, text]`.
            candidates: ids of the tokens that squares may have, rising.
        """
        super().__init__()
        self.vision = VisionModel(CONFIG)
        look_at_neighbours(self.vision.vision_tower)
        self.candidates = candidates
        self.mean = embedding.mean(0)
        self.words = embedding[candidates] - self.mean

    def forward(self, examples: list[Example]) -> tuple[Tensor, dict[str, float]]:
        """The loss, and the shares of squares that are right."""
        images = [image.normalised(CONFIG) for image, _ in examples]
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bf16()):
            embeddings = torch.cat(self.vision(images))
        tokens = torch.cat([found.tokens for _, found in examples])
        filled = torch.cat([found.filled for _, found in examples])
        found = embeddings.float() - self.mean
        logits = self.logits(found)
        classes = torch.searchsorted(self.candidates, tokens)
        weights = torch.where(filled, 1.0, _EMPTY)
        losses = F.cross_entropy(logits, classes, reduction="none")
        wanted = self.words[classes]
        distances = (found - wanted).square().sum(1) / self.words.square().sum(1).mean()
        loss = ((losses + _EXACT * distances) * weights).sum() / weights.sum()
        right = logits.detach().argmax(-1) == classes
        shares = {
            "distance": distances.detach()[filled].mean(),
            "letters": right[filled].float().mean(),
            "empty": right[~filled].float().mean(),
        }
        return loss, {name: float(share) for name, share in shares.items()}

    def logits(self, found: Tensor) -> Tensor:
        """Of each candidate `[squares, candidates]`, by its distance.

        Args:
            found: embeddings less their mean, `[squares, text]`.
        """
        return (found @ self.words.T - self.words.square().sum(1) / 2) / _VARIANCE


def new_teacher(checkpoint: Checkpoint) -> Teacher:
    """An untaught tower for a language model."""
    embedding = as_floats(checkpoint.read("embed_tokens.weight")).float()
    return Teacher(embedding, spellings(checkpoint.tokenizer))


_AROUND = [(0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]
_ALONG = [(0, 1), (0, -1), (0, 2), (0, -2), (1, 0), (-1, 0)]
_SHARPNESS = 5.0


@torch.no_grad()
def look_at_neighbours(tower: VisionTower) -> None:
    """Let heads of the first two layers begin by looking at one neighbour each.

    A tower that must find out where its neighbours are learns to read many times slower. The first
    channel of a patch becomes its brightness, which hardly varies; the others see no brightness.
    From that channel, queries and keys are made whose product RoPE turns into a peak at a place
    (ConViT, arXiv 2103.10697, does so with its own position encoding).
    """
    weight = tower.patch_conv.weight
    weight -= weight.mean((1, 2, 3), keepdim=True)
    weight[0] = 10 / weight[0].numel()
    size = CONFIG.head_dim
    constant = CONFIG.hidden_size**0.5 * 0.9
    frequencies = 1 / CONFIG.rope_theta ** (torch.arange(0, size, 2) / size)
    for layer, offsets in zip(tower.layers, (_AROUND, _ALONG), strict=False):
        for head, (down, right) in enumerate(offsets):
            turns = torch.cat((frequencies[0::2] * down, frequencies[1::2] * right))
            rows = slice(head * size, (head + 1) * size)
            scale = _SHARPNESS / constant
            one = torch.ones_like(turns)
            for projection, values in (
                (layer.attention.q_proj, torch.cat((one, 0 * one))),
                (layer.attention.k_proj, torch.cat((turns.cos(), -turns.sin()))),
            ):
                projection.weight[rows] *= 0.03
                projection.weight[rows, 0] = scale * values


def example(page: Page, tokenizer: Tokenizer) -> Example:
    """A page as the tower reads it, and what it is to see."""
    image = process(page.image, CONFIG)
    return image, targets(page, image, CONFIG, tokenizer)


def strips(page: Page, tokenizer: Tokenizer, lines: int) -> Iterator[Example]:
    """A page in parts of so many lines. Attention costs less in them."""
    image, seen = example(page, tokenizer)
    high = lines * PITCH // CONFIG.merged_patch
    for top in range(0, image.rows, high):
        bottom = min(top + high, image.rows)
        edges = (top * CONFIG.merged_patch, bottom * CONFIG.merged_patch)
        part = page.image.crop((0, edges[0], page.image.width, edges[1]))
        squares = slice(top * image.columns, bottom * image.columns)
        yield process(part, CONFIG), Targets(seen.tokens[squares], seen.filled[squares])


def shipped(directory: Path, checkpoint: Checkpoint) -> Vision:
    """Tower and projector of a finished reader: of a directory that reader.py wrote."""
    vision = open_vision(directory, checkpoint.config, checkpoint.tokenizer)
    assert not isinstance(vision, str), vision
    return vision.build(dtype=torch.float32, device="cpu")


class Pages:
    """Batches of new pages, most of them in strips."""

    def __init__(self, texts: Texts, tokenizer: Tokenizer) -> None:
        self.texts, self.tokenizer = texts, tokenizer

    def page(self, ease: float) -> Page:
        """A page; see `eased`."""
        if ease > 0:
            return eased(self.texts, ease)
        (kind,) = self.texts.rng.choices(list(MIX), list(MIX.values()))
        return draw(self.texts, kind)

    def batch(self, squares: int, ease: float) -> list[Example]:
        """Pages with about so many squares."""
        batch: list[Example] = []
        while sum(image.tokens for image, _ in batch) < squares - 60:
            page, whole = self.page(ease), self.texts.rng.random() < _WHOLE
            if whole:
                batch.append(example(page, self.tokenizer))
            else:
                batch += strips(page, self.tokenizer, _LINES)
        return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=65, help="of training, all starts together"
    )
    parser.add_argument("--begin", type=Path, help="with a reader that was shipped: its directory")
    parser.add_argument("--squares", type=int, default=400, help="of a step")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    checkpoint = open_checkpoint("smollm2-135m-instruct")
    torch.manual_seed(arguments.seed)
    teacher = new_teacher(checkpoint)
    optimiser = torch.optim.AdamW(
        teacher.parameters(), lr=_PEAK, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    state = arguments.output / "teacher.pt"
    step, spent, ease = 0, 0.0, 1.0
    if state.exists():
        saved = torch.load(state, weights_only=False)
        teacher.load_state_dict(saved["teacher"])
        optimiser.load_state_dict(saved["optimiser"])
        step, spent, ease = saved["step"], saved["seconds"], saved["ease"]
    elif arguments.begin is not None:
        teacher.vision.load_state_dict(shipped(arguments.begin, checkpoint).model.state_dict())
        ease = 0.0
    parameters = sum(p.numel() for p in teacher.vision.parameters())
    console.print(f"{parameters / 1e6:.1f} M parameters, from step {step}", highlight=False)
    stop = Stop()

    def save() -> None:
        found = {"teacher": teacher.state_dict(), "step": step, "seconds": spent, "ease": ease,
                 "optimiser": optimiser.state_dict()}  # fmt: skip
        keep(state, found)

    report = Report(arguments.output / "teach.jsonl", console, every=50)
    number = arguments.seed * 10**6 + step
    texts = open_texts(arguments.data, number, held_out=False)
    torch.manual_seed(number)
    source = Pages(texts, checkpoint.tokenizer)
    while spent < arguments.minutes * 60 and not stop.asked():
        began = time.monotonic()
        done = spent / (arguments.minutes * 60)
        pages = source.batch(arguments.squares, ease)
        scale = min(1.0, (step + 1) / 100) * min(1.0, (1 - done) / 0.4 + 0.02)
        optimiser.param_groups[0]["lr"] = _PEAK * scale
        loss, shares = teacher(pages)
        if not math.isfinite(float(loss.detach())):
            raise SystemExit(f"step {step}: the loss is not finite")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        spent += time.monotonic() - began
        report.add(step, spent, {"loss": float(loss.detach()), **shares}, ease=round(ease, 3))
        if report.means["letters"] > _READ:
            ease = max(0.0, ease - _HARDER)
        if step % 500 == 0:
            save()
    save()


if __name__ == "__main__":
    main()
