"""The test of equality on data whose truth is known."""

import math

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import Distances
from lrt_tl.identifiability.equality import documents_needed, equality
from tests.identifiability.planted import normal


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


def test_equality_without_scatter_in_many_resamples() -> None:
    """Four documents alike: a third of the resamples are of these alone, and have none. No bound can be given."""
    assert equality(of_values(torch.tensor([1.0, 1, 1, 1, 2]).double()), 9.0).upper == math.inf


def test_equality_without_scatter() -> None:
    assert equality(of_values(torch.full((9,), 0.25).double()), 0.3).upper == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("measure", "epsilon", "n"), [("kl", 0.0, 9), ("kl", math.nan, 9), ("KL", 1.0, 9), ("kl", 1.0, 4)]
)
def test_equality_that_cannot_be_tested(measure: str, epsilon: float, n: int) -> None:
    with pytest.raises(LrtError, match=r"positive number|must be one of kl|of 4 document"):
        equality(of_values(torch.ones(n).double()), epsilon, measure=measure)


def test_what_is_shown() -> None:
    few, many = (of_values(torch.linspace(1, 2, n).double()) for n in (299, 300))
    assert str(equality(few, 1e-3)).startswith("not shown to be equal: mean KL 1.5, at most 1.")
    assert "not shown to be equal" in equality(few, 1e-3)._repr_html_()
    assert "the bound is too low" in equality(few, 1e-3).summary()["beware"]
    assert "beware" not in equality(many, 1e-3).summary()


@pytest.mark.parametrize(("measure", "power"), [("zz", 0.8), ("kl", 1.0), ("kl", 0.0)])
def test_documents_that_cannot_be_counted(measure: str, power: float) -> None:
    with pytest.raises(LrtError, match="between 0 and 1"):
        documents_needed(of_values(torch.ones(9).double()), 2.0, measure=measure, power=power)
