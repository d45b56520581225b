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
from lrt_tl.identifiability.distribution import (
    MEASURES,
    Distances,
    distances,
    distances_of_logits,
    documents_needed,
    equality,
)
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


def of_values(kl: Tensor, documents: Tensor | None = None) -> Distances:
    n = len(kl)
    never = torch.zeros(n, dtype=torch.bool)
    documents = torch.arange(n) if documents is None else documents
    return Distances(*[kl] * 6, torch.ones(n).double(), torch.ones(n).double(), never, never, documents)


def test_the_bound_covers_the_mean_of_a_skewed_distance() -> None:
    """Log-normal parts of documents of 1 to 6 contexts, and of contexts: a percentile bootstrap covers it 85 % of the
    time."""
    covered, n = 0, 60
    for trial in range(300):
        sizes = torch.randint(1, 7, (n,), generator=torch.Generator().manual_seed(trial))
        documents = torch.arange(n).repeat_interleave(sizes)
        own = (0.8 * normal(n, seed=10_000 + trial)).exp()[documents]
        kl = own * (0.5 * normal(len(documents), seed=20_000 + trial)).exp()
        truth = math.exp(0.8**2 / 2 + 0.5**2 / 2)
        covered += equality(of_values(kl, documents), 1.0, n_bootstrap=300).upper >= truth
    assert 0.91 <= covered / 300 <= 0.98


def test_contexts_of_one_document_are_not_independent() -> None:
    kl = normal(40, seed=1).exp()
    alone = equality(of_values(kl), 1.0)
    copied = equality(of_values(kl.repeat_interleave(25), torch.arange(40).repeat_interleave(25)), 1.0)
    assert copied.upper == pytest.approx(alone.upper, rel=1e-9)
    assert (copied.contexts, copied.documents) == (1000, 40)
    assert equality(of_values(kl.repeat_interleave(25)), 1.0).upper < alone.upper


@pytest.mark.parametrize("epsilon", [1.06, 1.12])
def test_as_many_documents_as_are_needed(epsilon: float) -> None:
    """The truth is 1: four times in five it is then found equal, and hardly ever with a tenth of the documents."""

    def drawn(n: int, seed: int) -> Distances:
        return of_values((0.5 * normal(n, seed=seed) - 0.125).exp())

    needed = documents_needed(drawn(5000, 1), epsilon)
    assert needed is not None
    found = [equality(drawn(needed, seed), epsilon, n_bootstrap=200).equal for seed in range(100)]
    assert 0.68 <= sum(found) / 100 <= 0.92
    few = [equality(drawn(max(5, needed // 10), seed), epsilon, n_bootstrap=200).equal for seed in range(100)]
    assert sum(few) / 100 < 0.5
    assert documents_needed(drawn(500, 2), 0.9) is None


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


def test_equality_without_scatter_in_many_resamples() -> None:
    """Four documents alike: a third of the resamples are of these alone, and have none. No bound can be given."""
    assert equality(of_values(torch.tensor([1.0, 1, 1, 1, 2]).double()), 9.0).upper == math.inf


def test_equality_without_scatter() -> None:
    assert equality(of_values(torch.full((9,), 0.25).double()), 0.3).upper == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("measure", "epsilon", "n"), [("kl", 0.0, 9), ("kl", math.nan, 9), ("KL", 1.0, 9), ("kl", 1.0, 4)]
)
def test_equality_that_cannot_be_tested(measure: str, epsilon: float, n: int) -> None:
    with pytest.raises(LrtError, match=r"positive number|must be one of kl|4 documents"):
        equality(of_values(torch.ones(n).double()), epsilon, measure=measure)


def test_what_is_shown() -> None:
    found = distances_of_logits(normal(5, 4, seed=1), normal(5, 4, seed=2))
    assert repr(found).startswith("Distances(KL ")
    assert found.to_json()["contexts"] == 5
    assert found.summary()["contexts of infinite KL, either way"] == "0 and 0 of 5"
    assert str(equality(found, 1e-3)).startswith("not shown to be equal: kl ")
    assert "not shown to be equal" in equality(found, 1e-3)._repr_html_()
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
