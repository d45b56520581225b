"""Steering is put on, nested, interrupted and taken off in any order, among other people's hooks; what the model says
is compared, bit by bit, with an untouched model and bare hooks that add the same in the same order."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor

from lrt_tl.models.identity import Site
from lrt_tl.models.loading import load_model
from lrt_tl.steering.handle import SteeringHandle, steered
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import CLASSES
from tests.unchecked import without_type_checks

D = 16
TOKENS = torch.tensor([[1, 7, 9, 4]])
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False, "max_new_tokens": 3}
POINTS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
VECTORS = [
    SteeringVector(torch.randn(D, generator=torch.Generator().manual_seed(seed)), Site(POINTS[seed % 2], D))
    for seed in range(3)
]
FOREIGN = torch.randn(D, generator=torch.Generator().manual_seed(9))
"""What other people's hooks add, at the second point."""

Added = tuple[int, float]
"""A vector, -1 for that of other people, and its coefficient."""


def adding(delta: Tensor) -> Any:
    return lambda activation, hook: activation + delta


def bare_hooks(added: tuple[Added, ...]) -> list[tuple[str, Any]]:
    return [
        (POINTS[1], adding(FOREIGN))
        if number < 0
        else (VECTORS[number].site.hook_name, adding(coefficient * VECTORS[number].direction))
        for number, coefficient in added
        if coefficient != 0
    ]


def run_everything(model: Any) -> None:
    """Models make things of their own when they are first run."""
    with model.hooks(fwd_hooks=[(POINTS[0], adding(FOREIGN))]):
        model(TOKENS)
        model.generate(TOKENS, **GREEDY)
        model.run_with_cache(TOKENS)
        list(model.generate_stream(TOKENS, max_tokens_per_yield=1, **GREEDY))
    model.reset_hooks()


def modules_of(model: Any) -> list[Any]:
    """Also those of the Hugging Face model inside."""
    return list({*model.modules(), *getattr(model, "original_model", model).modules()})


def n_hooks(modules: list[Any]) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in modules)


def attributes(model: Any) -> set[str]:
    return set(vars(model)) - {"_last_hf_cache"}  # which a Bridge leaves when a stream is left half-way


class Untouched:
    """The reference: a second model, on which nothing of ours ever was; each of its answers is computed once."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[Any, Tensor] = {}

    def logits(self, added: tuple[Added, ...]) -> Tensor:
        return self._answer("logits", added, lambda: self._model(TOKENS))

    def generated(self, added: tuple[Added, ...]) -> Tensor:
        return self._answer("generated", added, lambda: self._model.generate(TOKENS, **GREEDY))

    def _answer(self, what: str, added: tuple[Added, ...], ask: Any) -> Tensor:
        if (what, added) not in self._known:
            with torch.no_grad(), self._model.hooks(fwd_hooks=bare_hooks(added)):
                self._known[what, added] = ask()
        return self._known[what, added]


class SteeredModel(RuleBasedStateMachine):
    model: Any
    untouched: Untouched
    attributes: set[str]
    points: list[Any]
    modules: list[Any]
    n_hooks: int

    def __init__(self) -> None:
        super().__init__()
        self.order: list[tuple[object, Added]] = []
        """All that is on the model, in the order in which it came: a handle, or a foreign hook."""
        self.blocks: list[tuple[AbstractContextManager[SteeringHandle], SteeringHandle]] = []
        self.streams: list[Any] = []

    @property
    def added(self) -> tuple[Added, ...]:
        return tuple(added for _, added in self.order)

    @property
    def handles(self) -> list[SteeringHandle]:
        return [what for what, _ in self.order if isinstance(what, SteeringHandle)]

    @property
    def foreign(self) -> list[Any]:
        return [what for what, _ in self.order if not isinstance(what, SteeringHandle)]

    def forget(self, what: object) -> None:
        self.order = [each for each in self.order if each[0] is not what]

    # What is put on, and taken off

    vectors = st.integers(0, len(VECTORS) - 1)
    coefficients = st.sampled_from([1.0, -0.5, 2.0, 0.0])

    @rule(number=vectors, coefficient=coefficients)
    def attach(self, number: int, coefficient: float) -> None:
        handle = VECTORS[number].attach(self.model, coefficient)
        self.order.append((handle, (number, coefficient)))

    @rule(number=vectors, coefficient=coefficients)
    def enter(self, number: int, coefficient: float) -> None:
        block = VECTORS[number].apply(self.model, coefficient)
        handle = block.__enter__()
        self.blocks.append((block, handle))
        self.order.append((handle, (number, coefficient)))

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        handle.remove()
        handle.remove()
        self.forget(handle)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        block, handle = self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))
        assert not block.__exit__(None, None, None)
        self.forget(handle)

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), error=st.sampled_from([KeyboardInterrupt, ValueError]), generating=st.booleans())
    def leave_by_an_exception(self, data: st.DataObject, error: type[BaseException], generating: bool) -> None:
        """Raised in the middle of the model."""

        def fail(activation: Tensor, hook: object) -> None:
            raise error("on purpose")

        block, handle = self.blocks.pop(data.draw(st.integers(0, len(self.blocks) - 1)))
        with self.model.hooks(fwd_hooks=[(POINTS[1], fail)]):
            try:
                self.model.generate(TOKENS, **GREEDY) if generating else self.model(TOKENS)
            except error as raised:
                assert not block.__exit__(error, raised, raised.__traceback__)  # noqa: PT017
            else:
                pytest.fail("it was not raised")
        self.forget(handle)

    @rule()
    def add_a_foreign_hook(self) -> None:
        self.model.add_perma_hook(POINTS[1], adding(FOREIGN))
        self.order.append((self.points[1].fwd_hooks[-1], (-1, 1.0)))

    @precondition(lambda self: self.foreign)
    @rule(data=st.data())
    def remove_a_foreign_hook(self, data: st.DataObject) -> None:
        hook, point = data.draw(st.sampled_from(self.foreign)), self.points[1]
        hook.hook.remove()
        point.fwd_hooks = [each for each in point.fwd_hooks if each is not hook]
        self.forget(hook)

    @rule()
    def reset_hooks(self) -> None:
        """Takes off ours, and leaves permanent ones."""
        self.model.reset_hooks()
        self.order = [each for each in self.order if not isinstance(each[0], SteeringHandle)]

    # What the model is used for

    @rule()
    def forward(self) -> None:
        with torch.no_grad():
            assert torch.equal(self.model(TOKENS), self.untouched.logits(self.added))

    @rule()
    def run_with_cache(self) -> None:
        with torch.no_grad():
            logits, cache = self.model.run_with_cache(TOKENS)
        assert torch.equal(logits, self.untouched.logits(self.added))
        assert POINTS[1] in cache

    @rule()
    def run_among_other_hooks(self) -> None:
        with torch.no_grad(), self.model.hooks(fwd_hooks=[(POINTS[1], adding(FOREIGN))]):
            assert torch.equal(self.model(TOKENS), self.untouched.logits((*self.added, (-1, 1.0))))

    @rule()
    def generate(self) -> None:
        assert torch.equal(self.model.generate(TOKENS, **GREEDY), self.untouched.generated(self.added))

    @rule(keep=st.booleans())
    def begin_a_stream(self, keep: bool) -> None:
        stream = self.model.generate_stream(TOKENS, max_tokens_per_yield=1, **GREEDY)
        first = next(stream)
        assert torch.equal(first[:, : TOKENS.shape[1] + 1], self.untouched.generated(self.added)[:, : first.shape[1]])
        if keep:
            self.streams.append(stream)

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), close=st.booleans())
    def go_on_with_a_stream(self, data: st.DataObject, close: bool) -> None:
        stream = self.streams.pop(data.draw(st.integers(0, len(self.streams) - 1)))
        stream.close() if close else list(stream)

    # What holds at any time

    @invariant()
    def nothing_is_on_but_what_was_put_on(self) -> None:
        assert steered(self.model) == self.handles
        on = [hook for point in self.points for hook in point.fwd_hooks]
        ours = sum(len(handle.steps) for handle in self.handles)
        assert len(on) == ours + len(self.foreign)
        there = [hook for hook in on if any(hook is each for each in self.foreign)]
        assert all(one is other for one, other in zip(there, self.foreign, strict=True))
        if not self.handles:
            assert attributes(self.model) == self.attributes
            assert n_hooks(self.modules) == self.n_hooks + len(self.foreign)

    def teardown(self) -> None:
        for handle in steered(self.model):
            handle.remove()
        foreign, self.order = self.foreign, []
        for hook in foreign:
            hook.hook.remove()
            self.points[1].fwd_hooks.remove(hook)
        for block, _ in self.blocks:
            block.__exit__(None, None, None)
        del self.streams
        self.nothing_is_on_but_what_was_put_on()
        with torch.no_grad():
            assert torch.equal(self.model(TOKENS), self.untouched.logits(()))


@pytest.mark.filterwarnings("ignore:.* is already steered by this vector")
@pytest.mark.parametrize("model_class", CLASSES)
def test_any_sequence_of_steering_and_use(folders: tuple[Path, Path], model_class: Any) -> None:
    model, untouched = (load_model(folders[0], model_class=model_class) for _ in range(2))
    run_everything(model)
    modules = modules_of(model)
    known = {
        "model": model,
        "untouched": Untouched(untouched),
        "attributes": attributes(model),
        "points": [model.hook_dict[name] for name in POINTS],
        "modules": modules,
        "n_hooks": n_hooks(modules),
    }
    machine = type("SteeredModel", (SteeredModel,), known)
    wanted = settings(
        max_examples=250,
        stateful_step_count=8,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    with without_type_checks():  # which take longer than all the rest
        run_state_machine_as_test(machine, settings=wanted)
