"""Probes fitted to texts, against scikit-learn's own pipeline; thresholds, against a search of all of them."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.models.identity import site_of
from lrt_tl.steering.probe import Probe
from lrt_tl.steering.probing import best_threshold, choose_threshold, fit_probe
from lrt_tl.steering.states import text_states
from tests.unchecked import without_type_checks

LAYER, HOOK = 1, "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def some(texts: list[str]) -> list[str]:
    return texts[:60]


@pytest.fixture(scope="module")
def labels(some: list[str]) -> list[bool]:
    return ["word7" in text.split() or "word20" in text.split() for text in some]


def states_of(model: Any, texts: Sequence[str], position: Any) -> torch.Tensor:
    return text_states(model, texts, [HOOK], position=position, batch_size=7)[HOOK].states


@pytest.mark.parametrize("position", ["mean", "last", -2])
def test_it_is_scikit_learns_regression_on_standardized_states(
    bridges: Any, some: list[str], labels: list[bool], position: Any
) -> None:
    model = bridges[0]
    probe = fit_probe(model, some, labels, layer=LAYER, position=position)
    states = states_of(model, some, position)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(states.numpy(), labels)
    log_odds = oracle.decision_function(states.numpy())
    np.testing.assert_allclose(probe(states).numpy(), log_odds, atol=2e-3)
    said = np.array(log_odds > 0)
    fitted = probe.provenance["fitted_on"]
    assert fitted["auc"] == pytest.approx(roc_auc_score(labels, log_odds))
    assert fitted["accuracy"] == pytest.approx(np.mean(said == np.array(labels)))
    assert fitted["true_positive_rate"] == pytest.approx(said[labels].mean())
    assert (fitted["n"], fitted["n_positive"]) == (60, sum(labels))
    assert (probe.threshold, probe.position, probe.site) == (0.0, position, site_of(model, layer=LAYER))


def test_what_is_held_out_does_not_see_its_labels(bridges: Any, some: list[str]) -> None:
    """Labels of pure chance are learned by heart, and not a bit of them is predicted."""
    chance = np.random.default_rng(3).permutation(60) < 30
    probe = fit_probe(bridges[1], some, chance.tolist(), layer=LAYER)
    assert probe.provenance["fitted_on"]["auc"] > 0.8
    assert abs(probe.provenance["held_out"]["auc"] - 0.5) < 0.25


def test_what_is_told_by_one_word_is_predicted(bridges: Any) -> None:
    texts = [f"word{i} word{4 + i % 7} word{30 if i % 2 else 31}" for i in range(5, 29)]
    labels = [i % 2 for i in range(5, 29)]
    probe = fit_probe(bridges[0], texts, labels, layer=0, position="last")
    assert probe.provenance["held_out"]["accuracy"] == 1
    found = text_states(bridges[0], texts, [probe.site.hook_name], position="last")[probe.site.hook_name]
    assert (probe(found.states) > 0).tolist() == [bool(label) for label in labels]


def test_one_text_of_a_class_holds_out_nothing(bridges: Any, some: list[str]) -> None:
    probe = fit_probe(bridges[0], some[:5], [1, 0, 0, 0, 0], layer=LAYER)
    assert probe.provenance["held_out"] is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 0], "2 labels do not fit 3 texts"),
        ([1, 1, 1], "all 3 labels are True: texts of both classes are needed"),
        ([0, 0, 0], "all 3 labels are False"),
        ([1, 2, 0], r"labels are True or False, 1 or 0, and not \[2\]"),
    ],
    ids=str,
)
def test_labels_that_cannot_be_are_refused(bridges: Any, some: list[str], labels: list[int], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        fit_probe(bridges[0], some[:3], labels, layer=LAYER)


scores_and_labels = st.lists(st.tuples(st.integers(-6, 6), st.booleans()), min_size=2, max_size=14).filter(
    lambda rows: len({score for score, _ in rows}) > 1 and len({label for _, label in rows}) == 2
)


@settings(deadline=None, max_examples=300)
@given(scores_and_labels)
def test_no_threshold_does_better_and_of_equals_it_has_the_widest_gap(rows: list[tuple[int, bool]]) -> None:
    scores, truth = np.array([score for score, _ in rows], dtype=float), np.array([label for _, label in rows])
    found, informedness = best_threshold(scores, truth)
    distinct = sorted(set(scores))
    every = [((a + b) / 2, b - a) for a, b in pairwise(distinct)]
    j = {middle: (scores[truth] > middle).mean() - (scores[~truth] > middle).mean() for middle, _ in every}
    assert informedness == pytest.approx(max(j.values()))
    assert j[found] == pytest.approx(max(j.values()))
    widest = max(gap for middle, gap in every if j[middle] > max(j.values()) - 1e-9)
    assert dict(every)[found] == widest


def test_the_threshold_and_its_figures(bridges: Any, some: list[str], labels: list[bool]) -> None:
    model = bridges[0]
    fitted = replace(fit_probe(model, some, labels, layer=LAYER), threshold=99.0)
    probe = choose_threshold(fitted, model, some, labels, batch_size=9)
    scores, truth = fitted(states_of(model, some, "mean")).double().numpy(), np.array(labels)
    wanted, _ = best_threshold(scores, truth)
    assert probe.threshold == pytest.approx(wanted, abs=1e-4)
    said = scores > wanted
    assert probe.provenance["threshold_chosen_on"] == pytest.approx(
        {
            "auc": roc_auc_score(truth, scores),
            "accuracy": (said == truth).mean(),
            "true_positive_rate": said[truth].mean(),
            "false_positive_rate": said[~truth].mean(),
            "n": 60,
            "n_positive": truth.sum(),
        }
    )
    alone = []
    for index in range(60):
        rest = [other for other in range(60) if other != index]
        alone.append(scores[index] > best_threshold(scores[rest], truth[rest])[0])
    assert probe.provenance["held_out"]["accuracy"] == pytest.approx((np.array(alone) == truth).mean())
    assert torch.equal(probe.weight, fitted.weight)


def test_a_threshold_that_helps_nothing_is_refused(bridges: Any, some: list[str], labels: list[bool]) -> None:
    model = bridges[0]
    backwards = fit_probe(model, some[:8], [i < 4 for i in range(8)], layer=LAYER)
    with pytest.raises(LrtError, match=r"better than chance.*wrong way round"):
        choose_threshold(backwards, model, some[:8], [i >= 4 for i in range(8)])
    with pytest.raises(LrtError, match="the same score: no threshold"):
        choose_threshold(backwards, model, [some[0], some[0]], [0, 1])


def test_where_one_text_alone_differs_nothing_is_held_out(bridges: Any, some: list[str], labels: list[bool]) -> None:
    """Without it, the others score the same, and have no threshold."""
    model = bridges[0]
    probe = fit_probe(model, some, labels, layer=LAYER)
    low, high = sorted(some[:2], key=lambda text: float(probe(states_of(model, [text], "mean"))[0]))
    chosen = choose_threshold(probe, model, [low, low, low, high], [0, 0, 1, 1])
    assert chosen.provenance["held_out"] is None
    assert chosen.provenance["threshold_chosen_on"]["accuracy"] == 0.75


def test_a_probe_of_another_model_is_refused(bridges: Any, some: list[str], labels: list[bool]) -> None:
    probe = fit_probe(bridges[0], some, labels, layer=LAYER)
    with pytest.raises(MismatchError, match="the probe belongs to small; this model, large, differs"):
        choose_threshold(probe, bridges[1], some, labels)
    unknown = Probe(torch.ones(16), 0.0, 0.0, replace(probe.site, model=None, hook_name="blocks.9.hook_resid_post"))
    with without_type_checks(), pytest.raises(LrtError):
        choose_threshold(unknown, bridges[0], some, labels)
