"""Trains the language model to read what the tower writes, in all modes.

    python -m reproduce.documents.train --data data --output run [--minutes 65]
        [--rank 16] [--ideal | --begin trimode/checkpoints/built_in/smollm2-documents]

With `--ideal` the language model learns alone, from embeddings that a perfect tower would write
(ideal.py), and `run/ideal.pt` is written. Without it, training goes on from there with the tower
that teach.py left in `run/teacher.pt`, and `run/reader.pt` is written. With `--begin` the LoRA of a
finished reader is trained further, more slowly, with its tower if there is no `run/teacher.pt`.

The base and the built-in adapter that denoises stay as they are. What is trained is a LoRA that is
on in all rows, and, more slowly, tower and projector, by the joint objective: AR's cross-entropy on
the clean copy, and the denoiser's on noisy blocks. Products are in bf16 if the CPU has instructions
for them. Ctrl-C saves; the same command continues.
"""

import argparse
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from reproduce.documents.answers import Speller, respelled
from reproduce.documents.ideal import IdealVision, ideal
from reproduce.documents.kinds import KINDS, TRANSCRIBE, draw
from reproduce.documents.lora import add_lora, projections, rank_of, restore
from reproduce.documents.pages import Page
from reproduce.documents.reader import Base, open_base, taught
from reproduce.documents.run import Report, Stop, keep
from reproduce.documents.teach import example, shipped
from reproduce.documents.texts import Texts, open_texts
from trimode.checkpoints import read_adapter
from trimode.checkpoints.loader import ADDED_LORA
from trimode.model.build import cpu_multiplies_bf16
from trimode.training.conversations import parse_conversation
from trimode.training.data import Batch, Document, PackedRows, tokenise
from trimode.training.noise import NoiseConfig
from trimode.training.objective import ObjectiveConfig, joint_loss
from trimode.training.step import BlockConfig, StepConfig, draw_task, losses
from trimode.vision import Vision

ROW = 1024
"""Tokens of a step."""
_WAITING = 8
"""Documents among which those of a row are chosen."""
_PEAK = 1e-3
"""Learning rate of the LoRA."""
_TOWER = 0.2
"""Of tower and projector, as a share of it."""
_FURTHER = 0.5
"""Of a finished reader that is trained further, as a share of both."""
MIX = {**dict.fromkeys(KINDS, 1.0), "table": 3.0, "numbers": 1.0}
"""How often each kind of page is seen. Prose is learned first; digits must be copied one by one,
and a cell must be found by its row and column."""
_QUESTIONS = {"table": 4}
"""About a page of some kinds; about others 2."""
STEP = StepConfig(
    blocks=BlockConfig(
        draft_form="led",
        block_length=16,
        other_lengths=(8, 6),
        placement="random",
        noisy_tokens=192,
    ),
    noise=NoiseConfig(level="block", weighting="none", draft_share=0.6, seeded_share=0.15),
    objective=ObjectiveConfig(diffusion_loss_weight=0.5, distance_decay=0.95),
)


def conversation(page: Page, texts: Texts) -> Iterator[dict[str, Any]]:
    """Messages: the page, and a few questions about it with their answers."""
    fields = [question for question in page.questions if question[1]]
    count = _QUESTIONS.get(page.kind, 2)
    wanted = [(TRANSCRIBE, page.text), *texts.rng.sample(fields, min(count, len(fields)))]
    texts.rng.shuffle(wanted)
    for number, (question, answer) in enumerate(wanted):
        parts = [] if number else [{"type": "image"}]
        yield {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
        yield {"role": "assistant", "content": answer}


def documents(texts: Texts, base: Base, vision: Vision) -> Iterator[Document]:
    """Tokenised conversations about new pages, without end."""
    while True:
        (kind,) = texts.rng.choices(list(MIX), list(MIX.values()))
        page = draw(texts, kind)
        if isinstance(vision, IdealVision):
            vision.show(page)
        row = {"messages": list(conversation(page, texts)), "images": [page.image]}
        image, seen = example(page, base.tokenizer)
        speller = Speller(page, seen, image.columns, base.tokenizer)
        for document in tokenise(
            parse_conversation(row, "a page"),
            base.tokenizer,
            base.template,
            eos_token_ids=base.config.eos_token_ids,
            vision=vision,
        ):
            yield respelled(document, speller, base.tokenizer)


def rows(source: Iterator[Document]) -> Iterator[Batch]:
    """Rows of whole documents: each time the longest one that fits, of a few that wait."""
    fitting = (document for document in source if len(document.tokens) <= ROW)
    waiting = list(islice(fitting, _WAITING))
    while True:
        held: list[Document] = []
        room = ROW
        while fits := [n for n, document in enumerate(waiting) if len(document.tokens) <= room]:
            chosen = max(fits, key=lambda n: len(waiting[n].tokens))
            held.append(waiting[chosen])
            room -= len(held[-1].tokens)
            waiting[chosen] = next(fitting)
        yield PackedRows(held, ROW, 0).batch(0, 1)


def _first_vision(arguments: argparse.Namespace, base: Base) -> Vision:
    if arguments.ideal:
        return ideal(base)
    tower = arguments.output / "teacher.pt"
    if arguments.begin is not None and not tower.exists():
        return shipped(arguments.begin, base.checkpoint)
    return taught(tower, base)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--minutes", type=float, default=65, help="of training, all starts together"
    )
    parser.add_argument("--rank", type=int, help="of a new LoRA: 16")
    first = parser.add_mutually_exclusive_group()
    first.add_argument("--begin", type=Path, help="with a reader that was shipped: its directory")
    first.add_argument("--ideal", action="store_true", help="with a tower that makes no mistakes")
    parser.add_argument("--ar-share", type=float, default=0.3, help="first part, AR's loss alone")
    parser.add_argument(
        "--diffusion-weight",
        type=float,
        default=STEP.objective.diffusion_loss_weight,
        help="of the denoiser's loss; AR's has 1",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.begin is not None and arguments.rank is not None:
        parser.error("--rank: with --begin it is the shipped LoRA's")
    return arguments


def main() -> None:
    arguments = _read_arguments()
    shipped_lora = None if arguments.begin is None else read_adapter(arguments.begin / ADDED_LORA)
    rank = (arguments.rank or 16) if shipped_lora is None else rank_of(shipped_lora)
    arguments.output.mkdir(parents=True, exist_ok=True)
    console = Console()
    torch.manual_seed(arguments.seed)
    base = open_base()
    vision = _first_vision(arguments, base)
    model = base.checkpoint.build(dtype="fp32", device="cpu", adapter=base.adapter, plain=True)
    transformer = model.transformer
    if cpu_multiplies_bf16():  # what is frozen is converted once, not at each product
        for projection in projections(transformer):
            projection.bfloat16()
    lora = add_lora(transformer, rank)
    tower = [] if isinstance(vision, IdealVision) else list(vision.model.parameters())
    for parameter in tower:
        parameter.requires_grad_()
    trained = [*lora, *tower]
    peak = _PEAK if arguments.begin is None else _PEAK * _FURTHER
    groups = [{"params": p, "peak": lr} for p, lr in ((lora, peak), (tower, peak * _TOWER)) if p]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    state = arguments.output / ("ideal.pt" if arguments.ideal else "reader.pt")
    starts = [state] if shipped_lora is not None else [state, arguments.output / "ideal.pt"]
    start = next((path for path in starts if path.exists()), None)
    step, spent = 0, 0.0
    if shipped_lora is not None:
        restore(transformer, shipped_lora)
    if start is not None:
        saved = torch.load(start, weights_only=False)
        for parameter, value in zip(lora, saved["lora"], strict=True):
            parameter.data.copy_(value)
    if start == state:
        vision.model.load_state_dict(saved["vision"])
        optimiser.load_state_dict(saved["optimiser"])
        step, spent = saved["step"], saved["seconds"]
    console.print(f"{sum(p.numel() for p in trained) / 1e6:.1f} M parameters, from step {step}")

    def save() -> None:
        found = {
            "lora": [p.detach() for p in lora],
            "rank": rank,
            "vision": vision.model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "step": step,
            "seconds": spent,
        }
        keep(state, found)

    number = arguments.seed * 10**6 + step
    texts = open_texts(arguments.data, 10**7 + number, held_out=False)
    source = rows(documents(texts, base, vision))
    weights = {"ar": 1.0, "diffusion": arguments.diffusion_weight}
    report = Report(arguments.output / f"{state.stem}.jsonl", console, every=20)
    stop = Stop()
    while spent < arguments.minutes * 60 and not stop.asked():
        began = time.monotonic()
        done = spent / (arguments.minutes * 60)
        scale = min(1.0, (step + 1) / 30) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * scale
        config = STEP.ar_only() if done < arguments.ar_share else STEP
        task = draw_task(next(source), config, seed=number, step=step, first_row=step)
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_multiplies_bf16()):
            found = losses(transformer, task, config, train_base=True, vision=vision)
        count = float(sum(loss.count for loss in found.values()))
        joint_loss(found, weights, max(1.0, count)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        spent += time.monotonic() - began
        now = {name: float(loss.mean.detach()) for name, loss in found.items()}
        report.add(step, spent, now)
        if step % 100 == 0:
            save()
    save()


if __name__ == "__main__":
    main()
