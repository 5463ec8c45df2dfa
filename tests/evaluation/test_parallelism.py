import math
from xml.etree import ElementTree

import pytest

from trimode.evaluation.parallelism import accuracy_under_parallelism, interval
from trimode.evaluation.plot import Panel, Point, plot


def test_one_setting_has_the_area_of_its_rectangle():
    assert accuracy_under_parallelism([(1.0, 0.7)]) == pytest.approx(70)
    assert accuracy_under_parallelism([(2.5, 0.7)], best=0.9) == pytest.approx(175)


def test_accuracy_that_stays_counts_in_full():
    assert accuracy_under_parallelism([(1, 0.8), (3, 0.8), (2, 0.8)]) == pytest.approx(240)


def test_accuracy_that_falls_counts_less():
    """By hand, from the definition."""
    weight = math.exp(-3 * (1 - 78 / 80))
    wanted = 80 + (3 - 1) * (80 + 78 * weight) / 2
    assert accuracy_under_parallelism([(3, 0.78), (1, 0.8)]) == pytest.approx(wanted)
    first, second = math.exp(-3 * (1 - 80 / 90)), math.exp(-3 * (1 - 78 / 90))
    wanted = 80 + (3 - 1) * (80 * first + 78 * second) / 2
    assert accuracy_under_parallelism([(1, 0.8), (3, 0.78)], best=0.9) == pytest.approx(wanted)


def test_more_than_five_points_below_the_slowest_do_not_count():
    kept = accuracy_under_parallelism([(1, 0.8), (2, 0.76)])
    assert accuracy_under_parallelism([(1, 0.8), (2, 0.76), (9, 0.74)]) == kept


def test_accuracy_above_the_best_counts_in_full_and_none_counts_nothing():
    assert accuracy_under_parallelism([(1, 0.8), (2, 0.9)], best=0.8) == pytest.approx(80 + 85)
    assert accuracy_under_parallelism([(1, 0.0), (4, 0.0)]) == 0


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [(0, 4, 0.0, 0.4899), (4, 4, 0.5101, 1.0), (10, 20, 0.2993, 0.7007), (81, 263, 0.2553, 0.3662)],
)
def test_the_interval_of_a_share_is_wilsons(right, rows, low, high):
    """The last one is Newcombe's example (1998), Table I."""
    found = interval([1.0] * right + [0.0] * (rows - right))
    assert found == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_other_values_is_the_normal_one():
    low, high = interval([0.5, 0.7, 0.6, 0.6])
    assert (low + high) / 2 == pytest.approx(0.6)
    assert high - low == pytest.approx(2 * 1.96 * 0.0816497 / 2, rel=1e-4)
    assert interval([]) == (0, 1)


def test_a_plot_has_every_point_in_its_frame():
    points = [Point("ar", "", 1, 50, 40, 60), Point("<b>", "0.5", 3, 100, 95, 100)]
    root = ElementTree.fromstring(
        plot([Panel("a & b", "x", "y", points), Panel("c", "x", "y", [])])
    )
    hints = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert hints == ["ar: 1, 50 (40 to 60)", "<b> 0.5: 3, 100 (95 to 100)"]
    circles = [each.attrib for each in root.iter("{http://www.w3.org/2000/svg}circle")]
    for each in circles:
        assert 0 <= float(each["cx"]) <= 420
    texts = {each.text for each in root.iter() if each.text}
    assert {"a & b", "c", "ar", "<b>", "0.5"} <= texts
