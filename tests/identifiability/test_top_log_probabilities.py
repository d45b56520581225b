"""Bounds from truncated lists always hold the distance of the whole distributions."""

import json
import math

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import distances_of_logits
from lrt_tl.identifiability.equality import equality
from lrt_tl.identifiability.top_log_probabilities import BOUNDED, DistanceBounds, distance_bounds, equality_of_bounds
from tests.identifiability.planted import normal
from tests.unchecked import without_type_checks


def truncated(p: Tensor, q: Tensor, k_p: int, k_q: int) -> DistanceBounds:
    ours, theirs = p.log_softmax(1).topk(k_p, dim=1), q.log_softmax(1).topk(k_q, dim=1)
    return distance_bounds(ours.indices, ours.values, theirs.indices, theirs.values)


def test_the_truth_is_always_between() -> None:
    """200 pairs of 10 contexts: flat and sharp, near and far, lists of one token up to all but one."""
    widths = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        n_tokens = int(torch.randint(3, 40, (), generator=generator))
        k_p, k_q = torch.randint(1, n_tokens, (2,), generator=generator).tolist()
        sharpness, distance = (10 ** (2 * torch.rand(2, generator=generator) - 1)).tolist()
        p = sharpness * normal(10, n_tokens, seed=seed)
        q = p + distance * normal(10, n_tokens, seed=1000 + seed)
        found, truth = truncated(p, q, k_p, k_q), distances_of_logits(p, q)
        for name in BOUNDED:
            value = getattr(truth, name)
            assert bool((found.low[name] <= value + 1e-7).all()), name
            assert bool((value <= found.high[name] + 1e-7).all()), name
        widths.append(float((found.high["total_variation"] - found.low["total_variation"]).mean()))
    assert min(widths) < 0.01
    assert max(widths) > 0.5


def test_both_bounds_are_reached() -> None:
    """p and q list the same two of many tokens: the rest may agree, or have none in common."""
    known = torch.tensor([[0.5, 0.2]]).double(), torch.tensor([[0.4, 0.3]]).double()
    tokens = torch.tensor([[3, 8]])
    found = distance_bounds(tokens, known[0].log(), tokens, known[1].log())
    rest = 0.3
    agreeing = [torch.tensor([[*each[0].tolist(), rest, 0.0]]).double() for each in known]
    apart = agreeing[0], torch.tensor([[0.4, 0.3, 0.0, rest]]).double()
    for bound, (p, q) in ((found.low, agreeing), (found.high, apart)):
        assert float(bound["total_variation"]) == pytest.approx(float((p - q).abs().sum() / 2))
        assert float(bound["hellinger"]) == pytest.approx(math.sqrt(1 - float((p * q).sqrt().sum())), abs=1e-6)
    low = distances_of_logits(*(each[:, :3].log() for each in agreeing))
    for name in BOUNDED:
        assert float(found.low[name]) == pytest.approx(float(getattr(low, name)), abs=1e-6)
    assert float(found.high["kl"]) == math.inf
    assert float(found.coverage_p) == pytest.approx(0.7)


def test_longer_lists_bound_closer() -> None:
    p, q = 2 * normal(20, 50, seed=1), 2 * normal(20, 50, seed=1) + 0.3 * normal(20, 50, seed=2)
    found = [truncated(p, q, k, k).mean("js") for k in (2, 8, 25, 49)]
    lows, highs = zip(*found, strict=True)
    assert list(lows) == sorted(lows)
    assert list(highs) == sorted(highs, reverse=True)
    assert highs[-1] - lows[-1] < 0.01 * (highs[0] - lows[0])


def test_lists_in_any_order_and_with_nothing_in_common() -> None:
    tokens, logs = torch.tensor([[5, 2, 9]]), torch.tensor([[0.5, 0.3, 0.1]]).log()
    turned = distance_bounds(tokens, logs, tokens.flip(1), logs.flip(1))
    assert turned.mean("total_variation") == pytest.approx((0, 0.1), abs=1e-6)
    apart = distance_bounds(tokens, logs, tokens + 10, logs)
    assert apart.mean("total_variation") == (0, 1)
    assert apart.mean("js") == pytest.approx((0, math.log(2)))


def test_equality_by_the_most_that_a_distance_can_be() -> None:
    """ε is 0.05: found equal where lists are long and the models near; not for want of a difference in short lists."""
    p, step = 4 * normal(60, 200, seed=1), normal(60, 200, seed=2)
    near, far = p + 0.05 * step, p + 2 * step
    full, short = truncated(p, near, 150, 150), truncated(p, near, 2, 2)
    assert equality_of_bounds(full, 0.05).equal
    assert equality(distances_of_logits(p, near), 0.05, measure="js").equal
    assert not equality_of_bounds(short, 0.05).equal
    assert not equality_of_bounds(truncated(p, far, 150, 150), 0.05).equal
    found = equality_of_bounds(full, 0.05, measure="total_variation", documents=torch.arange(60) // 6)
    assert found.estimate == pytest.approx(float(full.high["total_variation"].mean()))
    assert (found.contexts, found.documents) == (60, 10)
    assert str(found).startswith("equal: mean largest possible total variation 0.0")
    for name in ("kl", "reverse_kl", "logit_distance"):
        with pytest.raises(LrtError, match="must be one of js, total_variation, hellinger"):
            equality_of_bounds(full, 0.05, measure=name)


def test_what_is_shown() -> None:
    found = truncated(normal(4, 9), normal(4, 9, seed=3), 3, 4)
    shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert shown["kl"][1] is None
    assert shown["contexts"] == 4
    assert repr(found).startswith("DistanceBounds(total variation ")
    assert "tokens of both lists" in found._repr_html_()


@pytest.mark.parametrize(
    ("tokens", "logs", "message"),
    [
        ([[1, 1]], [[-1.0, -1.0]], "listed twice"),
        ([[1, 2]], [[-0.1, -0.1]], "more than one"),
        ([[1, 2]], [[math.nan, -1.0]], "or are NaN"),
        ([[1, 2], [1, 2]], [[-1.0, -1.0], [-1.0, -1.0]], "the same contexts"),
        ([[1, 2, 3]], [[-1.0, -1.0]], "needs its log-probability"),
    ],
)
def test_lists_that_are_none(tokens: list[list[int]], logs: list[list[float]], message: str) -> None:
    good = torch.tensor([[1, 2]]), torch.tensor([[-1.0, -2.0]])
    with without_type_checks(), pytest.raises(LrtError, match=message):
        distance_bounds(torch.tensor(tokens), torch.tensor(logs), *good)
