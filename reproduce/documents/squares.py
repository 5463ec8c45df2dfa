"""What the tower reads by itself: the letters of its squares, joined to lines.

    python -m reproduce.documents.squares --data data [--pages 60]
        --output run | --begin trimode/checkpoints/built_in/smollm2-documents

Pages and texts are held out. Runs of spaces count as one.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from reproduce.documents.kinds import KINDS, draw
from reproduce.documents.score import character_errors
from reproduce.documents.teach import CONFIG, Teacher, new_teacher, shipped
from reproduce.documents.texts import open_texts
from trimode.checkpoints import open_checkpoint
from trimode.text import Tokenizer
from trimode.vision import ProcessedImage, process


@torch.inference_mode()
def read(teacher: Teacher, image: ProcessedImage, tokenizer: Tokenizer) -> str:
    """The text of a page, from the nearest spelling of each square."""
    (found,) = teacher.vision([image.normalised(CONFIG)])
    tokens = teacher.candidates[teacher.logits(found - teacher.mean).argmax(1)]
    lines = (_line(row, tokenizer) for row in tokens.view(image.rows, -1))
    return "\n".join(line for line in lines if line)


def _line(row: Tensor, tokenizer: Tokenizer) -> str:
    return _words(tokenizer.decode(row.tolist()).replace("\n", ""))


def _words(line: str) -> str:
    return " ".join(line.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="where teach.py left its tower")
    parser.add_argument("--begin", type=Path, help="the directory of a finished reader instead")
    parser.add_argument("--pages", type=int, default=60)
    arguments = parser.parse_args()
    checkpoint = open_checkpoint("smollm2-135m-instruct")
    teacher = new_teacher(checkpoint)
    if arguments.begin is not None:
        teacher.vision.load_state_dict(shipped(arguments.begin, checkpoint).model.state_dict())
    elif arguments.output is not None:
        saved = torch.load(arguments.output / "teacher.pt", weights_only=False)
        teacher.load_state_dict(saved["teacher"])
    else:
        parser.error("--output or --begin is needed")
    texts, kinds = open_texts(arguments.data, 999, held_out=True), list(KINDS)
    wrong: Counter[str] = Counter()
    length: Counter[str] = Counter()
    for number in range(arguments.pages):
        page = draw(texts, kinds[number % len(kinds)])
        wanted = "\n".join(map(_words, page.text.split("\n")))
        found = read(teacher, process(page.image, CONFIG), checkpoint.tokenizer)
        for name in ("all", page.kind, page.face):
            wrong[name] += character_errors(found, wanted)
            length[name] += len(wanted)
    table = Table("pages", "characters wrong", title=f"{arguments.pages} held-out pages")
    for name in length:
        table.add_row(name, f"{wrong[name] / length[name]:.1%}")
    Console().print(table)


if __name__ == "__main__":
    main()
