"""What our task files call: rows from local files, and code that runs in a sandbox.

lm-evaluation-harness's own tasks of these names need the Hub, and run answers as they are.
"""

import gzip
import io
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-not-found]

from trimode.errors import InputError
from trimode.evaluation.harness import lm as _lm  # noqa: F401 - makes `--model trimode` known
from trimode.evaluation.sandbox import check_sandbox
from trimode.evaluation.scoring import scorer
from trimode.rows import parse_object

logger = logging.getLogger(__name__)

DATA_VARIABLE = "TRIMODE_DATA"
SANDBOX_VARIABLE = "TRIMODE_NO_SANDBOX"

MBPP_PROMPT_IDS = (2, 3, 4)
"""The tasks that lm-evaluation-harness shows as examples."""
MBPP_TEST_IDS = range(11, 511)

_PUNKT = "tokenizers/punkt_tab"
_NEED_PUNKT = frozenset(
    ("length_constraints:number_sentences", "change_case:capital_word_frequency")
)
"""Instructions that are checked with NLTK's model of sentences."""


@dataclass(slots=True)
class _Place:
    """What `trimode eval` sets; else the environment says it."""

    data: Path | None = None
    sandbox: bool | None = None


place = _Place()


def _data(name: str) -> Path:
    """A file of the data directory.

    Raises:
        InputError: there is none.
    """
    folder = place.data or Path(os.environ.get(DATA_VARIABLE, "data"))
    path = folder / name
    if not path.is_file():
        allowed = f"give the directory with --data or {DATA_VARIABLE}; `make data` fetches one"
        raise InputError("data", f"{path} is not a file", allowed)
    return path


def _rows(name: str) -> list[dict[str, Any]]:
    path = _data(name)
    try:
        text = path.read_bytes()
        if path.suffix == ".gz":
            text = gzip.decompress(text)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), f"not readable ({error})", "JSON lines") from None
    lines = text.decode(errors="replace").split("\n")
    numbered = ((i, line) for i, line in enumerate(lines, 1) if line.strip())
    return [parse_object(line, f"{path} line {i}") for i, line in numbered]


def _splits(**rows: Iterable[Mapping[str, Any]]) -> dict[str, datasets.Dataset]:
    return {name: datasets.Dataset.from_list(list(each)) for name, each in rows.items()}


def gsm8k(**_: Any) -> dict[str, datasets.Dataset]:
    """GSM8K: `gsm8k/train.jsonl` for examples, `gsm8k/test.jsonl`."""
    return _splits(train=_rows("gsm8k/train.jsonl"), test=_rows("gsm8k/test.jsonl"))


def humaneval(**_: Any) -> dict[str, datasets.Dataset]:
    """HumanEval: `humaneval/HumanEval.jsonl.gz`."""
    _check_code()
    return _splits(test=_rows("humaneval/HumanEval.jsonl.gz"))


def mbpp(**_: Any) -> dict[str, datasets.Dataset]:
    """MBPP: `mbpp/mbpp.jsonl`."""
    _check_code()
    rows = {row["task_id"]: row for row in _rows("mbpp/mbpp.jsonl")}
    return _splits(
        prompt=[rows[i] for i in MBPP_PROMPT_IDS if i in rows],
        test=[rows[i] for i in MBPP_TEST_IDS if i in rows],
    )


def ifeval(**_: Any) -> dict[str, datasets.Dataset]:
    """IFEval: `ifeval/input_data.jsonl`, but for rows that cannot be checked here."""
    rows = _rows("ifeval/input_data.jsonl")
    if not _has_punkt():
        kept = [row for row in rows if not _NEED_PUNKT & set(row["instruction_id_list"])]
        _say_once(
            f"ifeval_local: NLTK's punkt_tab is not installed, so {len(rows) - len(kept)} of "
            f"{len(rows)} rows, whose instructions are about sentences, are left out"
        )
        rows = kept
    # As text: the arguments of instructions have no common form.
    return _splits(test=[{**row, "kwargs": json.dumps(row["kwargs"])} for row in rows])


@cache
def _say_once(text: str) -> None:
    logger.warning(text)


def _has_punkt() -> bool:
    import nltk  # type: ignore[import-not-found]

    try:
        nltk.data.find(_PUNKT)
    except LookupError:
        return False
    return True


def ifeval_follows(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Which instructions an answer follows, by lm-evaluation-harness's own checks."""
    import nltk  # type: ignore[import-not-found]

    if not _has_punkt():  # they would try to fetch it, and say that they did
        nltk.download = lambda *_, **__: False
    with redirect_stdout(io.StringIO()):
        from lm_eval.tasks.ifeval.utils import process_results  # type: ignore[import-not-found]

    return process_results({**doc, "kwargs": json.loads(doc["kwargs"])}, results)


def mean_of_all(items: Iterable[Sequence[bool]]) -> float:
    """The share of instructions followed, of all answers together."""
    flat = [followed for item in items for followed in item]
    return sum(flat) / len(flat)


def _sandbox() -> bool:
    if place.sandbox is not None:
        return place.sandbox
    return os.environ.get(SANDBOX_VARIABLE, "").lower() not in ("1", "true", "yes")


def _check_code() -> None:
    if _sandbox():
        check_sandbox()


def humaneval_passes(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the function passes its tests."""
    score = scorer("python-tests", sandbox=_sandbox())(results[0], doc["test"], doc)
    return {"pass@1": score.value}


def mbpp_passes(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether the program passes its three tests."""
    row = {"test_setup_code": doc["test_setup_code"]}
    score = scorer("python-tests", sandbox=_sandbox())(results[0], doc["test_list"], row)
    return {"pass@1": score.value}


LOADERS: dict[str, Callable[[], Any]] = {
    "gsm8k_local": gsm8k,
    "humaneval_local": humaneval,
    "humaneval_chat_local": humaneval,
    "mbpp_local": mbpp,
    "ifeval_local": ifeval,
}
"""By task: what reads its rows, and raises if it cannot be run."""
