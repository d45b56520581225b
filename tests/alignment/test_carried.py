"""How well a map carries a direction, against closed forms and planted truth."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.carried import Carried
from lrt_tl.models.identity import Site
from lrt_tl.steering.vector import SteeringVector
from tests.alignment.test_affine_map import REPORT, affine_map, vector

VARIANCES = torch.tensor([100.0, 4.0, 1e-3, 0.0])


def rotation(d: int, *, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


def planted(weight: Tensor, **changes: Any) -> AffineMap:
    """A map of a source that varies by `VARIANCES` along the columns of `rotation(4)`; its penalty is 0.1."""
    turned = rotation(4)
    settings = {
        "weight": weight.float(),
        "bias": torch.zeros(len(weight)),
        "sources": (Site("blocks.1.hook_resid_post", 4),),
        "target": Site("blocks.0.hook_resid_post", len(weight)),
        "target_covariance": torch.eye(len(weight)) * 3,
        "report": replace(REPORT, relative_ridge=0.1 / float(VARIANCES.mean()), test_r2=0.75),
        "source_covariance": ((turned * VARIANCES) @ turned.T).float(),
    }
    return affine_map(**{**settings, **changes})


@pytest.mark.parametrize(("direction", "share"), [(0, 1.0), (1, 1.0), (2, 0.0), (3, 0.0)])
def test_directions_that_varied_are_determined_and_others_are_not(direction: int, share: float) -> None:
    carried = planted(torch.eye(4)).carried(rotation(4)[:, direction].float())
    assert carried is not None
    assert carried.determined == pytest.approx(share, abs=1e-5)


def test_the_share_is_of_the_squared_length() -> None:
    mixed = (3 * rotation(4)[:, 0] + 4 * rotation(4)[:, 2]).float()
    carried = planted(torch.eye(4)).carried(mixed)
    assert carried is not None
    assert carried.determined == pytest.approx(9 / 25, abs=1e-5)


@pytest.mark.parametrize("relative_ridge", [None, 1e-12])
def test_without_a_penalty_the_noise_floor_decides(relative_ridge: float | None) -> None:
    """1e-3 is above 1e-7 of 100, and 0 is not."""
    report = replace(REPORT, relative_ridge=relative_ridge)
    for direction, share in ((2, 1.0), (3, 0.0)):
        carried = planted(torch.eye(4), report=report).carried(rotation(4)[:, direction].float())
        assert carried is not None
        assert carried.determined == pytest.approx(share, abs=1e-3)


def test_the_gain_is_one_for_the_typical_difference() -> None:
    """On average over differences of states, whatever the map."""
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    fitted = planted(weight)
    turned = rotation(4)
    states = torch.randn(4000, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    states = states * VARIANCES.sqrt() @ turned.T
    typical = (states @ weight.double().T).square().sum().sqrt() / states.square().sum().sqrt()
    direction = torch.tensor([1.0, -2.0, 0.5, 3.0])
    carried = fitted.carried(direction)
    assert carried is not None
    assert carried.gain == pytest.approx(float((weight @ direction).norm() / direction.norm() / typical), rel=0.05)
    assert planted(5 * weight).carried(direction).gain == pytest.approx(carried.gain)  # type: ignore[union-attr]


def test_the_predicted_cosine_is_that_of_a_native_vector_that_differs_as_much_where_the_map_does_not_see() -> None:
    """Natives drawn as the prediction supposes: Av and a part of covariance (m²/d) Σ, m the Mahalanobis length of v."""
    d_source, d_target, r2 = 40, 400, 0.7
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(d_target, d_source, generator=generator)
    variances = torch.linspace(0.5, 2, d_source)
    report = replace(REPORT, relative_ridge=None, test_r2=r2)
    fitted = affine_map(
        weight=weight,
        bias=torch.zeros(d_target),
        sources=(Site("blocks.1.hook_resid_post", d_source),),
        target=Site("blocks.0.hook_resid_post", d_target),
        target_covariance=torch.eye(d_target) * 50,
        report=report,
        source_covariance=variances.diag(),
    )
    direction = torch.randn(d_source, generator=generator)
    unseen = (1 - r2) * 50 * (direction.square() / variances).sum() / d_source
    image = weight @ direction
    natives = image + unseen.sqrt() * torch.randn(200, d_target, generator=generator)
    carried = fitted.carried(direction)
    assert carried is not None
    assert 0.3 < carried.predicted_cosine < 0.95
    measured = float(torch.cosine_similarity(natives, image[None]).mean())
    assert carried.predicted_cosine == pytest.approx(measured, abs=0.01)


def test_vectors_of_several_sources_are_judged_together() -> None:
    below = Site("blocks.0.hook_resid_post", 2)
    at = Site("blocks.1.hook_resid_post", 2)
    fitted = planted(torch.eye(4), sources=(below, at), source_covariance=VARIANCES.diag())
    known = SteeringVector(torch.tensor([3.0, 0.0]), below)
    unknown = SteeringVector(torch.tensor([4.0, 0.0]), at)
    with pytest.warns(UserWarning, match="only 36% of the vector lies in directions in which the source varied"):
        carried = fitted.transport([unknown, known])
    assert carried.provenance["carried"]["determined"] == pytest.approx(9 / 25)


def test_a_vector_in_directions_that_the_map_does_not_know_is_warned_of_once() -> None:
    fitted = planted(torch.eye(4))
    with pytest.warns(UserWarning, match="only 0% of the vector lies in directions") as caught:
        fitted.transport(SteeringVector(rotation(4)[:, 2].float(), fitted.source))
    assert len(caught) == 1
    fitted.transport(SteeringVector(rotation(4)[:, 1].float(), fitted.source))


def test_a_map_of_too_low_a_rank_is_warned_of() -> None:
    turned = rotation(4)
    rank_one = turned[:, :1] @ turned[:, :1].T
    lost = (turned[:, 1] + 0.01 * turned[:, 0]).float()
    fitted = planted(rank_one)
    with pytest.warns(UserWarning, match="carries next to nothing of the vector: it makes it 0.01 times as long"):
        fitted.transport(SteeringVector(lost, fitted.source))


def test_without_the_sources_covariance_nothing_is_known() -> None:
    unknown = affine_map(source_covariance=None)
    assert unknown.carried(vector().direction) is None
    assert unknown.transport(vector()).provenance["carried"] is None


def test_how_it_shows() -> None:
    shown = Carried(determined=0.36, gain=1.25, predicted_cosine=0.914)
    assert list(shown.summary().values()) == ["36%", "1.25", "0.91"]
    assert "<td>36%</td>" in shown._repr_html_()
