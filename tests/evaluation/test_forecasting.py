"""Learning to forecast, on planted outcomes, against scikit-learn and scipy, and by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from lrt_tl.errors import ArtifactError, LrtError
from lrt_tl.evaluation.forecasting import (
    FEATURES,
    LEAST,
    LEVEL,
    MOST,
    KnownTransfer,
    Regression,
    conformal_quantile,
    learn,
    rank_correlation,
    read_transfers,
)

N_PAIRS, N_EACH = 20, 12


def planted(*, signal: float, noise: float = 0.05, seed: int = 0) -> list[KnownTransfer]:
    """Transfers whose recovery follows two features."""
    generator = np.random.default_rng(seed)
    found = []
    for pair in range(N_PAIRS):
        for _ in range(N_EACH):
            values = dict(zip(FEATURES, generator.uniform(size=len(FEATURES)).tolist(), strict=True))
            drawn = 0.5 + signal * (values["auc"] - values["stitched"]) + noise * generator.normal()
            found.append(KnownTransfer(f"pair {pair}", {**values, "gain": 1 + values["auc"]}, float(drawn)))
    return found


def table(transfers: list[KnownTransfer]) -> tuple[torch.Tensor, torch.Tensor]:
    """By hand: features, some by their logarithm, and recoveries."""
    rows = [[transfer.features[name] for name in FEATURES] for transfer in transfers]
    return torch.tensor(rows, dtype=torch.float64), torch.tensor([t.recovery for t in transfers], dtype=torch.float64)


def test_the_regression_is_that_of_scikit_learn() -> None:
    x, y = table(planted(signal=0.5, noise=0.1))
    ours = Regression.fit(x, y)
    scaler = StandardScaler().fit(x)
    theirs = Ridge(alpha=0.1 * len(y)).fit(scaler.transform(x), y)
    np.testing.assert_allclose(ours.coefficients, theirs.coef_, atol=1e-10)
    np.testing.assert_allclose(ours(x), theirs.predict(scaler.transform(x)).clip(LEAST, MOST), atol=1e-10)


def test_what_is_planted_is_forecast_of_pairs_that_are_left_out() -> None:
    found = learn(planted(signal=0.6))
    assert (found.n_pairs, found.n_transfers) == (N_PAIRS, N_PAIRS * N_EACH)
    assert found.error < 0.08 < 0.18 < found.error_of_mean
    assert found.rank_correlation > 0.9
    assert found.coverage == pytest.approx(LEVEL, abs=0.04)
    strong = dict.fromkeys(FEATURES, 0.5) | {"auc": 0.9, "stitched": 0.1}
    estimate, low, high = found.forecast(strong)
    assert estimate == pytest.approx(0.5 + 0.6 * 0.8, abs=0.08)
    assert high - estimate == pytest.approx(estimate - low) == pytest.approx(found.half_width)


def test_features_that_tell_nothing_do_no_better_than_the_mean() -> None:
    found = learn(planted(signal=0.0, noise=0.3))
    assert found.error > 0.97 * found.error_of_mean
    assert abs(found.rank_correlation) < 0.25


def test_a_pair_is_left_out_whole() -> None:
    """What tells pairs apart, and nothing else, helps only where the pair itself has been seen."""
    transfers = [
        KnownTransfer(t.pair, {**t.features, "auc": float(int(t.pair.split()[1]) % 2)}, float(t.pair == "pair 3"))
        for t in planted(signal=0.0)
    ]
    x, y = table(transfers)
    of_others = Regression.fit(x[y == 0], y[y == 0])(x[y == 1])
    found = learn(transfers)
    others = [Regression.fit(x[~out], y[~out])(x[out]) for out in _pairs(transfers)]
    errors = torch.cat([(each - y[out]).abs() for each, out in zip(others, _pairs(transfers), strict=True)])
    assert found.error == pytest.approx(float(errors.mean()))
    assert torch.equal(of_others, torch.zeros_like(of_others))


def _pairs(transfers: list[KnownTransfer]) -> list[torch.Tensor]:
    names = [transfer.pair for transfer in transfers]
    return [torch.tensor([name == pair for name in names]) for pair in sorted(set(names))]


def test_a_feature_that_is_not_known_is_taken_at_its_mean() -> None:
    transfers = planted(signal=0.6)
    found = learn(transfers)
    features: dict[str, float | None] = dict(transfers[0].features)
    mean = float(np.mean([transfer.features["stitched"] for transfer in transfers]))
    assert found.forecast({**features, "stitched": None})[0] == pytest.approx(
        found.forecast({**features, "stitched": mean})[0]
    )
    without = [KnownTransfer(t.pair, {**t.features, "stitched": None}, t.recovery) for t in transfers]
    assert learn(without).regression.coefficients[FEATURES.index("stitched")] == 0
    some = [without[n] if n % 3 == 0 else transfer for n, transfer in enumerate(transfers)]
    assert learn(some).error < found.error_of_mean


def test_beyond_what_was_seen_is_said_and_goes_no_further() -> None:
    transfers = planted(signal=0.6)
    found = learn(transfers)
    assert found.extrapolates(transfers[0].features) == ()
    assert found.extrapolates(dict.fromkeys(FEATURES)) == ()
    most = max(transfer.features["auc"] or 0 for transfer in transfers)
    features = {**transfers[0].features, "auc": 50.0, "gain": 0.25}
    first, second = found.extrapolates(features)
    assert first == f"auc 50, over {most:.3g}"
    assert second == f"gain 0.25, under {found.ranges['gain'][0]:.3g}"
    assert found.forecast(features) == found.forecast({**features, "auc": most})


@pytest.mark.parametrize(("one", "other"), [([1, 2, 3, 4], [1, 3, 2, 9]), ([1, 1, 2, 2, 5], [0, 3, 3, 1, 3])])
def test_rank_correlation_is_spearmans(one: list[float], other: list[float]) -> None:
    wide = [torch.tensor(each, dtype=torch.float64) for each in (one, other)]
    assert rank_correlation(*wide) == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation(wide[0], torch.ones_like(wide[0])) == 0.0


def test_the_quantile_holds_a_further_error() -> None:
    errors = torch.rand(4000, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = [float(each[0]) <= conformal_quantile(each[1:]) for each in errors]
    assert np.mean(held) == pytest.approx(27 / 30, abs=0.015)
    assert conformal_quantile(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)) == 3.0


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LrtError, match="1 pairs of models are too few"):
        learn(planted(signal=0.5)[:N_EACH])
    path = tmp_path / "forecast.json"
    with pytest.raises(ArtifactError, match="does not hold transfers"):
        read_transfers(path)
    row = {"pair": "a|b", "features": [0.5] * len(FEATURES), "recovery": 0.5}
    whole = {"format_version": 1, "features": list(FEATURES), "transfers": [row]}
    path.write_text(json.dumps(whole))
    assert read_transfers(path) == [KnownTransfer("a|b", dict.fromkeys(FEATURES, 0.5), 0.5)]
    damaged: list[Any] = [
        {**whole, "format_version": 2},
        {**whole, "features": list(FEATURES[1:])},
        {**whole, "transfers": [{**row, "features": [0.5]}]},
        {**whole, "transfers": [{**row, "features": ["0.5"] * len(FEATURES)}]},
        {**whole, "transfers": [{**row, "recovery": None}]},
        {**whole, "transfers": [{**row, "recovery": float("nan")}]},
        {**whole, "transfers": [{**row, "pair": 3}]},
        [],
    ]
    for content in damaged:
        path.write_text(json.dumps(content))
        with pytest.raises(ArtifactError, match="does not hold transfers"):
            read_transfers(path)
