"""Noisy tokens a second of a training step, against a plain implementation of the same recipe.

    python benchmarks/training/training_speed.py [--steps 3] [--rows 4] [--precision auto|fp32|bf16]

Both train a rank-64 adapter on all linears of SmolLM2-135M by distillation from the AR half, blocks
of 16. With `--precision auto` both run under bf16 autocast if the CPU multiplies bf16, else in
fp32. Plain: [noisy | clean] of 256 tokens each as one sequence under a dense mask, keys repeated
for grouped attention, logits of every row of both halves. Ours: `trimode/training`.

It also prints what takes a step's time, peak memory, and tokens a second of self-generation in the
engine's default dtype.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.lib.machine import header, save
from trimode import GenerationOptions, load
from trimode.checkpoints import open_checkpoint
from trimode.engine import Engine, drain, encode_prompt
from trimode.model import cpu_multiplies_bf16
from trimode.training import step as step_module
from trimode.training.adapter import AdapterConfig, new_adapter, train_adapter
from trimode.training.data import Batch
from trimode.training.memory import keep_freed_memory
from trimode.training.noise import NoiseConfig
from trimode.training.objective import ObjectiveConfig
from trimode.training.step import BlockConfig, StepConfig, draw_task, losses

LENGTH, BLOCK = 256, 16
CONVERSATIONS, ANSWER_TOKENS = 64, 64


class DenseAttention:
    """One mask over [noisy | clean], keys and values repeated for each query head."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        block = torch.arange(LENGTH) // BLOCK
        visible = torch.zeros(2 * LENGTH, 2 * LENGTH, dtype=torch.bool)
        visible[:LENGTH, :LENGTH] = block[:, None] == block
        visible[:LENGTH, LENGTH:] = block[:, None] > block
        visible[LENGTH:, LENGTH:] = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        self.visible = visible

    def __call__(self, _: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `trimode.model.attention.Attend`."""
        groups = queries.shape[1] // keys.shape[1]
        keys, values = (x.repeat_interleave(groups, 1) for x in (keys, values))
        queries, keys, values = (
            x.unflatten(0, (self.rows, -1)).transpose(1, 2) for x in (queries, keys, values)
        )
        scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
        weights = scores.masked_fill(~self.visible, float("-inf")).softmax(-1)
        return (weights @ values).transpose(1, 2).flatten(2).flatten(0, 1)


def plain_step(transformer: torch.nn.Module, tokens: Tensor, bf16: bool) -> int:
    """Loss and backward of the plain recipe; returns the noisy tokens it ran."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = plain_loss(transformer, tokens)
    loss.backward()
    return tokens.numel()


def plain_loss(transformer: torch.nn.Module, tokens: Tensor) -> Tensor:
    """KL from the AR half to the noisy one over both halves' logits `[rows, 2, length, vocab]`."""
    rows = len(tokens)
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(LENGTH) % BLOCK
    drafts = torch.rand(rows, LENGTH // BLOCK, generator=generator) < 0.7
    t = torch.rand(rows, LENGTH // BLOCK, generator=generator)
    random = torch.rand(rows, LENGTH, generator=generator) < t.repeat_interleave(BLOCK, 1)
    masked = torch.where(drafts.repeat_interleave(BLOCK, 1), place > 0, random)
    masked[:, 0] = False
    noisy = torch.where(masked, transformer.config.mask_token_id, tokens)
    both = torch.cat((noisy, tokens), 1).flatten()
    positions = torch.arange(LENGTH).repeat(2 * rows)
    on = (torch.arange(2 * LENGTH) < LENGTH).repeat(rows).nonzero()[:, 0]
    hidden = transformer(both, positions, DenseAttention(rows), on)
    logits = transformer.logits(hidden).view(rows, 2, LENGTH, -1)
    student = torch.log_softmax(logits[:, 0], -1)
    teacher = torch.log_softmax(logits[:, 1, :-1].detach(), -1)
    divergence = F.kl_div(student[:, 1:], teacher, reduction="none", log_target=True).sum(-1)
    weights = 0.85 ** (place - 1).clamp(min=0).float() * masked
    return (divergence * weights[:, 1:]).sum() / masked.sum()


def our_step(transformer: torch.nn.Module, batch: Batch, config: StepConfig, bf16: bool) -> int:
    """Loss and backward of ours; returns the noisy tokens it ran."""
    task = draw_task(batch, config, seed=0, step=0, first_row=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = losses(transformer, task, config, train_base=False)["distillation"]
    found.mean.backward()
    return task.blocks.index.numel()


def measure(run: Callable[[], int], steps: int) -> tuple[float, float]:
    """Median tokens a second and seconds of a step, after one to warm up."""
    run()
    rates, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        tokens = run()
        seconds.append(time.perf_counter() - start)
        rates.append(tokens / seconds[-1])
    return statistics.median(rates), statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    arguments = parser.parse_args()
    precision = arguments.precision
    if precision == "auto":
        precision = "bf16" if cpu_multiplies_bf16() else "fp32"
    rows = arguments.rows
    checkpoint = open_checkpoint(progress=False)
    mask = checkpoint.read("embed_tokens.weight")[checkpoint.config.mask_token_id or 0]
    adapter = new_adapter(checkpoint.config, AdapterConfig(), mask, 0)
    transformer = checkpoint.build(dtype="fp32", adapter=adapter, plain=True).transformer
    train_adapter(transformer, 1.0)
    tokens = torch.randint(1000, 40000, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    documents = torch.zeros_like(tokens)
    batch = Batch(tokens, documents, torch.ones_like(tokens, dtype=torch.bool))
    config = StepConfig(
        blocks=BlockConfig(block_length=BLOCK, placement="random", noisy_tokens=2 * LENGTH),
        noise=NoiseConfig(level="block", weighting="none", draft_share=0.7, seeded_share=1.0),
        objective=ObjectiveConfig(
            diffusion_loss_weight=0, distillation_loss_weight=1, distance_decay=0.85
        ),
    )
    bf16 = precision == "bf16"
    plain = measure(lambda: plain_step(transformer, tokens, bf16), arguments.steps)
    keep_freed_memory()
    spent: dict[str, list[float]] = {}
    for name in ("clean_pass", "noisy_pass", "head_loss"):
        setattr(step_module, name, _timed(getattr(step_module, name), name, spent))
    ours = measure(lambda: our_step(transformer, batch, config, bf16), arguments.steps)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parts = {name: round(statistics.median(times), 2) for name, times in spent.items()}
    parts["backward and rest"] = round(ours[1] - sum(parts.values()), 2)
    dtype, generated = self_generation()

    info = header()
    console = Console()
    console.print(f"{info['cpu']}, {info['threads']} threads, torch {info['torch']}, {precision}")
    table = Table("training step", "noisy tokens/s", "s a step", "ratio")
    table.add_row("plain", f"{plain[0]:.0f}", f"{plain[1]:.1f}", "1.0")
    table.add_row("ours", f"{ours[0]:.0f}", f"{ours[1]:.1f}", f"{ours[0] / plain[0]:.2f}")
    console.print(table)
    console.print(f"of a step of ours, s: {parts}; peak memory of both {memory:.1f} GB")
    console.print(f"self-generation: {generated:.0f} tokens/s, {CONVERSATIONS} at once; {dtype}")
    save(
        "training_speed",
        {
            **info,
            "precision": precision,
            "plain_tokens_per_second": round(plain[0], 1),
            "our_tokens_per_second": round(ours[0], 1),
            "ratio": round(ours[0] / plain[0], 2),
            "seconds_of_a_step": parts,
            "peak_memory_gb": round(memory, 2),
            "self_generation_kernel": dtype,
            "self_generation_tokens_per_second": round(generated, 1),
        },
    )


def _timed(function: Callable, name: str, spent: dict[str, list[float]]) -> Callable:
    def run(*arguments: object, **options: object) -> object:
        start = time.perf_counter()
        result = function(*arguments, **options)
        spent.setdefault(name, []).append(time.perf_counter() - start)
        return result

    return run


def self_generation() -> tuple[str, float]:
    """How linears run, and answer tokens a second, prompts and sampling included."""
    model = load(dtype="auto", progress=False)
    engine = Engine(model, max_sequences=CONVERSATIONS, kv_cache_bytes=4 * 2**30)
    options = GenerationOptions(max_tokens=ANSWER_TOKENS, ignore_eos=True)
    for i in range(CONVERSATIONS):
        engine.add(encode_prompt(model, f"Tell me about the number {i}."), options)
    start = time.perf_counter()
    for _ in drain(engine):
        pass
    rate = CONVERSATIONS * ANSWER_TOKENS / (time.perf_counter() - start)
    return model.runner.describe(), rate


if __name__ == "__main__":
    main()
