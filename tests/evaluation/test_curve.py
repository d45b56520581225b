"""The shape of planted curves, known in closed form."""

import json
import math

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.curve import effect_curve

GRID = tuple(step / 4 for step in range(-16, 17))
X = torch.tensor(GRID, dtype=torch.float64)
OFFSETS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)


def planted(effects: Tensor) -> Tensor:
    """The same effect in prompts of different propensity."""
    return effects[:, None] + OFFSETS


def test_a_linear_curve() -> None:
    rates = torch.tensor([0.5, 2.0, -0.25], dtype=torch.float64)
    curve = effect_curve(X[:, None] * rates + OFFSETS, GRID)
    torch.testing.assert_close(curve.propensity, OFFSETS)
    torch.testing.assert_close(curve.slopes, rates)
    assert curve.slope == pytest.approx(0.75)
    assert curve.anti_steerable == pytest.approx(1 / 3)
    assert (curve.saturation, curve.breakdown) == (None, None)


def test_a_curve_that_saturates() -> None:
    """tanh(2c) on a fine grid: 90 % of its largest value is reached at artanh(0.9 tanh 8)/2."""
    curve = effect_curve(planted(torch.tanh(2 * X)), GRID)
    assert curve.saturation == pytest.approx(math.atanh(0.9 * math.tanh(8)) / 2, abs=0.02)
    assert curve.breakdown is None
    assert curve.anti_steerable == 0


def test_a_curve_that_breaks_down() -> None:
    """c(3 − c) peaks at 1.5; 90 % of 2.25 is at 1.5 − √0.225; the next point of the grid is lower in every prompt."""
    curve = effect_curve(planted(X * (3 - X)), GRID)
    assert curve.saturation == pytest.approx(1.5 - math.sqrt(0.225), abs=0.02)
    assert curve.breakdown == 1.75


def test_a_fall_within_the_prompts_scatter_is_no_breakdown() -> None:
    """At 2 the mean falls by 0.3, with a standard error over 4 prompts of s/2: told from scatter if 0.3 > s."""
    fall = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)
    for spread, breakdown in ((0.2, 2.0), (0.3, None)):
        end = 1 - 0.3 + spread * fall
        scores = torch.stack([torch.full((4,), -1.0).double(), torch.zeros(4).double(), torch.ones(4).double(), end])
        assert effect_curve(scores, (-1.0, 0.0, 1.0, 2.0)).breakdown == breakdown
        assert (fall * spread).std() / 2 * 2 == pytest.approx(spread * math.sqrt(4 / 3))


def test_a_curve_that_only_falls_neither_saturates_nor_breaks_down() -> None:
    curve = effect_curve(planted(-X), GRID)
    assert (curve.saturation, curve.breakdown, curve.anti_steerable) == (None, None, 1)


@pytest.mark.parametrize(("end", "saturates"), [(2.0, False), (1.4, False), (1.3, True), (1.0, True)])
def test_when_a_curve_still_rises(end: float, saturates: bool) -> None:
    """0, 1, end: the last step rises by end − 1, the whole by end/2 a step; half of that is passed at 4/3."""
    scores = torch.tensor([[-1.0], [0.0], [1.0], [end]], dtype=torch.float64)
    assert (effect_curve(scores, (-1.0, 0.0, 1.0, 2.0)).saturation is not None) == saturates


def test_the_order_of_the_grid_does_not_matter() -> None:
    order = torch.randperm(len(GRID), generator=torch.Generator().manual_seed(0))
    scores = planted(X * (3 - X))
    mixed, straight = effect_curve(scores[order], X[order].tolist()), effect_curve(scores, GRID)
    torch.testing.assert_close(mixed.slopes, straight.slopes)
    assert (mixed.saturation, mixed.breakdown) == (straight.saturation, straight.breakdown)


def test_one_prompt_breaks_down_nowhere() -> None:
    assert effect_curve((X * (3 - X))[:, None], GRID).breakdown is None


def test_a_grid_without_zero_is_refused() -> None:
    for grid in ((-1.0, 1.0, 2.0), (-2.0, -1.0, 0.0)):
        with pytest.raises(LrtError, match="a curve needs 0, and something above it"):
            effect_curve(torch.zeros(3, 2), grid)


def test_how_a_curve_shows() -> None:
    curve = effect_curve(planted(X * (3 - X)), GRID)
    assert json.loads(json.dumps(curve.to_json(), allow_nan=False))["breakdown"] == 1.75
    assert "breaks down at: 1.75" in repr(curve)
    assert "not on this grid" in effect_curve(planted(X), GRID)._repr_html_()
