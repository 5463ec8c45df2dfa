"""Scorers against answers that people and models write."""

import json
from functools import partial

import pytest

from tests.evaluation.test_sandbox import needs_bwrap
from trimode.errors import InputError
from trimode.evaluation.sandbox import Limits, run_python
from trimode.evaluation.scoring import Score, scorer


def value(name: str, answer: str, reference, row=None) -> float:
    return scorer(name)(answer, reference, row or {}).value


@pytest.mark.parametrize(
    ("name", "answer", "reference", "right"),
    [
        ("exact", " Paris\n", "Paris", True),
        ("exact", "paris", "Paris", False),
        ("exact", "London", ["Paris", "London"], True),
        ("exact", "42", 42, True),
        ("exact", "true", True, True),
        ("contains", "It is PARIS, of course.", "Paris", True),
        ("contains", "It costs 14 dollars", 4, False),
        ("contains", "It costs 4 dollars", 4, True),
        ("contains", "C++ is fine", "C++", True),
        ("contains", "Comparison", "paris", False),
        ("numeric", "She makes $1,234.50.", "1234.5", True),
        ("numeric", "#### 18", "Janet sells 16 - 3 = 13.\n#### 18", True),
        ("numeric", "The answer is 18 dollars, for 2 ducks.", 18, True),
        ("numeric", "\\boxed{-7}, so 3", -7, True),
        ("numeric", "First 5, then 6", 6, True),
        ("numeric", "about 1e3", 1000, True),
        ("numeric", "1,2,3", 3, True),
        ("numeric", "The answer to question 3 is that she makes 18", 18, True),
        ("numeric", "So 21-3=18 and 9-5", 5, True),
        ("numeric", "17", 18, False),
        ("numeric", "no idea", 18, False),
        ("numeric", "0.30000000000000004", 0.3, True),
        ("numeric", "The answer: 12", "12.0", True),
        ("json", '```json\n{"b": 1, "a": [1, 2]}\n```', '{"a": [1, 2.0], "b": 1}', True),
        ("json", '{"a": true}', {"a": 1}, False),
        ("json", '{"a": 1, "b": 2}', {"a": 1}, False),
        ("json", "[1, 2]", [1, 2, 3], False),
        ("json", "{", {"a": 1}, False),
        ("json", "[" * 100_000, {"a": 1}, False),
        ("regex", "order 0042 is sent", r"\b0*42\b", True),
        ("regex", "order 0043", r"\b0*42\b", False),
    ],
)
def test_scorers(name, answer, reference, right):
    assert value(name, answer, reference) == right


def test_a_wrong_answer_says_why():
    assert scorer("json")('{"a": {"b": 2}}', {"a": {"b": 1}}, {}).detail == "differs at $.a.b"
    assert scorer("numeric")("17", 18, {}).detail == "17, not 18"


@pytest.mark.parametrize(
    ("name", "reference"),
    [("exact", None), ("exact", ""), ("exact", []), ("contains", "  "), ("numeric", "none"),
     ("json", "{"), ("json", None), ("regex", "("), ("exact", {"a": 1})],
)  # fmt: skip
def test_a_reference_of_no_use_is_named(name, reference):
    with pytest.raises(InputError, match="reference: "):
        scorer(name)("answer", reference, {})


def test_an_unknown_scorer_names_the_known_ones():
    with pytest.raises(InputError, match=r"score: 'contain'; allowed: exact, contains.*contains\?"):
        scorer("contain")


def test_a_function_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_scores.py").write_text(
        "def half(answer, reference, row): return 0.5 if row['x'] == 1 else True\n"
        "def much(answer, reference, row): return 2\n"
        "def text(answer, reference, row): return 'good'\n"
        "number = 3\n"
    )
    assert scorer("own_scores:half")("a", "b", {"x": 1}) == Score(0.5)
    assert scorer("own_scores:half")("a", "b", {"x": 2}) == Score(1.0)
    for name, error in (("much", "score: 2.0"), ("text", "returned str")):
        with pytest.raises(InputError, match=error):
            scorer(f"own_scores:{name}")("a", "b", {})
    for name in ("own_scores:none", "own_scores:number", "no_such_module:f", "own_scores:", ":f"):
        with pytest.raises(InputError, match="score: "):
            scorer(name)


def test_a_score_is_a_share():
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="score: "):
            Score(wrong)


ADD = "def add(a, b):\n    return a + b\n"


@needs_bwrap
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (ADD, True),
        (f"Here it is:\n```python\n{ADD}```\nIt adds.", True),
        (f"```\n{ADD}", True),  # cut off before the end of the block
        ("def add(a, b): return a - b", False),
        ("I cannot do that.", False),
        ("import sys; sys.exit(0)", False),
        ("", False),
    ],
)
def test_answers_that_are_code(answer, right):
    assert (
        value("python-tests", answer, ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]) == right
    )


@needs_bwrap
@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('1.1.1.1', 53), timeout=2)",
        "open('/etc/hostname').read()",
        "while True: __import__('os').fork()",
        "x = bytearray(10 * 2**30)",
        "import time; time.sleep(30)",
        "open('/tmp/x', 'wb').write(bytes(2**25))",
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL); os._exit(0)",
    ],
)
def test_code_that_tries_to_leave_the_sandbox_is_scored_as_failed(attempt, monkeypatch):
    limited = partial(run_python, limits=Limits(seconds=4))
    monkeypatch.setattr("trimode.evaluation.scoring.run_python", limited)
    assert value("python-tests", f"{ADD}{attempt}", "assert add(1, 2) == 3") == 0


@needs_bwrap
def test_the_forms_of_humaneval_and_mbpp():
    row = {
        "prompt": "import math\n\ndef area(r):\n    '''Area of a circle.'''\n",
        "entry_point": "area",
    }
    tests = "def check(candidate):\n    assert round(candidate(1), 2) == 3.14\n"
    body = "    return math.pi * r * r\n"
    for answer in (body, f"```python\nimport math\ndef area(r):\n{body}```"):
        assert value("python-tests", answer, tests, row) == 1
    assert value("python-tests", "    return r\n", tests, row) == 0
    row = {"test_setup_code": "import math"}
    assert value("python-tests", "def f(x): return x", ["assert f(math.pi) > 3"], row) == 1


def test_scorers_hold_what_the_json_of_a_row_holds():
    row = json.loads('{"reference": 3}')
    assert value("exact", "3", row["reference"], row) == 1
