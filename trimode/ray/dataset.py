"""Answers to many prompts under Ray Data: rows as in `generate --input`, results as it writes them.

Ray reads, shares out and writes the rows. Each actor has the model and answers a batch of rows at a
time, as many of them at once as it has sequences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa  # type: ignore[import-not-found]
from ray import cluster_resources, data  # type: ignore[import-not-found]

from trimode.cli import options as opt
from trimode.cli.batch import is_taken, queue_all
from trimode.cli.generate import GenerateOptions
from trimode.cli.grouped import grouped
from trimode.config import GenerationOptions, check_range
from trimode.engine import Engine, GenerationResult, drain
from trimode.errors import InputError
from trimode.rows import Row
from trimode.workload import Line, lines_of

_BATCHES = 8
"""Rows of a batch for each sequence. A batch ends with few sequences, so it must not be short."""

_TOP = pa.list_(pa.list_(pa.float64()))
RESULTS = pa.schema(
    {
        "model": pa.string(),
        "mode": pa.string(),
        "max_tokens": pa.int64(),
        "temperature": pa.float64(),
        "top_p": pa.float64(),
        "seed": pa.int64(),
        "block_length": pa.int64(),
        "commit_rule": pa.string(),
        "threshold": pa.float64(),
        "rolling_block": pa.bool_(),
        "text": pa.string(),
        "token_ids": pa.list_(pa.int64()),
        "prompt_tokens": pa.int64(),
        "completion_tokens": pa.int64(),
        "finish_reason": pa.string(),
        "nfe": pa.int64(),
        "tokens_per_forward": pa.float64(),
        "acceptance_length": pa.float64(),
        "seconds": pa.float64(),
        "tokens_per_second": pa.float64(),
        "plans": pa.map_(pa.string(), pa.int64()),
        "logprobs": pa.list_(
            pa.struct({"token": pa.int64(), "logprob": pa.float64(), "top": _TOP})
        ),
    }
)
"""Columns of a result, the same in every batch; null where a mode has no such figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    model: opt.ModelOptions
    prompt: opt.PromptOptions
    defaults: GenerationOptions
    sequences: int


@grouped
def _asked(
    *,
    model: opt.ModelOptions,
    mode: str = "ar",
    decoding: GenerateOptions,
    prompt: opt.PromptOptions,
    sequences: int = 16,
) -> _Asked:
    check_range("sequences", sequences, 1, None)
    return _Asked(model=model, prompt=prompt, defaults=decoding.for_mode(mode), sequences=sequences)


class Generate:
    """For `Dataset.map_batches` with `batch_format="pyarrow"`: a batch of rows to its results.

    `generate` calls that with what fits.

    Args:
        options: those of `trimode generate` by their long names (`model`, `dtype`, `mode`,
            `max_tokens`, `system`, ...), and `sequences`, how many rows are decoded at once.

    Raises:
        InputError: an option is out of range, or the model cannot do what it asks.
        TypeError: there is no such option.
    """

    def __init__(self, **options: Any) -> None:
        self._asked = _asked(**options)
        loaded = opt.load_model(self._asked.model, progress=False, asked=[self._asked.defaults])
        self._engine = Engine(loaded, max_sequences=self._asked.sequences)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer the rows of a batch.

        Returns:
            Their results in the same order: the id, columns that say nothing to us, and `RESULTS`.

        Raises:
            InputError: a row is wrong; names it by its id. None of the batch is answered.
        """
        rows = [_row(number, fields) for number, fields in enumerate(batch.to_pylist())]
        lines = lines_of(rows, self._asked.defaults, is_taken=is_taken)
        try:
            line_of = queue_all(
                self._engine, self._asked.prompt, lines, lambda line: rows[line.number].where
            )
        except InputError:
            for sequence in [*self._engine.waiting]:
                self._engine.cancel(sequence)
            raise
        results: dict[int, Mapping[str, Any]] = {}
        for update in drain(self._engine):
            if update.sequence.finish_reason is not None:
                result = GenerationResult.of(update.sequence, self._engine.model.name)
                results[line_of[update.sequence].number] = result.to_json()
        made = pa.Table.from_pylist([results[line.number] for line in lines], RESULTS)
        for place, (name, column) in enumerate(_kept(batch, lines)):
            made = made.add_column(place, name, column)
        return made


def _row(number: int, fields: Mapping[str, Any]) -> Row:
    given = {name: value for name, value in fields.items() if value is not None}
    where = f"row {number} of a batch"
    for name in ("custom_id", "id"):
        where = f"the row with {name} {given[name]!r}" if name in given else where
    return Row(number, where, given)


def _kept(batch: pa.Table, lines: list[Line]) -> list[tuple[str, pa.ChunkedArray]]:
    """Columns that results repeat, under the names that they have there."""
    kept = {name for line in lines for name in line.columns}
    found = []
    for name in batch.column_names:
        shown = name if name == "id" or not is_taken(name) else f"input_{name}"
        if shown in kept:
            found.append((shown, batch.column(name)))
    return found


def generate(
    rows: data.Dataset,
    *,
    actors: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    batch_size: int | None = None,
    **options: Any,
) -> data.Dataset:
    """Have rows of prompts answered by a pool of actors.

    Args:
        rows: as in `generate --input`. With a `CheckpointConfig` their ids must be unique.
        actors: processes with the model.
        num_cpus: cores of each, which Ray gives its threads.
        num_gpus: GPUs of each.
        batch_size: rows that an actor gets at a time. None: eight for each sequence.
        options: see `Generate`.

    Raises:
        InputError: the actors would leave no core to read and write rows with, or an option is out
            of range.
        TypeError: there is no such option.
    """
    asked = _asked(**options)
    check_range("actors", actors, 1, None)
    _refuse_if_full(actors, num_cpus)
    return rows.map_batches(
        Generate,
        fn_constructor_kwargs=options,
        batch_format="pyarrow",
        batch_size=batch_size or _BATCHES * asked.sequences,
        compute=data.ActorPoolStrategy(size=actors),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


def _refuse_if_full(actors: int, num_cpus: float) -> None:
    """Raise InputError if the pipeline would wait for ever for a core that its actors hold."""
    cores = cluster_resources().get("CPU", 0.0)
    others = 1  # tasks that read and write
    if data.DataContext.get_current().checkpoint_config is not None:
        others += 1  # the actor that leaves out what is done
    if actors * num_cpus + others > cores:
        found = f"{actors} of {num_cpus:g} CPUs each, and the cluster has {cores:g}"
        allowed = f"leave {others} for reading, writing and a checkpoint: Ray would wait for ever"
        raise InputError("actors", found, allowed)
