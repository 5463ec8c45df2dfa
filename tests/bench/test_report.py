"""The page, on results whose answers and speeds are known."""

from xml.etree import ElementTree

import pytest

from tests.bench.fakes import local, run
from trimode.bench import plots
from trimode.bench.plots import Point
from trimode.bench.report import frontier, marked, write_report

BAD = local("diffusion", 1, 8, 0.3)


@pytest.fixture
def page(tmp_path):
    rates = {local("ar"): 100, local("auto"): 140, BAD: 300}
    results, _ = run(tmp_path, rates, texts={BAD: lambda n: [1, 2, n, 4]}, noise=0.05)
    del results
    from trimode.bench.record import read_results

    summary = write_report(tmp_path, read_results(tmp_path), max_quality_loss=None)
    return summary, (tmp_path / "report.html").read_text()


def test_the_decision_comes_first_with_its_command(page):
    summary, html = page
    first = summary["recommendation"]["sentences"][0]
    assert first.startswith("Use auto: it makes 1.")
    assert html.index("Use auto") < html.index("trimode serve --model m --mode auto")
    assert html.index("trimode serve") < html.index("<svg")


def test_ten_answers_that_differ_most_are_side_by_side(page):
    summary, html = page
    assert len(summary["different"]) == 10
    shares = [row["agreement"] for row in summary["different"]]
    assert shares == sorted(shares)
    assert html.count('class="pair"') == 10
    assert "<mark>" in html


def test_every_plot_is_well_formed(page):
    _, html = page
    drawn = [part.split("</svg>")[0] + "</svg>" for part in html.split("<svg")[1:]]
    assert len(drawn) == 3  # speeds, quality, time; one load has no line by load
    for one in drawn:
        ElementTree.fromstring(f"<svg{one}")


def test_the_frontier_is_what_no_other_beats():
    def row(key, speed, quality):
        return {"key": key, "tokens_per_second": {"estimate": speed}, "agreement": quality}

    rows = [row("a", 1, 1.0), row("b", 2, 0.9), row("c", 1.5, 0.8), row("d", 0.5, 1.0)]
    assert frontier(rows) == {"a", "b"}


def test_text_of_strangers_is_escaped():
    left, right = marked("<script>a</script> b", "<script>a</script> <b>")
    assert left == "&lt;script&gt;a&lt;/script&gt; <mark>b</mark>"
    assert right == "&lt;script&gt;a&lt;/script&gt; <mark>&lt;b&gt;</mark>"
    drawn = plots.intervals([Point('<b>"', "ar", 1.0, 0.9, 1.1)], unit="<i>")
    ElementTree.fromstring(drawn)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-6, 12345.0])
def test_a_plot_of_one_value_has_ticks(value):
    drawn = ElementTree.fromstring(plots.intervals([Point("a", "ar", value)], unit="x"))
    assert len(drawn.findall(".//text[@class='tick middle']")) >= 2
