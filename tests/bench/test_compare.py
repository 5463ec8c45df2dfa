"""Two runs beside each other, with changes that are known."""

import pytest

from tests.bench.fakes import local, run
from trimode.bench.compare import compare_results
from trimode.bench.record import read_results
from trimode.errors import InputError

AR, AUTO = local("ar"), local("auto")


@pytest.fixture
def compared(tmp_path):
    """Compare two runs by their rates."""

    def compare(before, after, **more):
        rows = []
        for name, rates in (("a", before), ("b", after)):
            (tmp_path / name).mkdir()
            run(tmp_path / name, dict(zip((AR, AUTO), rates, strict=True)), noise=0.03,
                seed=len(rows), **more)  # fmt: skip
            rows.append(read_results(tmp_path / name))
        found = compare_results(*rows)
        return found, {row["key"]: row for row in found["settings"]}

    return compare


def test_nothing_changed_may_be_noise(compared):
    found, rows = compared((100, 150), (100, 150))
    assert found["prompts"] == 40
    assert not rows["ar x1"]["speed"]["more_than_noise"]
    assert not rows["auto x1"]["speed"]["more_than_noise"]
    assert "may be noise" in found["lines"][0]


def test_a_mode_that_became_slower_is_found(compared):
    _, rows = compared((100, 150), (100, 120))
    for figure in ("speed", "beside_baseline"):
        assert rows["auto x1"][figure]["estimate"] == pytest.approx(0.8, rel=0.03)
        assert rows["auto x1"][figure]["more_than_noise"]
    assert not rows["ar x1"]["speed"]["more_than_noise"]


def test_a_machine_that_became_slower_as_a_whole_is_no_change_of_a_mode(compared):
    _, rows = compared((100, 150), (50, 75))
    assert rows["auto x1"]["speed"]["estimate"] == pytest.approx(0.5, rel=0.03)
    assert rows["auto x1"]["beside_baseline"]["estimate"] == pytest.approx(1.0, rel=0.03)
    assert not rows["auto x1"]["beside_baseline"]["more_than_noise"]


def test_runs_may_have_had_different_numbers_of_rounds(tmp_path):
    rows = []
    for name, repeats in (("a", 1), ("b", 3)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, {AR: 100, AUTO: 150}, repeats=repeats)
        rows.append(read_results(tmp_path / name))
    found = compare_results(*rows)
    assert [row["speed"]["estimate"] for row in found["settings"]] == pytest.approx([1, 1])


def test_changed_answers_are_counted(tmp_path):
    rows = []
    for name, texts in (("a", {}), ("b", {AUTO: lambda n: [n % 2] * 20})):
        (tmp_path / name).mkdir()
        run(tmp_path / name, {AR: 100, AUTO: 150}, texts=texts)
        rows.append(read_results(tmp_path / name))
    found = {row["key"]: row for row in compare_results(*rows)["settings"]}
    assert (found["ar x1"]["changed_answers"], found["auto x1"]["changed_answers"]) == (0, 40)


def test_runs_without_anything_in_common_are_refused(tmp_path):
    rows = []
    for name, rates in (("a", {AR: 100}), ("b", {local("ar", 4): 100})):
        (tmp_path / name).mkdir()
        run(tmp_path / name, rates)
        rows.append(read_results(tmp_path / name))
    with pytest.raises(InputError, match="no setting in common"):
        compare_results(*rows)
