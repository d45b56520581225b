"""Steering, probes and subspaces through planted maps: the algebra is exact."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.transport import transport_probe, transport_steering, transport_subspace
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.models.identity import Site
from lrt_tl.steering.operators import edit_of
from lrt_tl.steering.probe import Probe
from lrt_tl.steering.steering import Steering
from lrt_tl.steering.vector import SteeringVector
from tests.alignment.test_affine_map import REPORT, affine_map, identity

D_SOURCE, D_TARGET = 5, 8
SOURCE = Site("blocks.1.hook_resid_post", D_SOURCE, identity("small", D_SOURCE))
BELOW = replace(SOURCE, hook_name="blocks.0.hook_resid_post")
TARGET = Site("blocks.0.hook_resid_post", D_TARGET, identity("large", D_TARGET))
ABOVE = replace(TARGET, hook_name="blocks.1.hook_resid_post")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def map_between(source: Site, target: Site, *, seed: int = 0, **changes: Any) -> AffineMap:
    covariance = normal(40, source.d_model, seed=seed + 2)
    settings = {
        "weight": normal(target.d_model, source.d_model, seed=seed),
        "bias": 3 * normal(target.d_model, seed=seed + 1),
        "sources": (source,),
        "target": target,
        "target_covariance": torch.eye(target.d_model),
        "source_covariance": covariance.T @ covariance / 40,
        "report": replace(REPORT, relative_ridge=1e-6),
    }
    return affine_map(**{**settings, **changes})


THERE, BACK = map_between(SOURCE, TARGET), map_between(TARGET, SOURCE, seed=5)
STATES = normal(7, 3, D_TARGET, seed=9)


def vector(site: Site = SOURCE) -> SteeringVector:
    return SteeringVector(normal(D_SOURCE, seed=4), site, 7.0, {"method": "test"})


def probe(**changes: Any) -> Probe:
    return replace(Probe(normal(D_SOURCE, seed=6), 0.5, 0.25, SOURCE, "last", {"method": "test"}), **changes)


def test_a_probe_reads_of_the_target_what_it_read_of_what_the_map_makes_of_it() -> None:
    carried = transport_probe(probe(), BACK)
    torch.testing.assert_close(carried(STATES), probe()(BACK(STATES)))
    assert (carried.threshold, carried.site, carried.position) == (0.25, TARGET, "last")
    assert carried.provenance["transported_from"] == "small L1"
    assert carried.provenance["transported_through"] == repr(BACK)


def test_the_bias_is_what_makes_a_probe_right() -> None:
    """On states whose labels the source's probe gives, with noise in the map: .93 with the bias, chance without."""
    states = normal(4000, D_TARGET, seed=11)
    weight, shift = normal(D_SOURCE, D_TARGET, seed=12), 20 * probe().weight / probe().weight.norm()
    back = map_between(TARGET, SOURCE, weight=weight, bias=shift)
    true = states @ weight.T + shift + 0.5 * normal(4000, D_SOURCE, seed=13)
    balanced = replace(probe(), threshold=float(probe()(true).median()))
    labels = balanced(true) > balanced.threshold
    carried = transport_probe(balanced, back)
    with_bias = ((carried(states) > carried.threshold) == labels).float().mean()
    without = ((states @ carried.weight > carried.threshold) == labels).float().mean()
    assert 0.88 < with_bias < 0.98
    assert without < 0.55


def test_how_much_of_a_reading_varies_is_said() -> None:
    states = normal(500, D_TARGET, seed=3)
    back = map_between(TARGET, SOURCE, source_covariance=states.T.cov(correction=0), target_covariance=3 * torch.eye(5))
    kept = transport_probe(probe(), back).provenance["carried"]["variance"]
    true_variance = 3 * float(probe().weight.square().sum())
    assert kept == pytest.approx(float(probe()(back(states)).var(correction=0)) / true_variance, rel=1e-4)
    unknown = replace(back, source_covariance=None)
    assert transport_probe(probe(), unknown).provenance["carried"] == {"variance": None}


@pytest.mark.parametrize("operator", ["add", "rotate", "ablate"])
def test_what_writes_goes_with_the_map(operator: str) -> None:
    positions = {"prompt": {"last": 2}, "generated": "all"}
    before = getattr(vector(), operator)(1.5, positions=positions)
    (step,) = transport_steering(before, THERE).steps
    torch.testing.assert_close(step.direction, THERE.weight @ vector().direction)
    assert (step.operator, step.coefficient, step.positions, step.site) == (operator, 1.5, positions, TARGET)
    assert step.provenance["method"] == "test"
    assert step.provenance["carried"] == THERE.transport(vector()).provenance["carried"]


def test_an_ablation_leaves_nothing_along_the_image() -> None:
    (step,) = transport_steering(vector().ablate(), THERE).steps
    image = THERE.weight @ vector().direction
    after = edit_of(step)(STATES)
    torch.testing.assert_close(after @ image, torch.zeros(7, 3), atol=1e-4, rtol=0)
    off = STATES - (STATES @ image)[..., None] * image / image.norm() ** 2
    torch.testing.assert_close(after, off)


@pytest.mark.parametrize("with_reader", [False, True])
def test_a_clamp_makes_the_source_read_the_value_exactly(with_reader: bool) -> None:
    before = vector().clamp(2.5)
    unit = vector().direction / vector().norm
    reads = probe() if with_reader else Probe(unit, 0.0, 0.0, SOURCE)
    if with_reader:
        before = Steering((replace(before.steps[0], reads=probe()),))
    (step,) = transport_steering(before, THERE, back=BACK).steps
    after = edit_of(step)(STATES)
    torch.testing.assert_close(reads(BACK(after)), torch.full((7, 3), 2.5), atol=1e-4, rtol=1e-4)
    moved = (after - STATES) / (after - STATES).norm(dim=-1, keepdim=True)
    image = THERE.weight @ unit
    torch.testing.assert_close((moved @ image).abs(), image.norm().expand(7, 3), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(step.direction, image)
    assert (step.value, step.reads.site) == (2.5, TARGET)  # type: ignore[union-attr]


def test_every_step_finds_its_map_and_conditions_come_along() -> None:
    condition = probe(site=BELOW)
    before = vector(BELOW).add(2.0) + vector().add(-1.0, when=condition)
    low, high = map_between(BELOW, TARGET, seed=20), map_between(SOURCE, ABOVE, seed=30)
    back = map_between(TARGET, BELOW, seed=40)
    first, second = transport_steering(before, [high, low], back=[back]).steps
    torch.testing.assert_close(first.direction, low.weight @ vector().direction)
    torch.testing.assert_close(second.direction, high.weight @ vector().direction)
    assert (first.site, second.site) == (TARGET, ABOVE)
    assert second.when is not None
    torch.testing.assert_close(second.when(STATES), condition(back(STATES)))


def test_maps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MismatchError, match="exactly one map from small L1 is needed, and 0 are given"):
        transport_steering(vector().add(), map_between(BELOW, TARGET))
    with pytest.raises(MismatchError, match="and 2 are given"):
        transport_steering(vector().add(), [THERE, map_between(SOURCE, ABOVE)])
    whole = map_between(SOURCE, TARGET, weight=normal(8, 10), sources=(BELOW, SOURCE), source_covariance=torch.eye(10))
    with pytest.raises(MismatchError, match=r"and 0 are given.* a vector of each: affine_map\.transport\(vectors\)"):
        transport_steering(vector().add(), whole)
    other = replace(SOURCE, model=identity("tiny", D_SOURCE, basis="centered"))
    with pytest.raises(MismatchError, match="basis is centered, not raw"):
        transport_steering(vector(other).add(), THERE)


def test_what_reads_needs_the_way_back() -> None:
    with pytest.raises(LrtError, match=r"to clamp at small L1 is to read .*give back=, a map from large L0 to small L"):
        transport_steering(vector().clamp(1.0), THERE)
    with pytest.raises(LrtError, match=r"a condition reads at small L1.*give back="):
        transport_steering(vector().add(when=probe()), THERE)
    with pytest.raises(MismatchError, match="one map back from large L0 to small L1 is needed"):
        transport_steering(vector().clamp(1.0), THERE, back=map_between(ABOVE, SOURCE))
    with pytest.raises(MismatchError, match="one map back to small L1, where a condition is read, is needed"):
        transport_steering(vector().add(when=probe()), THERE, back=map_between(TARGET, BELOW))
    with pytest.raises(MismatchError, match="the probe is at small L1"):
        transport_probe(probe(), map_between(TARGET, BELOW))


FOREIGN = replace(TARGET, model=identity("large", D_TARGET, tokenizer="xyz"))
MASK = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    "positions", [{"tokens": [5, 7]}, {"mask": MASK}, {"not": {"prompt": {"tokens": [5]}}}], ids=str
)
@pytest.mark.parametrize(
    ("target", "why"), [(FOREIGN, "another one"), (replace(TARGET, model=None), "not known")], ids=["other", "unknown"]
)
def test_token_ids_and_masks_mean_nothing_to_another_tokenizer(positions: Any, target: Site, why: str) -> None:
    with pytest.raises(LrtError, match=f"mean nothing in .* L0, whose tokenizer is {why}: say it in text"):
        transport_steering(vector().add(positions=positions), map_between(SOURCE, target))
    if "mask" not in positions:
        with pytest.raises(LrtError, match=f"mean nothing in .* L0, whose tokenizer is {why}"):
            transport_probe(probe(position=positions), map_between(target, SOURCE))
    (step,) = transport_steering(vector().add(positions=positions), THERE).steps
    assert step.positions is positions


@pytest.mark.parametrize(
    "positions", ["prompt", 3, [0, 2], {"last": 2}, {"within": "the"}, {"not": {"after": "x"}}], ids=str
)
def test_positions_in_text_are_kept_across_tokenizers(positions: Any) -> None:
    (step,) = transport_steering(vector().add(positions=positions), map_between(SOURCE, FOREIGN)).steps
    assert step.positions == positions


@pytest.mark.parametrize("mixed", [False, True])
def test_a_subspace_lands_on_its_image(mixed: bool) -> None:
    basis = normal(3, D_SOURCE, seed=8)
    carried = transport_subspace((normal(3, 3, seed=1) @ basis) if mixed else basis, THERE)
    torch.testing.assert_close(carried @ carried.T, torch.eye(3), atol=1e-5, rtol=0)
    image = torch.linalg.qr((basis @ THERE.weight.T).double().T)[0]  # an independent basis of the same span
    torch.testing.assert_close((carried.T @ carried).double(), image @ image.T, atol=1e-5, rtol=0)


def test_a_subspace_that_falls_is_refused() -> None:
    one = map_between(SOURCE, TARGET, weight=normal(D_TARGET, 1) @ normal(1, D_SOURCE, seed=1))
    with pytest.raises(LrtError, match="the image of the subspace under the map are of 1 dimensions, and not of 2"):
        transport_subspace(normal(2, D_SOURCE), one)
    with pytest.raises(LrtError, match="the rows of the basis are of 1 dimensions, and not of 2"):
        transport_subspace(normal(1, D_SOURCE).repeat(2, 1), THERE)
    with pytest.raises(MismatchError, match="the map takes states of small L1"):
        transport_subspace(normal(2, 4), THERE)


def test_a_subspace_in_directions_that_the_map_does_not_know_is_warned_of() -> None:
    flat = map_between(SOURCE, TARGET, source_covariance=torch.tensor([1.0, 1.0, 1.0, 1.0, 1e-12]).diag())
    with pytest.warns(UserWarning, match="only 0% of direction 0 of the subspace"):
        transport_subspace(torch.eye(5)[4:], flat)


def test_an_autoencoder_reads_and_writes_as_it_did() -> None:
    """Its features of a target's state are the source's of what `back` makes of it; what it writes is the image."""
    encoder, offset, decoder = normal(D_SOURCE, 12, seed=1), normal(12, seed=2), normal(12, D_SOURCE, seed=3)
    weight, bias = BACK.pull_back(encoder.T, offset)
    torch.testing.assert_close(STATES @ weight.T + bias, BACK(STATES) @ encoder + offset)
    features, constant = normal(7, 12, seed=4), normal(D_SOURCE, seed=5)
    torch.testing.assert_close(
        features @ THERE.transport(decoder) + THERE(constant), THERE(features @ decoder + constant)
    )
