"""Maps of more and more of a text, against maps fitted on just so much of it."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.fit import fit_affine_map, prepare
from lrt_tl.alignment.learning_curve import LearningCurve, learning_curve
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.models.identity import site_of
from lrt_tl.steering.vector import SteeringVector

LAYERS = ((0, 1), 2)


@pytest.fixture(scope="module")
def vectors(bridges: tuple[Any, Any]) -> list[SteeringVector]:
    generator = torch.Generator().manual_seed(0)
    return [SteeringVector(torch.randn(16, generator=generator), site_of(bridges[0], layer=layer)) for layer in (1, 0)]


@pytest.fixture(scope="module")
def curve(bridges: tuple[Any, Any], texts: list[str], vectors: list[SteeringVector]) -> LearningCurve:
    return learning_curve(*bridges, texts, layers=LAYERS, vector=vectors, batch_size=4, method="ridge")


def test_it_ends_with_the_map_of_the_whole_text(
    curve: LearningCurve, bridges: tuple[Any, Any], texts: list[str]
) -> None:
    whole = fit_affine_map(*bridges, texts, layers=LAYERS, batch_size=4, method="ridge")
    assert curve.positions[-1] == whole.report.tokens
    # The batches are others (documents in their order), and so is the rounding of their float32 products.
    assert curve.test_r2[-1] == pytest.approx(whole.report.test_r2, abs=1e-6)
    assert curve.cv_r2[-1] == pytest.approx(whole.report.cv_r2, abs=1e-6)


def test_positions_double(curve: LearningCurve) -> None:
    """The first where every fold has a text; then at doubles of 64, twice the source's dimensions; a batch has up to
    4 × 29."""
    at = [max(2**k * 64 for k in range(9) if 2**k * 64 <= positions) for positions in curve.positions[:-1]]
    assert all(positions < start + 4 * 29 for positions, start in zip(curve.positions[1:], at[1:], strict=False))
    assert at[1:] == [2 * start for start in at[:-1]]
    assert len(curve.positions) >= 4


def test_each_map_is_that_of_the_text_so_far(
    curve: LearningCurve, bridges: tuple[Any, Any], texts: list[str], vectors: list[SteeringVector]
) -> None:
    """Refitted from the states of the first batches, kept whole."""
    harvest = prepare(*bridges, texts, layers=LAYERS, batch_size=4, sorted_together=1)[0]
    batches = list(harvest.run(harvest.calibrate(), HarvestCounts()))
    x = torch.cat([torch.cat([batch.states[key] for key in harvest.keys[0]], 1) for batch in batches]).double()
    y = torch.cat([batch.states[harvest.keys[1][0]] for batch in batches]).double()
    splits = torch.cat([batch.splits for batch in batches])
    v = torch.cat([vectors[1].direction, vectors[0].direction]).double()
    carried = []
    for number in (2, -1):  # the third map, and the last
        train = (splits < 5).nonzero().squeeze(1)[: curve.positions[number]]
        a, b = x[train], y[train]
        test_x, test_y = x[splits == 6], y[splits == 6]
        scored = []
        for relative in [10.0**exponent for exponent in range(-8, 3)]:
            inner = (a - a.mean(0)).T @ (a - a.mean(0))
            penalty = relative * len(a) * float((inner.diagonal() / len(a)).mean())
            weight = torch.linalg.solve(inner + penalty * torch.eye(32), (a - a.mean(0)).T @ (b - b.mean(0)))
            error = (test_x - a.mean(0)) @ weight + b.mean(0) - test_y
            r2 = 1 - float(error.square().sum() / (test_y - test_y.mean(0)).square().sum())
            scored.append((abs(r2 - curve.test_r2[number]), weight.T @ v))
        assert min(scored, key=lambda each: each[0])[0] < 1e-5  # one of the candidates, which cross-validation chose
        carried.append(min(scored, key=lambda each: each[0])[1])
    assert curve.cosines is not None
    assert curve.norms is not None
    assert curve.cosines[2] == pytest.approx(float(cosine_similarity(carried[0], carried[1], dim=0)), abs=1e-4)
    assert curve.norms[2] == pytest.approx(float(carried[0].norm() / carried[1].norm()), rel=1e-3)
    assert (curve.cosines[-1], curve.norms[-1]) == (pytest.approx(1), pytest.approx(1))


def test_it_shows_what_it_found(curve: LearningCurve, bridges: tuple[Any, Any], texts: list[str]) -> None:
    assert curve.rows()[0]["positions"] == f"{curve.positions[0]:,}"
    assert [trace.name for trace in curve.figure().data][-1] == "cosine with the last vector"
    assert f"{curve.positions[-1]:,}" in curve._repr_html_()
    without = learning_curve(*bridges, texts, layers=(1, 2))
    assert (without.cosines, without.norms) == (None, None)
    assert list(without.rows()[0]) == ["positions", "R² on test documents", "R² in cross-validation"]


def test_what_has_no_curve_is_refused(
    bridges: tuple[Any, Any], texts: list[str], vectors: list[SteeringVector]
) -> None:
    with pytest.raises(LrtError, match="of one target layer, not 2"):
        learning_curve(*bridges, texts, layers=(1, (1, 2)))
    with pytest.raises(LrtError, match="cannot determine a map of 16 source dimensions"):
        learning_curve(*bridges, [text[:20] for text in texts[:8]], layers=(1, 2))
    with pytest.raises(MismatchError, match="the map begins at"):
        learning_curve(*bridges, texts, layers=(2, 2), vector=vectors[0])
