"""Peak memory of a whole `trimode convert`, phase by phase, at the shape of Qwen 2.5 0.5B.

    python benchmarks/training/convert_memory.py [--conversations 64] [--answer-tokens 64]
        [--steps 3]

The checkpoint has random weights in bf16, and the built-in model's tokenizer and chat template. Its
answers are noise, but memory does not depend on that. Every user turn is given, since sampled noise
does not end. The script reads what the process holds twenty times a second: VmRSS, which counts the
pages of mapped files, and RssAnon, which does not. The kernel can drop the mapped pages. Linux
only.

Writes benchmarks/results/MACHINE/convert_memory.json.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.lib.machine import header, megabytes, save
from trimode.checkpoints import open_checkpoint, save_checkpoint
from trimode.checkpoints.hf_config import from_hf
from trimode.config import ModelConfig
from trimode.model import expected_tensors

QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
EVERY = 0.05
"""Seconds between two looks at the memory."""


def random_tensors(config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Weights like those of a fresh model, in bf16."""
    torch.manual_seed(0)
    for name, shape in expected_tensors(config).items():
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        yield name, tensor.fill_(1.0) if name.endswith("norm.weight") else tensor.normal_(0, 0.02)


def write_inputs(folder: Path, conversations: int) -> tuple[Path, Path]:
    """The checkpoint, and a file of user turns."""
    built_in = open_checkpoint()
    config = from_hf(QWEN | {"eos_token_id": built_in.config.eos_token_ids[0]})
    model, prompts = folder / "model", folder / "prompts.txt"
    save_checkpoint(
        model,
        config,
        random_tensors(config),
        tokenizer=built_in.tokenizer,
        chat_template=built_in.chat_template,
    )
    prompts.write_text(
        "".join(f"Tell me {n} things about the sea.\n" for n in range(conversations))
    )
    return model, prompts


def phase_of(said: str, data: Path, run: Path) -> str:
    """What the command does at present, by what it has said and written."""
    if "measuring on" in said:
        return "measuring"
    if (run / "final").exists():
        return "saving"
    if (run / "config.json").exists():
        return "training"
    if data.exists():
        return "conversations"
    return "loading"


def watch(command: list[str], data: Path, run: Path, log: Path) -> dict[str, dict[str, float]]:
    """Run a command; the most memory, in MB, and the seconds of each phase."""
    peaks: dict[str, dict[str, float]] = {}
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            phase = phase_of(log.read_text(), data, run)
            if phase not in peaks and peaks:
                sys.stderr.write(f"{_line(*list(peaks.items())[-1])}\n")
            entry = peaks.setdefault(phase, {"resident": 0.0, "own": 0.0, "seconds": 0.0})
            try:
                entry["resident"] = max(entry["resident"], megabytes("VmRSS", process.pid))
                entry["own"] = max(entry["own"], megabytes("RssAnon", process.pid))
            except (FileNotFoundError, StopIteration, ProcessLookupError):
                pass  # it has just ended
            entry["seconds"] += EVERY
            time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(log.read_text()[-3000:])
    return peaks


def _line(phase: str, entry: dict[str, float]) -> str:
    own, seconds = entry["own"], entry["seconds"]
    return f"{phase}: {entry['resident']:.0f} MB, {own:.0f} its own, {seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, prompts = write_inputs(folder, arguments.conversations)
        run = folder / "run"
        program = str(Path(sys.executable).with_name("trimode"))
        command = [program, "convert", str(model), "--output", str(run), "--prompts", str(prompts),
                   "--sampled-share", "0", "--conversations", str(arguments.conversations),
                   "--answer-tokens", str(arguments.answer_tokens),
                   "--steps", str(arguments.steps), "--no-progress"]  # fmt: skip
        peaks = watch(command, folder / "run.jsonl", run, folder / "log")
    table = Table(title="trimode convert, Qwen 2.5 0.5B's shape")
    for column in ("phase", "peak, MB", "its own, MB", "seconds"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase, entry in peaks.items():
        figures = (entry["resident"], entry["own"], entry["seconds"])
        table.add_row(phase, *(f"{figure:.0f}" for figure in figures))
    info = header()
    Console().print(f"{info['cpu']}, {info['threads']} threads, torch {info['torch']}")
    Console().print(table)
    save("convert_memory", {**info, "phases": peaks})


if __name__ == "__main__":
    main()
