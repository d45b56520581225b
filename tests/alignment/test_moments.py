"""Streaming, merging and shifting, against the sums written out in float64."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrt_tl.alignment.moments import Centered, Moments, fit_pairs, pool
from lrt_tl.errors import LrtError

N_SPLITS, D_SOURCE, D_TARGET = 3, 5, 4


def data(n: int = 300, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated activations around unequal means, the first source channel at 3000, and their splits."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D_SOURCE, generator=generator, dtype=torch.float64)
    y = x[:, :D_TARGET] + 0.5 * torch.randn(n, D_TARGET, generator=generator, dtype=torch.float64) - 7
    x[:, 0] += 3000
    return x.to(dtype), y.to(dtype), torch.randint(N_SPLITS, (n,), generator=generator)


PAIRS = fit_pairs(["x"], ["y"])


def empty(x: Tensor, y: Tensor, offset: float = 0.0) -> Moments:
    shifts = {"x": x[:50].double().mean(0) + offset, "y": y[:50].double().mean(0) - offset}
    return Moments.empty(N_SPLITS, shifts, PAIRS)


def add(moments: Moments, x: Tensor, y: Tensor, splits: Tensor) -> Moments:
    return moments.update({"x": x, "y": y}, splits)


def centered(moments: Moments, splits: Iterable[int]) -> Centered:
    parts = moments.between(["x"], "y")
    return pool([parts[split] for split in splits])


def expected(x: Tensor, y: Tensor) -> dict[str, Any]:
    """Means and centered products by numpy, in float64."""
    a, b = x.double().numpy(), y.double().numpy()
    ca, cb = a - a.mean(0), b - b.mean(0)
    products = {"source_source": ca.T @ ca, "source_target": ca.T @ cb, "target_target": cb.T @ cb}
    return {"count": len(a), "source_mean": a.mean(0), "target_mean": b.mean(0), **products}


def assert_centered(actual: Centered, wanted: dict[str, Any], tolerance: float) -> None:
    """Products to within `tolerance` of √(Sii Sjj), means to within it of their size and spread."""
    assert actual.count == wanted["count"]
    spread = {name: np.sqrt(np.diag(wanted[f"{name}_{name}"])) for name in ("source", "target")}
    for left, right in (("source", "source"), ("source", "target"), ("target", "target")):
        error = getattr(actual, f"{left}_{right}").numpy() - wanted[f"{left}_{right}"]
        assert np.abs(error / np.outer(spread[left], spread[right])).max() < tolerance
    for side in ("source", "target"):
        mean = wanted[f"{side}_mean"]
        scale = np.abs(mean) + spread[side] / np.sqrt(wanted["count"])
        assert (np.abs(getattr(actual, f"{side}_mean").numpy() - mean) / scale).max() < tolerance


def assert_equal(actual: Moments, wanted: Moments, tolerance: float = 1e-12) -> None:
    assert torch.equal(actual.count, wanted.count)
    for ours, theirs in (
        (actual.shifts, wanted.shifts),
        (actual.sums, wanted.sums),
        (actual.products, wanted.products),
    ):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():  # type: ignore[attr-defined]
            scale = max(1.0, float(tensor.abs().max()))
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=tolerance * scale)  # type: ignore[index]


def streamed(moments: Moments, x: Tensor, y: Tensor, splits: Tensor, size: int) -> Moments:
    for part in zip(x.split(size), y.split(size), splits.split(size), strict=True):
        add(moments, *part)
    return moments


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("size", [1, 7, 300])
def test_streaming_equals_the_whole(dtype: torch.dtype, tolerance: float, size: int) -> None:
    x, y, splits = data(dtype=dtype)
    moments = streamed(empty(x, y), x, y, splits, size)
    for chosen in ([0], [1], [0, 2], [0, 1, 2]):
        here = torch.isin(splits, torch.tensor(chosen))
        assert_centered(centered(moments, chosen), expected(x[here], y[here]), tolerance)
    assert moments.count.dtype == torch.int64


def test_one_large_float32_update_is_as_exact_as_many_small_ones() -> None:
    x, y, splits = data(n=300_000, dtype=torch.float32)
    moments = add(empty(x, y), x, y, torch.zeros_like(splits))
    assert_centered(centered(moments, [0]), expected(x, y), 1e-6)


@pytest.mark.parametrize("offset", [0.0, 2.0])
def test_a_float32_shift_is_the_shift_that_was_subtracted(offset: float) -> None:
    """A shift that float32 cannot hold must not move the means, nor what is merged across shifts."""
    x, y, splits = data(dtype=torch.float32)
    other = add(empty(x, y, offset + 1 / 3), x[100:], y[100:], splits[100:])
    merged = add(empty(x, y, 1 / 7), x[:100], y[:100], splits[:100]).merge(other)
    found = centered(merged, range(N_SPLITS))
    assert_centered(found, expected(x, y), 1e-6)
    torch.testing.assert_close(found.source_mean, x.double().mean(0), rtol=1e-9, atol=1e-7)


def test_without_a_shift_a_channel_at_3000_costs_digits() -> None:
    """What the shift is for: this is the test above, failing."""
    x, y, splits = data(dtype=torch.float32)
    zero = {"x": torch.zeros(D_SOURCE, dtype=torch.float64), "y": torch.zeros(D_TARGET, dtype=torch.float64)}
    moments = add(Moments.empty(N_SPLITS, zero, PAIRS), x, y, splits)
    with pytest.raises(AssertionError):
        assert_centered(centered(moments, range(N_SPLITS)), expected(x, y), 1e-3)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60), max_size=4),
    order=st.randoms(use_true_random=False),
    offsets=st.lists(st.floats(-5, 5), min_size=5, max_size=5),
    single=st.booleans(),
)
def test_merging_is_associative_and_commutative(
    cuts: list[int], order: Any, offsets: list[float], single: bool
) -> None:
    x, y, splits = data(n=60, dtype=torch.float32 if single else torch.float64)
    bounds = [0, *sorted(cuts), 60]
    parts = [slice(start, stop) for start, stop in pairwise(bounds)]
    if single:  # float32 products depend on the shift, so here it is common
        offsets = [0.0] * 5
    moments = [add(empty(x, y, offset), x[p], y[p], splits[p]) for p, offset in zip(parts, offsets, strict=False)]
    one_by_one = moments[0]
    for other in moments[1:]:
        one_by_one = one_by_one.merge(other)
    while len(moments) > 1:
        first, second = (moments.pop(order.randrange(len(moments))) for _ in range(2))
        moments.append(first.merge(second))
    assert_equal(moments[0].shifted(one_by_one.shifts), one_by_one)
    whole = add(empty(x, y, offsets[0]), x, y, splits)
    assert_equal(one_by_one, whole, 1e-6 if single else 1e-12)


def test_merge_leaves_its_operands_alone() -> None:
    x, y, splits = data()
    one, other = add(empty(x, y), x, y, splits), add(empty(x, y, 1.0), x, y, splits)
    merged = one.merge(other)
    assert int(one.count.sum()) == int(other.count.sum()) == 300
    assert int(merged.count.sum()) == 600


def test_both_sides_of_another_precision() -> None:
    x, y, splits = data()
    moments = add(empty(x, y), x, y.float(), splits)
    assert_centered(centered(moments, range(N_SPLITS)), expected(x, y.float()), 1e-12)


def test_counts_beyond_what_float32_holds() -> None:
    x, y, splits = data(n=1)
    moments = empty(x, y)
    moments.count[:] = 2**24
    add(moments, x, y, splits)
    assert int(moments.merge(moments).count.sum()) == 2 * (3 * 2**24 + 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y, splits: (x[1:], y, splits),
        lambda x, y, splits: (x, y, splits[1:]),
        lambda x, y, splits: (x[:, 1:], y, splits),
        lambda x, y, splits: (x, torch.cat([y, y], 1), splits),
    ],
)
def test_activations_that_do_not_pair_are_refused(change: Any) -> None:
    x, y, splits = data()
    moments = empty(x, y)
    with pytest.raises(LrtError, match="do not pair"):
        add(moments, *change(x, y, splits))
    assert int(moments.count.sum()) == 0


def test_moments_of_other_widths_do_not_merge() -> None:
    x, y, _ = data()
    with pytest.raises(LrtError, match="do not merge"):
        empty(x, y).merge(empty(x[:, 1:], y))


def test_a_split_without_positions_has_no_mean() -> None:
    x, y, splits = data()
    moments = add(empty(x, y), x, y, torch.zeros_like(splits))
    with pytest.raises(LrtError, match="no position in these splits"):
        centered(moments, [1, 2])


def test_several_sources_stand_side_by_side() -> None:
    x, y, splits = data()
    other = y[:, :2] * x[:, :2]
    shifts = {"a": x.mean(0), "b": other.mean(0), "y": y.mean(0)}
    moments = Moments.empty(N_SPLITS, shifts, fit_pairs(["a", "b"], ["y"], stacked=True))
    moments.update({"a": x, "b": other, "y": y}, splits)
    for names, stacked in ((["a", "b"], torch.cat([x, other], 1)), (["b", "a"], torch.cat([other, x], 1))):
        assert_centered(pool(moments.between(names, "y")), expected(stacked, y), 1e-12)
