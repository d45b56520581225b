"""Case 5: a vector of F does the same in the other predictor, a generic one does not."""

import pytest
import torch

from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.identifiability.equivalence import equivalence
from lrt_tl.identifiability.properties.steering import carried, steering, steering_effect, steering_mismatch
from lrt_tl.identifiability.subspaces import subspaces
from lrt_tl.identifiability.wider import widen_predictor
from tests.identifiability.canonical import CONTEXTS, TOKENS, K, normal, planted
from tests.unchecked import without_type_checks

PAIRS = torch.tensor([[0, 1], [2, 3]])


def test_case_5() -> None:
    first, second = (
        widen_predictor(
            planted(), d, junk_f=normal(CONTEXTS, a, seed=d), junk_g=3 * normal(TOKENS, b, seed=d + 1), seed=d
        )
        for d, a, b in ((12, 3, 3), (20, 7, 7))
    )
    between = equivalence(second, first)
    for seed in range(10):
        of_contexts = normal(CONTEXTS, seed=seed) @ first.f
        assert steering_mismatch(first, second, of_contexts, between) <= 1e-12
        generic = normal(12, seed=seed)
        assert 0.7 <= steering_mismatch(first, second, generic, between) <= 1.1


def test_a_carried_vector_moves_every_log_probability_as_the_first_does() -> None:
    first, second = planted(), widen_predictor(planted(), 9, junk_f=normal(CONTEXTS, 2, seed=1))
    vector = first.f[3] - first.f[5]
    moved = carried(vector, equivalence(second, first))
    one, other = (((each.f + v) @ each.g.T).log_softmax(1) for each, v in ((first, vector), (second, moved)))
    torch.testing.assert_close(one, other, atol=1e-11, rtol=0)


def test_effect_and_leakage_are_shifts_of_log_probabilities() -> None:
    predictor, vector = planted(), normal(K, seed=3)
    before, after = (logits.log_softmax(1) for logits in (predictor.logits(), (predictor.f + vector) @ predictor.g.T))
    shift = (after - before)[7]
    shift = shift - shift.mean()
    found = steering_effect(predictor, vector, PAIRS)
    assert found.effect == pytest.approx(float((shift[1] - shift[0] + shift[3] - shift[2]) / 2))
    assert found.leakage == pytest.approx(float(shift[4:].square().mean().sqrt()))
    assert found.selectivity == pytest.approx(found.effect / (found.effect**2 + found.leakage**2) ** 0.5)
    assert steering_effect(predictor, 0 * vector, PAIRS).selectivity == 0


def test_a_vector_between_contexts_that_differ_in_the_pairs_is_selective() -> None:
    """Tokens 1 and 3 have a direction of their own, along which positive contexts lie further."""
    psi, phi = 0.1 * normal(TOKENS, K, seed=1), normal(CONTEXTS, K, seed=0)
    psi[[1, 3], 0], psi[[0, 2], 0] = 2.0, -2.0
    phi[:20, 0] += 3.0
    predictor = widen_predictor(planted(phi, psi), 10, junk_g=normal(TOKENS, 3, seed=2))
    sides = {"positive": torch.arange(20), "negative": torch.arange(20, 60)}
    found = steering(predictor, subspaces(predictor), **sides, pairs=PAIRS)
    assert found.raw.estimate > 0.9
    assert found.raw.holds
    assert found.effective.estimate == pytest.approx(found.raw.estimate, abs=1e-9)
    sides = {"positive": torch.arange(100, 120), "negative": torch.arange(120, 160)}
    assert not steering(predictor, subspaces(predictor), **sides, pairs=PAIRS).effective.holds


def test_sets_as_tight_as_can_be_are_selective_too() -> None:
    """Every exchange of contexts between the sets gives a multiple of the same vector: that would be no null."""
    psi, phi = normal(TOKENS, K, seed=1), normal(CONTEXTS, K, seed=0)
    psi[[1, 3], 0], psi[[0, 2], 0] = 4.0, -4.0
    phi[:64], phi[64:128] = torch.eye(K).double()[0], -torch.eye(K).double()[0]
    predictor = planted(phi, psi)
    found = steering(
        predictor, subspaces(predictor), positive=torch.arange(64), negative=torch.arange(64, 128), pairs=PAIRS
    )
    assert found.raw.estimate > 0.98
    assert found.raw.holds
    assert found.raw.null < found.raw.estimate - 0.003
    twin = widen_predictor(predictor, 12, junk_f=normal(CONTEXTS, 3, seed=4), seed=5)
    other = steering(twin, subspaces(twin), positive=torch.arange(64), negative=torch.arange(64, 128), pairs=PAIRS)
    assert other.effective.null == pytest.approx(found.effective.null, abs=1e-9)


def test_what_cannot_be_steered() -> None:
    between = equivalence(planted(), planted())
    with pytest.raises(LrtError, match="1 positive and 0 negative contexts"):
        steering(
            planted(), subspaces(planted()), positive=torch.tensor([1]), negative=torch.tensor([]).long(), pairs=PAIRS
        )
    with pytest.raises(LrtError, match="30 pairs of tokens, 0 others"):
        steering_effect(planted(), normal(K, seed=0), torch.arange(TOKENS).reshape(-1, 2))
    with pytest.raises(LrtError, match="moves no log-ratio"):
        steering_mismatch(planted(), planted(), torch.zeros(K).double(), between)
    with without_type_checks(), pytest.raises(MismatchError, match="a vector of 4 dimensions, for a predictor of 6"):
        carried(normal(4, seed=0), between)
