"""How often the interval of a recovery holds the truth, where the truth is planted; and a sample of the campaign."""

import json

import pytest
import torch

from lrt_tl import storyworld
from lrt_tl.evaluation.recovery import recovery, tail
from tests.campaigns import RESULTS, campaign
from tests.unchecked import without_type_checks

N_SIMULATIONS, N_DRAWS = 500, 64


@pytest.mark.parametrize("n_prompts", [8, 16, 32, 64])
def test_the_interval_holds_the_truth_in_95_of_100(n_prompts: int) -> None:
    """The truth is of the population of prompts and of draws: native 5, transferred 3, random 0. Prompts that respond
    to one vector respond to the other; each draw has an effect of its own."""
    generator = torch.Generator().manual_seed(n_prompts)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    held = 0
    for trial in range(N_SIMULATIONS):
        effect = 2 * normal(n_prompts)
        native = 5 + effect + 0.5 * normal(n_prompts)
        transferred = 3 + 0.6 * effect + normal(n_prompts)
        random = normal(N_DRAWS, 1) + 0.3 * normal(1, n_prompts) + 0.5 * normal(N_DRAWS, n_prompts)
        found = recovery(native, transferred, random, n_bootstrap=1000, seed=trial)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.6 <= found.high
    assert 0.90 <= held / N_SIMULATIONS <= 0.98


def test_the_tail_is_that_of_students_distribution() -> None:
    """For normal values the interval is then mean ± t s/√n: half its width, in standard deviations of resampled means
    (s/√n √((n−1)/n)), is the normal quantile of the tail."""
    n, t = 8, 2.3646242510103  # the 97.5 % quantile with 7 degrees of freedom, from a table
    width = -torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(tail(n), dtype=torch.float64))
    assert float(width) * ((n - 1) / n) ** 0.5 == pytest.approx(t, rel=1e-6)
    assert tail(10**6) == pytest.approx(0.025, abs=1e-6)


def test_the_committed_coverage_is_in_the_band() -> None:
    rows = json.loads((RESULTS / "coverage.json").read_text(encoding="utf-8"))["results"]
    assert len(rows) >= 6
    for row in rows:
        assert row["pool"] >= 5000
        assert row["simulations"] - row["refused"] >= 500
        assert 0.90 <= row["coverage"] <= 0.98, row


def test_a_sample_of_the_campaign() -> None:
    """Register from small to large on 200 prompts, through a map of less text: about the committed truth, for their
    answers are fewer words, too; the same gradients; and the coverage of 100 simulations."""
    script = campaign("coverage_campaign")
    rows = json.loads((RESULTS / "coverage.json").read_text(encoding="utf-8"))["results"]
    committed = next(row for row in rows if (row["source"], row["behavior"]) == ("small", "register"))
    with without_type_checks():  # of the grammar, whose checks take a minute
        target, found = script.vectors("small", ["register"], n_documents=500)
        behavior = storyworld.behavior("register", 200, seed=script.SEED)
        pool = script.measure(target, behavior, *found["register"])
    assert pool.truth == pytest.approx(committed["truth"], abs=0.1)
    assert float(pool.linear[0]) == pytest.approx(committed["linear"]["correlation"], abs=0.03)
    simulated = script.simulate(pool, 16, 100, seed=0)
    assert simulated["coverage"] >= 0.88  # of 100: 3 standard errors under 95 %
