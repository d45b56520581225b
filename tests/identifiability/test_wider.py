"""Case 2: exactly equal predictors in 12 and 20 dimensions, with other junk in each."""

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.equivalence import equivalence
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.subspaces import subspaces
from lrt_tl.identifiability.wider import widen_predictor
from tests.identifiability.canonical import CONTEXTS, TOKENS, K, normal, planted


def twins() -> tuple[Predictor, Predictor]:
    """12 dimensions, of which 3 are junk of contexts and 2 of tokens; and 20, of which 7 and 6."""
    whole = planted()
    return tuple(  # type: ignore[return-value]
        widen_predictor(
            whole, d, junk_f=2 * normal(CONTEXTS, a, seed=d), junk_g=2 * normal(TOKENS, b, seed=d + 1), seed=d + 2
        )
        for d, a, b in ((12, 3, 2), (20, 7, 6))
    )


def r2(ours: Tensor, theirs: Tensor) -> float:
    return 1 - float((ours - theirs @ torch.linalg.pinv(theirs) @ ours).square().sum() / ours.square().sum())


def test_the_distribution_is_the_same_and_the_dimensions_are_as_planted() -> None:
    plain = planted().logits().log_softmax(1)
    for twin, dimensions in zip(twins(), ((9, 8), (13, 12)), strict=True):
        assert (twin.logits().log_softmax(1).exp() - plain.exp()).abs().max() <= 1e-13
        found = subspaces(twin)
        assert (found.F.shape[1], found.G.shape[1], found.k) == (*dimensions, K)


def test_raw_representations_differ_and_the_effective_ones_do_not() -> None:
    small, large = twins()
    split = CONTEXTS // 2
    weight = torch.linalg.pinv(small.f[:split]) @ large.f[:split]
    left = large.f[split:] - small.f[split:] @ weight
    assert 1 - left.square().sum() / large.f[split:].square().sum() < 0.8  # junk that the other lacks
    for one, other in ((small, large), (large, small)):
        found = equivalence(one, other)
        for fit in (found.of_contexts, found.of_tokens):
            assert fit.r2 == pytest.approx(1, abs=1e-12)
            assert fit.worst == pytest.approx(1, abs=1e-12)
        assert found.duality_residual <= 1e-12


def test_without_junk_and_at_the_same_width_it_is_a_change_of_basis() -> None:
    twin = widen_predictor(planted(), K, seed=3)
    assert r2(twin.f, planted().f) == pytest.approx(1, abs=1e-12)
    assert (twin.f - planted().f).norm() > 0.1 * planted().f.norm()


def test_what_does_not_fit() -> None:
    with pytest.raises(LrtError, match=r"d_model=8: the predictor and its junk need 6 \+ 3 \+ 0 dimensions"):
        widen_predictor(planted(), 8, junk_f=normal(CONTEXTS, 3, seed=0))
    with pytest.raises(LrtError, match="junk of 2 contexts and 60 tokens, for a predictor of 300 and 60"):
        widen_predictor(planted(), 12, junk_f=normal(2, 3, seed=0))
