"""d_LLV by its definition, its two bounds over many pairs, and the circle of the paper."""

import importlib.util
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.likelihood_distance import likelihood_distance
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.similarity import d_svd
from tests.identifiability.planted import normal, predictor


def near(p: Predictor, noise: float, seed: int) -> Predictor:
    f, g = normal(*p.f.shape, seed=seed), normal(*p.g.shape, seed=seed + 1)
    return Predictor.from_arrays(p.f + noise * p.f.std() * f, p.g + noise * p.g.std() * g)


def sd(values: Tensor) -> float:
    return float(((values - values.mean()).square().sum() / (len(values) - 1)).sqrt())


def terms(p: Tensor, q: Tensor, pivot: int, others: list[int]) -> tuple[list[float], list[float]]:
    """Of each label (a row), and |ψ − ψ′|, one by one."""
    found, psis = [], []
    for y in others:
        psi, psi_other = sd(p[y] - p[pivot]), sd(q[y] - q[pivot])
        found.append(max(sd(p[at] / psi - q[at] / psi_other) for at in (y, pivot)))
        psis.append(abs(psi - psi_other))
    return found, psis


def test_it_is_what_the_definition_says() -> None:
    p = predictor(30, 6, 3)
    q = near(p, 0.3, 5)
    found = likelihood_distance(p, q, n_sets=20)
    logs = [each.logits().log_softmax(1).T for each in (p, q)]
    best = min(
        (
            max(terms(*logs, pivot, rest := [y for y in range(6) if y not in (pivot, left_out)])[0]),
            pivot,
            left_out,
            rest,
        )
        for pivot, left_out in permutations(range(6), 2)
    )
    assert (found.t1, found.pivot, found.left_out) == (pytest.approx(best[0]), *best[1:3])
    assert found.t3 == pytest.approx(max(terms(*logs, best[1], best[3])[1]))
    of_contexts = terms(logs[0].T, logs[1].T, found.context_pivot, list(found.contexts))
    assert found.t2 == pytest.approx(max(of_contexts[0]))
    assert found.t4 == pytest.approx(max(of_contexts[1]))
    assert len({found.context_pivot, *found.contexts}) == 4
    assert found.value == max(found.t1, found.t2)
    assert found.d_svd_contexts == pytest.approx(
        d_svd(*(each.f @ (each.g[best[3][:3]] - each.g[best[1]]).T for each in (p, q)))
    )


def test_more_sets_are_never_worse() -> None:
    p = predictor(30, 6, 3)
    found = [likelihood_distance(p, near(p, 0.3, 5), n_sets=n).t2 for n in (1, 10, 100)]
    assert found == sorted(found, reverse=True)
    assert found[2] < found[0]


def test_no_pair_breaks_the_bounds() -> None:
    """1,000 pairs: the theorem's, and the sharper one; both far from trivial for many."""
    informative = 0
    for seed in range(1000):
        generator = torch.Generator().manual_seed(seed)
        d = int(torch.randint(1, 5, (), generator=generator))
        p = predictor(d + 2 + seed % 9, d + 2 + seed % 3, d, seed=3 * seed, scale=1 + 2 * (seed % 3))
        q = near(p, float(10 ** (4 * torch.rand((), generator=generator) - 3)), 7 * seed)
        found = likelihood_distance(p, q, n_sets=2, seed=seed)
        sharp = found.sharper_bounds
        assert found.d_svd_contexts <= min(found.bound, sharp[0]) + 1e-9
        assert found.d_svd_tokens <= min(found.bound, sharp[1]) + 1e-9
        informative += max(sharp) < 0.5
    assert informative > 200


def test_equal_distributions_have_none() -> None:
    p = predictor(40, 7, 3)
    transform = normal(3, 3, seed=8)
    q = Predictor.from_arrays(p.f @ transform, p.g @ torch.linalg.inv(transform).T + normal(3, seed=9))
    found = likelihood_distance(p, q)
    assert found.value < 1e-12
    assert max(found.d_svd_contexts, found.d_svd_tokens) < 1e-12
    json.dumps(found.to_json())
    assert repr(found).startswith("LikelihoodDistance(d_LLV ")
    assert "d_SVD of contexts" in found._repr_html_()


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        (predictor(30, 6, 3), predictor(30, 6, 4), "of one dimension: 3 and 4"),
        (predictor(30, 2, 3), predictor(30, 2, 3), "2 tokens and 30 contexts"),
        (predictor(4, 6, 3), predictor(4, 6, 3), "6 tokens and 4 contexts"),
        (predictor(9, 5000, 3), predictor(9, 5000, 3), "5000 tokens"),
    ],
)
def test_what_cannot_be_compared(p: Predictor, q: Predictor, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        likelihood_distance(p, q)


def test_a_token_or_context_twice_is_none_of_the_pivots_others() -> None:
    p = predictor(30, 6, 3)
    q = near(p, 0.1, 5)
    twice = [Predictor.from_arrays(each.f[torch.arange(30) // 2], each.g[[0, 0, 1, 2, 3, 4]]) for each in (p, q)]
    found = likelihood_distance(*twice)
    assert found.pivot not in (0, 1) or found.left_out == 1 - found.pivot
    assert len({number // 2 for number in (found.context_pivot, *found.contexts)}) > 1
    assert all(number // 2 != found.context_pivot // 2 for number in found.contexts)
    assert found.d_svd_contexts <= found.sharper_bounds[0]
    assert found.d_svd_tokens <= found.sharper_bounds[1]


@pytest.mark.parametrize(
    ("contexts", "tokens", "message"),
    [
        (torch.arange(30), torch.tensor([0, 0, 0, 1, 1, 1]), "log-ratios of too many tokens are the same"),
        (torch.arange(30) // 30, torch.arange(6), "log-ratios of too many tokens are the same"),
        ((torch.arange(30) == 29).long(), torch.arange(6), "log-ratios of too many contexts are the same"),
    ],
)
def test_too_many_of_a_kind_are_refused(contexts: Tensor, tokens: Tensor, message: str) -> None:
    p = predictor(30, 6, 3)
    alike = Predictor.from_arrays(p.f[contexts], p.g[tokens])
    with pytest.raises(LrtError, match=message):
        likelihood_distance(alike, alike, n_sets=1)


def benchmark(name: str) -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_circle_of_the_paper() -> None:
    """Case 8: KL falls by four orders of magnitude, and nothing else moves."""
    circle = benchmark("circle_permutation")
    found = [circle.figures(length) for length in circle.PAPER]
    for row, kl in zip(found, circle.PAPER.values(), strict=True):
        assert row["kl"] == pytest.approx(kl, rel=0.07)
        assert 1.75 < row["reverse_kl"] / row["kl"] < 1.9
        assert row["d_llv"] == pytest.approx(1.317, abs=2e-3)
        assert row["mean_cca"] < 0.005
        assert row["d_svd"] == pytest.approx(0.999, abs=2e-3)
    assert [row["kl"] for row in found[:5]] == pytest.approx([*circle.PAPER.values()][:5], rel=0.023)
