"""Twins: what is in the effective subspaces is shared, what is planted in the junk is one model's own."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.all_or_none import all_or_none
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.parallelism import parallelism
from lrt_tl.identifiability.properties.relations import relational_linearity
from lrt_tl.identifiability.properties.scores import Property, PropertyScores, Score
from lrt_tl.identifiability.verdict import Verdict
from lrt_tl.identifiability.wider import widen_predictor
from tests.identifiability.canonical import CONTEXTS, TOKENS, normal, planted
from tests.identifiability.properties.test_relations import FACTS, related

SHARED = torch.tensor([[20, 30], [21, 31], [22, 32], [23, 33], [24, 34], [25, 35]])
PLANTED = torch.tensor([[40, 50], [41, 51], [42, 52], [43, 53], [44, 54], [45, 55]])
ABSENT = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]])
PROPERTIES: dict[str, Property] = {
    "parallel": partial(parallelism, pairs=SHARED),
    "planted": partial(parallelism, pairs=PLANTED),
    "absent": partial(parallelism, pairs=ABSENT),
    "relation": partial(relational_linearity, facts=FACTS),
}


def whole() -> Predictor:
    """Relational, and with pairs that are parallel."""
    psi = normal(TOKENS, 6, seed=1)
    psi[SHARED[:, 1]] = psi[SHARED[:, 0]] + 2 * normal(6, seed=2) + 0.2 * normal(6, 6, seed=3)
    return planted(phi=related(noise=0.3).f, psi=psi)


def junk_of_tokens() -> torch.Tensor:
    """In which the planted pairs are parallel."""
    w = normal(TOKENS, 4, seed=4)
    w[PLANTED[:, 1]] = w[PLANTED[:, 0]] + 20 * torch.tensor([1.0, 0, 0, 0]).double()
    return w


@pytest.fixture(scope="module")
def twins() -> Verdict:
    first = widen_predictor(whole(), 14, junk_f=normal(CONTEXTS, 2, seed=5), junk_g=junk_of_tokens(), seed=6)
    second = widen_predictor(whole(), 10, junk_f=normal(CONTEXTS, 3, seed=7), seed=8)
    return all_or_none(first, second, PROPERTIES, epsilon=1e-6)


def test_twins(twins: Verdict) -> None:
    assert twins.premise
    assert {name: found.answer for name, found in twins.properties.items()} == {
        "parallel": "shared",
        "planted": "model-specific",
        "absent": "neither",
        "relation": "shared",
    }
    assert twins.properties["planted"].reason.endswith("in the first")
    for found in twins.properties.values():
        one, other = (scores.effective.estimate for scores in found.scores)
        assert one == pytest.approx(other, abs=1e-6)


def noisy(scale: float) -> Predictor:
    predictor = whole()
    return planted(phi=predictor.f + scale * normal(*predictor.f.shape, seed=9), psi=predictor.g)


def test_where_the_distributions_differ_nothing_is_shared() -> None:
    found = all_or_none(whole(), noisy(0.5), PROPERTIES, epsilon=1e-2)
    assert not found.premise
    assert found.against[0].startswith("not shown to be equal: mean KL")
    assert {each.answer for each in found.properties.values()} == {"undetermined"}
    assert all(each.scores[0].effective.estimate for each in found.properties.values())  # measured all the same


def test_a_small_distance_is_not_enough_where_a_direction_is_lost() -> None:
    """A direction along which hardly anything varies is noise in the other: the KL is under ε all the same."""
    phi, psi = whole().f.clone(), whole().g
    phi[:, 0] *= 1e-3
    other = phi.clone()
    other[:, 0] = 1e-3 * normal(CONTEXTS, seed=1)
    found = all_or_none(planted(phi, psi), planted(other, psi), {"relation": PROPERTIES["relation"]}, epsilon=1e-2)
    assert found.equality.equal
    assert "the worst direction of contexts has a held-out R² of" in found.against[0]
    assert found.properties["relation"].answer == "undetermined"


def test_opposite_turns_of_contexts_and_tokens_fail() -> None:
    turn = torch.linalg.qr(normal(6, 6, seed=3)).Q
    found = all_or_none(whole(), planted(whole().f @ turn, whole().g @ turn.T), {}, epsilon=100.0)
    assert found.equality.equal  # at an ε that lets anything pass
    assert any("the duality's residual is" in reason for reason in found.against)
    assert not found.premise


def test_how_a_verdict_shows(twins: Verdict) -> None:
    told = "one distribution; of 4 properties 2 shared, 1 model-specific, 1 neither"
    assert repr(twins) == f"Verdict(planted, widened to 14 and planted, widened to 10: {told})"
    saved = json.loads(json.dumps(twins.to_json(), allow_nan=False))
    assert saved["properties"]["planted"]["verdict"] == "model-specific"
    assert saved["premise"] is True
    assert [row["verdict"] for row in twins.rows()][:3] == ["shared", "model-specific", "neither"]
    assert twins.summary()["premise"] == "one distribution"
    assert "<table" in twins._repr_html_()
    assert len(twins.figure().data) == 4
    assert twins.distance_features()["context_worst_r2"] == pytest.approx(1)


def test_infinite_divergences_are_null_in_json(twins: Verdict) -> None:
    endless = replace(twins.equality, upper=math.inf)
    saved = json.dumps(replace(twins, equality=endless).to_json(), allow_nan=False)
    assert json.loads(saved)["equality"]["upper"] is None
    assert "at most anything" in str(endless)


def test_what_is_weak_is_not_model_specific() -> None:
    """It stands out from its null in one of two coordinates, by little: where nothing lies outside, and where junk."""
    low, high = Score(0.05, 0.01, 0.1, 0.0), Score(0.02, -0.01, 0.05, 0.0)
    weak: dict[str, Property] = {"weak": lambda predictor, found: PropertyScores(raw=low, effective=high)}
    clear: dict[str, Property] = {
        "clear": lambda predictor, found: PropertyScores(raw=Score(0.9, 0.8, 1.0, 0.1), effective=high)
    }
    wide = widen_predictor(whole(), 10, junk_f=normal(CONTEXTS, 2, seed=5))
    for first in (whole(), wide):
        found = all_or_none(first, whole(), weak, epsilon=1e-6).properties["weak"]
        assert found.answer == "neither"
        assert "by too little to differ from its effective score" in found.reason
    assert all_or_none(wide, whole(), clear, epsilon=1e-6).properties["clear"].reason.endswith("in the first")
    assert all_or_none(whole(), whole(), clear, epsilon=1e-6).properties["clear"].answer == "neither"


def test_distances_are_of_the_documents_and_properties_of_what_is_added() -> None:
    first, added = whole(), normal(20, 6, seed=3)
    more = replace(first, f=torch.cat([first.f, added]), documents=torch.arange(len(first.f) + 20))
    sides = {"side": (torch.arange(CONTEXTS, CONTEXTS + 10), torch.arange(CONTEXTS + 10, CONTEXTS + 20))}
    found = all_or_none(first, first, {}, contrasts=sides, extended=(more, more))
    assert len(found.distances.kl) == CONTEXTS
    assert found.steering_mismatch["side"] == pytest.approx((0, 0), abs=1e-9)


def test_a_property_that_cannot_be_measured_is_named() -> None:
    measures: dict[str, Property] = {
        "one pair": partial(parallelism, pairs=SHARED[:1]),
        "parallel": PROPERTIES["parallel"],
    }
    found = all_or_none(whole(), whole(), measures, epsilon=1e-6)
    assert list(found.properties) == ["parallel"]
    assert found.missing == {"one pair": "1 pairs of tokens: parallelism compares two or more"}


def test_steering_is_carried_both_ways() -> None:
    """Exactly between twins; not at all to a predictor whose contexts are others."""
    sides = {"side": (torch.arange(0, 40), torch.arange(40, 80))}
    twin = widen_predictor(whole(), 14, junk_f=normal(CONTEXTS, 2, seed=5), junk_g=junk_of_tokens(), seed=6)
    assert all_or_none(whole(), twin, {}, contrasts=sides).steering_mismatch["side"] == pytest.approx((0, 0), abs=1e-9)
    other = planted(phi=normal(*whole().f.shape, seed=11), psi=normal(*whole().g.shape, seed=12))
    assert min(all_or_none(whole(), other, {}, contrasts=sides).steering_mismatch["side"]) > 0.8


@pytest.mark.parametrize("options", [{"least_r2": 1.0}, {"agreement": 0.0}, {"most_duality": 0.0}])
def test_thresholds_that_allow_nothing(options: dict[str, float]) -> None:
    with pytest.raises(LrtError, match="they allow nothing"):
        all_or_none(whole(), whole(), {}, epsilon=1e-3, **options)
