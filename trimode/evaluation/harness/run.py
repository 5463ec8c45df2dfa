"""Tasks of lm-evaluation-harness, in several settings of one model."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lm_eval  # type: ignore[import-not-found]
from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

from trimode.checkpoints import LoadedModel
from trimode.errors import InputError, TrimodeError
from trimode.evaluation.harness import local
from trimode.evaluation.harness.answers import Answer, AnswerFile, Usage
from trimode.evaluation.harness.lm import SEQUENCES, TrimodeLM
from trimode.evaluation.parallelism import interval
from trimode.rows import near_miss

TASKS = Path(__file__).with_name("tasks")
"""Our task files, for `--include_path` of lm-evaluation-harness's own command line."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to decode."""

    mode: str
    threshold: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further decoding options."""

    @property
    def name(self) -> str:
        """Mode and threshold."""
        return self.mode if self.threshold is None else f"{self.mode} {self.threshold:g}"

    @property
    def fields(self) -> dict[str, Any]:
        """All decoding options."""
        bar = {} if self.threshold is None else {"threshold": self.threshold}
        return {"mode": self.mode, **bar, **self.options}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run, the same in every setting."""

    tasks: Sequence[str]
    data: Path | None = None
    limit: int | None = None
    """Rows of each task, the first ones."""
    num_fewshot: int | None = None
    chat_template: bool = False
    system: str | None = None
    sequences: int = SEQUENCES
    max_gen_toks: int | None = None
    """Of every answer, whatever its task says."""
    sandbox: bool = True
    include_path: Path | None = None
    """Further task files."""
    progress: bool = True


@dataclass(frozen=True, slots=True)
class Scored:
    """One task in one setting."""

    task: str
    setting: str
    mode: str
    threshold: float | None
    metric: str
    """The main one, with its filter."""
    value: float
    low: float
    high: float
    """Ends of its 95 % interval."""
    rows: int
    metrics: Mapping[str, float]
    """All of the task's metrics."""
    usage: Usage | None
    """What its answers took; None for tasks that only compare log-likelihoods."""
    truncated: int
    """Answers that the limit of tokens ended."""
    shared: bool = False
    """Whether it was not run again, since a mode plays no part in log-likelihoods."""


def tasks_of(plan: Plan) -> TaskManager:
    """The tasks that can be run: ours, those of the harness, and the user's.

    Raises:
        InputError: a task is unknown.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="(lm_eval|datasets).*")
    paths = [TASKS, *([plan.include_path] if plan.include_path else [])]
    ours = TaskManager(include_path=[str(path) for path in paths], include_defaults=False)
    if all(task in ours.all_tasks for task in plan.tasks):
        return ours  # the harness's own 14,000 files take seconds to look through
    manager = TaskManager(include_path=[str(path) for path in paths])
    for task in plan.tasks:
        if task not in manager.all_tasks:
            meant = near_miss(task, manager.all_tasks)
            known = f"such as {', '.join(ours.all_tasks)}; `lm_eval ls tasks` lists all"
            raise InputError("tasks", repr(task), known + (f" ({meant}?)" if meant else ""))
    return manager


def check(plan: Plan) -> TaskManager:
    """The tasks of a plan, once it is known that they can run: that takes no model.

    Raises:
        InputError: a task is unknown, its data is missing, or code cannot be run here.
    """
    if not plan.tasks:
        raise InputError("tasks", "none", "name one at least")
    manager = tasks_of(plan)
    local.place.data, local.place.sandbox = plan.data, plan.sandbox
    for task in plan.tasks:
        if task in local.LOADERS:
            local.LOADERS[task]()
        else:
            _check_loads(task, manager, sandbox=plan.sandbox)
    return manager


def _check_loads(task: str, manager: TaskManager, *, sandbox: bool) -> None:
    """Raise InputError if a task cannot be loaded, or would run answers outside the sandbox."""
    try:
        loaded = manager.load([task])["tasks"]
    except TrimodeError:
        raise
    except Exception as error:  # noqa: BLE001 - a task file is a program, and its data may be far
        allowed = "a task whose data can be read here; those named ..._local read files"
        raise InputError("tasks", f"{task} cannot be loaded ({error})", allowed) from None
    if sandbox and any(each.get_config("unsafe_code") for each in loaded.values()):
        allowed = "use the task of that name with _local, or say --no-sandbox"
        raise InputError("tasks", f"{task} runs answers outside our sandbox", allowed)


def evaluate(
    model: LoadedModel,
    plan: Plan,
    settings: Sequence[Setting],
    answers: AnswerFile,
    manager: TaskManager,
) -> Iterator[tuple[Scored, list[list[int]]]]:
    """Run every task in every setting.

    Args:
        model: the model.
        plan: what is run.
        settings: how.
        answers: those that are known already, and where new ones go.
        manager: what `check` made of the plan.

    Yields:
        Each result, and the prompts that it had, as token ids.

    Raises:
        InputError: an option of a task is unknown to us, or leaves no room for a prompt.
    """
    for task in plan.tasks:
        known: list[Scored] = []
        for setting in settings:
            if known and all(each.usage is None for each in known):
                for each in known:
                    again = replace(each, setting=setting.name, mode=setting.mode, shared=True)
                    yield replace(again, threshold=setting.threshold), []
                continue
            lm = TrimodeLM(model, sequences=plan.sequences, answers=answers, **setting.fields)
            lm.progress, lm.title = plan.progress, f"{task}, {setting.name}"
            results = _simple_evaluate(lm, task, plan, manager)
            known = [*_scored(results, lm.answered, setting)]
            for each in known:
                yield each, lm.prompts


def _simple_evaluate(lm: TrimodeLM, task: str, plan: Plan, manager: TaskManager) -> dict[str, Any]:
    given = None if plan.max_gen_toks is None else {"max_gen_toks": plan.max_gen_toks}
    found = lm_eval.simple_evaluate(
        model=lm,
        tasks=[task],
        task_manager=manager,
        limit=plan.limit,
        num_fewshot=plan.num_fewshot,
        apply_chat_template=plan.chat_template,
        system_instruction=plan.system,
        gen_kwargs=given,
        bootstrap_iters=0,  # the interval is ours
        confirm_run_unsafe_code=not plan.sandbox,
        log_samples=True,
    )
    assert found is not None
    return found


def _scored(results: dict[str, Any], answered: list[Answer], setting: Setting) -> Iterator[Scored]:
    """The results of a task, or of each part of a group of tasks."""
    usage = Usage.of(answered) if answered else None
    for task, samples in results["samples"].items():
        metrics = {
            name: float(value)
            for name, value in results["results"][task].items()
            if "," in name and "_stderr" not in name and isinstance(value, int | float)
        }
        metadata = results["configs"][task].get("metadata") or {}
        main = metadata.get("main", next(iter(metrics)))
        metric, _, chosen = main.partition(",")
        values = [
            float(sample[metric])
            for sample in samples
            if sample.get("filter", chosen) == chosen
            and isinstance(sample.get(metric), bool | int | float)
        ]
        low, high = interval(values) if values else (metrics[main], metrics[main])
        yield Scored(
            task=task,
            setting=setting.name,
            mode=setting.mode,
            threshold=setting.threshold,
            metric=main,
            value=metrics[main],
            low=low,
            high=high,
            rows=len({sample["doc_id"] for sample in samples}),
            metrics=metrics,
            usage=usage,
            truncated=sum(each.finish_reason == "length" for each in answered),
        )
