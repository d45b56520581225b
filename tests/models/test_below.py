"""Passes that skip the blocks below a hook point against whole ones."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.evaluation.steered import adding, steered_run
from lrt_tl.models.attach import attached
from lrt_tl.models.below import run_below, skipped

ROWS = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 4, 0, 0], [1, 3, 3, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
HOOKS = [f"blocks.{layer}.hook_{point}" for layer in (0, 1, 3) for point in ("resid_pre", "resid_post")]


def deltas(n: int) -> Tensor:
    return torch.randn(n, 24, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def whole(model: Any, hook_name: str, delta: Tensor) -> Tensor:
    """Every block run, on the given rows alone."""
    with attached(model, [(hook_name, adding(MASK[..., None] * delta))]):
        found: Tensor = model(ROWS, attention_mask=MASK.long())
    return found


@pytest.mark.parametrize("hook_name", HOOKS)
def test_what_lies_below_changes_nothing(pair: tuple[Any, Any], hook_name: str) -> None:
    model, some = pair[1], deltas(3)
    found = steered_run(model, hook_name, ROWS, MASK)(some)
    for delta, logits in zip(some, found, strict=True):
        torch.testing.assert_close(logits[MASK], whole(model, hook_name, delta)[MASK], rtol=0, atol=1e-5)


def test_the_other_spelling_of_a_hook_point(bridges: tuple[Any, Any]) -> None:
    found = [
        steered_run(bridges[1], f"blocks.1.{name}", ROWS, MASK)(deltas(2)) for name in ("hook_out", "hook_resid_post")
    ]
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert float((found[0][0] - found[0][1])[MASK].abs().max()) > 1e-3


@pytest.mark.parametrize("last", [1, 2])
def test_the_last_positions_alone(pair: tuple[Any, Any], last: int) -> None:
    model, some = pair[1], deltas(2)
    run = steered_run(model, HOOKS[3], ROWS, MASK)(some)
    found = steered_run(model, HOOKS[3], ROWS, MASK, last=last)(some)
    assert found.shape[2] == last
    for row, length in enumerate(MASK.sum(1).tolist()):
        torch.testing.assert_close(found[:, row], run[:, row, length - last : length], rtol=0, atol=1e-5)


def test_the_blocks_below_are_not_run(pair: tuple[Any, Any]) -> None:
    model = pair[1]
    run = steered_run(model, "blocks.2.hook_resid_post", ROWS, MASK)
    seen: list[int] = []
    handles = [
        block.ln1.register_forward_hook(lambda *_, number=number: seen.append(number))
        for number, block in enumerate(model.blocks)
    ]
    run(deltas(2))
    for handle in handles:
        handle.remove()
    assert set(seen) == {3}


def test_other_hooks_below_have_their_effect(bridges: tuple[Any, Any]) -> None:
    model = bridges[1]
    other = [("blocks.0.hook_resid_post", adding(deltas(5)[4].expand(1, 1, -1)))]
    with attached(model, other):
        found = steered_run(model, "blocks.2.hook_resid_post", ROWS, MASK)(deltas(1))[0]
        torch.testing.assert_close(
            found[MASK], whole(model, "blocks.2.hook_resid_post", deltas(1)[0])[MASK], rtol=0, atol=1e-5
        )
    plain = whole(model, "blocks.2.hook_resid_post", deltas(1)[0])
    assert float((found - plain)[MASK].abs().max()) > 1e-3


def test_blocks_are_left_as_they_were(bridges: tuple[Any, Any]) -> None:
    model = bridges[1]
    below = run_below(model, "blocks.1.hook_resid_post", ROWS, MASK)
    assert below is not None
    assert below.n_blocks == 2

    def own(*args: Any, **kwargs: Any) -> Any:
        return type(model.blocks[0]).forward(model.blocks[0], *args, **kwargs)

    vars(model.blocks[0])["forward"] = own
    try:
        with pytest.raises(KeyboardInterrupt), skipped(model, below, below.states):
            raise KeyboardInterrupt
        assert vars(model.blocks[0])["forward"] is own
        assert "forward" not in vars(model.blocks[1])
    finally:
        del vars(model.blocks[0])["forward"]


def test_a_model_whose_upper_blocks_need_the_lower_ones_is_run_whole(bridges: tuple[Any, Any]) -> None:
    """Here block 3 is scaled by how often block 0 ran since: a stand-in for keys and values that blocks share."""
    model = bridges[1]
    ran: list[int] = []
    handles = [
        model.blocks[0].ln1.register_forward_hook(lambda *_: ran.append(1)),
        model.blocks[3].ln1.register_forward_hook(lambda module, given, output: output * (2.0 if ran else 1.0)),
        model.blocks[3].register_forward_hook(lambda *_: ran.clear()),
    ]
    try:
        assert run_below(model, "blocks.2.hook_resid_post", ROWS, MASK) is None
        found = steered_run(model, "blocks.2.hook_resid_post", ROWS, MASK)(deltas(1))[0]
        expected = whole(model, "blocks.2.hook_resid_post", deltas(1)[0])
        torch.testing.assert_close(found[MASK], expected[MASK], rtol=0, atol=1e-5)
    finally:
        for handle in handles:
            handle.remove()
    assert run_below(model, "blocks.0.hook_resid_pre", ROWS, MASK) is None
