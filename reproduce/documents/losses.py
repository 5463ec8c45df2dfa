"""What is wrong, the tower or the language model? AR's loss of an answer's token by its kind.

    python -m reproduce.documents.losses --data data --output run [--rows 6]

The reader that train.py left reads held-out pages with its tower, and with one that makes no
mistakes (ideal.py).
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from reproduce.documents.ideal import ideal
from reproduce.documents.reader import Base, open_base, trained
from reproduce.documents.texts import open_texts
from reproduce.documents.train import documents, rows
from trimode.model import Transformer
from trimode.training.passes import clean_pass
from trimode.training.pictures import given_rows
from trimode.training.step import ar_positions
from trimode.vision import Vision


def kind_of(text: str) -> str:
    """The kind of a token."""
    for kind, test in (("digit", str.isdigit), ("capital", str.isupper), ("letter", str.isalpha)):
        if any(map(test, text)):
            return kind
    return {" ": "space", "\n": "line break", "": "end"}.get(text, "sign")


@torch.inference_mode()
def losses(
    transformer: Transformer, base: Base, vision: Vision, data: Path, count: int
) -> dict[str, list[float]]:
    """By kind, of `count` rows."""
    found: dict[str, list[float]] = defaultdict(list)
    source = rows(documents(open_texts(data, 77, held_out=True), base, vision))
    for _ in range(count):
        batch = next(source)
        given = given_rows(batch.images, vision, batch.tokens.shape[1], "cpu", recompute=False)
        hidden, _ = clean_pass(
            transformer, batch.tokens, batch.documents, gradient=False, given=given
        )
        row, column = ar_positions(batch)
        wanted = batch.tokens[row, column + 1]
        logits = F.linear(hidden[row, column], transformer.embedding.matrix())
        for token, loss in zip(
            wanted.tolist(), F.cross_entropy(logits, wanted, reduction="none").tolist(), strict=True
        ):
            found[kind_of(base.tokenizer.decode([token]))].append(loss)
            found["all"].append(loss)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=6)
    arguments = parser.parse_args()
    base = open_base()
    transformer, taught = trained(arguments.output / "reader.pt", base)
    real, perfect = (
        losses(transformer, base, vision, arguments.data, arguments.rows)
        for vision in (taught, ideal(base))
    )
    table = Table("token", "count", "loss with the tower", "with an ideal one")
    for kind, values in sorted(real.items()):
        other = perfect[kind]
        means = (sum(found) / len(found) for found in (values, other))
        table.add_row(kind, str(len(values)), *(f"{mean:.3f}" for mean in means))
    Console().print(table)


if __name__ == "__main__":
    main()
