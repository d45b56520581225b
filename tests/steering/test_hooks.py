"""The parts of steering on their own: hooks on a batch that is known, and the handle. What they do to a model stands in
test_vector.py and test_table.py."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.call import Call
from lrt_tl.models.calls import watch
from lrt_tl.models.identity import Site
from lrt_tl.steering.handle import SteeringHandle
from lrt_tl.steering.hooks import known_call, steering_hooks
from lrt_tl.steering.operators import Step
from lrt_tl.steering.probe import Probe
from tests.unchecked import without_type_checks

NAME = "blocks.1.hook_resid_post"
SITE = Site(NAME, 4)
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
TOKENS = torch.tensor([[2, 2, 5, 6, 7], [5, 8, 5, 9, 2]])
V = torch.tensor([1.0, -2.0, 0.5, 3.0])


def hook_of(step: Step, on_change: Any = None, **known: Tensor) -> Any:
    """The one hook of one step, on a batch that is known."""
    ((name, hook),) = steering_hooks([step], known_call(known.get("tokens"), known.get("mask")), None, on_change)
    assert name == NAME
    return lambda activation: hook(activation, hook=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("operator", ["add", "ablate", "rotate"])
def test_only_what_is_selected_changes(operator: Any, dtype: torch.dtype) -> None:
    activation = torch.randn(2, 5, 4).to(dtype)
    activation[0, 0] = float("nan")  # what is padding may be anything
    before = activation.clone()
    told: list[tuple[int, Call, Any, Tensor, Any]] = []
    step = Step(operator, V, SITE, positions=[0, 2])
    out = hook_of(step, lambda *what: told.append(what), mask=MASK)(activation)
    assert out.dtype == dtype
    chosen = torch.tensor([[0, 0, 1, 0, 1], [1, 0, 1, 0, 0]]).bool()
    whole = hook_of(Step(operator, V, SITE))(before)
    for row in range(2):
        for place in range(5):
            expected = whole[row, place] if chosen[row, place] else before[row, place]
            assert torch.equal(out[row, place].nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(activation.nan_to_num(7), before.nan_to_num(7))  # not in place
    ((number, call, selected, given, steered),) = told
    assert (number, call.rows, call.n_positions) == (0, 2, 5)
    assert torch.equal(selected, chosen)
    assert given is activation
    assert steered is out


def test_a_coefficient_of_zero_returns_nothing_and_says_so() -> None:
    told: list[Any] = []
    for operator, value in (("add", None), ("ablate", None), ("rotate", None), ("clamp", 2.0)):
        step = Step(operator, V, SITE, 0.0, value)  # type: ignore[arg-type]
        assert hook_of(step, lambda *what: told.append(what))(torch.randn(2, 5, 4)) is None
    assert [steered for *_, steered in told] == [None] * 4


def test_steps_are_done_in_order_and_told_by_their_number() -> None:
    steps = [Step("add", V, SITE), Step("rotate", V.flip(0), SITE), Step("add", V, SITE)]
    steps.append(steps[0])  # the very same one
    told: list[int] = []
    hooks = steering_hooks(steps, known_call(None, None), None, lambda number, *_: told.append(number))
    found = torch.randn(1, 3, 4)
    expected = found.double()
    for name, hook in hooks:
        assert name == NAME
        found = hook(found, hook=None)
    turned = (expected + V) + V.flip(0)
    expected = turned * (expected + V).norm(dim=-1, keepdim=True) / turned.norm(dim=-1, keepdim=True) + 2 * V
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert told == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]),
        ("prompt", [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]),
        (0, [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]),
        ([1, 3], [[0, 0, 0, 1, 0], [0, 1, 0, 1, 0]]),
        ({"last": 1}, [[0, 0, 0, 0, 1], [0, 0, 0, 1, 0]]),
        ({"mask": MASK[:, [0, 0, 2, 0, 0]].bool()}, [[0, 0, 1, 0, 0], [1, 1, 1, 1, 0]]),
        (4, [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]),
    ],
    ids=str,
)
@pytest.mark.parametrize("with_tokens", [True, False])
def test_a_selector_of_a_known_batch(positions: Any, expected: list[list[int]], with_tokens: bool) -> None:
    known = {"mask": MASK, "tokens": TOKENS} if with_tokens else {"mask": MASK}
    out = hook_of(Step("add", V, SITE, positions=positions), **known)(torch.zeros(2, 5, 4))
    assert (out != 0).any(-1).long().tolist() == expected


def test_tokens_of_a_known_batch() -> None:
    step = Step("add", V, SITE, positions={"tokens": [5, 2]})
    out = hook_of(step, tokens=TOKENS, mask=MASK)(torch.zeros(2, 5, 4))
    assert (out != 0).any(-1).long().tolist() == [[0, 0, 1, 0, 0], [1, 0, 1, 0, 0]]
    out = hook_of(step, tokens=TOKENS)(torch.zeros(2, 5, 4))  # without a mask all of it is text
    assert (out != 0).any(-1).long().tolist() == [[1, 1, 1, 0, 0], [1, 0, 1, 0, 1]]
    with pytest.raises(LrtError, match="the tokens of this call are not known"):
        hook_of(step, mask=MASK)(torch.zeros(2, 5, 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": MASK[:1], "mask": MASK}, r"'tokens': \(1, 5\), 'mask': \(2, 5\)"),
        ({"tokens": MASK[0]}, r"\[row, position\], not {'tokens': \(5,\)}"),
        ({"mask": MASK[None]}, r"\[row, position\], not {'mask': \(1, 2, 5\)}"),
    ],
    ids=["other rows", "one axis", "three axes"],
)
def test_what_is_no_batch_is_refused(given: dict[str, Tensor], message: str) -> None:
    with without_type_checks(), pytest.raises(LrtError, match=message):
        known_call(given.get("tokens"), given.get("mask"))


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 5, 4), (2, 1, 4)], ids=str)
def test_a_batch_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LrtError, match=r"not the \(2, 5\) that it was made for"):
        hook_of(Step("add", V, SITE, positions=[0]), tokens=TOKENS)(torch.zeros(shape))


def test_a_condition_of_a_known_batch_is_read_first_and_once(bridges: Any) -> None:
    probe = Probe(torch.tensor([1.0, 0, 0, 0]), bias=0.0, threshold=2.0, site=SITE)
    steps = [Step("add", V, SITE, when=probe), Step("add", V, SITE, 2.0, when=probe)]
    (read, *write) = [hook for _, hook in steering_hooks(steps, known_call(TOKENS, MASK), bridges[0].tokenizer)]
    assert len(write) == 2
    activation = torch.zeros(2, 5, 4)
    activation[0, 4, 0], activation[1, 3, 0], activation[1, 4, 0] = 1.9, 2.1, 99.0  # the last is padding
    assert read(activation, hook=None) is None
    found = activation
    for hook in write:
        found = hook(found, hook=None)
    expected = activation.clone()
    expected[1, :4] += 3 * V
    torch.testing.assert_close(found, expected)
    with pytest.raises(LrtError, match="filled before the vector was attached"):
        steering_hooks(steps, known_call(TOKENS, MASK), bridges[0].tokenizer)[1][1](activation, hook=None)


def test_a_handle_says_what_it_has_done(bridges: Any) -> None:
    model, tokens = bridges[0], torch.tensor([[1, 5, 9]])
    step = Step("add", torch.ones(16), Site(NAME, 16), 2.0, positions=[0, 2])
    handle = SteeringHandle(model, [step])
    try:
        assert handle.changed == []
        model(tokens)
        model(tokens)
        expected = "SteeringHandle(add × 2 on unknown model L1 at [0, 2], {}: 2 calls, 4 positions touched)"
        assert repr(handle) == expected.format("at work")
    finally:
        handle.remove()
    model(tokens)
    assert repr(handle) == expected.format("removed")
    assert handle.changed == [[0, 2]]


@pytest.mark.parametrize("layers", [(2, 1), (1, 2), (1, 1)])
def test_a_pass_counts_once_whatever_its_steps_and_a_position_once_a_step(bridges: Any, layers: Any) -> None:
    model, tokens = bridges[0], torch.tensor([[1, 5, 9], [1, 6, 3]])
    sites = [Site(f"blocks.{layer}.hook_resid_post", 16) for layer in layers]
    steps = [Step("add", torch.ones(16), site) for site in sites]
    handle = SteeringHandle(model, [*steps, steps[0], Step("add", torch.ones(16), sites[0], 0.0)], log=True)
    try:
        model(tokens)
        model(tokens[:1])
        assert (handle.calls, handle.positions_touched) == (2, 3 * (6 + 3))
        assert handle.changed == [[0, 1, 2]]
        assert handle.log is not None
        assert [entry.call for entry in handle.log.entries] == [1] * 4 + [2] * 4
    finally:
        handle.remove()


def test_a_handle_that_cannot_be_made_leaves_nothing(bridges: Any) -> None:
    model = bridges[0]
    before = set(vars(model))
    with pytest.raises(LrtError, match="has no hook point"):
        SteeringHandle(model, [Step("add", torch.ones(16), Site("blocks.9.hook_resid_post", 16))])
    assert not model.hook_dict[NAME].fwd_hooks
    assert set(vars(model)) == before
    watch(model).release()
    assert set(vars(model)) == before
