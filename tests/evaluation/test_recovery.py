"""The estimate in closed form; the gate and the interval by simulation."""

import pytest
import torch
from torch import Tensor

from lrt_tl.evaluation.recovery import Effect, Recovery, mean_effect, rank, recovery, recovery_over_baseline


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_estimate_is_the_ratio_above_the_random_mean() -> None:
    native, transferred = 2 + 0.1 * normal(10), 1 + 0.1 * normal(10, seed=1)
    random = 0.3 + 0.1 * normal(30, 10, seed=2)
    found = recovery(native, transferred, random)
    baseline = random.mean()
    assert found.estimate == pytest.approx(float((transferred.mean() - baseline) / (native.mean() - baseline)))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.estimate < found.high
    assert found.reason is None
    assert recovery(native, transferred, random) == found  # seeded


def test_the_baseline_is_signed() -> None:
    """Random draws of both signs cancel: their sizes do not count."""
    native, random = torch.full((5,), 4.0).double(), torch.cat([torch.ones(10, 5), -torch.ones(10, 5)]).double()
    assert recovery(native, native / 2, random).estimate == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "expected"), [(1.0, 1.0), (0.0, 0.0), (-0.5, -0.5), (1.5, 1.5)])
def test_known_recoveries(share: float, expected: float) -> None:
    native, random = 1 + 0.2 * normal(40), torch.zeros(20, 40, dtype=torch.float64)
    found = recovery(native, share * native, random)
    assert found.estimate == pytest.approx(expected)
    assert (found.low, found.high) == (pytest.approx(expected), pytest.approx(expected))  # one resample for both arms


def test_rank() -> None:
    draws = torch.tensor([1.0, 2.0, 3.0])
    assert [rank(slope, draws) for slope in (4.0, 3.0, 2.5, 0.0)] == [1, 2, 2, 4]


def with_draws_above(n_above: int, n_draws: int) -> Recovery:
    random = torch.zeros(n_draws, 6, dtype=torch.float64)
    random[:n_above] = 2.0
    return recovery(torch.ones(6).double(), torch.ones(6).double(), random)


def test_the_rank_rule() -> None:
    assert with_draws_above(0, 19).estimate is not None
    assert with_draws_above(1, 39).estimate is not None
    for n_above, n_draws in ((1, 19), (1, 38), (2, 39)):
        found = with_draws_above(n_above, n_draws)
        assert (found.estimate, found.low, found.high) == (None, None, None)
        assert str(found) == f"none: {n_above} of {n_draws} random vectors do as much as the native one"
    assert with_draws_above(0, 18).reason == "18 random draws; at least 19 are needed for the rank"


@pytest.mark.parametrize("native", [-1 + 0.1 * normal(20), 0.05 + normal(20), torch.zeros(20).double()])
def test_a_native_slope_not_above_zero_leaves_nothing_to_recover(native: Tensor) -> None:
    found = recovery(native, native, -5 + torch.zeros(30, 20).double())  # far above the random draws all the same
    assert found.estimate is None
    assert found.reason is not None
    assert "is not above zero beyond its prompts' scatter" in found.reason


def test_one_prompt_is_not_enough() -> None:
    found = recovery(torch.tensor([2.0]), torch.tensor([1.0]), 0.01 * normal(20, 1).float())
    assert found.estimate is None
    assert str(found) == "none: with one prompt only, no interval can be given"


def test_how_a_recovery_shows() -> None:
    assert str(Recovery(0.734, 0.5, 1.021)) == "0.73 [0.50, 1.02]"


N_PROMPTS, N_DRAWS = 16, 24


def arms(n: int, seed: int) -> Tensor:
    """Slopes of random vectors: each has an effect of its own, prompts differ, and so does every measurement."""
    own, shared = normal(n, 1, seed=seed), normal(1, N_PROMPTS, seed=seed + 1)
    return own + 0.3 * shared + 0.5 * normal(n, N_PROMPTS, seed=seed + 2)


def test_a_native_vector_that_is_itself_random_rarely_passes() -> None:
    passed = 0
    for trial in range(400):
        slopes = arms(N_DRAWS + 1, 10 * trial)
        passed += recovery(slopes[0], slopes[0], slopes[1:], n_bootstrap=200).estimate is not None
    assert passed / 400 <= 0.06


def test_the_interval_covers_the_truth() -> None:
    """The truth is of the population of prompts and of draws: native 5, transferred 3, random 0."""
    covered = 0
    for trial in range(400):
        effect = normal(N_PROMPTS, seed=10 * trial + 9)  # prompts that respond to one vector respond to the other
        native, transferred = (
            mean + effect + 0.5 * normal(N_PROMPTS, seed=10 * trial + extra) for mean, extra in ((5.0, 7), (3.0, 8))
        )
        found = recovery(native, transferred, arms(N_DRAWS, 10 * trial), n_bootstrap=300)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.6 <= found.high
    assert 0.88 <= covered / 400 <= 0.99


@pytest.mark.parametrize("n_draws", [1, 4])
def test_over_a_baseline_it_is_the_share_of_what_that_leaves(n_draws: int) -> None:
    native, transferred = 2 + 0.1 * normal(10), 1.5 + 0.1 * normal(10, seed=1)
    baseline = 1 + 0.1 * normal(n_draws, 10, seed=2)
    found = recovery_over_baseline(native, transferred, baseline)
    left = baseline.mean()
    assert found.estimate == pytest.approx(float((transferred.mean() - left) / (native.mean() - left)))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.estimate < found.high
    same = recovery_over_baseline(native, native, baseline)
    assert (same.estimate, same.low, same.high) == (1, 1, 1)
    nothing = recovery_over_baseline(native, baseline.mean(0), baseline.mean(0)[None])
    assert (nothing.estimate, nothing.low, nothing.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_a_baseline_that_does_as_much_leaves_nothing() -> None:
    native = 2 + normal(20)
    for baseline in (native, native + 1, native + 0.1 * normal(20, seed=1)):
        found = recovery_over_baseline(native, native, baseline[None])
        assert found.estimate is None
        assert "leaves nothing of the native one, " in str(found)
    assert recovery_over_baseline(native[:1], native[:1], native[None, :1] - 1).reason is not None


def test_resamples_without_anything_left_have_no_say() -> None:
    """One prompt of four, for which native, transferred and baseline do the same: 1 in 256 resamples is 0/0."""
    native = torch.tensor([1.0, 3.0, 3.0, 3.0])
    found = recovery_over_baseline(native, native, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert (found.estimate, found.low, found.high) == (1, 1, 1)


def test_a_baseline_as_good_as_the_native_vector_rarely_leaves_something() -> None:
    """The gate is one-sided at 2.5 %: prompts differ, the two vectors do not but for noise."""
    passed = 0
    for trial in range(400):
        prompts = 3 + normal(N_PROMPTS, seed=10 * trial)
        native, baseline = (prompts + 0.5 * normal(N_PROMPTS, seed=10 * trial + extra) for extra in (1, 2))
        passed += recovery_over_baseline(native, native, baseline[None], n_bootstrap=300).estimate is not None
    assert passed / 400 <= 0.06


def test_the_interval_over_a_baseline_covers_the_truth() -> None:
    """Native 5, transferred 4, baseline 2, of the population of prompts: 2/3 of what is left."""
    covered = 0
    for trial in range(400):
        effect = normal(N_PROMPTS, seed=10 * trial)
        native, transferred, baseline = (
            mean + effect + 0.5 * normal(N_PROMPTS, seed=10 * trial + mean) for mean in (5, 4, 2)
        )
        found = recovery_over_baseline(native, transferred, baseline[None], n_bootstrap=300)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 2 / 3 <= found.high
    assert 0.88 <= covered / 400 <= 0.99


def test_a_mean_and_its_interval() -> None:
    """Against the normal interval, which it nears."""
    values = 3 + normal(400)
    found = mean_effect(values)
    assert found.low is not None
    assert found.high is not None
    error = float(values.std()) / 20
    assert found.estimate == pytest.approx(float(values.mean()))
    assert (found.low, found.high) == pytest.approx(
        (found.estimate - 1.96 * error, found.estimate + 1.96 * error), abs=0.01
    )
    assert mean_effect(torch.tensor([2.0])) == Effect(2.0, None, None)
    assert str(mean_effect(torch.tensor([2.0]))) == "+2"
    assert str(mean_effect(torch.tensor([2.0, 2.0]))) == "+2 [+2, +2]"
