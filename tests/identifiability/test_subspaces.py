"""F, G, M and N of predictors that were made with known ones, and their spectrum against a plain SVD."""

import math

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.subspaces import Spectrum, canonical_form, subspaces, triangle
from tests.identifiability.planted import Junk, K, embedded, equal_pair, normal, predictor


def test_dimensions_of_a_planted_predictor() -> None:
    """Case 2."""
    for p, (dim_f, dim_g) in zip(equal_pair(), ((K + 3, K + 2), (K + 6, K + 7)), strict=True):
        found = subspaces(p)
        assert (found.F.shape[1], found.G.shape[1], found.k) == (dim_f, dim_g, K)
        assert not found.at_least
        for basis in (found.F, found.G, found.M, found.N):
            torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(found.M.T @ found.N, torch.diag(found.cosines), rtol=0, atol=1e-12)
        assert found.spectrum.rank == K


def test_the_lemma() -> None:
    """f · g0 = φ · diag(S) ψ: nothing of the log-ratios lies elsewhere."""
    for p in equal_pair():
        found = subspaces(p)
        phi, psi = canonical_form(p, found)
        ratios = p.f @ (p.g - p.g.mean(0)).T
        torch.testing.assert_close(phi * found.cosines @ psi.T, ratios, rtol=0, atol=1e-11)


def test_the_spectrum_is_the_svd_of_the_log_ratios() -> None:
    p = predictor(400, 90, 7)
    ratios = p.f @ (p.g - p.g.mean(0)).T
    wanted = torch.linalg.svdvals(ratios)[:7]
    torch.testing.assert_close(subspaces(p).spectrum.singular_values, wanted, rtol=1e-13, atol=0)
    with_bias = Predictor.from_arrays(p.f, p.g, normal(90, seed=9))
    ratios = with_bias.logits() - with_bias.logits().mean(1, keepdim=True)
    wanted = torch.linalg.svdvals(ratios)[:8]
    torch.testing.assert_close(subspaces(with_bias).spectrum.singular_values, wanted, rtol=1e-13, atol=0)


@pytest.mark.parametrize("n_equal", [1, 3, 10])
def test_effective_dimensions_of_equal_values(n_equal: int) -> None:
    values = torch.zeros(12, dtype=torch.float64)
    values[:n_equal] = 2.5
    values[11] = 1e-10  # rounding
    found = Spectrum(values, 1e-9)
    assert (found.rank, found.energy()) == (n_equal, math.ceil(0.99 * n_equal))
    assert found.participation_ratio == pytest.approx(n_equal)
    assert found.entropy_rank == pytest.approx(n_equal)


def test_representations_of_float32_have_a_floor_of_rounding() -> None:
    for p in equal_pair():
        rounded = Predictor.from_arrays(p.f.float(), p.g.float())
        found, exact = subspaces(rounded), subspaces(p)
        assert (found.F.shape[1], found.G.shape[1], found.k) == (exact.F.shape[1], exact.G.shape[1], K)


def test_fewer_contexts_than_dimensions_give_a_lower_bound() -> None:
    p = predictor(9, 90, 12)
    found = subspaces(p)
    assert (found.k, found.at_least) == (9, True)
    assert found.summary()["dimension of M and N, effective"] == "9 or more: too few contexts, or tokens, to tell"
    assert repr(found) == "Subspaces(F 9, G 12, M and N 9 or more of 12 dimensions)"
    assert subspaces(predictor(90, 8, 12)).at_least
    assert subspaces(predictor(1, 8, 12)).k == 1


def test_a_tied_unembedding() -> None:
    g = normal(40, 6)
    found = subspaces(Predictor.from_arrays(g, g))
    assert found.k == 6
    torch.testing.assert_close(found.cosines, torch.ones(6).double())


@pytest.mark.parametrize("scale", [0, 1e-200])
@pytest.mark.parametrize("what", ["f", "g"])
def test_a_uniform_distribution_is_refused(what: str, scale: float) -> None:
    p = predictor(9, 8, 3)
    with pytest.raises(LrtError, match="every distribution is uniform"):
        subspaces(Predictor.from_arrays(p.f * (scale if what == "f" else 1), p.g * (scale if what == "g" else 1)))


def test_spans_that_do_not_meet() -> None:
    """F ⊥ G: nothing is effective, and that shows."""
    found = subspaces(
        Predictor.from_arrays(normal(30, 4) * torch.tensor([1, 1, 0, 0]), normal(20, 4) * torch.tensor([0, 0, 1, 1]))
    )
    assert (found.k, found.F.shape[1], found.G.shape[1]) == (0, 2, 2)
    assert found.summary()["smallest cosine between F and G"] == "none"
    spectrum = found.to_json()["spectrum"]
    assert isinstance(spectrum, dict)
    assert [spectrum[name] for name in ("rank", "energy_99", "participation_ratio", "entropy_rank")] == [0, 0, 0, 0]


def test_a_triangle_has_the_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrt_tl.identifiability.subspaces._ROWS_AT_ONCE", 7)
    a, b = normal(40, 3, seed=1), normal(40, 2, seed=2)
    whole, rows = torch.cat([a, b], dim=1), torch.arange(40) % 3 == 0
    for r, wanted in (
        (triangle(a, b), whole),
        (triangle(a, b, rows=rows), whole[rows]),
        (triangle(a, b, centered=True), whole - whole.mean(0)),
        (triangle(a[:1]), a[:1]),
    ):
        torch.testing.assert_close(r.T @ r, wanted.T @ wanted)


def test_to_json_has_the_dimensions() -> None:
    found = subspaces(embedded(normal(90, 4), normal(80, 4, seed=3), 9, Junk(1, 2, 5))).to_json()
    assert (found["dim_f"], found["dim_g"], found["k"]) == (5, 6, 4)
