"""A real pair of models, where it is at hand: the figures that an independent script found on it.

That script used plain transformers, its own splits and a fixed ridge; the bands are what such differences make.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.fit import fit_affine_map, solve
from lrt_tl.alignment.harvest import Harvest
from lrt_tl.alignment.moments import Moments, fit_pairs
from lrt_tl.evaluation.evaluate import TransferResult, evaluate_transfer
from lrt_tl.models.identity import site_of
from lrt_tl.models.loading import load_model
from lrt_tl.steering.contrast import read_contrast_pairs
from lrt_tl.steering.extraction import mean_difference
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.text.documents import N_SPLITS, read_documents
from tests.checkpoints import REVIEWS, hooked_only, needs_reviews

pytestmark = needs_reviews


@dataclass(frozen=True)
class Expected:
    r2: float
    cosine: float
    norm_ratio: float
    source_slope: float
    native_slope: float
    transferred_slope: float
    recovery: float


EXPECTED = {
    ("sentiment", "small", "large"): Expected(0.580, 0.903, 0.825, 0.0537, 0.0698, 0.0416, 0.61),
    ("subjectivity", "small", "large"): Expected(0.580, 0.959, 0.787, 0.646, 0.575, 0.567, 0.99),
    ("sentiment", "large", "small"): Expected(0.717, 0.956, 0.917, 0.0698, 0.0537, 0.0436, 0.80),
}
LAYERS = {"small": 2, "large": 3}
BEHAVIORS = ("sentiment", "subjectivity")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: load_model(REVIEWS / name) for name in LAYERS}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [document.text for document in read_documents(REVIEWS / "documents.jsonl")][:250]


@pytest.fixture(scope="module")
def maps(models: dict[str, Any], texts: list[str]) -> dict[tuple[str, str], AffineMap]:
    """Both directions, from one pass over the text."""
    small, large = (site_of(models[name], layer=layer) for name, layer in LAYERS.items())
    hooks = (small.hook_name,), (large.hook_name,)
    harvest = Harvest(models["small"], models["large"], *hooks, read_documents(texts), context_length=128)
    calibration, counts = harvest.calibrate(), HarvestCounts()
    one, other = calibration.means
    moments = Moments.empty(N_SPLITS, calibration.means, fit_pairs([one], [other]))
    for found in harvest.run(calibration, counts):
        moments.update(found.states, found.splits)
    return {
        ("small", "large"): solve(moments.between([one], other), [small], large, counts, method="ridge"),
        ("large", "small"): solve(moments.between([other], one), [large], small, counts, method="ridge"),
    }


@pytest.fixture(scope="module")
def vectors(models: dict[str, Any]) -> dict[tuple[str, str], SteeringVector]:
    return {(name, behavior): _vector(models[name], name, behavior) for name in LAYERS for behavior in BEHAVIORS}


@pytest.fixture(scope="module", params=list(EXPECTED), ids="-".join)
def measured(
    request: pytest.FixtureRequest,
    models: dict[str, Any],
    maps: dict[tuple[str, str], AffineMap],
    vectors: dict[tuple[str, str], SteeringVector],
) -> tuple[Expected, AffineMap, TransferResult]:
    behavior, source, target = request.param
    affine_map = maps[source, target]
    own, native = vectors[source, behavior], vectors[target, behavior]
    result = evaluate_transfer(
        models[target],
        affine_map.transport(own),
        REVIEWS / f"behavior-{behavior}.json",
        native=native,
        affine_map=affine_map,
        source=(models[source], own),
    )
    return EXPECTED[request.param], affine_map, result


def _vector(model: Any, name: str, behavior: str, n_pairs: int | None = None) -> SteeringVector:
    pairs = read_contrast_pairs(REVIEWS / f"contrast-{behavior}.jsonl")[:n_pairs]
    return mean_difference(model, pairs, layer=LAYERS[name])


def test_the_figures_are_reproduced(measured: tuple[Expected, AffineMap, TransferResult]) -> None:
    expected, affine_map, result = measured
    assert affine_map.report.test_r2 == pytest.approx(expected.r2, abs=0.03)
    assert result.cosine_with_native == pytest.approx(expected.cosine, abs=0.03)
    assert result.norm_over_native == pytest.approx(expected.norm_ratio, abs=0.03)
    assert result.slope("source_native") == pytest.approx(expected.source_slope, rel=0.02)
    assert result.slope("native") == pytest.approx(expected.native_slope, rel=0.02)
    assert result.slope("transferred") == pytest.approx(expected.transferred_slope, rel=0.08)
    assert result.recovery.estimate == pytest.approx(expected.recovery, abs=0.08)


def test_the_nulls_do_nothing_on_average(measured: tuple[Expected, AffineMap, TransferResult]) -> None:
    result = measured[2]
    for name in ("random", "shuffled_map"):
        draws = result.control_slopes(name)
        assert len(draws) == 64
        assert abs(float(draws.mean())) < 2 * float(draws.std()) / 8


@hooked_only
def test_both_classes_agree(models: dict[str, Any], texts: list[str]) -> None:
    hooked = {name: load_model(REVIEWS / name, model_class="hooked") for name in LAYERS}
    results = []
    for pair in (models, hooked):
        affine_map = fit_affine_map(
            pair["small"], pair["large"], texts[:80], layers=(2, 3), context_length=128, relative_ridges=(1e-3,)
        )
        own, native = (_vector(pair[name], name, "sentiment", n_pairs=100) for name in LAYERS)
        carried = affine_map.transport(own)
        measured = evaluate_transfer(
            pair["large"], carried, REVIEWS / "behavior-sentiment.json", native=native, n_draws=19
        )
        results.append((affine_map, carried, native, measured))
    (map_a, *vectors_a, a), (map_b, *vectors_b, b) = results
    assert map_a.report.test_r2 == pytest.approx(map_b.report.test_r2, abs=1e-3)
    torch.testing.assert_close(map_a.weight, map_b.weight, rtol=0, atol=1e-3 * float(map_a.weight.abs().max()))
    for ours, theirs in zip(vectors_a, vectors_b, strict=True):
        torch.testing.assert_close(ours.direction, theirs.direction, rtol=0, atol=1e-3)
    assert a.slope("transferred") == pytest.approx(b.slope("transferred"), abs=1e-3)
    assert a.recovery.estimate == pytest.approx(b.recovery.estimate, abs=1e-3)
    with vectors_a[0].apply(hooked["large"], 1.0):  # a vector made on one class is at home in the other
        pass
