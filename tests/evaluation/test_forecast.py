"""What is known before the target is steered, on small random models: each figure beside where it comes from."""

import html
import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.fit import fit_affine_map
from lrt_tl.alignment.layer_search import LayerSearch
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.evaluation.comparability import effective_dimension, held_out_batches
from lrt_tl.evaluation.forecast import Forecast, forecast, forecasts
from lrt_tl.evaluation.forecasting import FEATURES, learnt
from lrt_tl.evaluation.middle import worth_in_the_middle
from lrt_tl.evaluation.stitched import correlation_along, mapped_states, r2_along, stitched_loss, token_share
from lrt_tl.identifiability.all_or_none import all_or_none
from lrt_tl.models.identity import site_of
from lrt_tl.steering.extraction import mean_difference
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import PAIRS
from tests.identifiability.planted import equal_pair


@pytest.fixture(scope="module")
def affine_map(bridges: tuple[Any, Any], texts: list[str]) -> AffineMap:
    return fit_affine_map(*bridges, texts, layers=((0, 1), 2))


@pytest.fixture(scope="module")
def vectors(bridges: tuple[Any, Any]) -> list[SteeringVector]:
    return mean_difference(bridges[0], PAIRS, layer=[0, 1])


@pytest.fixture(scope="module")
def found(bridges: Any, texts: list[str], affine_map: AffineMap, vectors: list[SteeringVector]) -> Forecast:
    return forecast(*bridges, texts, vectors, affine_map=affine_map)


def test_every_feature_is_what_it_is_called(
    found: Forecast, bridges: Any, texts: list[str], affine_map: AffineMap, vectors: list[SteeringVector]
) -> None:
    features, report = found.features, affine_map.report
    carried = affine_map.carried(torch.cat([vector.direction for vector in vectors]))
    assert carried is not None
    for name in ("determined", "gain", "predicted_cosine"):
        assert getattr(features, name) == getattr(carried, name)
    assert (features.test_r2, features.tokens_per_dimension) == (report.test_r2, report.tokens_per_dimension)
    assert (features.depth, features.depth_gap, features.layers_read) == pytest.approx((3 / 4, 3 / 4 - 2 / 3, 2 / 3))
    assert (features.same_architecture, features.same_tokenizer) == (0.0, 1.0)
    assert features.target_dimension == effective_dimension(affine_map.target_covariance)
    assert features.source_dimension == effective_dimension(affine_map.source_covariance)
    assert features.auc == max(vector.report.auc for vector in vectors)
    assert features.d_prime == max(vector.report.d_prime for vector in vectors)
    states = mapped_states(*bridges, affine_map, held_out_batches(*bridges, texts))
    image = affine_map.transport(vectors).direction
    assert features.stitched == stitched_loss(bridges[1], affine_map.target.hook_name, states).kept
    assert features.direction_r2 == r2_along(states, image)
    assert features.direction_correlation == correlation_along(states, image)
    assert features.token_share == token_share(states, image)
    unit, covariance = image / image.norm(), affine_map.target_covariance
    prominence = float(unit @ covariance @ unit) / float(covariance.diagonal().mean())
    assert features.prominence == pytest.approx(prominence, rel=1e-5)
    mean = torch.cat([each.own for each in states]).mean(0)
    assert features.mean_cosine == pytest.approx(abs(float(mean @ unit / mean.norm())), rel=1e-4)
    assert features.above_null is None


def test_the_map_predicts_along_a_direction_as_well_as_its_report_says(
    bridges: Any, texts: list[str], affine_map: AffineMap
) -> None:
    """R² of all directions together is their mean, weighted by how much the states vary along each."""
    states = mapped_states(*bridges, affine_map, held_out_batches(*bridges, texts, n_documents=10**6))
    own = torch.cat([each.own for each in states]).double()
    r2 = torch.tensor([r2_along(states, axis) for axis in torch.eye(24)], dtype=torch.float64)
    weights = own.var(0) / own.var(0).sum()
    assert float(weights @ r2) == pytest.approx(affine_map.report.test_r2, abs=1e-3)


def test_the_forecast_is_what_was_learnt(found: Forecast) -> None:
    forecaster = learnt()
    assert (found.estimate, found.low, found.high) == forecaster.forecast(asdict(found.features))
    assert found.low < found.estimate < found.high
    assert found.extrapolates == forecaster.extrapolates(asdict(found.features))
    assert found.unknown == ()
    assert (found.error, found.n_pairs) == (forecaster.error, forecaster.n_pairs)


def test_several_vectors_are_forecast_as_each_alone(
    found: Forecast, bridges: Any, texts: list[str], affine_map: AffineMap, vectors: list[SteeringVector]
) -> None:
    other = [-2.0 * vector for vector in reversed(vectors)]
    first, second = forecasts(*bridges, texts, [vectors, other], affine_map=affine_map)
    assert first == found
    assert second.features.direction_r2 == pytest.approx(found.features.direction_r2)
    assert second.features.auc is None
    assert "auc" in second.unknown
    assert second == forecast(*bridges, texts, other, affine_map=affine_map)


def test_without_a_map_one_is_fitted(bridges: Any, texts: list[str], vectors: list[SteeringVector]) -> None:
    fitted = fit_affine_map(*bridges, texts, layers=(1, 2))
    given = forecast(*bridges, texts, vectors[1], affine_map=fitted)
    assert forecast(*bridges, texts, vectors[1]) == given
    assert forecast(*bridges, texts, vectors[1], layer=2) == given
    assert forecast(*bridges, texts, vectors[1], layer=3).features.depth == 1.0


def test_a_search_of_layers_is_shown_and_not_learnt_from(
    found: Forecast, bridges: Any, texts: list[str], affine_map: AffineMap, vectors: list[SteeringVector]
) -> None:
    one = torch.ones(1, 1)
    search = LayerSearch("a", "b", (1,), (2,), one, one, one, 0.7, (0.1, 0.2), 100, 1000, None)
    searched = forecast(*bridges, texts, vectors, affine_map=affine_map, search=search)
    assert searched.features.above_null == pytest.approx(0.5)
    assert replace(searched, features=found.features) == found


def test_a_comparison_is_shown_and_not_learnt_from(
    found: Forecast, bridges: Any, texts: list[str], affine_map: AffineMap, vectors: list[SteeringVector]
) -> None:
    names = [model.cfg.model_name for model in bridges]
    predictors = [replace(each, name=name) for each, name in zip(equal_pair(), names, strict=True)]
    verdict = all_or_none(*predictors, {}, epsilon=1.0)
    compared = forecast(*bridges, texts, vectors, affine_map=affine_map, verdict=verdict)
    assert compared.distances == verdict.distance_features()
    assert replace(compared, distances=None) == found
    assert Forecast.from_json(json.loads(json.dumps(compared.to_json(), allow_nan=False))) == compared
    row = {row["feature"]: row for row in compared.rows()}["context worst r2"]
    assert (row["value"], row["learnt from"]) == (f"{verdict.distance_features()['context_worst_r2']:.3g}", "no")
    back = all_or_none(*reversed(predictors), {}, epsilon=1.0)
    with pytest.raises(MismatchError, match="in this order"):
        forecast(*bridges, texts, vectors, affine_map=affine_map, verdict=back)


def test_it_says_what_distances_told_of_the_middle(found: Forecast) -> None:
    worth, apart = worth_in_the_middle(), worth_in_the_middle(trained_apart=True)
    rows = {row["feature"].replace(" ", "_"): row["rank correlation with recovery"] for row in found.rows()}
    for name in ("divergence", "agreement", *FEATURES):
        assert rows[name] == worth[name].shown()
    assert rows["above_null"] == ""
    said = found.in_the_middle()
    for name in ("divergence", max(FEATURES, key=lambda name: abs(worth[name].estimate))):
        assert f"of {worth[name].shown()} over {worth[name].n_pairs} pairs of models" in said
        assert f"{apart[name].shown()} over the {apart[name].n_pairs} of them that were trained apart" in said
    assert said in html.unescape(found._repr_html_())


def test_it_shows_itself_and_comes_back_from_json(found: Forecast) -> None:
    assert Forecast.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    with pytest.raises(TypeError, match="error"):
        Forecast.from_json({**found.to_json(), "error": None})
    rows = {row["feature"]: row for row in found.rows()}
    assert rows["test r2"]["value"] == f"{found.features.test_r2:.3g}"
    assert rows["above null"]["note"] == "not known here"
    assert {row["feature"].replace(" ", "_") for row in found.rows() if row["learnt from"] == "yes"} == set(FEATURES)
    assert repr(found).startswith(f"Forecast({found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}], mean error")
    assert "test r2" in found._repr_html_()
    strange = replace(found, extrapolates=("gain 9, over 3",))
    assert str(strange).endswith("; it extrapolates: gain 9, over 3")
    assert {row["feature"]: row["note"] for row in strange.rows()}["gain"] == "extrapolates: gain 9, over 3"


def test_it_says_when_the_features_predict_nothing(found: Forecast) -> None:
    better = replace(found, error=0.1, error_of_mean=0.3, rank_correlation=0.77)
    assert better.predicts
    assert "mean error of 0.10 (the mean alone: 0.30) and a rank correlation of 0.77" in str(better)
    worse = replace(found, error=0.3, error_of_mean=0.3)
    assert not worse.predicts
    assert "the features predict nothing" in str(worse)


def test_what_is_refused(bridges: Any, texts: list[str], affine_map: AffineMap, vectors: list[SteeringVector]) -> None:
    source, target = bridges
    with pytest.raises(LrtError, match="no vector"):
        forecasts(source, target, texts, [], affine_map=affine_map)
    with pytest.raises(LrtError, match="layer=3 is of a map that is fitted here"):
        forecast(source, target, texts, vectors, affine_map=affine_map, layer=3)
    with pytest.raises(MismatchError):
        forecast(target, source, texts, vectors, affine_map=affine_map)
    with pytest.raises(MismatchError, match="the map's target"):
        forecast(source, source, texts, vectors, affine_map=affine_map)
    with pytest.raises(MismatchError, match="a vector at each"):
        forecast(source, target, texts, vectors[0], affine_map=affine_map)
    with pytest.raises(LrtError, match="no document is in the test split"):
        forecast(source, target, texts[:1], vectors, affine_map=affine_map)
    own = SteeringVector(torch.ones(24), site_of(target, layer=1))
    with own.apply(target), pytest.raises(LrtError, match="steer"):
        forecast(source, target, texts, vectors, affine_map=affine_map)
