"""What a watcher says of each forward pass, against a loop over the columns, and that it leaves nothing behind."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.attach import attached
from lrt_tl.models.call import Call, call_from_mask
from lrt_tl.models.calls import watch
from lrt_tl.models.loading import load_model
from tests.checkpoints import CLASSES

NAME = "blocks.1.hook_resid_post"
PROMPT = torch.tensor([[1, 7, 9, 4], [1, 5, 6, 8]])
GREEDY = {"do_sample": False, "stop_at_eos": False, "verbose": False}
METHODS = {"generate", "generate_stream", "hf_generate"}


@pytest.fixture(params=[0, 1], ids=["neox", "gpt2"])
def model(request: pytest.FixtureRequest, pair: Any) -> Any:
    return pair[request.param]


@contextmanager
def recorded(model: Any) -> Iterator[list[Call]]:
    """The call of every forward pass, seen from the middle of the model."""
    calls: list[Call] = []
    watcher = watch(model)
    with attached(model, [(NAME, lambda activation, hook: calls.append(watcher.current(activation)))]):
        try:
            yield calls
        finally:
            watcher.release()


def summary(call: Call) -> tuple[list[int], list[bool]]:
    """Index and generated of the first row; all rows of these tests agree, and are text throughout."""
    assert call.mask.all()
    for values in (call.index, call.generated):
        assert (values == values[:1]).all()
    return call.index[0].tolist(), call.generated[0].tolist()


MASKS = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1]]).bool()


@pytest.mark.parametrize("n_positions", [6, 2, 1])
@pytest.mark.parametrize("prompt_length", [None, 3, 5])
def test_columns_against_a_loop(n_positions: int, prompt_length: int | None) -> None:
    call = call_from_mask(MASKS, n_positions=n_positions, prompt_length=prompt_length)
    assert call.mask.shape == call.index.shape == call.generated.shape == (4, n_positions)
    for row, whole in enumerate(MASKS.tolist()):
        for column in range(6 - n_positions, 6):
            at = column - (6 - n_positions)
            assert bool(call.mask[row, at]) == whole[column]
            if whole[column]:
                assert int(call.index[row, at]) == sum(whole[:column])
            continues = n_positions < 6 if prompt_length is None else column >= prompt_length
            assert bool(call.generated[row, at]) == continues


def test_plain_passes_are_all_prompt(model: Any) -> None:
    with recorded(model) as calls:
        model(PROMPT)
        model(PROMPT[0])  # one row without its dimension
        model.run_with_cache(PROMPT[:, :2])
    assert [summary(call) for call in calls] == [
        ([0, 1, 2, 3], [False] * 4),
        ([0, 1, 2, 3], [False] * 4),
        ([0, 1], [False] * 2),
    ]


@pytest.mark.parametrize("mask_of", [torch.Tensor.bool, torch.Tensor.long], ids=["bool", "long"])
def test_the_mask_that_the_model_is_given_is_what_counts(model: Any, mask_of: Any) -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    with recorded(model) as calls:
        model(PROMPT, attention_mask=mask_of(mask))
    assert torch.equal(calls[0].mask, mask.bool())
    assert calls[0].index[0, 2:].tolist() == [0, 1]
    assert calls[0].index[1, :3].tolist() == [0, 1, 2]


@pytest.mark.parametrize("method", ["generate", "generate_stream", "hf_generate"])
def test_generation_with_a_cache(model: Any, method: str) -> None:
    if not hasattr(model, method):
        pytest.skip("a Bridge's own")
    settings = {"do_sample": False, "stop_at_eos": False} if method == "hf_generate" else GREEDY
    with recorded(model) as calls:
        list(getattr(model, method)(PROMPT, max_new_tokens=3, **settings))
        model(PROMPT)
    plain = ([0, 1, 2, 3], [False] * 4)
    assert [summary(call) for call in calls] == [plain, ([4], [True]), ([5], [True]), plain]


def test_generation_without_a_cache(model: Any) -> None:
    with recorded(model) as calls:
        model.generate(PROMPT, max_new_tokens=3, use_past_kv_cache=False, **GREEDY)
    assert [summary(call) for call in calls] == [(list(range(n)), [False] * 4 + [True] * (n - 4)) for n in (4, 5, 6)]


def test_two_streams_taken_in_turns(model: Any) -> None:
    settings = {"max_new_tokens": 3, "max_tokens_per_yield": 1, "use_past_kv_cache": False} | GREEDY
    with recorded(model) as calls:
        streams = [model.generate_stream(PROMPT[:, :n], **settings) for n in (2, 4)]
        for _ in range(3):
            for stream in streams:
                next(stream)
    expected = [(list(range(n + step)), [False] * n + [True] * step) for step in range(3) for n in (2, 4)]
    assert [summary(call) for call in calls] == expected


def test_activations_of_another_shape_are_refused(model: Any) -> None:
    watcher = watch(model)
    try:
        with pytest.raises(LrtError, match="but the model was called on None"):
            watcher.current(torch.zeros(2, 4, 16))
        model(PROMPT)
        with pytest.raises(LrtError, match=r"3 rows of 4 positions, but the model was called on \(2, 4\)"):
            watcher.current(torch.zeros(3, 4, 16))
        assert watcher.current(torch.zeros(2, 4, 16)).mask.all()
    finally:
        watcher.release()


def test_one_watcher_a_model_until_its_last_user_is_gone(model: Any) -> None:
    parts = [*model.modules(), getattr(model, "original_model", model)]
    before = [len(part._forward_pre_hooks) for part in parts]
    first, second = watch(model), watch(model)
    assert first is second
    assert [len(part._forward_pre_hooks) for part in parts] != before
    assert METHODS & set(vars(model)) == {name for name in METHODS if hasattr(model, name)}
    first.release()
    assert METHODS & set(vars(model))
    second.release()
    assert not METHODS & set(vars(model))
    assert [len(part._forward_pre_hooks) for part in parts] == before


def test_what_somebody_else_has_put_in_the_place_of_generate_comes_back(model: Any) -> None:
    def generate(*args: Any, **kwargs: Any) -> str:
        return "theirs"

    model.generate = generate
    try:
        watcher = watch(model)
        assert model.generate() == "theirs"
        watcher.release()
        assert vars(model)["generate"] is generate
    finally:
        del model.generate


def test_generate_keeps_its_documentation(model: Any) -> None:
    plain = type(model).generate
    watcher = watch(model)
    try:
        assert model.generate.__doc__ == plain.__doc__
    finally:
        watcher.release()


@pytest.mark.parametrize("model_class", CLASSES)
def test_a_model_that_was_watched_is_freed_with_its_last_reference(folders: Any, model_class: str) -> None:
    model = load_model(folders[0], model_class=model_class)
    watch(model).release()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_stream_goes_on_after_the_watcher_is_gone(model: Any) -> None:
    settings = {"max_new_tokens": 4, "max_tokens_per_yield": 1} | GREEDY
    expected = model.generate(PROMPT, max_new_tokens=4, **GREEDY)
    with recorded(model) as calls:
        stream = model.generate_stream(PROMPT, **settings)
        parts: list[Tensor] = [next(stream)]
    parts += list(stream)
    assert torch.equal(torch.cat(parts, dim=1), expected)
    assert len(calls) == 1
