"""Teaches the tower and the projector to write what they see, without the language model.

    python -m reproduce.documents.teach --data data --output run [--minutes 60]

A square's embedding is to be the embedding of its token (see targets.py). A classifier of
characters helps the middle
layers along and is thrown away afterwards. Pages are easy at first, and become harder when most
characters are read. Ctrl-C saves; the same command continues.
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from reproduce.documents.kinds import DRILLS, KINDS, draw, eased
from reproduce.documents.pages import Page
from reproduce.documents.run import Report, Stop, keep
from reproduce.documents.targets import CHARACTERS, GLYPHS, NONE, Targets, targets
from reproduce.documents.texts import Texts, open_texts
from trimode.checkpoints import open_checkpoint
from trimode.model import as_floats
from trimode.text import Tokenizer
from trimode.vision import ProcessedImage, VisionConfig, VisionModel, process
from trimode.vision.tower import VisionTower

CONFIG = VisionConfig(
    text_size=576,
    hidden_size=256,
    intermediate_size=512,
    num_layers=4,
    num_heads=8,
    rope_theta=10.0,
    patch_size=10,
    image_size=1000,
    activation="silu",
    merging_layer=False,
    image_mean=(0.3, 0.3, 0.3),
    image_std=(0.3, 0.3, 0.3),
)
MIDDLE = 2
"""Layers before the classifier of characters."""
MIX = {**dict.fromkeys(KINDS, 1.0), **dict.fromkeys(DRILLS, 2.0), "prose": 3.0}
_VARIANCE = 0.5
_REPEATED = 0.4
"""Weight of squares in which no token begins."""
_OTHERS = 1536
"""Tokens that are not on the pages, drawn as wrong answers."""
_HARDER = 0.0015
"""By how much `ease` falls in a step, if this share of the characters is read:"""
_READ = 0.72
_PEAK = 1.5e-3
"""Learning rate."""

Example = tuple[ProcessedImage, Targets]


class Teacher(nn.Module):
    """Losses of a batch of pages."""

    def __init__(self, embedding: Tensor) -> None:
        """`embedding`: of the language model, `[vocab, text]`."""
        super().__init__()
        self.vision = VisionModel(CONFIG)
        look_at_neighbours(self.vision.vision_tower)
        self.middle = nn.Sequential(
            nn.RMSNorm(CONFIG.hidden_size),
            nn.Linear(CONFIG.hidden_size, GLYPHS * (CHARACTERS + 1)),
        )
        self.mean = embedding.mean(0)
        self.words = embedding - self.mean

    def forward(self, examples: list[Example]) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Loss of tokens, loss of characters, and shares that are right."""
        images = [image.normalised(CONFIG) for image, _ in examples]
        tower, projector = self.vision.vision_tower, self.vision.multi_modal_projector
        grids = [tower.grid(image) for image in images]
        x = torch.cat([tower.embed(image) for image in images])
        parts = [tower.rotation(grid, x) for grid in grids]
        cos, sin = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        sizes = [rows * columns for rows, columns in grids]
        middle = x
        for number, layer in enumerate(tower.layers):
            x = layer(x, (cos, sin), sizes)
            if number + 1 == MIDDLE:
                middle = x
        embeddings = projector(x, grids)
        glyphs = torch.cat([found.glyphs for _, found in examples])
        tokens = torch.cat([found.tokens for _, found in examples])
        glyph_loss, glyph_right = self._glyphs(middle, glyphs)
        begins = torch.cat([found.begins for _, found in examples])
        token_loss, shares = self._tokens(embeddings - self.mean, tokens, begins)
        return token_loss, glyph_loss, {**shares, "glyphs": glyph_right}

    def _glyphs(self, x: Tensor, glyphs: Tensor) -> tuple[Tensor, float]:
        logits = self.middle(x).view(-1, CHARACTERS + 1)
        classes = torch.where(glyphs == NONE, CHARACTERS, glyphs).flatten()
        there = classes != CHARACTERS
        weights = torch.where(there, 1.0, 0.2)
        loss = (F.cross_entropy(logits, classes, reduction="none") * weights).sum() / weights.sum()
        right = (logits.argmax(-1) == classes)[there].float().mean()
        return loss, float(right)

    def _tokens(
        self, found: Tensor, tokens: Tensor, begins: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of the nearest word among those of the pages and some others."""
        others = torch.randint(len(self.words), (_OTHERS,))
        candidates = torch.cat((tokens, others)).unique()
        words = self.words[candidates]
        logits = (found @ words.T - words.square().sum(1) / 2) / _VARIANCE
        classes = torch.searchsorted(candidates, tokens)
        weights = torch.where(begins, 1.0, _REPEATED)
        loss = (F.cross_entropy(logits, classes, reduction="none") * weights).sum() / weights.sum()
        right = logits.detach().argmax(-1) == classes
        shares = {"begins": right[begins].float().mean(), "others": right[~begins].float().mean()}
        return loss, {name: float(share) for name, share in shares.items()}


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


class Pages:
    """Batches of new pages."""

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
            batch.append(example(self.page(ease), self.tokenizer))
        return batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=60, help="of training, all starts together"
    )
    parser.add_argument("--squares", type=int, default=400, help="of a step")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    checkpoint = open_checkpoint("smollm2-135m-instruct")
    embedding = as_floats(checkpoint.read("embed_tokens.weight")).float()
    torch.manual_seed(arguments.seed)
    teacher = Teacher(embedding)
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
        token_loss, glyph_loss, shares = teacher(pages)
        loss = token_loss + glyph_loss * max(0.1, 1 - 2 * done)
        if not math.isfinite(float(loss.detach())):
            raise SystemExit(f"step {step}: the loss is not finite")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        spent += time.monotonic() - began
        now = {
            "loss": float(token_loss.detach()),
            "glyph_loss": float(glyph_loss.detach()),
            **shares,
        }
        report.add(step, spent, now, ease=round(ease, 3))
        if report.means["glyphs"] > _READ:
            ease = max(0.0, ease - _HARDER)
        if step % 500 == 0:
            save()
    save()


if __name__ == "__main__":
    main()
