"""Draws what the trainings have learned against hours.

    python -m reproduce.documents.curve --output run --picture docs/pictures/documents_curve.png

Left, what the tower is taught: the share of squares whose letters it names. Right, what the
language model is taught with that tower: the loss of a token, of AR and of the denoiser.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def lines(path: Path) -> list[dict[str, Any]]:
    """The reports of a training."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="where the trainings report")
    parser.add_argument("--picture", type=Path, required=True)
    arguments = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    taught = lines(arguments.output / "teach.jsonl")
    left.plot(
        [row["seconds"] / 3600 for row in taught],
        [row["letters"] for row in taught],
        color="tab:blue",
    )
    left.set(title="tower alone", ylabel="squares with letters that are right", ylim=(0, 1))
    read = lines(arguments.output / "reader.jsonl")
    for name, label, colour in (("ar", "AR", "tab:blue"), ("diffusion", "denoiser", "tab:orange")):
        rows = [row for row in read if name in row]
        hours = [row["seconds"] / 3600 for row in rows]
        right.plot(hours, [row[name] for row in rows], color=colour, label=label)
    right.set(title="language model with the tower", ylabel="loss of a token, nats", ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("hours of two cores")
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
