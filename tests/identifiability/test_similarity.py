"""Similarities of representations against the textbook, and bounds that no pair of predictors may break."""

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import distances_of_logits
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.similarity import canonical_correlations, cca_logit_bound, d_rep, d_svd, mean_cca
from tests.identifiability.planted import equal_pair, normal, predictor
from tests.unchecked import without_type_checks


def test_canonical_correlations_are_sklearns() -> None:
    x, y = normal(300, 3, seed=1), normal(300, 4, seed=2)
    y[:, :2] += x[:, :2] * torch.tensor([2.0, 0.5])
    a, b = CCA(n_components=3, max_iter=2000, tol=1e-10).fit_transform(x.numpy(), y.numpy())
    wanted = [float(np.corrcoef(a[:, k], b[:, k])[0, 1]) for k in range(3)]
    assert canonical_correlations(x, y).tolist() == pytest.approx(wanted, abs=1e-4)
    assert mean_cca(x, y) == pytest.approx(sum(wanted) / 3, abs=1e-4)


def test_an_invertible_affine_map_changes_no_canonical_correlation() -> None:
    x = normal(200, 5)
    y = x @ normal(5, 5, seed=3) + normal(5, seed=4)
    torch.testing.assert_close(canonical_correlations(x, y), torch.ones(5).double())
    torch.testing.assert_close(canonical_correlations(x, y[:, :2]), torch.ones(2).double())
    lost = torch.cat([x[:, :3], torch.zeros(200, 2)], dim=1)
    torch.testing.assert_close(canonical_correlations(x, lost), torch.tensor([1, 1, 1, 0, 0]).double())


def test_d_svd_by_its_definition() -> None:
    x, y = normal(100, 4, seed=1), normal(100, 4, seed=2)
    correlations = torch.corrcoef(torch.cat([x, y], dim=1).T)[:4, 4:]
    assert d_svd(x, y) == pytest.approx(1 - float(torch.linalg.matrix_norm(correlations, "nuc")) / 4)
    assert d_svd(x, 3 * x + 5) == pytest.approx(0, abs=1e-12)
    assert d_svd(x, x[:, [2, 0, 3, 1]]) == pytest.approx(0, abs=1e-12)
    for still in (x * torch.tensor([1, 1, 0, 1]), torch.cat([x[:, :2], torch.full((100, 1), 0.1), x[:, 3:]], dim=1)):
        with pytest.raises(LrtError, match="column 2 does not vary"):
            d_svd(x, still)
    with pytest.raises(LrtError, match="column 0 does not vary"):
        d_svd(x[:1], y[:1])
    with without_type_checks(), pytest.raises(LrtError, match=r"\(100, 4\) and \(100, 3\)"):
        d_svd(x, y[:, :3])


def test_d_rep_is_the_share_that_no_linear_map_gives() -> None:
    x, noise = normal(20_000, 3, seed=1), normal(20_000, 3, seed=2)
    g = normal(10, 3, seed=3)
    p, q = Predictor.from_arrays(x + noise, g), Predictor.from_arrays(x @ normal(3, 3, seed=4) + 7, g)
    assert d_rep(p, q) == pytest.approx(0.5**0.5, rel=0.01)
    assert d_rep(q, q) == pytest.approx(0, abs=1e-12)
    one, other = equal_pair()
    assert d_rep(one, other) > 0.1  # junk counts here
    alike = Predictor.from_arrays(x[:1].expand(9, 3), g)
    with pytest.raises(LrtError, match="all contexts of predictor have one representation"):
        d_rep(alike, alike)


def plain_bound(p: Predictor, q: Predictor) -> tuple[float, float]:
    """From the logits of all contexts and tokens."""
    logits = [each.logits() for each in (p, q)]
    ours, theirs = (x - x.mean(0) - x.mean(1, keepdim=True) + x.mean() for x in logits)
    values = torch.linalg.eigvalsh(ours.T @ ours / len(ours)).flip(0)
    bases = []
    for x in (ours, theirs):
        u, s, _ = torch.linalg.svd(x, full_matrices=False)
        bases.append(u[:, s > 1e-9 * s[0]])
    rho = torch.linalg.svdvals(bases[0].T @ bases[1])
    padded = torch.zeros_like(values)
    padded[: len(rho)] = rho
    return float((values * (1 - padded.square())).sum()), float((ours - theirs).square().sum() / len(ours))


@pytest.mark.parametrize("widths", [(4, 4), (3, 7), (7, 3)])
def test_the_cca_logit_bound_is_that_of_whole_logits(widths: tuple[int, int]) -> None:
    p, q = (predictor(80, 30, d, seed=10 * d) for d in widths)
    assert cca_logit_bound(p, q) == pytest.approx(plain_bound(p, q), rel=1e-9)


def test_the_right_side_is_the_logit_distance_about_its_mean() -> None:
    p = predictor(60, 30, 5)
    steps = normal(60, 5, seed=9)
    q = Predictor.from_arrays(p.f + steps - steps.mean(0), p.g)
    found = distances_of_logits(p.logits(), q.logits()).logit_distance
    assert cca_logit_bound(p, q)[1] == pytest.approx(float(found.square().mean()))


def near(p: Predictor, noise: float, seed: int) -> Predictor:
    def moved(states: Tensor, seed: int) -> Tensor:
        return states + noise * states.std() * normal(*states.shape, seed=seed)

    return Predictor.from_arrays(moved(p.f, seed), moved(p.g, seed + 1))


def test_no_pair_breaks_the_cca_logit_bound() -> None:
    """1,000 pairs, of other dimensions, of even and of falling spreads, and of all distances down to rounding: on some
    it is nearly tight."""
    tightest = 0.0
    for seed in range(1000):
        generator = torch.Generator().manual_seed(seed)
        d, d_other = torch.randint(1, 7, (2,), generator=generator).tolist()
        p = predictor(20, 12, d, seed=3 * seed, scale=1 + 2 * (seed % 3))
        if seed % 5 == 0:
            p = Predictor.from_arrays(p.f * torch.logspace(0, -7, d).double(), p.g)
        noise = float(10 ** (9 * torch.rand((), generator=generator) - 9))
        q = near(p, noise, 7 * seed) if seed % 2 else predictor(20, 12, d_other, seed=5 * seed + 1)
        left, right = cca_logit_bound(p, q)
        assert left <= right * (1 + 1e-9)
        tightest = max(tightest, left / right)
    assert tightest > 0.5
