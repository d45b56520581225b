"""The report on held-out pairs, against loops, closed forms and scikit-learn."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from lrt_tl.models.identity import Site
from lrt_tl.steering.contrast import ContrastPair, data_hash
from lrt_tl.steering.estimators import linear_discriminant, mean_difference, pca_of_differences
from lrt_tl.steering.separation import ExtractionReport, agreement, d_prime, report_separation
from tests.steering.test_estimators import planted

SITE = Site("blocks.1.hook_resid_post", 7)


def pairs_of(n: int) -> list[ContrastPair]:
    return [ContrastPair(f"good {number}", f"bad {number}") for number in range(n)]


def report_of(estimator: Any, positive: Tensor, negative: Tensor, pairs: Any = None) -> ExtractionReport:
    pairs = pairs_of(len(positive)) if pairs is None else pairs
    return report_separation(estimator, positive, negative, pairs, site=SITE, position="mean")


@pytest.mark.parametrize("n", [4, 5, 23])
def test_against_a_loop_over_folds(n: int) -> None:
    positive, negative = (states.numpy() for states in planted(n, 7, seed=3))
    positive, negative = 0.05 * positive + np.random.default_rng(0).normal(size=positive.shape), 0.05 * negative
    scores: list[tuple[float, float]] = []
    folds = [range(fold, n, min(5, n)) for fold in range(min(5, n))]
    by_pair = {}
    for fold in folds:
        kept = [number for number in range(n) if number not in fold]
        above, below = positive[kept].mean(0), negative[kept].mean(0)
        unit = (above - below) / np.linalg.norm(above - below)
        for number in fold:
            by_pair[number] = [(states[number] - (above + below) / 2) @ unit for states in (positive, negative)]
    scores = [(float(high), float(low)) for high, low in (by_pair[number] for number in range(n))]
    highs, lows = (np.array(side) for side in zip(*scores, strict=True))
    report = report_of(mean_difference, torch.from_numpy(positive), torch.from_numpy(negative))
    wins = sum((high > low) + (high == low) / 2 for high in highs for low in lows) / n**2
    assert report.auc == pytest.approx(wins)
    assert report.auc == pytest.approx(roc_auc_score([1] * n + [0] * n, [*highs, *lows]))
    assert report.accuracy == pytest.approx((np.sum(highs > 0) + np.sum(lows < 0)) / (2 * n))
    pooled = math.sqrt((highs.var(ddof=1) + lows.var(ddof=1)) / 2)
    assert report.d_prime == pytest.approx((highs.mean() - lows.mean()) / pooled)
    assert (report.n_pairs, report.method, report.hook_name) == (n, "mean_difference", SITE.hook_name)
    assert report.data == data_hash(pairs_of(n))


def test_d_prime_of_known_scores() -> None:
    """Means 2 apart, variances 1 and 4."""
    positive, negative = torch.tensor([2.0, 3.0, 4.0]), torch.tensor([-1.0, 1.0, 3.0])
    assert d_prime(positive.double(), negative.double()) == pytest.approx(2 / math.sqrt(2.5))
    assert d_prime(torch.ones(3).double(), torch.zeros(3).double()) is None


def test_agreement_is_the_mean_cosine_of_two_pairs() -> None:
    differences = planted(9, 5)[0]
    differences[4] = 0
    cosines = [
        float(torch.nn.functional.cosine_similarity(one, other, dim=0))
        for i, one in enumerate(differences)
        for j, other in enumerate(differences)
        if i != j
    ]
    assert agreement(differences) == pytest.approx(sum(cosines) / len(cosines))
    assert agreement(torch.eye(4).double()) == pytest.approx(0)
    assert agreement(torch.ones(4, 3).double()) == pytest.approx(1)
    assert agreement(torch.ones(1, 3).double()) is None


def test_noise_is_told_apart_where_the_vector_was_found_and_nowhere_else() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negative = torch.randn(2, 150, 120, generator=generator, dtype=torch.float64)
    unit = mean_difference(positive, negative)
    seen = roc_auc_score([1] * 150 + [0] * 150, torch.cat([positive, negative]) @ unit)
    assert seen > 0.8
    for estimator in (mean_difference, linear_discriminant):
        report = report_of(estimator, positive, negative)
        assert report.auc == pytest.approx(0.5, abs=0.1)
        assert report.d_prime == pytest.approx(0, abs=0.4)


def test_pairs_that_share_a_text_are_never_on_both_sides_of_a_fold() -> None:
    """0–1 and 1–5 share one, so that all three are one group."""
    pairs = pairs_of(9)
    pairs[1] = ContrastPair("good 0", "bad 1")
    pairs[5] = ContrastPair("bad 1", "good 5")
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.positive, pair.negative)))
    states = {text: torch.eye(len(texts), dtype=torch.float64)[number] for number, text in enumerate(texts)}
    positive, negative = (
        torch.stack([states[getattr(pair, side)] for pair in pairs]) for side in ("positive", "negative")
    )
    fitted_on = []

    def spy(positive: Tensor, negative: Tensor) -> Tensor:
        fitted_on.append((positive + negative).sum(0) > 0)
        return mean_difference(positive, negative)

    assert report_of(spy, positive, negative, pairs).auc is not None
    assert len(fitted_on) == 5
    for seen in fitted_on:
        for pair, high, low in zip(pairs, positive, negative, strict=True):
            used = bool((high @ seen.double()) > 0), bool((low @ seen.double()) > 0)
            assert used in ((True, True), (False, False)), pair
        assert not seen.all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_pairs_are_said_to_be(n: int) -> None:
    report = report_of(mean_difference, *planted(n, 5))
    assert (report.auc, report.d_prime, report.accuracy) == (None, None, None)
    assert report.summary()["AUC on held-out pairs"].startswith("none: it takes 4 pairs that share no text")
    assert (report.agreement is None) == (n == 1)


def test_pairs_with_one_negative_text_are_one_group() -> None:
    pairs = [ContrastPair(f"good {number}", "bad") for number in range(9)]
    assert report_of(mean_difference, *planted(9, 5), pairs).auc is None


def test_no_figures_where_the_others_give_no_direction() -> None:
    positive = torch.tensor([[1.0], [1.0], [1.0], [2.0]], dtype=torch.float64)
    report = report_of(mean_difference, positive, torch.ones_like(positive))
    assert report.auc is None
    assert report_of(linear_discriminant, positive, torch.ones_like(positive)).auc is None


def test_it_is_kept_and_shown() -> None:
    report = report_of(pca_of_differences, *planted(12, 7))
    assert ExtractionReport.from_json(json.loads(json.dumps(report.to_json()))) == report
    assert "\n" not in repr(report)
    assert repr(report).startswith("ExtractionReport(pca_of_differences of 12 pairs at ")
    html = report._repr_html_()
    assert "AUC on held-out pairs" in html
    assert f"{report.auc:.3f}" in html
