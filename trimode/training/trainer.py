"""The training loop.

The random numbers and the rows of a step are functions of (seed, step). So a checkpoint is the
trained weights, their moving average, the optimiser's moments and the step count, and a continued
run computes what an uninterrupted one would have computed.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from trimode.checkpoints import Checkpoint, MaskToken, save_adapter, stream_checkpoint
from trimode.checkpoints.text_files import source_files, source_tokens
from trimode.errors import CheckpointError, InputError, TrimodeError
from trimode.training.adapter import (
    export_adapter,
    export_weights,
    head_matrix,
    train_adapter,
    train_everything,
    weight_names,
)
from trimode.training.config import TrainConfig
from trimode.training.data import fingerprint as data_fingerprint
from trimode.training.distributed import gathered, start
from trimode.training.evaluate import decode, held_out_losses
from trimode.training.memory import keep_freed_memory, return_freed_memory
from trimode.training.objective import LossSum, ObjectiveConfig, joint_loss
from trimode.training.optimiser import MovingAverage, learning_rate, make_optimiser
from trimode.training.preflight import check_resources, mask_notes
from trimode.training.resources import recomputes
from trimode.training.run_directory import RunDirectory, check_output
from trimode.training.setup import (
    build_model,
    check_batch_size,
    evaluation_prompts,
    first_adapter_of,
    open_for_training,
    packed_rows,
    read_examples,
    resolved_precision,
    weights_fingerprint,
)
from trimode.training.step import StepConfig, Task, ar_positions, draw_task, losses

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_GRACE_SECONDS = 30.0
"""How long torchrun and SLURM wait after a signal, by default, before they kill a process."""
_SAME_SIGNAL_SECONDS = 3.0
"""A SIGINT repeated within this time is the same one on another way, not a second wish."""


class Trainer:
    """One run: build it, then `run()`.

    Raises:
        InputError: a field, a file or the output directory is wrong; nothing was written.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        opened: tuple[Checkpoint, MaskToken] | None = None,
        progress: bool = True,
    ) -> None:
        """`opened`: what `open_for_training` gave, if its notes have been said already."""
        self.config = config = replace(config, precision=resolved_precision(config))
        self._console = Console(stderr=True, soft_wrap=True)
        self._console.quiet = not progress
        _loss_weights(config.step.objective, train_base=config.train == "everything")
        self._prompts = evaluation_prompts(config)
        checkpoint, mask = opened or open_for_training(config, progress=progress)
        if opened is None:
            check_output(config)
            for line in (*mask_notes(mask), *check_resources(config, checkpoint.config)):
                _note(line)
        examples = read_examples(config, checkpoint)
        for line in examples.notes():
            _note(line)
        self._rows, self._held_out = packed_rows(config, examples)
        if config.evaluation.every and not self._held_out and not self._prompts:
            _note(
                "evaluation: nothing to measure, with no held-out rows (data.held_out) and no "
                "evaluation.prompts"
            )
        adapter = first_adapter_of(config, checkpoint) if config.train == "adapter" else None
        self.processes = start(config.device, config.replicate)
        check_batch_size(config, self.processes.count)
        self.model = build_model(config, checkpoint, adapter)
        self.transformer = self.model.transformer
        fingerprint = weights_fingerprint(head_matrix(self.transformer))
        self.processes.shard(self.transformer)
        if adapter is not None:
            self.trained = train_adapter(self.transformer, config.adapter.scale)
        else:
            self.trained = train_everything(self.transformer)
        self.optimiser = make_optimiser(self.trained, config.optimiser)
        decay = config.ema_decay
        self.average = None if decay is None else MovingAverage(self.trained, decay)
        self.directory = RunDirectory(
            config,
            model_fingerprint=fingerprint,
            data_sha256=data_fingerprint(config.data.paths, examples.documents),
            mask_token_id=mask.id,
            writes=self.processes.first,
        )
        self.processes.wait()
        self._recompute = recomputes(config, self.model.config, self.processes.count)
        self.step = 0
        """Optimiser steps done."""
        self._stopped_at: float | None = None
        """When the first signal came, by the monotonic clock; None: none did."""
        self._saving = False
        self._saved_step = 0
        """Step of the newest checkpoint."""
        self._slowest_step = 0.0
        """Seconds."""
        self._warned = False

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_signalled: Callable[[], None] = lambda: None,
    ) -> bool:
        """Train to the last step and export; returns False if a signal ended it early.

        Args:
            should_stop: called before each step; if it returns True, the run ends and exports.
            on_signalled: called if a signal ended the run, after the last step is saved. Handlers
                of signals that it installs stay.

        Raises:
            TrimodeError: the loss or the gradient norm is not finite.
        """
        (return_freed_memory if self._recompute else keep_freed_memory)()
        self._resume()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with self._signals(), Progress(*columns, console=self._console) as bar:
            task = bar.add_task("training", total=self.config.steps, completed=self.step)
            while self.step < self.config.steps and not (should_stop() or self._stopped()):
                row = self.train_step()
                self.directory.log(row)
                rate = row["trained_tokens_per_second"]
                bar.update(
                    task,
                    completed=self.step,
                    description=f"loss {row['loss']:.3f}, {rate:.0f} trained tokens/s",
                )
                every = self.config.evaluation.every
                if every and self.step % every == 0:
                    self.evaluate()
                if self.step % self.config.save_every == 0:
                    self.save()
            # Save the last step, or the step at which a signal ended the run.
            if self.step != self._saved_step:
                self.save()
            stopped = self._stopped()
            if stopped:
                self._say_if_late()
                on_signalled()
        if not stopped:
            self.export()
        self.processes.leave()
        return not stopped

    def train_step(self) -> dict[str, Any]:
        """One optimiser step; returns its metrics."""
        config = self.config
        begun = time.perf_counter()
        tasks = self._tasks()
        train_base = config.train == "everything"
        now = self._step_config()
        ar_tokens = _ar_tokens(tasks, now.objective) if train_base else 0
        (count,) = self.processes.sum(_noisy_count(tasks, now.objective) + ar_tokens)
        count = max(1.0, count)
        weights = _loss_weights(now.objective, train_base=train_base)
        totals = {name: LossSum(torch.zeros(()), torch.zeros(())) for name in weights}
        for task in tasks:
            with self._autocast():
                found = losses(
                    self.transformer,
                    task,
                    now,
                    train_base=train_base,
                    recompute=self._recompute,
                    vision=self.model.vision_or_none,
                )
            # FSDP averages gradients over the processes, but `count` is already their sum.
            (joint_loss(found, weights, count) * self.processes.count).backward()
            for name, loss in found.items():
                totals[name] += LossSum(loss.total.detach().cpu(), loss.count.cpu())
        totals = self._over_processes(totals)
        means = {name: float(loss.mean) for name, loss in totals.items()}
        value = float(joint_loss(totals, weights, count))
        self._must_be_finite("loss", value)
        for item in self.trained:
            if item.gradient_mask is not None and item.parameter.grad is not None:
                item.parameter.grad *= item.gradient_mask
        parameters = [item.parameter for item in self.trained]
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimiser.clip)
        self._must_be_finite("gradient norm", float(gathered(norm)))
        rate = learning_rate(self.step, config.steps, config.optimiser)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.trained, self.step)
        masked, noisy, ar_tokens = self.processes.sum(
            sum(task.masked_tokens for task in tasks),
            sum(task.noisy_tokens for task in tasks),
            ar_tokens,
        )
        self.step += 1
        seconds = time.perf_counter() - begun
        self._slowest_step = max(self._slowest_step, seconds)
        return {
            "step": self.step,
            "stage": "joint" if now.objective.needs_noise else "ar",
            "loss": value,
            **{f"{name}_loss": mean for name, mean in means.items()},
            "learning_rate": rate,
            "gradient_norm": float(gathered(norm)),
            "ar_tokens": int(ar_tokens),
            "noisy_tokens": int(noisy),
            "masked_tokens": int(masked),
            "epoch": self._rows.epoch_of(self.step * config.batch_size - 1),
            "seconds": seconds,
            "trained_tokens_per_second": (masked + ar_tokens) / seconds,
        }

    def _must_be_finite(self, name: str, value: float) -> None:
        """End the run before a step that would spoil the weights, and so the next checkpoint."""
        if not math.isfinite(value):
            raise TrimodeError(
                f"the {name} of step {self.step + 1} is {value}; nothing of it was kept. The last "
                "checkpoint is whole: continue from it with a lower optimiser.learning_rate or clip"
            )

    def evaluate(self) -> dict[str, Any]:
        """Losses on held-out rows and decoding of held-out prompts, with the averaged weights."""
        options = self.config.evaluation
        row: dict[str, Any] = {"step": self.step, "evaluation": True}
        with self._averaged():
            if self._held_out:
                with self._autocast():
                    found = held_out_losses(self.model, self._held_out, self.config.step)
                row |= {f"held_out_{name}_loss": value for name, value in found.items()}
            if self._prompts and self.processes.count == 1:  # decoding needs whole weights
                block_length = self.config.step.blocks.block_length
                asked: dict[str, Any] = {
                    "max_tokens": options.max_tokens,
                    "block_length": block_length,
                }
                linear = decode(self.model, self._prompts, mode="linear", **asked)
                row["acceptance_length"] = linear.acceptance_length
                row["linear_tokens_per_forward"] = linear.tokens_per_forward
                if self.model.can_denoise:
                    asked |= {"mode": "diffusion", "threshold": options.threshold}
                    denoised = decode(self.model, self._prompts, **asked)
                    row["diffusion_tokens_per_forward"] = denoised.tokens_per_forward
        self.directory.log(row)
        figures = ", ".join(f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float))
        if figures:
            self._say(f"step {self.step}: {figures}")
        return row

    def save(self) -> None:
        """Write a checkpoint; a signal does not end this."""
        begun = time.monotonic()
        self._saving = True
        try:
            self._save()
        finally:
            self._saving = False
        self._saved_step = self.step
        if self._stopped_at is None:
            self._warn_if_slow(time.monotonic() - begun)

    def _warn_if_slow(self, seconds: float) -> None:
        """Say once if a signal would leave too little time for a step and a save of `seconds`."""
        needed = self._slowest_step + seconds
        if needed > _GRACE_SECONDS and not self._warned:
            self._warned = True
            _note(
                f"a step and a checkpoint take {needed:.0f} s; torchrun and SLURM kill a process "
                f"{_GRACE_SECONDS:.0f} s after SIGTERM. Give it more time "
                "(torchrun --shutdown-timeout; SLURM's KillWait, or sbatch --signal), or the run "
                "continues from its last regular checkpoint (save_every)"
            )

    def _say_if_late(self) -> None:
        """Say that the checkpoint took longer than a launcher waits by default."""
        seconds = 0.0 if self._stopped_at is None else time.monotonic() - self._stopped_at
        if seconds > _GRACE_SECONDS:
            _note(
                f"the checkpoint was whole {seconds:.0f} s after the signal; torchrun and SLURM "
                f"wait {_GRACE_SECONDS:.0f} s by default"
            )

    def _save(self) -> None:
        moments = {
            f"{item.name}.{name}": torch.as_tensor(value)
            for item in self.trained
            for name, value in self.optimiser.state[item.parameter].items()
        }
        groups = {"weights": {item.name: item.parameter.detach() for item in self.trained}}
        groups["optimiser"] = moments
        if self.average is not None:
            groups["average"] = self.average.values
        self.directory.save(self.step, groups, self.processes)
        self.processes.wait()

    def export(self) -> Path:
        """Write the adapter or model under `final`."""
        dtype = _DTYPES[self.config.export_dtype]
        with self._averaged():
            if self.config.train == "adapter":
                shape = self.config.adapter
                adapter = export_adapter(self.transformer, shape.scope, shape.scale).to(dtype)
                blocks = self.config.step.blocks
                adapter = replace(
                    adapter,
                    block_length=blocks.block_length,
                    token_shift=blocks.token_shift,
                    draft_form=self.config.draft_form,
                    mask_token_id=self.model.config.mask_token_id,
                )
                if self.processes.first:
                    save_adapter(self.directory.final, adapter, self.model.config)
            else:
                weights = export_weights(self.transformer)
                if not self.processes.first:
                    for _ in weights:
                        pass  # the first process gets each of them whole, and writes it
                else:
                    stream_checkpoint(
                        self.directory.final,
                        self.model.config,
                        weights,
                        weight_names(self.transformer),
                        dtype,
                        tokenizer=self.model.tokenizer,
                        chat_template=self.model.chat_template,
                        vision=self.model.vision_or_none,
                        extra_files=source_files(self.model.path),
                        extra_fields=source_tokens(self.model.path),
                    )
        self.processes.wait()
        return self.directory.final

    def _resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = self.directory.checkpoints()
        if not found:
            self.directory.cut_metrics(0)
            return
        self.step, path = found[-1]
        self._saved_step = self.step
        parameters = {item.name: item.parameter for item in self.trained}
        self._copy_in(self.directory.load(path, "weights", parameters.get), path)
        self._load_moments(path)
        if self.average is not None:
            values = self.directory.load(path, "average", parameters.get)
            self.average.values = {name: values[name] for name in parameters}
        self.directory.cut_metrics(self.step)
        self._console.print(f"continuing from step {self.step}", highlight=False)

    def _load_moments(self, path: Path) -> None:
        """The optimiser's state, as `save` wrote it."""
        parameters = {item.name: item.parameter for item in self.trained}
        kinds: dict[str, set[str]] = {}

        def owner_of(name: str) -> torch.Tensor | None:
            return parameters.get(name.rpartition(".")[0])

        for name, value in self.directory.load(path, "optimiser", owner_of).items():
            owner, _, kind = name.rpartition(".")
            parameter = parameters.get(owner)
            if parameter is None or (value.ndim and value.shape != parameter.shape):
                found = "unknown" if parameter is None else f"shape {list(value.shape)}"
                raise CheckpointError(f"{path}: {name}", found, "a checkpoint of this run")
            self.optimiser.state[parameter][kind] = value
            kinds.setdefault(owner, set()).add(kind)
        every = set().union(*kinds.values())
        for owner, found in kinds.items():
            if found != every:
                where = f"{path}: {owner}.{min(every - found)}"
                raise CheckpointError(where, "missing", "a checkpoint of this run")

    @torch.no_grad()
    def _copy_in(self, weights: Mapping[str, torch.Tensor], path: Path) -> None:
        for item in self.trained:
            value = weights.get(item.name)
            if value is None or value.shape != item.parameter.shape:
                found = "missing" if value is None else f"shape {list(value.shape)}"
                raise CheckpointError(f"{path}: {item.name}", found, "a checkpoint of this run")
            item.parameter.copy_(value)

    def _stopped(self) -> bool:
        """Whether a signal reached any of the processes."""
        stopped = self.processes.sum(float(self._stopped_at is not None))[0] > 0
        if stopped and self._stopped_at is None:
            self._stopped_at = time.monotonic()
        return stopped

    def _over_processes(self, losses: Mapping[str, LossSum]) -> dict[str, LossSum]:
        """Loss sums of all processes."""
        flat = [float(x) for loss in losses.values() for x in (loss.total, loss.count)]
        pairs = iter(torch.tensor(self.processes.sum(*flat), dtype=torch.float64))
        return {name: LossSum(next(pairs), next(pairs)) for name in losses}

    def _tasks(self) -> list[Task]:
        """The micro-batches of the next step with their noise."""
        config = self.config
        share = config.batch_size // self.processes.count
        micro = config.micro_batch_size or share
        first = self.step * config.batch_size + self.processes.rank * share
        now = self._step_config()
        return [
            draw_task(
                self._rows.batch(row, micro),
                now,
                seed=config.seed,
                step=self.step,
                first_row=row,
            )
            for row in range(first, first + share, micro)
        ]

    def _step_config(self) -> StepConfig:
        """What the next step computes."""
        ar_only = self.step < self.config.ar_only_steps
        return self.config.step.ar_only() if ar_only else self.config.step

    def _autocast(self) -> Any:
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.transformer.device.split(":")[0], torch.bfloat16)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Run with the averaged weights in place."""
        if self.average is None:
            yield
            return
        self.average.swap(self.trained)
        try:
            yield
        finally:
            self.average.swap(self.trained)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM lets the step end and be saved.

        Repeats do nothing: srun signals every process of a step, and torchrun passes signals on.
        Only a SIGINT some time later, from a person who will not wait for the step, ends the run at
        once; not while a checkpoint is written.
        """
        before = {}

        def stop(number: int, _: FrameType | None) -> None:
            now = time.monotonic()
            if self._stopped_at is None:
                self._stopped_at = now
                if not self._console.quiet:
                    # A stream must not be entered again from a signal that came while it wrote.
                    os.write(2, b"stopping after this step; its checkpoint is saved first\n")
            elif (
                number == signal.SIGINT
                and not self._saving
                and now - self._stopped_at > _SAME_SIGNAL_SECONDS
            ):
                raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                if signal.getsignal(number) is stop:
                    signal.signal(number, handler)


def _note(line: str) -> None:
    """Say what a user has to know of their input, progress or not; once for all processes."""
    if os.environ.get("RANK", "0") == "0":  # set by torchrun
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _loss_weights(objective: ObjectiveConfig, *, train_base: bool) -> dict[str, float]:
    """The weights of a step's losses by name; losses of weight 0 are left out."""
    weights = {
        "ar": objective.ar_loss_weight if train_base else 0.0,
        "diffusion": objective.diffusion_loss_weight,
        "distillation": objective.distillation_loss_weight,
        "alignment": objective.alignment_loss_weight,
    }
    found = {name: weight for name, weight in weights.items() if weight}
    if not found:
        raise InputError("step.objective", "every weight is 0", "needs a loss")
    return found


def _noisy_count(tasks: list[Task], objective: ObjectiveConfig) -> int:
    """What the losses of noisy blocks are averaged over: masked tokens, or aligned blocks."""
    if objective.alignment_loss_weight:
        return sum(task.masked_blocks for task in tasks)
    return sum(task.masked_tokens for task in tasks)


def _ar_tokens(tasks: list[Task], objective: ObjectiveConfig) -> int:
    """Tokens of a step that the AR loss is summed over."""
    if not objective.ar_loss_weight:
        return 0
    return sum(len(ar_positions(task.batch)[0]) for task in tasks)
