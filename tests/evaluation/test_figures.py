"""Figures hold the numbers that they are of, and no markup of anybody's."""

import pytest

from lrt_tl.evaluation.figures import effect_figure, recovery_figure
from lrt_tl.evaluation.recovery import Recovery
from tests.runs.synthetic import NO_NEUTRAL, a_result


def test_the_effect_figure_holds_the_means_and_the_null() -> None:
    result = a_result()
    traces = {trace.name: trace for trace in effect_figure(result).data}
    assert list(traces["native"].y) == [0.5, 2.5, 4.5]
    assert list(traces["transferred"].y) == [0.25, 1.25, 2.25]
    band = traces["random (90 % of draws)"]
    upper = result.controls["random"].mean(-1).quantile(0.95, dim=0)
    assert list(band.y[:3]) == pytest.approx(upper.tolist())
    assert [trace.meta for trace in traces.values()] == ["nulls", None, None]


def test_the_recovery_figure_holds_estimates_intervals_and_where_there_is_none() -> None:
    found = {
        "norm": {"a": Recovery(0.5, 0.4, 0.7), "b": Recovery(1.0, 0.9, 1.2)},
        "KL": {"a": NO_NEUTRAL, "b": Recovery(0.8, 0.6, 0.9)},
    }
    norm, kl, none = recovery_figure(found).data
    assert list(norm.x) == [0.5, 1.0]
    assert list(norm.error_x.array) == pytest.approx([0.2, 0.2])
    assert list(norm.error_x.arrayminus) == pytest.approx([0.1, 0.1])
    assert (list(kl.x), list(none.text)) == ([0.8], ["none, KL"])
    assert none.y[0] == pytest.approx(kl.y[0] + 1)  # one behavior higher
    assert norm.y[0] > none.y[0]


def test_names_are_no_markup() -> None:
    hostile = "<b>x</b><a href='javascript:alert(1)'>"
    figures = [effect_figure(a_result(hostile)), recovery_figure({hostile: {hostile: Recovery(0.5, 0.4, 0.6)}})]
    for figure in figures:
        assert "<b" not in figure.to_json().replace("\\u003c", "<")
