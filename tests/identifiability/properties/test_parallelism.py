"""Case 3, and the cosines against a loop."""

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.parallelism import leave_one_out_cosines, pairing, parallelism
from lrt_tl.identifiability.subspaces import subspaces
from lrt_tl.identifiability.wider import widen_predictor
from tests.identifiability.canonical import TOKENS, K, normal, planted

PAIRS = torch.tensor([[0, 1], [2, 3]])


def parallel() -> Predictor:
    """ψ3 = ψ2 + 0.7 (ψ1 − ψ0)."""
    psi = normal(TOKENS, K, seed=1)
    psi[3] = psi[2] + 0.7 * (psi[1] - psi[0])
    return planted(psi=psi)


def junk() -> Tensor:
    """w1 − w0 ⊥ w3 − w2, longer than the differences of ψ."""
    w = normal(TOKENS, 4, seed=9)
    w[:4] = 0
    w[1, 0] = w[3, 1] = 10.0
    return w


def test_case_3_raw_parallelism_is_lost_to_junk_and_the_projected_one_kept() -> None:
    plain, wide = parallel(), widen_predictor(parallel(), 20, junk_g=junk(), seed=4)
    found = [parallelism(each, subspaces(each), pairs=PAIRS) for each in (plain, wide)]
    assert found[0].raw.estimate == pytest.approx(1, abs=1e-9)
    assert found[1].raw.estimate < 0.5
    for scores in found:
        for score in (scores.effective, scores.others["F"], scores.others["N"]):
            assert score.estimate == pytest.approx(1, abs=1e-9)
            assert score.holds


def test_the_effective_form_is_the_cosine_of_log_ratios_over_contexts() -> None:
    predictor = widen_predictor(planted(), 12, junk_g=normal(TOKENS, 4, seed=9))
    log_p = predictor.logits().log_softmax(1)
    pairs = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 9]])
    ratios = [log_p[:, y1] - log_p[:, y0] for y0, y1 in pairs.tolist()]
    cosines = [
        torch.cosine_similarity(ratio, sum(ratios) - ratio, dim=0)
        for ratio in ratios  # type: ignore[call-overload]
    ]
    found = parallelism(predictor, subspaces(predictor), pairs=pairs)
    assert found.effective.estimate == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-10)


def test_the_causal_form_does_not_depend_on_the_basis() -> None:
    pairs = torch.tensor([[0, 1], [2, 3], [4, 5]])
    plain, turned = planted(), widen_predictor(planted(), K, seed=8)
    one, other = (parallelism(each, subspaces(each), pairs=pairs) for each in (plain, turned))
    assert one.others["causal"].estimate == pytest.approx(other.others["causal"].estimate, abs=1e-10)
    assert one.effective.estimate == pytest.approx(other.effective.estimate, abs=1e-10)
    assert abs(one.raw.estimate - other.raw.estimate) > 1e-3
    g = plain.g - plain.g.mean(0)
    inverse = torch.linalg.inv(g.T @ g / len(g))
    d = [plain.g[y1] - plain.g[y0] for y0, y1 in pairs.tolist()]
    rest = [d[1] + d[2], d[0] + d[2], d[0] + d[1]]
    by_hand = [a @ inverse @ b / ((a @ inverse @ a) * (b @ inverse @ b)).sqrt() for a, b in zip(d, rest, strict=True)]
    assert one.others["causal"].estimate == pytest.approx(float(torch.stack(by_hand).mean()), abs=1e-10)


def test_random_pairs_do_not_hold() -> None:
    held = 0
    for seed in range(40):
        psi = normal(TOKENS, K, seed=seed)
        predictor = planted(psi=psi)
        pairs = torch.randperm(TOKENS, generator=torch.Generator().manual_seed(seed))[:20].reshape(10, 2)
        held += parallelism(predictor, subspaces(predictor), pairs=pairs).effective.holds
    assert held <= 4


FIRST, SECOND = torch.arange(0, 12), torch.arange(12, 24)


def categories(*, paired: bool) -> Predictor:
    """Twelve tokens about one mean and twelve about another; the pairs' differences are all the same, or are not."""
    psi = normal(TOKENS, K, seed=1)
    psi[SECOND] = (psi[FIRST] if paired else normal(12, K, seed=2)) + 4 * normal(K, seed=3)
    return planted(psi=psi)


def test_parallelism_that_is_of_categories_alone_is_none_beyond_them() -> None:
    pairs = torch.stack([FIRST, SECOND], dim=1)
    loose, tight = (categories(paired=paired) for paired in (False, True))
    alike = parallelism(loose, subspaces(loose), pairs=pairs)
    assert alike.raw.estimate > 0.7  # against random pairs it looks like a relation
    assert alike.raw.holds
    found = pairing(loose, subspaces(loose), pairs=pairs)
    for score in (found.raw, found.effective):
        assert abs(score.estimate) < 0.2
        assert not score.holds
    exact = pairing(tight, subspaces(tight), pairs=pairs)
    assert exact.raw.estimate == pytest.approx(1, abs=1e-9)
    assert exact.effective.estimate == pytest.approx(1, abs=1e-9)
    assert exact.effective.holds


def test_pairing_by_hand() -> None:
    predictor = categories(paired=False)
    pairs = torch.stack([FIRST, SECOND], dim=1)[:3]
    found = pairing(predictor, subspaces(predictor), pairs=pairs, seed=5)
    generator = torch.Generator().manual_seed(5)
    orders = [torch.randperm(3, generator=generator) for _ in range(200)]

    def cosine(order: Tensor) -> Tensor:
        return leave_one_out_cosines(predictor.g[pairs[:, 1][order]] - predictor.g[pairs[:, 0]]).mean()

    level = torch.stack([cosine(order) for order in orders]).mean()
    by_hand = (cosine(torch.arange(3)) - level) / (1 - level)
    assert found.raw.estimate == pytest.approx(float(by_hand), abs=1e-9)


def test_leave_one_out_cosines() -> None:
    d = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]).double()
    expected = [
        1 / 5**0.5,
        1 / 5**0.5,
        0.0,
        0.0,
    ]  # others: (1, 2), (1, 2), (2, 0); 0 has no direction
    assert leave_one_out_cosines(d).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 1]], "1 pairs of tokens: parallelism compares two or more"),
        ([[0, 1], [2, 60]], "a pair has a token that is none of the 60: 0 to 60"),
        ([[0, 1], [7, 7]], "pair 1 is token 7 twice"),
    ],
)
def test_pairs_that_cannot_be(pairs: list[list[int]], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        parallelism(planted(), subspaces(planted()), pairs=torch.tensor(pairs))


def test_how_scores_show() -> None:
    found = parallelism(parallel(), subspaces(parallel()), pairs=PAIRS)
    assert repr(found).startswith("PropertyScores(raw 1.000 [1.000, 1.000], null ")
    assert [row["form"] for row in found.rows()] == ["raw", "effective", "F", "N", "causal"]
    assert set(found.to_json()["effective"]) == {"estimate", "low", "high", "null"}
    assert "<table" in found._repr_html_()
