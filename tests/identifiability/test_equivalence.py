"""Linear equivalence of predictors that are equal by construction, nearly equal, and equal in one half only."""

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import distances
from lrt_tl.identifiability.equivalence import canonical_directions, equivalence, held_out_rows, linear_fit
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.similarity import canonical_correlations, mean_cca
from lrt_tl.identifiability.subspaces import canonical_form, subspaces
from tests.identifiability.planted import N_CONTEXTS, N_TOKENS, Junk, K, embedded, equal_pair, normal


def raw_r2(ours: Tensor, theirs: Tensor) -> float:
    left = ours - theirs @ torch.linalg.lstsq(theirs, ours).solution
    return 1 - float(left.square().sum() / ours.square().sum())


def test_predictors_of_one_distribution_are_linearly_the_same() -> None:
    """Case 2: only the effective subspaces are, and the maps are each other's dual."""
    phi, psi = normal(N_CONTEXTS, K, seed=1), normal(N_TOKENS, K, seed=2)
    p = embedded(phi, psi, 12, Junk(7, 0, 10))
    p = Predictor.from_arrays(p.f + 1.5 * (p.f - phi @ torch.linalg.lstsq(phi, p.f).solution), p.g)
    q = embedded(phi, psi, 20, Junk(0, 9, 20))
    assert float(distances(p, q).kl.max()) < 1e-13
    assert 0.06 <= raw_r2(p.f, q.f) <= 0.14
    assert raw_r2(q.f, p.f) == pytest.approx(1, abs=1e-12)
    for found in (equivalence(p, q), equivalence(q, p)):
        assert found.of_contexts.worst == pytest.approx(1, abs=1e-12)
        assert found.of_tokens.worst == pytest.approx(1, abs=1e-12)
        assert found.duality_residual <= 1e-12


def test_the_theorem_in_coordinates() -> None:
    p, q = equal_pair()
    found = equivalence(p, q)
    (phi, psi), (phi_other, psi_other) = (
        canonical_form(each, of) for each, of in zip((p, q), found.subspaces, strict=True)
    )
    torch.testing.assert_close(phi, phi_other @ found.of_contexts.weight.T, rtol=0, atol=1e-10)
    torch.testing.assert_close(psi, psi_other @ found.of_tokens.weight.T, rtol=0, atol=1e-10)
    c, c_other = (torch.diag(each.cosines) for each in found.subspaces)
    dual = found.of_contexts.weight.T @ c @ found.of_tokens.weight
    torch.testing.assert_close(dual, c_other, rtol=0, atol=1e-11)
    transposed = found.of_contexts.weight @ c @ found.of_tokens.weight.T - c_other
    swapped = found.of_tokens.weight @ c @ found.of_contexts.weight.T - c_other
    assert min(float(wrong.norm() / c_other.norm()) for wrong in (transposed, swapped)) >= 0.45


def rotation(d: int, angle: float) -> Tensor:
    turn = torch.tensor([[0.0, -angle], [angle, 0.0]]).double()
    return torch.matrix_exp(torch.block_diag(*[turn] * (d // 2)))


@pytest.mark.parametrize("angle", [0.5, 1.0, 1.57])
def test_opposite_rotations_fail_the_duality_alone(angle: float) -> None:
    """Case 6: f and g are each linearly the same, and the distributions are not; a half-turn of both is no change."""
    p, turned = Predictor.from_arrays(normal(300, 6), normal(200, 6, seed=2)), rotation(6, angle)
    q = Predictor.from_arrays(p.f @ turned, p.g @ turned.T)
    found = equivalence(p, q)
    assert min(found.of_contexts.worst, found.of_tokens.worst) > 1 - 1e-12
    assert mean_cca(p.f, q.f) == pytest.approx(1)
    assert mean_cca(p.g, q.g) == pytest.approx(1)
    assert found.duality_residual >= 0.45
    assert distances(p, q).mean("kl") > 0.1
    half = Predictor.from_arrays(p.f @ rotation(6, torch.pi / 2), p.g @ rotation(6, torch.pi / 2).T)
    assert found.duality_residual > 0.45
    back = Predictor.from_arrays(-p.f, -p.g)
    assert equivalence(p, back).duality_residual < 1e-12
    assert equivalence(p, half).duality_residual == pytest.approx(2)  # R² = −1: every log-ratio changes its sign


def test_a_shuffled_vocabulary_fails() -> None:
    """Case 6."""
    p, _ = equal_pair()
    q = Predictor.from_arrays(p.f, p.g[torch.randperm(len(p.g), generator=torch.Generator().manual_seed(0))])
    found = equivalence(p, q)
    assert found.of_contexts.worst > 1 - 1e-12
    assert found.of_tokens.r2 < 0.2
    assert found.duality_residual > 0.5


def test_near_equality_shows_in_the_worst_direction() -> None:
    """Case 9: k = 8, 200 tokens, directions of falling spread, and noise that rises."""
    phi = normal(3000, 8) * torch.logspace(0.5, -1, 8).double()
    psi = normal(200, 8, seed=2)
    kls, pooled, worst = [], [], []
    for noise in (6e-4, 6e-3, 6e-2, 0.2):
        q = Predictor.from_arrays(phi + noise * normal(3000, 8, seed=3), psi)
        p = Predictor.from_arrays(phi, psi)
        found = equivalence(p, q)
        kls.append(distances(p, q).mean("kl"))
        pooled.append(found.of_contexts.r2)
        worst.append(found.of_contexts.worst)
    assert kls[0] == pytest.approx(1e-6, rel=0.1)
    assert kls[-1] == pytest.approx(0.1, rel=0.1)
    assert min(pooled) > 0.9
    assert worst[0] > 0.999
    assert worst == sorted(worst, reverse=True)
    assert 0.15 < worst[-1] < 0.25


def test_pure_noise_is_no_skill() -> None:
    """Case 10: what fits where it was fitted predicts nothing where it was not, and too few rows are refused."""
    ours, theirs = normal(100, 30, seed=1), normal(100, 30, seed=2)
    held_out = held_out_rows(torch.arange(100), 0.3)
    assert linear_fit(ours, theirs, held_out).r2 < -0.3
    assert linear_fit(ours, theirs, held_out).worst < 0
    with pytest.raises(LrtError, match="35 rows to fit 30 dimensions on, and 15 held out"):
        linear_fit(ours[:50], theirs[:50], held_out_rows(torch.arange(50), 0.3))
    with pytest.raises(LrtError, match="0 held out"):
        linear_fit(ours, theirs, torch.zeros(100, dtype=torch.bool))


def test_a_fit_is_least_squares_and_judged_on_other_rows() -> None:
    theirs, noise = normal(400, 5, seed=1), normal(400, 3, seed=3)
    ours = theirs @ normal(5, 3, seed=2) + 0.3 * noise
    held_out = held_out_rows(torch.arange(400) // 4, 0.25, seed=1)
    found = linear_fit(ours, theirs, held_out)
    wanted = torch.linalg.lstsq(theirs[~held_out], ours[~held_out]).solution
    torch.testing.assert_close(found.weight, wanted.T)
    error = ours[held_out] - theirs[held_out] @ wanted
    assert found.r2 == pytest.approx(1 - float(error.square().sum() / ours[held_out].square().sum()))
    a, b = canonical_directions(ours[~held_out], theirs[~held_out])
    x, y = ours @ a, theirs @ b
    slope = (x[~held_out] * y[~held_out]).sum(0) / y[~held_out].square().sum(0)
    left = (x - y * slope)[held_out].square().sum(0) / x[held_out].square().sum(0)
    torch.testing.assert_close(found.r2_by_direction, 1 - left)


def test_directions_without_a_counterpart_count_as_unpredicted() -> None:
    theirs = normal(300, 3)
    ours = torch.cat([theirs, normal(300, 2, seed=5)], dim=1)
    held_out = held_out_rows(torch.arange(300), 0.3)
    found = linear_fit(ours, theirs, held_out)
    torch.testing.assert_close(found.r2_by_direction, torch.tensor([1, 1, 1, 0, 0]).double(), rtol=0, atol=1e-9)
    assert found.worst == 0
    assert linear_fit(theirs, ours, held_out).worst > 1 - 1e-12


def test_models_of_other_effective_dimensions() -> None:
    """The smaller has nothing of what the larger adds: its worst direction is unpredicted, and only that way round."""
    p = Predictor.from_arrays(normal(300, 6), normal(90, 6, seed=2))
    q = Predictor.from_arrays(p.f[:, :4], p.g[:, :4])
    there, back = equivalence(p, q), equivalence(q, p)
    assert [each.k for each in there.subspaces] == [6, 4]
    for fit in (there.of_contexts, there.of_tokens):
        assert sorted((fit.r2_by_direction > 0.99).tolist()) == [False, False, True, True, True, True]
        assert fit.worst <= 0
    assert min(back.of_contexts.worst, back.of_tokens.worst) > 1 - 1e-12


def test_what_no_held_out_row_shows_is_no_evidence() -> None:
    """A direction that no fitted context has, and one in which no held-out context lies."""
    held_out = torch.arange(100) < 30
    ours = normal(100, 3) * (held_out[:, None] | torch.tensor([True, True, False]))
    found = linear_fit(ours, ours, held_out)
    assert found.r2_by_direction.tolist() == pytest.approx([1, 1, 0])
    assert found.r2 == pytest.approx(2 / 3, abs=0.1)
    nothing = linear_fit(normal(100, 2) * ~held_out[:, None], normal(100, 2, seed=1), held_out)
    assert (nothing.r2, nothing.worst) == (0, 0)


def test_fits_of_coordinates_are_those_of_the_states_themselves() -> None:
    p, q = equal_pair()
    found = [subspaces(each) for each in (p, q)]
    (phi, psi), (phi_other, psi_other) = (canonical_form(each, of) for each, of in zip((p, q), found, strict=True))
    rows, between = held_out_rows(torch.arange(len(psi)), 0.3), equivalence(p, q)
    plain = linear_fit(psi, psi_other, rows)
    torch.testing.assert_close(between.of_tokens.weight, plain.weight, rtol=1e-9, atol=1e-11)
    plain = linear_fit(phi, phi_other, held_out_rows(p.documents, 0.3))
    torch.testing.assert_close(between.of_contexts.weight, plain.weight, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("which", [0, 1])
def test_spans_that_do_not_meet_are_refused(which: int) -> None:
    """k = 0."""
    full = Predictor.from_arrays(normal(60, 4), normal(30, 4, seed=2), name="full")
    apart = Predictor.from_arrays(
        full.f * torch.tensor([1, 1, 0, 0]), full.g * torch.tensor([0, 0, 1, 1]), name="apart"
    )
    with pytest.raises(LrtError, match=r"apart: no token reads a direction in which contexts lie \(k = 0\)"):
        equivalence(*((full, apart) if which else (apart, full)))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(LrtError, match="the share of documents must lie between 0 and 1"):
        equivalence(*equal_pair(), held_out=share)


def test_fewer_contexts_than_dimensions_cannot_be_fitted() -> None:
    p = Predictor.from_arrays(normal(9, 12), normal(60, 12, seed=2))
    with pytest.raises(LrtError, match="6 contexts to fit 9 dimensions on, and 3 held out"):
        equivalence(p, p)


def test_documents_are_held_out_whole() -> None:
    documents = torch.tensor([7, 7, 3, 3, 3, 9, 1, 1, 1, 1])
    for seed in range(10):
        chosen = held_out_rows(documents, 0.5, seed)
        assert len({*documents[chosen].tolist()} & {*documents[~chosen].tolist()}) == 0
        assert len({*documents[chosen].tolist()}) == 2
    with pytest.raises(LrtError, match="one document only"):
        held_out_rows(torch.zeros(5).long(), 0.3)


def test_other_contexts_are_refused() -> None:
    p, _ = equal_pair()
    with pytest.raises(LrtError, match="not at the same contexts"):
        equivalence(p, p.take(torch.arange(100)))


def test_what_is_shown() -> None:
    found = equivalence(*equal_pair())
    assert repr(found).startswith("Equivalence(contexts R² 1.000, worst direction 1.000; duality residual ")
    assert repr(found.of_tokens) == "LinearFit(R² 1.000, worst direction 1.000 of 5)"
    assert found.to_json()["k"] == found.to_json()["k_other"] == 5
    assert found.summary()["effective dimensions"] == "5 and 5"
    assert "duality residual" in found._repr_html_()


def test_canonical_directions_have_the_canonical_correlations() -> None:
    x, y = normal(200, 4, seed=1), normal(200, 6, seed=2)
    x, y = x - x.mean(0), y - y.mean(0)
    a, b = canonical_directions(x, y)
    found = ((x @ a) * (y @ b)).sum(0)
    torch.testing.assert_close(found, canonical_correlations(x, y))
    assert subspaces(Predictor.from_arrays(x, y[:, :4])).k == 4
