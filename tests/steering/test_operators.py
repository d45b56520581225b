"""What each operator does to a state, against its formula in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.models.identity import Site
from lrt_tl.steering.operators import Step, check_width, edit_of
from lrt_tl.steering.probe import Probe
from tests.unchecked import without_type_checks

D = 6
SITE = Site("blocks.1.hook_resid_post", D)
V = torch.tensor([1.5, -2.0, 0.5, 0.0, 3.0, 1.0])
WIDER = Probe(torch.ones(D + 1), 0.0, 0.0, Site(SITE.hook_name, D + 1))
READER = Probe(torch.tensor([0.5, 1.0, -1.0, 2.0, 1.0, 0.0]), bias=0.75, threshold=0.0, site=SITE)

STEPS: dict[str, Step] = {
    "add": Step("add", V, SITE, 1.5),
    "add backwards": Step("add", V, SITE, -0.25),
    "ablate": Step("ablate", V, SITE),
    "ablate a share": Step("ablate", V, SITE, 0.3),
    "clamp": Step("clamp", V, SITE, value=-2.0),
    "clamp a share": Step("clamp", V, SITE, 0.6, value=4.0),
    "clamp what a reader reads": Step("clamp", V, SITE, value=3.0, reads=READER),
    "clamp a share of it": Step("clamp", V, SITE, 0.4, value=-1.0, reads=READER),
    "rotate": Step("rotate", V, SITE, 2.0),
}


def by_formula(step: Step, h: Tensor) -> Tensor:
    """One state, in float64."""
    v, c, a = step.direction.double(), step.coefficient, step.value
    u = v / v.norm()
    if step.operator == "add":
        return h + c * v
    if step.operator == "rotate":
        return h.norm() * (h + c * v) / (h + c * v).norm()
    if step.operator == "ablate":
        return h - c * (h @ u) * u
    assert a is not None
    if step.reads is None:
        return h + c * (a - h @ u) * u
    w, k = step.reads.weight.double(), step.reads.bias
    return h + c * (a - (w @ h + k)) / (w @ v) * v


def states(dtype: torch.dtype, *, seed: int = 0) -> Tensor:
    return (5 * torch.randn(3, 4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).to(dtype)


each_step = pytest.mark.parametrize("step", [pytest.param(step, id=name) for name, step in STEPS.items()])
PRECISIONS = {torch.float64: 1e-6, torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}
"""Directions are float32, so that unit ones are no better in float64."""


@each_step
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS.items(), ids=str)
def test_an_edit_is_its_formula(step: Step, dtype: torch.dtype, tolerance: float) -> None:
    given = states(dtype)
    before = given.clone()
    found = edit_of(step)(given)
    assert found.dtype == dtype
    assert torch.equal(given, before)  # not in place
    expected = torch.stack([torch.stack([by_formula(step, h) for h in row]) for row in given.double()])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS.items(), ids=str)
def test_rotating_keeps_the_norms(dtype: torch.dtype, tolerance: float) -> None:
    given = states(dtype)
    for coefficient in (-3.0, 0.1, 50.0):
        found = edit_of(Step("rotate", V, SITE, coefficient))(given)
        torch.testing.assert_close(found.double().norm(dim=-1), given.double().norm(dim=-1), rtol=tolerance, atol=0)
    far = edit_of(Step("rotate", V, SITE, 1e6))(given).double()
    torch.testing.assert_close(far @ V.double(), given.double().norm(dim=-1) * V.double().norm(), rtol=0.02, atol=0)


def test_rotating_what_has_no_direction_left() -> None:
    for given in (-V, torch.zeros(D)):  # h + c v is zero; h is
        found = edit_of(Step("rotate", V, SITE))(given.expand(1, 1, D))
        assert torch.equal(found, torch.zeros(1, 1, D))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS.items(), ids=str)
def test_ablating_and_clamping_are_done_once(dtype: torch.dtype, tolerance: float) -> None:
    u = V.double() / V.double().norm()
    for name, component in (("ablate", 0.0), ("clamp", -2.0), ("clamp what a reader reads", None)):
        edit, given = edit_of(STEPS[name]), states(dtype)
        once = edit(given)
        size = tolerance * float(given.double().abs().max()) * D
        torch.testing.assert_close(edit(once).double(), once.double(), rtol=0, atol=size)
        if component is None:
            scores = once.double() @ READER.weight.double() + READER.bias
            torch.testing.assert_close(scores, torch.full_like(scores, 3.0), rtol=0, atol=4 * size)
        else:
            left = once.double() @ u
            torch.testing.assert_close(left, torch.full_like(left, component), rtol=0, atol=size)


def test_a_clamp_may_read_along_its_own_direction() -> None:
    """With u as the reader and no bias it is the plain clamp."""
    reads = Probe(V / V.norm(), bias=0.0, threshold=0.0, site=SITE)
    given = states(torch.float32)
    plain = edit_of(Step("clamp", V, SITE, 0.7, value=2.0))(given)
    torch.testing.assert_close(edit_of(Step("clamp", V, SITE, 0.7, value=2.0, reads=reads))(given), plain)


@each_step
def test_gradients_go_through_an_edit(step: Step) -> None:
    given = states(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(edit_of(step), (given,), atol=1e-6)


@each_step
def test_what_was_made_for_generate_has_gradients_after_it(step: Step) -> None:
    """`generate` runs in inference mode, where tensors are made that no gradient can use."""
    edit = edit_of(step)
    with torch.inference_mode():
        edit(states(torch.float64))
    assert torch.autograd.gradcheck(edit, (states(torch.float64).requires_grad_(),), atol=1e-6)


def test_adding_is_done_in_the_states_own_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        given = states(dtype)
        assert torch.equal(edit_of(STEPS["add"])(given), given + (1.5 * V).to(dtype))


def test_a_vector_too_long_for_half_precision_is_refused() -> None:
    for operator in ("add", "rotate"):
        edit = edit_of(Step(operator, V, SITE, 1e6))  # type: ignore[arg-type]
        edit(states(torch.bfloat16))
        if operator == "add":
            with pytest.raises(LrtError, match=r"too long for torch\.float16: the largest number there is 65504"):
                edit(states(torch.float16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operator": "subtract"}, "operator='subtract' is none of add, ablate, clamp, rotate"),
        ({"direction": torch.zeros(D)}, "the steering vector is zero"),
        ({"direction": torch.full((D,), float("nan"))}, "NaN or infinity"),
        ({"direction": torch.ones(D + 1)}, r"shape \(7,\) is not one of"),
        ({"direction": torch.ones(1, D)}, r"shape \(1, 6\) is not one of"),
        ({"direction": torch.ones(D, dtype=torch.float16)}, r"float32 on the CPU, not torch\.float16 on cpu"),
        ({"direction": torch.ones(D, dtype=torch.float64)}, r"not torch\.float64 on cpu: give it as direction\.float"),
        ({"direction": torch.ones(D, dtype=torch.long)}, r"not torch\.int64 on cpu"),
        ({"direction": torch.ones(D, device="meta")}, r"not torch\.float32 on meta"),
        ({"coefficient": float("nan")}, "coefficient=nan: it must be a finite number"),
        ({"coefficient": float("inf")}, "coefficient=inf: it must be a finite number"),
        ({"value": 1.0}, "add with value=1.0: a clamp needs a value, and nothing else has one"),
        ({"operator": "clamp"}, "clamp with value=None: a clamp needs a value"),
        ({"operator": "clamp", "value": float("-inf")}, "value=-inf: it must be a finite number"),
        ({"reads": READER}, "a clamp needs a value, and nothing else has one"),
        ({"positions": "last"}, "positions='last': use 'all'"),
        ({"positions": {"not": "all"}}, "selects nothing"),
        (
            {
                "operator": "clamp",
                "value": 1.0,
                "reads": Probe(torch.ones(D + 1), 0.0, 0.0, Site(SITE.hook_name, D + 1)),
            },
            "reader has 7 dimensions",
        ),
        (
            {"operator": "clamp", "value": 1.0, "reads": Probe(torch.tensor([2.0, 1.5, 0, 0, 0, 0]), 0.0, 0.0, SITE)},
            "does not notice its direction",
        ),
    ],
    ids=str,
)
def test_what_is_no_step_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"operator": "add", "direction": V, "site": SITE, **change}
    with without_type_checks(), pytest.raises(LrtError, match=message):
        Step(**given)


def test_states_of_another_width_are_refused() -> None:
    check_width(torch.zeros(1, 2, D), STEPS["add"])
    with pytest.raises(MismatchError, match="a vector of 6 dimensions cannot be added to states of 7"):
        check_width(torch.zeros(1, 2, 7), STEPS["add"])


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (lambda: STEPS["add"], "add × 1.5 on unknown model L1"),
        (lambda: STEPS["clamp a share"], "clamp to 4 × 0.6 on unknown model L1"),
        (
            lambda: Step("ablate", V, SITE, positions={"first": 2}, when=READER),
            "ablate × 1 on unknown model L1 at {'first': 2} when a probe says yes",
        ),
    ],
    ids=["add", "clamp", "ablate"],
)
def test_a_step_is_shown_in_one_line(made: Callable[[], Step], shown: str) -> None:
    assert repr(made()) == shown


def test_a_step_times_a_factor() -> None:
    step = STEPS["clamp a share"].times(-2.0)
    assert (step.coefficient, step.value, step.idle) == (-1.2, 4.0, False)
    assert step.times(0.0).idle
