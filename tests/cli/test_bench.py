"""`trimode bench` and `trimode tune WORKLOAD`, run as a user would."""

import json
import math
import re
import signal
import sys
import threading
import time
import types

import pytest
import yaml

from tests.bench.test_remote import server  # noqa: F401 - a fixture
from tests.cli.conftest import assert_one_line_error
from trimode.testing.serving import running

CSV = "id,Question,answer,topic,owner\n" + "".join(
    f"{i},prompt number {i},{'yes' if i % 2 else 'no'},t{i},me\n" for i in range(6)
)
QUICK = ("--max-tokens", 8, "--repeats", 1, "--budget", "none", "--no-progress")


@pytest.fixture
def workload(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(CSV)
    return path


@pytest.fixture
def bench(cli, letters, workload, tmp_path):
    """Measure the workload into tmp_path/out."""

    def run(*more, model=letters):
        chosen = ("-m", model) if model else ()
        return cli("bench", workload, *chosen, "--output", tmp_path / "out", *QUICK, *more)

    return run


def results(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]


def test_one_command_makes_everything(bench, tmp_path):
    outcome = bench("--concurrency", "1,2", "--block-lengths", "4")
    assert outcome.code == 0, outcome.err
    assert "prompts are read from the column Question" in outcome.err
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "report.html", "results.jsonl", "summary.json", "trimode.yaml",
    }  # fmt: skip
    rows = results(tmp_path)
    prompts = [row for row in rows if row["kind"] == "prompt"]
    assert prompts[3]["columns"] == {"id": "3", "answer": "yes", "topic": "t3", "owner": "me"}
    assert prompts[3]["reference"] == "yes"
    keys = {row["setting"] for row in rows if row["kind"] == "answer"}
    ways = ("ar", "linear block 4", "quadratic block 4", "auto")
    assert keys == {f"{way} x{load}" for way in ways for load in (1, 2)}
    answers = [row for row in rows if row["kind"] == "answer"]
    assert len(answers) == 6 * len(keys)
    for row in answers:
        assert sum(tokens for _, tokens in row["chunks"]) == row["tokens"] == 8
        assert row["nfe"] == sum(row["passes"].values())
        assert 0 < row["chunks"][0][0] <= row["finished"] - row["sent"] + 1e-6
    assert rows[-1] == {"kind": "end"}


def test_the_answers_are_those_of_generate(bench, cli, letters, workload, tmp_path):
    bench("--modes", "ar,linear", "--concurrency", "2")
    single = cli("generate", letters, "--input", workload, "--max-tokens", 8).rows()
    for row in results(tmp_path):
        if row["kind"] == "answer":
            assert row["token_ids"] == single[row["prompt"]]["token_ids"]


def test_every_number_of_the_report_is_in_the_results(bench, tmp_path):
    """The figures of the page, computed again from the raw rows by other means."""
    bench("--modes", "ar,linear", "--block-lengths", "4", "--concurrency", "1")
    html = (tmp_path / "out/report.html").read_text()
    rows = [row for row in results(tmp_path) if row["kind"] == "answer"]
    for key in {row["setting"] for row in rows}:
        own = [row for row in rows if row["setting"] == key]
        rate = sum(row["tokens"] for row in own) / sum(row["share"] for row in own)
        assert f">{rate:.1f}</td>" in html
        tpf = sum(row["tokens"] for row in own) / sum(row["nfe"] for row in own)
        assert f">{tpf:.2f}</td>" in html
        first = sorted(row["chunks"][0][0] for row in own)
        assert f">{(first[2] + first[3]) / 2 * 1e3:.0f}</td>" in html


def test_the_report_needs_no_network(bench, tmp_path):
    bench("--modes", "ar,auto", "--concurrency", "1")
    html = (tmp_path / "out/report.html").read_text()
    assert not re.findall(r"(?:src|href)\s*=|@import|url\(|<script", html)
    assert "<svg" in html


def test_what_is_written_is_what_serve_takes(bench, tmp_path, letters):
    from trimode.cli.config_file import read_config

    bench("--modes", "ar,auto", "--concurrency", "1")
    path = tmp_path / "out/trimode.yaml"
    from typer.main import get_command

    from trimode.cli.main import app

    values = read_config(path, get_command(app).commands["serve"].params)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert values["mode"] == summary["recommendation"]["mode"]
    assert values["model"] == letters
    assert yaml.safe_load(path.read_text())["mode"] in summary["deploy"]["command"]


def test_a_second_start_measures_nothing_and_says_the_same(bench, tmp_path):
    first = bench("--modes", "ar,auto", "--concurrency", "1")
    content = (tmp_path / "out/results.jsonl").read_bytes()
    second = bench("--modes", "ar,auto", "--concurrency", "1")
    assert (tmp_path / "out/results.jsonl").read_bytes() == content
    assert second.out == first.out
    assert "is complete; --overwrite measures anew" in second.err


def test_another_run_in_the_same_place_is_refused(bench):
    bench("--modes", "ar,auto", "--concurrency", "1")
    outcome = bench("--modes", "ar,auto", "--concurrency", "2")
    assert outcome.code == 2
    assert "left by another run (concurrency was '1', is '2')" in outcome.err
    assert bench("--modes", "ar,auto", "--concurrency", "2", "--overwrite").code == 0


def test_a_run_that_is_killed_goes_on(start, endless, workload, tmp_path):
    out = tmp_path / "out"
    command = ("bench", workload, "-m", endless, "--output", out, "--modes", "ar", "--max-tokens",
               300, "--repeats", 1, "--budget", "none", "--concurrency", "1")  # fmt: skip
    process = start(*command)
    path = out / "results.jsonl"
    while not (path.exists() and path.read_bytes().count(b'"kind": "group"') >= 1):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = path.read_text().splitlines()
    process = start(*command)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert b"the run goes on" in err
    after = path.read_text().splitlines()
    kept = len([line for line in before if '"group"' in line and line.endswith("}")])
    assert kept
    groups = [line for line in after if '"kind": "group"' in line]
    assert len(groups) == 2
    assert groups[0] in before


def test_a_server_of_ours_is_measured_mode_by_mode(cli, workload, tmp_path):
    from trimode.server import ServerSettings, open_service
    from trimode.testing import tiny_model

    service = open_service(ServerSettings(name="tiny"), tiny_model)
    with running(service) as ours:
        url = f"{ours.url}/v1"
        grid = ("--modes", "ar,linear", "--block-lengths", 4, "--concurrency", "1,2")
        out = tmp_path / "out"
        outcome = cli("bench", workload, "--url", url, "--output", out, *QUICK, *grid)
    assert outcome.code == 0, outcome.err
    rows = [row for row in results(tmp_path) if row["kind"] == "answer"]
    assert {row["setting"] for row in rows} == {
        f"{url} {way} x{load}" for way in ("ar", "linear block 4") for load in (1, 2)
    }
    texts = {}
    for row in rows:
        assert texts.setdefault(row["prompt"], row["text"]) == row["text"]
        assert row["nfe"] > 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    linear = next(row for row in summary["settings"] if row["mode"] == "linear")
    assert linear["equal"] == 1.0
    assert summary["deploy"] is None


def test_another_server_is_a_baseline_beside_the_model_here(bench, server, tmp_path):  # noqa: F811
    found = server(lambda handler, _: handler.stream("some", "text", usage=5))
    outcome = bench("--url", found.url, "--modes", "ar,linear", "--concurrency", "1")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    ways = {row["way"]: row for row in summary["settings"]}
    assert ways["ar"]["baseline"]
    other = ways[f"{found.url} as it is"]
    assert other["tokens"] == 5 * 6
    assert other["equal"] == 0
    assert f"{found.url} with one request at a time makes " in outcome.out
    assert summary["recommendation"]["mode"] in ("ar", "linear")
    assert summary["deploy"] is not None


def test_a_server_that_dies_in_the_middle_is_gone_on_with_when_it_is_back(cli, workload, tmp_path):
    from trimode.server import ServerSettings, open_server, open_service
    from trimode.testing import tiny_model

    service = open_service(ServerSettings(name="tiny"), tiny_model)
    out, port = tmp_path / "out", 0
    seen: list[str] = []

    def command():
        url = f"http://127.0.0.1:{port}/v1"
        options = ("--url", url, "--api-key", "s3cret", "--output", out, "--modes", "ar,linear")
        grid = ("--block-lengths", 4, "--concurrency", 1)
        return cli("bench", workload, *options, *grid, *QUICK)

    from trimode.bench.remote import RemoteTarget

    real = RemoteTarget.measure

    def measure(self, setting, prompts, round_, longest=math.inf):
        seen.append(setting.key)
        if len(seen) == 3:
            server.should_exit = True
            thread.join()
        return real(self, setting, prompts, round_, longest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteTarget, "measure", measure)
        patch.setattr("trimode.bench.remote.MOST_FAILURES", 2)
        server = open_server(service)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = int(server.url.rpartition(":")[2])
        outcome = command()
    assert outcome.code == 1
    assert "stopped answering; the same command goes on when it is back" in outcome.err
    before = results(tmp_path)
    assert before[-1]["kind"] == "gone"
    assert "s3cret" not in (out / "results.jsonl").read_text()
    again = open_service(ServerSettings(name="tiny"), tiny_model)
    server = open_server(again, port=port)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    outcome = command()
    server.should_exit = True
    thread.join()
    assert outcome.code == 0, outcome.err
    after = results(tmp_path)
    assert after[: len(before)] == before
    assert after[-1]["kind"] == "end"
    answers = [row for row in after if row["kind"] == "answer"]
    assert len(answers) == 12
    assert not any("error" in row for row in answers)


def test_a_dead_server_is_said_before_the_model_is_loaded(bench, monkeypatch):
    monkeypatch.setattr("trimode.cli.options.load_model", None)
    outcome = bench("--url", "http://127.0.0.1:9/v1")
    assert outcome.code == 2
    assert "url: http://127.0.0.1:9/v1 does not answer" in outcome.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "soon"), "budget: 'soon'; must be a time such as 90s"),
        (("--budget", "0m"), "budget: '0m'"),
        (("--modes", "ar,fast"), "mode: 'fast'; allowed: ar"),
        (("--modes", "ar,ar"), "modes: ar,ar; name each mode once"),
        (("--modes", "linear", "--thresholds", "0.5"), "thresholds: 0.5; only diffusion"),
        (("--modes", "auto", "--block-lengths", "4"), "block_lengths: 4; not read by ar, auto"),
        (("--concurrency", "1,x"), "concurrency: '1,x'; must be whole numbers"),
        (("--concurrency", "0"), "concurrency: 0; must be at least 1"),
        (("--concurrency", "2,2"), "concurrency: '2,2'; name each value once"),
        (("--repeats", "0"), "repeats: 0; must be at least 1"),
        (("--sample", "0"), "sample: 0; must be at least 1"),
        (("--max-quality-loss", "2"), "max_quality_loss: 2.0; must be at least 0 and at most 1"),
        (("--reference-column", "right"), "reference_column: 'right'; the columns are id"),
        (("--url", "a", "--url", "a"), "url: a, a; name each server once"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_loaded(bench, monkeypatch, options, words):
    monkeypatch.setattr("trimode.cli.options.load_model", None)
    outcome = bench(*options)
    assert outcome.code == 2
    assert words in outcome.err.splitlines()[-1]


def test_a_workload_that_is_not_there_is_named(cli):
    assert_one_line_error(cli("bench", "nowhere.csv"), 2, "workload: nowhere.csv is not a file")
    assert_one_line_error(cli("bench"), 2, "workload: missing")


def test_a_prompt_beyond_the_context_is_left_out_and_said(bench, workload, tmp_path):
    workload.write_text(CSV + f"9,{'long ' * 400},no,t,me\n")
    outcome = bench("--modes", "ar,linear", "--concurrency", "1")
    assert outcome.code == 0, outcome.err
    assert "1 of 7 prompts are left out, the first: line 8" in outcome.err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [row["line"] for row in summary["left_out"]] == [8]
    assert "maximum context length" in outcome.out
    assert "maximum context length" in (tmp_path / "out/report.html").read_text()


def test_a_model_that_cannot_run_a_mode_leaves_it_out_unless_it_was_named(bench, llama):
    outcome = bench("--concurrency", "1", "--max-quality-loss", "0.1", model=llama)
    assert outcome.code == 0, outcome.err
    assert "diffusion block" in outcome.err
    assert "is left out" in outcome.err
    named = bench("--modes", "diffusion", "--overwrite", "--concurrency", "1", model=llama)
    assert named.code == 2
    assert "mode: diffusion on llama" in named.err


def test_rows_that_choose_a_mode_are_told_that_the_run_does(bench, workload):
    workload.write_text("prompt,mode,threshold\nhi,diffusion,0.5\n")
    outcome = bench("--modes", "ar,auto", "--concurrency", "1")
    assert "rows give mode, threshold: not used, the run chooses them" in outcome.err
    assert "1 prompt cannot tell a gain from chance" in outcome.out


@pytest.fixture
def scoring(monkeypatch):
    """A module of scorers, with one."""
    from dataclasses import dataclass

    from trimode.errors import InputError

    @dataclass(frozen=True)
    class Score:
        value: float
        detail: str = ""

    def scorer(name, *, sandbox=True):
        if name != "length":
            raise InputError("score", name, "length")
        return lambda answer, reference, row: Score(float(len(answer) > 3), row["topic"])

    module = types.ModuleType("trimode.evaluation.scoring")
    module.scorer = scorer
    monkeypatch.setitem(sys.modules, "trimode.evaluation.scoring", module)


def test_answers_are_scored_by_their_references(bench, scoring, tmp_path):
    assert bench("--score", "length", "--modes", "ar,linear", "--concurrency", "1").code == 0
    scores = [row for row in results(tmp_path) if row["kind"] == "score"]
    assert {(row["prompt"], row["detail"]) for row in scores} == {(i, f"t{i}") for i in range(6)}
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert all(row["score"]["estimate"] == 1.0 for row in summary["settings"])
    assert ">1.000</td>" in (tmp_path / "out/report.html").read_text()


def test_rows_without_a_reference_are_said_and_not_scored(bench, scoring, workload, tmp_path):
    workload.write_text("prompt,answer,topic\nhi,,t\nho,x,t\n")
    outcome = bench("--score", "length", "--modes", "ar", "--concurrency", "1")
    assert "rows without a reference, which are not scored (1): line 2" in outcome.err
    assert [row["prompt"] for row in results(tmp_path) if row["kind"] == "score"] == [1]
    workload.write_text("prompt\nhi\n")
    refused = bench("--score", "length", "--overwrite")
    assert refused.code == 2
    assert "score: no row has a reference; name the column" in refused.err


def test_answers_that_must_be_json_are_in_every_mode(bench, workload, tmp_path):
    """Columns of a table hold JSON as text; the answer is one digit in an array."""
    schema = {"type": "array", "items": {"enum": [1]}, "minItems": 1, "maxItems": 1}
    form = json.dumps({"type": "json_schema", "json_schema": {"schema": schema}})
    quoted = '"' + form.replace('"', '""') + '"'
    workload.write_text("prompt,response_format\n" + f"a,{quoted}\n" * 4)
    outcome = bench("--modes", "ar,linear", "--concurrency", "1")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert [row["valid_json"] for row in summary["settings"]] == [1.0] * len(summary["settings"])
    assert all(json.loads(r["text"]) == [1] for r in results(tmp_path) if r["kind"] == "answer")


def test_two_results_are_compared(cli, letters, workload, tmp_path):
    for name in ("a", "b"):
        cli("bench", workload, "-m", letters, "--output", tmp_path / name, *QUICK, "--modes",
            "ar,linear", "--block-lengths", 4, "--concurrency", 1)  # fmt: skip
    found = cli("bench", "--compare", tmp_path / "a", tmp_path / "b", "--json").json()
    assert found["prompts"] == 6
    assert [row["key"] for row in found["settings"]] == ["ar x1", "linear block 4 x1"]
    assert all(row["changed_answers"] == 0 for row in found["settings"])
    assert found["settings"][1]["baseline"] == "ar x1"
    said = cli("bench", "--compare", tmp_path / "a", tmp_path / "a")
    assert said.out.startswith("ar x1: 1.000 times as fast (1.000 to 1.000, may be noise)")
    assert_one_line_error(cli("bench", "--compare", tmp_path, tmp_path), 2, "no results")


def test_tune_with_a_workload_searches_more_block_lengths(cli, letters, workload, tmp_path):
    out = tmp_path / "out"
    outcome = cli("tune", letters, workload, "--output", out, *QUICK, "--concurrency", "1")
    assert outcome.code == 0, outcome.err
    header = results(tmp_path)[0]
    lengths = {row["block_length"] for row in header["settings"] if row["mode"] == "linear"}
    assert lengths == {3, 4, 5, 6, 8, 12, 16, 32}
    assert (out / "trimode.yaml").exists()


def test_tune_says_what_another_machine_would_do_with_it(cli, letters, workload, tmp_path):
    out = tmp_path / "out"
    found = cli("tune", letters, workload, "--output", out, *QUICK, "--cost-curve", "b200-8b",
                "--block-lengths", 4, "--json").json()  # fmt: skip
    assert found["computed"]
    assert found["block_length"] == 4
    assert [row["load"] for row in found["loads"]] == [1, 2, 4, 8, 16, 32, 64, 128]
    cycles = [row for row in results(tmp_path) if row.get("setting") == "linear block 4 x1"]
    made = sum(row.get("cycle_tokens", 0) for row in cycles)
    tried = sum(row.get("cycles", 0) for row in cycles)
    assert found["acceptance"] == pytest.approx(max(2.0, made / tried))


def test_tune_computes_from_an_acceptance_alone(cli):
    outcome = cli("tune", "--cost-curve", "b200-8b", "--acceptance", "6.72")
    assert "computed, not measured" in outcome.out
    assert "linear beats ar below 32 requests at a time" in outcome.out


def test_tune_says_how_many_replicas_a_load_needs(cli):
    asked = ("tune", "--cost-curve", "b200-8b", "--acceptance", "6.72", "--requests-per-second",
             20, "--prompt-tokens", 500, "--answer-tokens", 300)  # fmt: skip
    assert "replicas for 20 requests/s of 500 + 300 tokens, 80% busy" in cli(*asked).out
    found = cli(*asked, "--json").json()
    assert found["demand"]["answer_tokens"] == 300
    assert [row["load"] for row in found["capacity"]] == [row["load"] for row in found["loads"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cost-curve", "h200-8b", "--acceptance", "3"), "cost_curve: 'h200-8b'; a file of"),
        (("--cost-curve", "b200-8b"), "acceptance: missing; give it, or a workload"),
        (("--acceptance", "3"), "acceptance: 3; goes with --cost-curve"),
        (("--block-length", "3"), "block_length: 3; goes with --acceptance"),
        (("--requests-per-second", "3"), "requests_per_second: 3; goes with --cost-curve"),
        (
            ("--cost-curve", "b200-8b", "--acceptance", "3", "--answer-tokens", "3"),
            "requests_per_second: missing; goes with answer_tokens",
        ),
        (("--score", "exact"), "score: exact; goes with a workload"),
        (("--output", "x"), "output: given; goes with a workload"),
        (("a.csv", "b.csv"), "workload: 'a.csv b.csv'; give [MODEL] [WORKLOAD]"),
        (("a.csv",), "workload: a.csv is not a file"),
    ],
)
def test_tune_ignores_no_option_in_silence(cli, monkeypatch, options, words):
    monkeypatch.setattr("trimode.cli.options.load_model", None)
    assert_one_line_error(cli("tune", *options), 2, words)
