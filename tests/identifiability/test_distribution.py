"""Distances against scipy's, one context at a time; and the test of equality on data whose truth is known."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lrt_tl.errors import LrtError
from lrt_tl.identifiability import distribution
from lrt_tl.identifiability.distribution import MEASURES, Distances, distances, distances_of_logits
from lrt_tl.identifiability.equality import equality
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.subspaces import subspaces
from tests.identifiability.planted import equal_pair, normal, predictor
from tests.unchecked import without_type_checks

NOTHING = -math.inf


def plainly(p: Tensor, q: Tensor) -> list[dict[str, float]]:
    """By the definitions, on the tokens that both give probability."""
    found = []
    for ours, theirs in zip(p.double(), q.double(), strict=True):
        common = (ours > NOTHING) & (theirs > NOTHING)
        one, other = ours[common], theirs[common]
        a, b = one.softmax(0).numpy(), other.softmax(0).numpy()
        centered = (one - one.mean()) - (other - other.mean())
        found.append(
            {
                "kl": float(rel_entr(a, b).sum()),
                "reverse_kl": float(rel_entr(b, a).sum()),
                "js": float(jensenshannon(a, b) ** 2),
                "total_variation": float(np.abs(a - b).sum() / 2),
                "hellinger": math.sqrt(max(0.0, 1 - float(np.sqrt(a * b).sum()))),
                "logit_distance": float(centered.square().sum().sqrt()),
                "coverage_p": float(ours.softmax(0)[common].sum()),
                "coverage_q": float(theirs.softmax(0)[common].sum()),
            }
        )
    return found


def assert_plain(found: Distances, p: Tensor, q: Tensor) -> None:
    for context, wanted in enumerate(plainly(p, q)):
        for name, value in wanted.items():
            assert float(getattr(found, name)[context]) == pytest.approx(
                value, rel=1e-9, abs=1e-12 if value > 1e-6 else 1e-7
            )


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0, 20.0])
def test_distances_are_the_textbooks(scale: float) -> None:
    p, q = scale * normal(20, 50, seed=1), scale * normal(20, 50, seed=2)
    found = distances_of_logits(p, q)
    assert_plain(found, p, q)
    assert found.n_infinite == (0, 0)
    assert_plain(distances_of_logits(p + 1000, q.log_softmax(1)), p, q)


def test_filtered_logits_on_the_common_support() -> None:
    """As `top_k` leaves them in p, and `top_p` in q; some contexts have lost nothing."""
    p, q = 2 * normal(30, 40, seed=1), 2 * normal(30, 40, seed=2)
    p = p.where(p >= p.topk(25, dim=1).values[:, -1:], NOTHING)
    likely = q.softmax(1)
    q = q.where(likely > likely.max(1, keepdim=True).values / 20, NOTHING)
    p[0], q[0], q[1] = normal(40, seed=3), normal(40, seed=4), normal(40, seed=5)
    found = distances_of_logits(p, q)
    assert_plain(found, p, q)
    assert found.infinite_kl.tolist() == [
        bool(((a > NOTHING) & (b == NOTHING)).any()) for a, b in zip(p, q, strict=True)
    ]
    assert found.infinite_reverse_kl.tolist() == [
        bool(((b > NOTHING) & (a == NOTHING)).any()) for a, b in zip(p, q, strict=True)
    ]
    assert not found.infinite_kl[:2].any()
    assert found.n_infinite[0] > 20
    assert not equality(found, 1e9).equal
    assert equality(found, 1e9).to_json()["upper"] is None


def test_a_small_difference_is_measured_to_second_order() -> None:
    """KL → ½ var, JS and Hellinger² → ⅛ var of the difference of logits, under p."""
    p, step = normal(10, 200, seed=1), 1e-4 * normal(10, 200, seed=2)
    found = distances_of_logits(p, p + step)
    likely = p.softmax(1)
    variance = (likely * step.square()).sum(1) - (likely * step).sum(1).square()
    for value, factor in ((found.kl, 2), (found.reverse_kl, 2), (found.js, 8), (found.hellinger.square(), 8)):
        torch.testing.assert_close(value, variance / factor, rtol=1e-3, atol=0)
    same = distances_of_logits(p, p)
    assert max(same.mean(name) for name in MEASURES) < 1e-14


@pytest.mark.parametrize(
    ("bad", "message"), [(math.nan, "NaN or \\+∞"), (math.inf, "NaN or \\+∞"), (NOTHING, "at context 1 no token")]
)
def test_logits_that_are_none(bad: float, message: str) -> None:
    p, q = normal(3, 4, seed=1), normal(3, 4, seed=2)
    p[1] = bad
    with pytest.raises(LrtError, match=message):
        distances_of_logits(p, q)
    with without_type_checks(), pytest.raises(LrtError, match="must be of the same two tokens"):
        distances_of_logits(p, q[:2])


def test_predictors_are_compared_by_their_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "_PRODUCTS_AT_ONCE", 500)
    monkeypatch.setattr(distribution, "_LOGITS_AT_ONCE", 130)
    p, q = (predictor(37, 41, 6, seed=seed) for seed in (1, 5))
    found = distances(p, q)
    assert_plain(found, p.logits(), q.logits())
    assert_plain(distances(p, p.take(torch.arange(37))), p.logits(), p.logits())
    assert found.documents.tolist() == list(range(37))
    whole = distances(p.among(torch.arange(7)), q.among(torch.arange(7)))
    torch.testing.assert_close(whole.coverage_p, p.logits().softmax(1)[:, :7].sum(1))
    torch.testing.assert_close(whole.coverage_q, q.logits().softmax(1)[:, :7].sum(1))


def test_predictors_of_one_distribution() -> None:
    """Case 2: whatever the dimensions and the junk."""
    p, q = equal_pair()
    found = distances(p, q)
    assert found.mean("kl") < 1e-13
    assert float(found.kl.max()) < 1e-13
    assert equality(found, 1e-9).equal


def test_predictors_that_are_not_comparable() -> None:
    p = predictor(10, 8, 3)
    for other in (
        predictor(9, 8, 3),
        predictor(10, 7, 3),
        Predictor.from_arrays(p.f, p.g, documents=torch.zeros(10).long()),
    ):
        with pytest.raises(LrtError, match="are not at the same contexts, or not of the same tokens"):
            distances(p, other)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = function(*args, **(kwargs or {}))
        tensors = [each for each in (made if isinstance(made, tuple | list) else [made]) if isinstance(each, Tensor)]
        self.elements = max([self.elements, *(each.numel() for each in tensors)])
        return made


def test_the_logits_of_all_contexts_never_stand_in_memory_together() -> None:
    """250,000 tokens."""
    p = Predictor.from_arrays(normal(100, 2).float(), normal(250_000, 2).float())
    with Largest() as largest:
        distances(p, p)
        subspaces(p)
        p.among(torch.arange(5))
    assert 250_000 <= largest.elements <= 2**24 < 100 * 250_000


def test_logits_that_overflow_are_refused() -> None:
    p = Predictor.from_arrays(1000 * normal(9, 4).half(), 1000 * normal(8, 4).half(), name="half")
    with pytest.raises(LrtError, match=r"logits of half or half overflow torch\.float16: give"):
        distances(p, p)


def test_inequalities_between_distances() -> None:
    """1,000 pairs, near and far, flat and sharp: Pinsker's, Le Cam's, and what bounds Jensen–Shannon's."""
    generator = torch.Generator().manual_seed(0)
    sharpness, step = (10 ** (4 * torch.rand(2, 1000, 1, generator=generator).double() - 3)).unbind()
    p = sharpness * normal(1000, 30, seed=1)
    found = distances_of_logits(p, p + step * normal(1000, 30, seed=2))
    variation, squared, slack = found.total_variation, found.hellinger.square(), 1e-14
    assert bool((2 * variation.square() <= found.kl + slack).all())
    assert bool((2 * variation.square() <= found.reverse_kl + slack).all())
    assert bool((squared <= variation + slack).all())
    assert bool((variation <= found.hellinger * (2 - squared).sqrt() + slack).all())
    assert bool((squared / 2 <= found.js + slack).all())
    assert bool((found.js <= variation * math.log(2) + slack).all())
    assert float(variation.max()) > 0.9 > 1e-3 > float(variation.min())


def test_what_is_shown() -> None:
    found = distances_of_logits(normal(5, 4, seed=1), normal(5, 4, seed=2))
    assert repr(found).startswith("Distances(KL ")
    assert found.to_json()["contexts"] == 5
    assert found.summary()["contexts of infinite KL, either way"] == "0 and 0 of 5"
    assert found.summary()["reverse KL"] == f"{found.mean('reverse_kl'):.4g}"
    assert "total variation" in found._repr_html_()


def test_a_shuffled_vocabulary_truncated_logits_and_a_soft_cap_are_noticed() -> None:
    """Case 6."""
    p = predictor(200, 60, 6, scale=2.0)
    logits = p.logits()
    shuffled = logits[:, torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    truncated = logits.where(logits >= logits.topk(50, dim=1).values[:, -1:], NOTHING)
    for other in (shuffled, truncated, 3 * (logits / 3).tanh()):
        assert not equality(distances_of_logits(logits, other), 1e-3).equal
    assert equality(distances_of_logits(logits, logits + 1e-4 * normal(200, 60)), 1e-3).equal
