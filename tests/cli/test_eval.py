"""`trimode eval`, on small task files."""

import gzip
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.evaluation.test_sandbox import needs_bwrap

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="make eval-test installs lm_eval"
)
DOUBLE = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n    '''Twice x.'''\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
}
INSTRUCTED = {
    "key": 1,
    "prompt": "Say no comma.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
}


def add(i: int) -> dict:
    tests = [f"assert add{i}({k}, {i}) == {k + i}" for k in range(3)]
    code = f"def add{i}(a, b):\r\n    return a + b"
    return {"task_id": i, "text": "Add.", "code": code, "test_list": tests, "test_setup_code": ""}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A data directory of the form that `make data` makes."""
    path = tmp_path_factory.mktemp("data")

    def write(name: str, rows: list[dict]) -> None:
        (path / name).parent.mkdir(exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)

    sums = [{"question": f"{i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(9)]
    write("gsm8k/train.jsonl", sums)
    write("gsm8k/test.jsonl", sums[:4])
    write("humaneval/HumanEval.jsonl.gz", [DOUBLE, {**DOUBLE, "task_id": "HumanEval/1"}])
    write("mbpp/mbpp.jsonl", [add(i) for i in (2, 3, 4, 11, 12, 600)])
    sentences = {**INSTRUCTED, "instruction_id_list": ["length_constraints:number_sentences"]}
    write("ifeval/input_data.jsonl", [INSTRUCTED, {**INSTRUCTED, "key": 2}, sentences])
    return path


def facts_of(outcome) -> dict:
    assert outcome.code == 0, outcome.err
    return outcome.json()


SHORT = ("--dtype", "fp32", "--max-tokens", "8", "--no-progress")


@needs_lm_eval
def test_a_run_has_a_table_a_plot_and_a_file(cli, letters, data, tmp_path):
    out = tmp_path / "out"
    asked = ("eval", "gsm8k_local", "--model", letters, "--data", str(data), *SHORT,
             "--modes", "ar,linear,diffusion", "--thresholds", "0.2,0.9", "--block-length", "4",
             "--speed-of-light", "2", "--output", str(out))  # fmt: skip
    outcome = cli(*asked)
    assert outcome.code == 0, outcome.err
    for shown in ("gsm8k_local: exact_match,flexible-extract", "diffusion 0.2", "diffusion 0.9",
                  "AUP", "at the speed of light", "0.0 to 49.0"):  # fmt: skip
        assert shown in outcome.out
    facts = json.loads((out / "results.json").read_text())
    assert [each["setting"] for each in facts["results"]] == [
        "ar", "linear", "diffusion 0.2", "diffusion 0.9",
    ]  # fmt: skip
    for each in facts["results"]:
        usage = each["usage"]
        assert usage["answers"] == each["rows"] == each["truncated"] == 4
        assert usage["tokens"] == 32
        assert each["tokens_per_forward"] == pytest.approx(32 / usage["nfe"])
        assert each["tokens_per_second"] == pytest.approx(32 / usage["seconds"])
    assert facts["results"][0]["tokens_per_forward"] == 1
    assert facts["aup"] == {"gsm8k_local": {"ar": 0, "linear": 0, "diffusion": 0}}
    limit = facts["speed_of_light"]["gsm8k_local"]
    assert (limit["blocks"], limit["block_length"]) == (2, 4)
    svg = ElementTree.parse(out / "plot.svg").getroot()
    texts = {element.text for element in svg.iter() if element.text}
    assert {"gsm8k_local", "diffusion", "0.9", "speed of light"} <= texts
    before = (out / "results.json").read_text()
    lines = (out / "answers.jsonl").read_text()
    assert len(lines.splitlines()) == 16
    assert cli(*asked).code == 0
    assert (out / "results.json").read_text() == before
    assert (out / "answers.jsonl").read_text() == lines


@needs_lm_eval
@needs_bwrap
def test_every_local_task_runs(cli, letters, data, caplog):
    from trimode.evaluation.harness import local

    local._say_once.cache_clear()
    tasks = ["gsm8k_local,humaneval_local,humaneval_chat_local,mbpp_local", "ifeval_local"]
    outcome = cli("eval", *tasks, "--model", letters, "--data", str(data), *SHORT,
                  "--modes", "ar", "--json")  # fmt: skip
    facts = facts_of(outcome)
    found = {each["task"]: each for each in facts["results"]}
    assert found["gsm8k_local"]["rows"] == 4
    assert found["humaneval_local"]["rows"] == found["humaneval_chat_local"]["rows"] == 2
    assert found["mbpp_local"]["rows"] == 2
    assert found["ifeval_local"]["value"] == 1  # its answers are letters: no comma
    assert found["ifeval_local"]["rows"] in (2, 3)  # one of three needs a model of sentences
    assert found["ifeval_local"]["rows"] == 3 or "1 of 3 rows" in caplog.text
    assert facts["aup"]["ifeval_local"]["ar"] == pytest.approx(100)


@needs_lm_eval
@needs_bwrap
def test_gold_passes_and_junk_does_not(data):
    from trimode.evaluation.harness import local

    local.place.data = data
    tasks = ((local.humaneval, local.humaneval_passes, "canonical_solution"),
             (local.mbpp, local.mbpp_passes, "code"))  # fmt: skip
    for rows, passes, gold in tasks:
        for doc in rows()["test"]:
            assert passes(doc, [doc[gold]]) == {"pass@1": 1}
            for junk in ("", "    return 'junk'\n", "import os\nos._exit(0)"):
                assert passes(doc, [junk]) == {"pass@1": 0}
    assert [row["task_id"] for row in local.mbpp()["test"]] == [11, 12]


@needs_lm_eval
def test_a_mode_that_is_killed_goes_on(letters, data, tmp_path):
    def command(out: Path) -> list[str]:
        return [sys.executable, "-c", "from trimode.cli.main import main; main()", "eval",
                "gsm8k_local", "--model", letters, "--data", str(data), "--dtype", "fp32",
                "--max-tokens", "60", "--modes", "ar,linear", "--sequences", "1",
                "--output", str(out)]  # fmt: skip

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(command(whole), check=True, capture_output=True, env=environment)
    running = subprocess.Popen(command(cut), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=environment)  # fmt: skip
    answers = cut / "answers.jsonl"
    deadline = time.monotonic() + 120
    while not (answers.exists() and answers.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = len(answers.read_bytes().splitlines())
    assert 1 <= kept < 8
    assert not (cut / "results.json").exists()
    subprocess.run(command(cut), check=True, capture_output=True, env=environment)

    def timeless(path: Path) -> str:
        facts = json.loads((path / "results.json").read_text())
        for each in facts["results"]:
            del each["usage"]["seconds"], each["tokens_per_second"]
        return json.dumps(facts)

    assert timeless(cut) == timeless(whole)


MULTIPLE_CHOICE = """
task: sky
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: [" yes", " no", " perhaps"]
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@needs_lm_eval
def test_multiple_choice_is_that_of_transformers(cli, tmp_path, monkeypatch):
    """A task of the user's own; log-likelihoods are computed once for all modes."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

    from trimode.testing import byte_tokenizer, write_tiny_checkpoint

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"Question {i}: is the sky blue?", "answer": i % 3} for i in range(12)]
    path = tmp_path / "sky.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "sky.yaml").write_text(MULTIPLE_CHOICE.format(path=path))
    model = write_tiny_checkpoint(tmp_path / "model", "llama")
    asked = ("--include-path", str(tasks), "--model", str(model), "--dtype", "fp32")
    facts = facts_of(cli("eval", "sky", *asked, "--modes", "ar,linear", "--json"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend, eos_token="<|im_end|>"
    )
    theirs = HFLM(pretrained=str(model), tokenizer=tokenizer, dtype="float32", device="cpu")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    wanted = simple_evaluate(theirs, tasks=["sky"], task_manager=manager, bootstrap_iters=0)
    assert wanted is not None
    first, second = facts["results"]
    for metric in ("acc,none", "acc_norm,none"):
        assert first["metrics"][metric] == pytest.approx(wanted["results"]["sky"][metric])
    assert not first["shared"]
    assert second["shared"]
    assert second["metrics"] == first["metrics"]
    assert first["usage"] is None
    assert facts["aup"] == {}


@needs_lm_eval
@pytest.mark.parametrize("program", ["lm_eval", "trimode.evaluation.harness"])
def test_the_harness_own_command_line(letters, data, tmp_path, program):
    from trimode.evaluation.harness.run import TASKS

    # Up to 0.4.13 `lm_eval` knows other packages' models only by the task files that import them.
    task = TASKS / "gsm8k_local.yaml" if program == "lm_eval" else "gsm8k_local"
    done = subprocess.run(
        [sys.executable, "-m", program, "--model", "trimode", "--model_args",
         f"pretrained={letters},dtype=fp32,mode=diffusion,threshold=0.5,block_length=4",
         "--tasks", str(task), "--include_path", str(TASKS), "--limit", "2",
         "--gen_kwargs", "max_gen_toks=8", "--output_path", str(tmp_path)],
        capture_output=True, text=True,
        env=os.environ | {"TRIMODE_DATA": str(data), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "flexible-extract" in done.stdout
    (results,) = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["n-samples"]["gsm8k_local"]["effective"] == 2


@needs_lm_eval
@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["gsm8k_lokal"], r"tasks: 'gsm8k_lokal'.*\(gsm8k_local\?\)"),
        (["gsm8k_local", "--modes", "fast"], "mode: 'fast'"),
        (["gsm8k_local", "--modes", "ar,ar"], "modes: ar,ar"),
        (["gsm8k_local", "--modes", "ar,autoregressive"], "modes: "),
        (["gsm8k_local", "--modes", "ar", "--thresholds", "0.5"], "thresholds: given for ar"),
        (["gsm8k_local", "--thresholds", "0.5,x"], "thresholds: '0.5,x'"),
        (["gsm8k_local", "--thresholds", "0.5,0.5"], "thresholds: "),
        (["gsm8k_local", "--thresholds", "-1"], "threshold: -1"),
        (["gsm8k_local", "--modes", "ar", "--block-length", "4"], "block_length: 4; not read"),
        (["gsm8k_local", "--modes", "ar", "--speed-of-light", "1"], "speed_of_light: given"),
        (["gsm8k_local", "--limit", "0"], "limit: 0"),
        (["gsm8k_local", "--sequences", "0"], "sequences: 0"),
        (["gsm8k_local", "--num-fewshot", "-1"], "num_fewshot: -1"),
        (["gsm8k_local", "--data", "/nowhere"], "data: /nowhere/gsm8k/train.jsonl is not a file"),
        (["gsm8k_local", "--max-tokens", "2000"], "max_gen_toks: 2000"),
        ([","], "tasks: "),
    ],
)
def test_bad_input_is_named(cli, nld, data, given, error):
    where = [] if "--data" in given else ["--data", str(data)]
    outcome = cli("eval", *given, *where, "--model", nld, "--no-progress")
    assert outcome.code == 2, outcome.err
    assert re.match(f"error: {error}", outcome.err.splitlines()[-1]), outcome.err


@needs_lm_eval
@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("unsafe_code: true", "error: tasks: sky runs answers outside our sandbox; use the task"),
        ("doc_to_text: !function nowhere.f", "error: tasks: sky cannot be loaded"),
        ("dataset_kwargs: {data_files: /nowhere.json}", "error: tasks: sky cannot be loaded"),
    ],
)
def test_a_task_that_cannot_run_is_refused_before_the_model_is_loaded(
    cli, tmp_path, monkeypatch, line, error
):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "sky.jsonl"
    path.write_text(json.dumps({"question": "Blue?", "answer": 0}) + "\n")
    kept = [
        each
        for each in MULTIPLE_CHOICE.format(path=path).splitlines()
        if each.partition(":")[0] != line.partition(":")[0]
    ]
    (tmp_path / "sky.yaml").write_text("\n".join([*kept, line]))
    outcome = cli("eval", "sky", "--include-path", str(tmp_path), "--model", "/nowhere")
    assert outcome.code == 2
    assert outcome.err.splitlines()[-1].startswith(error), outcome.err


@needs_lm_eval
def test_modes_that_a_model_lacks_are_left_out_unless_asked_for(cli, llama, data):
    asked = ("eval", "gsm8k_local", "--model", llama, "--data", str(data), *SHORT, "--json")
    outcome = cli(*asked)
    assert [each["setting"] for each in facts_of(outcome)["results"]] == ["ar", "linear"]
    assert "left out: mode: diffusion" in outcome.err
    assert cli(*asked, "--modes", "ar,diffusion").code == 2


def test_without_lm_eval_the_command_says_what_to_install(cli, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    outcome = cli("eval", "gsm8k_local")
    assert outcome.code == 2
    assert "pip install 'trimode[eval]'" in outcome.err
