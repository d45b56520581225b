"""What distances are worth for foretelling recovery: against scipy, and as committed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from lrt_tl.errors import ArtifactError
from lrt_tl.evaluation.forecasting import FEATURES
from lrt_tl.evaluation.middle import FORMAT_VERSION, rank_correlation_over_pairs, read_worth, worth_in_the_middle
from tests.campaigns import BENCHMARKS, RESULTS, campaign

N_PAIRS, N_EACH = 15, 8


def planted(slope: float) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """A feature that pairs of models have, in all of their transfers, and a recovery that follows it."""
    generator = np.random.default_rng(0)
    pairs = np.repeat(np.arange(N_PAIRS), N_EACH)
    feature = generator.normal(size=N_PAIRS)[pairs]
    common = generator.normal(size=N_PAIRS)[pairs]
    recovery = slope * feature + common + 0.3 * generator.normal(size=len(pairs))
    return torch.tensor(feature), torch.tensor(recovery), [f"pair {pair}" for pair in pairs]


@pytest.mark.parametrize("slope", [0.0, 1.0])
def test_it_is_spearmans_with_an_interval_over_pairs(slope: float) -> None:
    feature, recovery, pairs = planted(slope)
    found = rank_correlation_over_pairs(feature, recovery, pairs)
    assert found.estimate == pytest.approx(spearmanr(feature, recovery).statistic)
    assert (found.n_pairs, found.n_transfers) == (N_PAIRS, N_PAIRS * N_EACH)
    generator, x, y = np.random.default_rng(1), *(each.numpy().reshape(N_PAIRS, N_EACH) for each in (feature, recovery))
    by_hand = []
    for _ in range(2000):
        chosen = generator.integers(N_PAIRS, size=N_PAIRS)
        by_hand.append(spearmanr(x[chosen].ravel(), y[chosen].ravel()).statistic)
    np.testing.assert_allclose((found.low, found.high), np.quantile(by_hand, [0.025, 0.975]), atol=0.06)


def test_transfers_of_one_pair_are_no_further_evidence() -> None:
    """Twice as many transfers of as many pairs have the same interval; twice as many pairs a narrower one."""
    feature, recovery, pairs = planted(0.5)
    once = rank_correlation_over_pairs(feature, recovery, pairs)
    twice = feature.repeat(2), recovery.repeat(2)
    again = rank_correlation_over_pairs(*twice, [*pairs, *pairs])
    assert (again.low, again.high) == pytest.approx((once.low, once.high), abs=1e-9)
    more = rank_correlation_over_pairs(*twice, [*pairs, *(f"other {pair}" for pair in pairs)])
    assert more.high - more.low < 0.85 * (once.high - once.low)


def test_what_is_shown() -> None:
    found = rank_correlation_over_pairs(*planted(1.0))
    assert found.shown() == f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "middle.json"
    with pytest.raises(ArtifactError, match="does not hold"):
        read_worth(path)
    value = {"estimate": 0.5, "low": 0.25, "high": 0.75, "n_pairs": 9, "n_transfers": 90}
    whole = {"format_version": FORMAT_VERSION, "all": {"kl": value}, "trained_apart": {}}
    path.write_text(json.dumps(whole))
    assert read_worth(path)[0]["kl"].high == 0.75
    damaged: list[Any] = [
        {**whole, "format_version": 2},
        {**whole, "all": {"kl": {**value, "low": None}}},
        {**whole, "all": {"kl": {**value, "more": 1}}},
        {**whole, "all": {"kl": {}}},
        {**whole, "all": []},
        [],
    ]
    for content in damaged:
        path.write_text(json.dumps(content))
        with pytest.raises(ArtifactError, match="does not hold"):
            read_worth(path)


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return campaign("middle")


def test_what_is_committed_comes_from_what_was_measured(script: Any) -> None:
    found = [each for each in script.known() if not each.shuffled]
    held = json.loads((RESULTS / "middle.json").read_text())["rank_correlation"]
    for group, chosen in (("all", lambda _: True), ("copies", lambda each: each.copied)):
        for name in ("kl", "context_r2", "stitched"):
            some = [each for each in found if chosen(each) and name in each.features]
            feature, recovery = np.array([(each.features[name], each.recovery) for each in some]).T
            assert held[group][name]["estimate"] == pytest.approx(spearmanr(feature, recovery).statistic)
            assert held[group][name]["n_pairs"] == len({each.pair for each in some})
    for group in ("all", "trained apart"):
        shown = worth_in_the_middle(trained_apart=group == "trained apart")
        assert {*FEATURES, "divergence", "agreement", *script.SIMILARITY} <= shown.keys()
        for name, each in shown.items():
            assert each.estimate == held[group][name]["estimate"]
            assert each.low <= each.estimate <= each.high


def test_each_distance_becomes_a_similarity(script: Any) -> None:
    """1 between equals, and less the farther apart."""
    for name, similarity in script.SIMILARITY.items():
        near, far = (1.0, 0.2) if "r2" in name else (0.0, 0.5)
        assert similarity(near) == 1.0
        assert similarity(far) < 1.0


def test_a_distance_that_tells_lowers_the_error(script: Any) -> None:
    """Recovery is planted in one distance, and the features that are learnt from tell nothing."""
    generator = np.random.default_rng(2)
    found = []
    for pair in range(12):
        told = generator.uniform()
        for _ in range(6):
            features = {name: generator.uniform() for name in (*FEATURES, *script.SIMILARITY)} | {"context_r2": told}
            found.append(script.Transfer(f"model {pair}", "large", False, features, told + 0.05 * generator.normal()))
    helped = script.help_to_forecasts(found)
    assert helped["best"] == "context_r2, as a second term"
    best = helped["with"][helped["best"]]
    assert best["error"] < 0.1 < helped["error_as_learnt"]
    assert best["lowered_by"][0] == pytest.approx(helped["error_as_learnt"] - best["error"])
    assert 0 < best["lowered_by"][1] < best["lowered_by"][0] < best["lowered_by"][2]
    assert helped["helps"]
