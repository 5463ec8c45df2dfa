"""How long `trimode generate` takes from process start to its first byte, and what takes the time.

    python benchmarks/cost/start.py [--runs 5] [--model MODEL]

The first run only warms the disk's cache. The phases are those of a process that does the same step
by step. The rest of the time is the interpreter's own start and the command line.
Writes benchmarks/results/start.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

PROMPT = "Write three short sentences about the sea."


def phases(source: str) -> None:
    """Print seconds of each phase as JSON; the imports are phases too."""
    found = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        found[name] = time.perf_counter() - began
        began = time.perf_counter()

    import torch

    lap("import PyTorch")
    from trimode import Engine, GenerationOptions
    from trimode.checkpoints import loader, open_checkpoint, resolve
    from trimode.engine import encode_prompt

    lap("import trimode")
    resolved = resolve(source, progress=False)
    checkpoint = open_checkpoint(resolved)
    lap("config, tokenizer, headers")
    path = loader._adapter_path(None, resolved)
    adapter = None if path is None else loader.read_adapter(path)
    model = checkpoint.build(adapter=adapter)
    lap("weights: read, quantise, pack")
    del checkpoint, adapter  # what was read is unmapped
    lap("unmap the files")
    engine = Engine(model, max_sequences=1)
    sequence = engine.add(encode_prompt(model, PROMPT), GenerationOptions(max_tokens=12))
    with torch.inference_mode():
        while not sequence.tokens:
            engine.step()
    lap("prompt and first token")
    print(json.dumps(found))


def first_byte(source: str) -> float:
    """Seconds until the command prints."""
    program = str(Path(sys.executable).with_name("trimode"))
    command = [program, "generate", source, PROMPT, "--max-tokens", "12", "--quiet"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--phases", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--name", default="start")
    arguments = parser.parse_args()
    if arguments.phases:
        phases(arguments.model)
        return
    from benchmarks.lib.machine import (  # the child's imports of PyTorch and trimode are timed
        header,
        save,
    )

    command = [sys.executable, __file__, "--phases", "--model", arguments.model]
    bytes_after, laps = [], []
    for run in range(arguments.runs + 1):
        seconds = first_byte(arguments.model)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        if run > 0:
            bytes_after.append(seconds)
            laps.append(json.loads(done.stdout))
    whole = statistics.median(bytes_after)
    medians = {name: statistics.median(lap[name] for lap in laps) for name in laps[0]}
    medians["interpreter, command line"] = whole - sum(medians.values())
    table = Table("phase", "s", "share", title=f"{arguments.runs} runs, medians")
    for name, seconds in medians.items():
        table.add_row(name, f"{seconds:.2f}", f"{seconds / whole:.0%}")
    spread = f"{min(bytes_after):.2f}..{max(bytes_after):.2f}"
    table.add_row("first byte", f"{whole:.2f} ({spread})", "")
    Console().print(table)
    result = {
        "first_byte_s": [round(seconds, 3) for seconds in bytes_after],
        "phases_s": {name: round(seconds, 3) for name, seconds in medians.items()},
    }
    save(arguments.name, {**header(), **result})


if __name__ == "__main__":
    main()
