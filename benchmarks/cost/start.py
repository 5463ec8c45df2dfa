"""From the start of a process to its first token: seconds, CPU seconds and memory.

    python benchmarks/cost/start.py [--runs 5] [--dtype auto] [--folder DIR] [--model MODEL ...]

Without `--model`, four starts are measured: the built-in model; a GGUF file of random numbers in
the shape of Qwen2.5-0.5B, in the mix of types of Q4_K_M (0.5 GB); a directory of the same shape in
bf16 (1.3 GB); and llama.cpp with the same GGUF file, without its warm-up. The files are written to
`--folder` once.

"Cold" is a start after the model's files were put out of the system's cache of the disk. Programs
and libraries stay in it. Memory is the most that the process held, mapped pages included, and its
ratio to the size of the model's files.

The phases are those of a process that does the same step by step. The rest of the time is the
interpreter's own start and the command line. Linux only. Writes
benchmarks/results/MACHINE/start.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PROMPT = "Write three short sentences about the sea."
BUILT_IN = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Start:
    """A program that makes one token of a model."""

    name: str
    command: list[str]
    files: list[Path]
    """The model's."""
    phases: list[str] | None
    """A command that prints the seconds of each phase; None for programs of others."""


def ours(name: str, source: str, files: list[Path], dtype: str) -> Start:
    """`trimode generate` of one token."""
    program = str(Path(sys.executable).with_name("trimode"))
    options = ["--dtype", dtype, "--max-tokens", "1", "--ignore-eos", "--quiet"]
    phases = [sys.executable, __file__, "--phases", source, "--dtype", dtype]
    return Start(name, [program, "generate", source, PROMPT, *options], files, phases)


def starts(models: list[str], dtype: str, folder: Path) -> list[Start]:
    """What is measured."""
    if models:
        return [ours(model, model, located(model), dtype) for model in models]
    folder.mkdir(parents=True, exist_ok=True)
    # A process that writes the files may need a lot of memory, which its children would inherit in
    # the system's accounts.
    subprocess.run([sys.executable, __file__, "--write", str(folder)], check=True)
    gguf, directory = folder / "synthetic.gguf", folder / "synthetic"
    llama = [sys.executable, __file__, "--llama", str(gguf)]
    return [
        ours("built-in model", BUILT_IN, located(BUILT_IN), dtype),
        ours("GGUF, 0.5B", str(gguf), [gguf], dtype),
        ours("bf16 directory, 0.5B", str(directory), located(str(directory)), dtype),
        Start("llama.cpp, GGUF, 0.5B", llama, [gguf], None),
    ]


def located(source: str) -> list[Path]:
    """The files with a model's weights."""
    code = "import sys; from trimode.checkpoints import resolve; print(resolve(sys.argv[1]).path)"
    command = [sys.executable, "-c", code, source]
    path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    return [path] if path.is_file() else sorted(path.glob("*.safetensors"))


def evict(files: list[Path]) -> None:
    """Put files out of the system's cache of the disk."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one_start(command: list[str]) -> dict[str, float]:
    """Seconds until the first byte of the output, CPU seconds and memory of the whole process."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
    cpu = used.ru_utime + used.ru_stime
    return {"seconds": seconds, "cpu": cpu, "peak_mb": used.ru_maxrss / 1024}


def measured(start: Start, runs: int) -> dict[str, Any]:
    """Medians of a start."""
    size = sum(path.stat().st_size for path in start.files)
    cold, warm, laps = [], [], []
    for _ in range(runs):
        evict(start.files)
        cold.append(one_start(start.command))
        warm.append(one_start(start.command))
        if start.phases is not None:
            done = subprocess.run(start.phases, capture_output=True, text=True, check=True)
            laps.append(json.loads(done.stdout))
    peak = statistics.median(run["peak_mb"] for run in warm)
    phases = (
        {name: statistics.median(lap[name] for lap in laps) for name in laps[0]} if laps else {}
    )
    seconds = statistics.median(run["seconds"] for run in warm)
    if phases:
        phases["interpreter, command line"] = seconds - sum(phases.values())
    return {
        "file_mb": round(size / 2**20, 1),
        "cold_s": round(statistics.median(run["seconds"] for run in cold), 3),
        "warm_s": round(seconds, 3),
        "warm_s_each": [round(run["seconds"], 3) for run in warm],
        "cpu_s": round(statistics.median(run["cpu"] for run in warm), 3),
        "peak_mb": round(peak, 1),
        "peak_to_file": round(peak * 2**20 / size, 2),
        "phases_s": {name: round(lap, 3) for name, lap in phases.items()},
    }


def print_phases(source: str, dtype: str) -> None:
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
    from trimode.checkpoints import load, open_checkpoint, resolve
    from trimode.engine import encode_prompt

    lap("import trimode")
    resolved = resolve(source, progress=False)
    open_checkpoint(resolved)
    lap("config, tokenizer, headers")
    opened = found["config, tokenizer, headers"]
    model = load(resolved, dtype=dtype, progress=False)
    lap("weights and adapter")
    found["weights and adapter"] -= opened  # `load` opens the checkpoint once more
    engine = Engine(model, max_sequences=1)
    options = GenerationOptions(max_tokens=1, ignore_eos=True)
    sequence = engine.add(encode_prompt(model, PROMPT), options)
    with torch.inference_mode():
        while not sequence.tokens:
            engine.step()
    lap("prompt and first token")
    print(json.dumps(found))


def write_synthetic(folder: Path) -> None:
    """Write the files of random numbers, unless they are there."""
    from benchmarks.lib.synthetic import write_directory, write_gguf

    write_gguf(folder / "synthetic.gguf")
    write_directory(folder / "synthetic")


def run_llama(path: str) -> None:
    """One token by llama.cpp."""
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path, asked.warmup = path, False
    asked.n_parallel, asked.n_ctx = 1, 512
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(asked)
    messages = [{"role": "user", "content": PROMPT}]
    answer = server.handle_chat_completions({"messages": messages, "max_tokens": 1})
    print(answer, flush=True)


def show(found: dict[str, dict[str, Any]]) -> None:
    """A table of starts, and one of the phases of each of ours."""
    console = Console()
    columns = ("file MB", "cold s", "warm s", "CPU s", "peak MB", "peak / file")
    table = Table("start", *columns, title="from the start of a process to its first token")
    keys = ("file_mb", "cold_s", "warm_s", "cpu_s", "peak_mb", "peak_to_file")
    for name, start in found.items():
        table.add_row(name, *(f"{start[key]:g}" for key in keys))
    console.print(table)
    with_phases = {name: start for name, start in found.items() if start["phases_s"]}
    table = Table("phase, s", *with_phases)
    for phase in next(iter(with_phases.values()), {"phases_s": {}})["phases_s"]:
        table.add_row(phase, *(f"{start['phases_s'][phase]:.2f}" for start in with_phases.values()))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "trimode-start"
    )
    parser.add_argument("--name", default="start")
    for hidden in ("--phases", "--llama", "--write"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.phases:
        print_phases(arguments.phases, arguments.dtype)
    elif arguments.llama:
        run_llama(arguments.llama)
    elif arguments.write:
        write_synthetic(Path(arguments.write))
    else:
        asked = starts(arguments.model, arguments.dtype, arguments.folder)
        found = {start.name: measured(start, arguments.runs) for start in asked}
        show(found)
        # Imported last: a child's memory is at least what its parent had when it was started.
        from benchmarks.lib.machine import header, save

        save(arguments.name, {**header(), "dtype": arguments.dtype, "starts": found})


if __name__ == "__main__":
    main()
