"""Captured activations are those that `run_with_cache` gives, at less expense."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.models.attach import attached
from lrt_tl.models.capture import capture
from lrt_tl.models.loading import load_model
from tests.checkpoints import CLASSES

TOKENS = torch.tensor([[1, 7, 9, 4, 30], [1, 5, 6, 2, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()


@pytest.fixture(params=[0, 1], ids=["neox", "gpt2"])
def model(request: pytest.FixtureRequest, pair: Any) -> Any:
    return pair[request.param]


def names_of(model: Any) -> list[str]:
    last = model.cfg.n_layers - 1
    return [f"blocks.{last}.hook_resid_post", "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"]


def reference(model: Any, names: list[str]) -> dict[str, Tensor]:
    """Row by row, without padding."""
    caches = [model.run_with_cache(row[mask][None])[1] for row, mask in zip(TOKENS, MASK, strict=True)]
    return {name: torch.cat([cache[name][0] for cache in caches]) for name in names}


def n_hooks(model: Any) -> int:
    return sum(len(point.fwd_hooks) + len(point._forward_hooks) for point in model.hook_dict.values())


@pytest.mark.parametrize("chosen", [[0], [1], [2], [1, 0, 2], [2, 2]], ids=str)
def test_the_same_as_run_with_cache(model: Any, chosen: list[int]) -> None:
    names = [names_of(model)[index] for index in chosen]
    found = capture(model, TOKENS, MASK, names)
    assert set(found) == set(names)
    for name, expected in reference(model, names).items():
        torch.testing.assert_close(found[name][MASK], expected, atol=1e-5, rtol=1e-5)
        assert not found[name].requires_grad
    assert n_hooks(model) == 0


def test_the_middle_of_a_block(pair: Any) -> None:
    name = "blocks.3.hook_resid_mid"
    found = capture(pair[1], TOKENS, MASK, [name])[name][MASK]
    torch.testing.assert_close(found, reference(pair[1], [name])[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_no_block_runs_after_the_last_one_asked_for(model: Any, layer: int) -> None:
    ran: list[int] = []
    watched = [
        (f"blocks.{index}.hook_resid_pre", lambda activation, hook, index=index: ran.append(index))
        for index in range(model.cfg.n_layers)
    ]
    with attached(model, watched):
        capture(model, TOKENS, MASK, [f"blocks.{layer}.hook_resid_post", "blocks.0.hook_resid_pre"])
    assert ran == list(range(layer + 1))
    assert model(TOKENS).shape == (2, 5, 48)  # and the next pass is whole again


def test_foreign_hooks_run_and_stay(model: Any) -> None:
    name = "blocks.1.hook_resid_post"
    plain = capture(model, TOKENS, MASK, [name])[name]
    with model.hooks(fwd_hooks=[(name, lambda activation, hook: activation + 1)]):
        found = capture(model, TOKENS, MASK, [name])[name]
        assert len(model.hook_dict[name].fwd_hooks) == len(model.hook_dict[name]._forward_hooks) == 1
    torch.testing.assert_close(found, plain + 1)


def test_an_error_in_the_forward_pass_is_not_swallowed(model: Any) -> None:
    def fail(activation: Tensor, hook: Any) -> None:
        raise RuntimeError("on purpose")

    with attached(model, [("blocks.0.hook_resid_pre", fail)]), pytest.raises(RuntimeError, match="on purpose"):
        capture(model, TOKENS, MASK, ["blocks.1.hook_resid_post"])
    with pytest.raises(LrtError, match="no hook point"):
        capture(model, TOKENS, MASK, ["blocks.9.hook_resid_post"])
    assert n_hooks(model) == 0


@pytest.mark.parametrize("model_class", CLASSES)
def test_half_precision_comes_out_as_float32(folders: Any, model_class: str) -> None:
    model = load_model(folders[0], model_class=model_class, dtype=torch.bfloat16)
    name = "blocks.2.hook_resid_post"
    found = capture(model, TOKENS[:1], MASK[:1], [name])[name]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model.run_with_cache(TOKENS[:1])[1][name].float())
