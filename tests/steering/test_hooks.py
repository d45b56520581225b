"""The parts of steering on their own: the hook, the selectors, the handle. What they do to a model: test_vector.py."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.calls import watch
from lrt_tl.steering.hooks import SteeringHandle, adding_hook, fixed_selector
from tests.unchecked import without_type_checks

NAME = "blocks.1.hook_resid_post"
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])


def everything(activation: Tensor) -> Tensor:
    return torch.ones(activation.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_only_what_is_selected_changes(dtype: torch.dtype) -> None:
    activation, delta = torch.randn(2, 5, 4).to(dtype), torch.randn(4)
    activation[0, 0] = float("nan")  # what is not selected is not even looked at
    before, told = activation.clone(), []
    out = adding_hook(delta, lambda act: MASK.bool(), told.append)(activation, hook=None)
    assert out.dtype == dtype
    for row in range(2):
        for place in range(5):
            expected = before[row, place] + delta.to(dtype) if MASK[row, place] else before[row, place]
            assert torch.equal(out[row, place].nan_to_num(7), expected.nan_to_num(7))
    assert told == [7]
    assert torch.equal(activation.nan_to_num(7), before.nan_to_num(7))  # not in place


def test_a_delta_of_zero_returns_nothing_and_touches_nothing() -> None:
    told: list[int] = []
    assert adding_hook(torch.zeros(4), everything, told.append)(torch.randn(2, 5, 4), hook=None) is None
    assert told == [0]


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        ("all", [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]),
        ("prompt", [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]),
        (0, [[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]),
        ([1, 3], [[0, 0, 0, 1, 0], [0, 1, 0, 1, 0]]),
        (4, [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]),
    ],
)
@pytest.mark.parametrize("with_tokens", [True, False])
def test_a_selector_of_a_known_batch(positions: Any, expected: list[list[int]], with_tokens: bool) -> None:
    tokens = torch.full((2, 5), 9) if with_tokens else None
    selector = fixed_selector(positions, tokens=tokens, mask=MASK)
    assert selector(torch.zeros(2, 5, 4)).long().tolist() == expected


def test_without_a_mask_all_tokens_are_text() -> None:
    selector = fixed_selector([0, 2], tokens=torch.full((2, 3), 9))
    assert selector(torch.zeros(2, 3, 4)).long().tolist() == [[1, 0, 1]] * 2
    assert fixed_selector("all")(torch.zeros(3, 7, 4)).all()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"positions": "generated", "tokens": MASK}, r"use vector\.apply"),
        ({"positions": "prompt"}, "needs tokens= or mask="),
        ({"positions": [0]}, "needs tokens= or mask="),
        ({"positions": -1, "tokens": MASK}, "whole numbers from 0"),
        ({"positions": [], "tokens": MASK}, "whole numbers from 0"),
        ({"positions": "last", "tokens": MASK}, "use 'all', 'prompt', 'generated'"),
        ({"positions": "all", "tokens": MASK[:1], "mask": MASK}, r"'tokens': \(1, 5\), 'mask': \(2, 5\)"),
        ({"positions": "all", "tokens": MASK[0]}, r"\[row, position\]"),
    ],
    ids=str,
)
def test_what_a_bare_hook_cannot_know_is_refused(asked: dict[str, Any], message: str) -> None:
    with without_type_checks(), pytest.raises(LrtError, match=message):
        fixed_selector(**asked)


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 5, 4), (2, 1, 4)], ids=str)
def test_a_batch_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LrtError, match=r"not the \(2, 5\) that it was made for"):
        fixed_selector([0], tokens=MASK)(torch.zeros(shape))


def test_a_handle_says_what_it_has_done(bridges: Any) -> None:
    model, tokens = bridges[0], torch.tensor([[1, 5, 9]])
    handle = SteeringHandle(model, NAME, torch.ones(16), coefficient=2.0, positions=[0, 2])
    try:
        model(tokens)
        model(tokens)
        assert repr(handle) == f"SteeringHandle({NAME} × 2, [0, 2], at work: 2 calls, 4 positions touched)"
    finally:
        handle.remove()
    model(tokens)
    assert repr(handle) == f"SteeringHandle({NAME} × 2, [0, 2], removed: 2 calls, 4 positions touched)"


@pytest.mark.parametrize(("name", "positions"), [("blocks.9.hook_out", "all"), (NAME, -1), (NAME, "last")], ids=str)
def test_a_handle_that_cannot_be_made_leaves_nothing(bridges: Any, name: str, positions: Any) -> None:
    model = bridges[0]
    with without_type_checks(), pytest.raises(LrtError):
        SteeringHandle(model, name, torch.ones(16), coefficient=1.0, positions=positions)
    assert not model.hook_dict[NAME].fwd_hooks
    assert "generate" not in vars(model)
    watch(model).release()
    assert "generate" not in vars(model)
