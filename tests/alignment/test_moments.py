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

from lrt_tl.alignment import moments as module
from lrt_tl.alignment.moments import Centered, Moments, device_of_sums, fit_pairs, pool
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


NAMES = ("a", "b", "y")
BATCHES: dict[str, Any] = {
    "cuts": st.lists(st.integers(0, 60), max_size=5),
    "random": st.randoms(use_true_random=False),
    "offsets": st.lists(st.floats(-5, 5), min_size=6, max_size=6),
    "at_once": st.sampled_from([(1, 3), (2, 1), (7, 2), (2048, 512)]),
}


def named(dtype: torch.dtype = torch.float64) -> tuple[dict[str, Tensor], Tensor]:
    """60 positions of two sources and a target."""
    x, y, splits = data(n=60, dtype=dtype)
    return {"a": x, "b": x[:, 1:3] * y[:, :2], "y": y}, splits


def batches(states: dict[str, Tensor], splits: Tensor, cuts: list[int], order: list[int]) -> list[Any]:
    """The positions in this order, cut here; some batches can be empty."""
    bounds = [0, *sorted(cuts), len(order)]
    parts = [torch.tensor(order[start:stop], dtype=torch.long) for start, stop in pairwise(bounds)]
    return [({name: z[part] for name, z in states.items()}, splits[part]) for part in parts]


def moments_of(states: dict[str, Tensor], splits: Tensor, offset: float, at_once: tuple[int, int]) -> Moments:
    """Of all pairs of names, so many positions and rows at once."""
    shifts = {name: named()[0][name].mean(0) + offset for name in NAMES}
    pairs = fit_pairs(NAMES[:2], NAMES[2:], stacked=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_POSITIONS_AT_ONCE", at_once[0])
        patch.setattr(module, "_ROWS_AT_ONCE", at_once[1])
        return Moments.empty(N_SPLITS, shifts, pairs).update(states, splits)


def assert_of_the_definition(moments: Moments, states: dict[str, Tensor], splits: Tensor, tolerance: float) -> None:
    """Every choice of sources, split by split and all splits together, against means and centered products."""
    for sources in (["a"], ["b"], ["a", "b"], ["b", "a"]):
        x = torch.cat([states[name] for name in sources], 1)
        parts = moments.between(sources, "y")
        sets = [(part, splits == split) for split, part in enumerate(parts)]
        for actual, here in [*sets, (pool(parts), splits >= 0)]:
            assert_centered(actual, expected(x[here], states["y"][here]), tolerance)


@settings(max_examples=25, deadline=None)
@given(**BATCHES)
def test_any_batches_in_any_order_merged_in_any_order_are_the_whole(
    cuts: list[int], random: Any, offsets: list[float], at_once: tuple[int, int]
) -> None:
    states, splits = named()
    order = random.sample(range(60), 60)
    parts = batches(states, splits, cuts, order)
    moments = [moments_of(*part, offset, at_once) for part, offset in zip(parts, offsets, strict=False)]
    while len(moments) > 1:
        first, second = (moments.pop(random.randrange(len(moments))) for _ in range(2))
        moments.append(first.merge(second))
    assert_of_the_definition(moments[0], states, splits, 1e-10)


@settings(max_examples=25, deadline=None)
@given(**BATCHES)
def test_any_batches_in_any_order_streamed_are_the_whole(
    cuts: list[int], random: Any, offsets: list[float], at_once: tuple[int, int]
) -> None:
    states, splits = named(torch.float32)
    (first, *others) = batches(states, splits, cuts, random.sample(range(60), 60))
    moments = moments_of(*first, offsets[0] / 10, at_once)
    for part in others:
        moments.update(*part)
    assert_of_the_definition(moments, states, splits, 1e-6)


@settings(max_examples=25, deadline=None)
@given(**BATCHES)
def test_merging_is_associative_and_commutative(
    cuts: list[int], random: Any, offsets: list[float], at_once: tuple[int, int]
) -> None:
    states, splits = named()
    parts = batches(states, splits, [*cuts, 0, 60][:2], random.sample(range(60), 60))
    p, q, r = (moments_of(*part, offset, at_once) for part, offset in zip(parts, offsets, strict=False))
    assert_equal(p.merge(q).merge(r), p.merge(q.merge(r)))
    assert_equal(q.merge(p).shifted(p.shifts), p.merge(q))
    assert_equal(p.shifted(q.shifts).shifted(p.shifts), p)


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


def test_sums_are_kept_where_there_is_float64() -> None:
    assert device_of_sums(torch.device("mps")) == torch.device("cpu")
    assert device_of_sums(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert device_of_sums(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is one device only")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [("cuda", "cuda", "cpu"), ("cuda", "cpu", "cpu"), ("cpu", "cpu", "cuda")])
def test_activations_and_sums_on_different_devices(dtype: torch.dtype, ends: tuple[str, str, str]) -> None:
    x, y, splits = data(dtype=dtype)
    shifts = {"x": x.mean(0).to(ends[2]), "y": y.mean(0)}
    moments = Moments.empty(N_SPLITS, shifts, PAIRS).update({"x": x.to(ends[0]), "y": y.to(ends[1])}, splits)
    assert {total.device.type for total in moments.sums.values()} == {ends[2]}
    wanted = Moments.empty(N_SPLITS, {"x": x.mean(0), "y": y.mean(0)}, PAIRS).update({"x": x, "y": y}, splits)
    assert_equal(Moments(wanted.shifts, moments.count, *on_cpu(moments)), wanted, 1e-6)


def on_cpu(moments: Moments) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:
    sums = {name: total.cpu() for name, total in moments.sums.items()}
    return sums, {pair: product.cpu() for pair, product in moments.products.items()}


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
