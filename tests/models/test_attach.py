"""Exactly our hooks come off, whatever else happens to the model's hooks meanwhile."""

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.attach import Attachment, attached

NAME = "blocks.1.hook_resid_post"
TOKENS = torch.tensor([[1, 5, 9]])


class Log:
    """Names of the hooks that ran, in their order."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def hook(self, name: str) -> Any:
        def run(activation: Tensor, hook: Any) -> None:
            self.ran.append(name)

        return run

    def of_a_pass(self, model: Any) -> list[str]:
        self.ran.clear()
        model(TOKENS)
        return list(self.ran)


@pytest.fixture
def model(pair: Any) -> Any:
    return pair[1]


def assert_bare(model: Any) -> None:
    """No hook of any kind is on the model, neither in TransformerLens's lists nor in PyTorch's."""
    for point in model.hook_dict.values():
        assert not point.fwd_hooks
        assert not point._forward_hooks


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_attachments_come_off_in_any_order(model: Any, order: tuple[int, ...]) -> None:
    log, names = Log(), ["a", "b", "c"]
    attachments = [Attachment(model, [(NAME, log.hook(name))]) for name in names]
    assert log.of_a_pass(model) == ["a", "b", "c"]
    for index in order:
        attachments[index].remove()
        attachments[index].remove()  # once more is no matter
        names[index] = ""
        assert log.of_a_pass(model) == [name for name in names if name]
    assert_bare(model)


def test_the_same_function_twice_at_one_point(model: Any) -> None:
    log = Log()
    hook = log.hook("a")
    first, second = (Attachment(model, [(NAME, hook)]) for _ in range(2))
    first.remove()
    assert log.of_a_pass(model) == ["a"]
    second.remove()
    assert_bare(model)


def test_nested_with_foreign_hooks_in_both_ways(model: Any) -> None:
    log = Log()
    with model.hooks(fwd_hooks=[(NAME, log.hook("foreign"))]):
        with attached(model, [(NAME, log.hook("ours"))]):
            assert log.of_a_pass(model) == ["foreign", "ours"]
        assert log.of_a_pass(model) == ["foreign"]
    with attached(model, [(NAME, log.hook("ours"))]):
        with model.hooks(fwd_hooks=[(NAME, log.hook("foreign"))]):
            assert log.of_a_pass(model) == ["ours", "foreign"]
        assert log.of_a_pass(model) == ["ours"]
    assert_bare(model)


def test_interleaved_with_foreign_hooks(model: Any) -> None:
    log = Log()
    with model.hooks(fwd_hooks=[(NAME, log.hook("foreign"))]):
        attachment = Attachment(model, [(NAME, log.hook("ours"))])
    assert log.of_a_pass(model) == ["ours"]
    with model.hooks(fwd_hooks=[(NAME, log.hook("foreign"))]):
        attachment.remove()
        assert log.of_a_pass(model) == ["foreign"]
    assert_bare(model)


def test_permanent_foreign_hooks_stay(model: Any) -> None:
    log, point = Log(), model.hook_dict[NAME]
    point.add_perma_hook(log.hook("permanent"))
    try:
        with attached(model, [(NAME, log.hook("ours"))]):
            model.reset_hooks()
            assert log.of_a_pass(model) == ["permanent"]
        assert log.of_a_pass(model) == ["permanent"]
    finally:
        point.remove_hooks(including_permanent=True)
    assert_bare(model)


def test_reset_hooks_in_between(model: Any) -> None:
    log = Log()
    with attached(model, [(NAME, log.hook("a"))]):
        model.reset_hooks()
        assert log.of_a_pass(model) == []
        with attached(model, [(NAME, log.hook("b"))]):
            assert log.of_a_pass(model) == ["b"]
    assert_bare(model)


def test_an_exception_inside(model: Any) -> None:
    log = Log()
    with pytest.raises(KeyError), attached(model, [(NAME, log.hook("a")), ("blocks.0.hook_resid_pre", log.hook("b"))]):
        raise KeyError(log.of_a_pass(model))
    assert log.ran == ["b", "a"]
    assert_bare(model)


def test_an_unknown_point_attaches_nothing(model: Any) -> None:
    with pytest.raises(LrtError, match="no hook point"):
        Attachment(model, [(NAME, Log().hook("a")), ("blocks.9.hook_resid_post", Log().hook("b"))])
    assert_bare(model)


def test_what_a_hook_returns_replaces_the_activation(model: Any) -> None:
    def double(activation: Tensor, hook: Any) -> Tensor:
        return 2 * activation

    expected = model.run_with_hooks(TOKENS, fwd_hooks=[(NAME, double)])
    with attached(model, [(NAME, double)]):
        assert torch.equal(model(TOKENS), expected)
    assert not torch.equal(model(TOKENS), expected)


def test_an_interruption_half_way_leaves_no_hook(bridges: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, names = bridges[0], ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    points = [model.hook_dict[name] for name in names]

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(points[1], "add_hook", interrupted)
    before = [len(point.fwd_hooks) for point in points]
    with pytest.raises(KeyboardInterrupt):
        Attachment(model, [(name, lambda activation, hook: None) for name in names])
    assert [len(point.fwd_hooks) for point in points] == before
    assert [len(point._forward_hooks) for point in points] == before
