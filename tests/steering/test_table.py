"""Every operator × selector × padding × cache × class, against an edit by hand of Hugging Face's residual stream, one
unpadded row at a time, without a cache. Everything is in float64, where the two agree to 1e-5 of their scale with much
to spare, so that a wrong position cannot hide in rounding."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrt_tl.models.identity import site_of
from lrt_tl.models.loading import load_model
from lrt_tl.steering.steering import Steering
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import CLASSES
from tests.steering.reference import residual_and_logits

LAYER, N_NEW, PAD = 1, 4, 2
NAME = f"blocks.{LAYER}.hook_resid_post"
EVEN = ((1, 7, 9, 4, 9), (1, 5, 9, 6, 8), (1, 9, 21, 17, 12))
RAGGED = ((1, 7, 9, 4, 30, 9, 22), (1, 5, 9), (1, 33, 9, 21, 9))
"""All hold token 9, which is `word6`."""

DIRECTION = 2 * torch.randn(24, generator=torch.Generator().manual_seed(3))
V = DIRECTION.double()
U = V / V.norm()

OPERATORS: dict[str, tuple[Callable[[SteeringVector, Any], Steering], Callable[[Tensor], Tensor]]] = {
    "add": (lambda vector, at: vector.add(1.5, positions=at), lambda h: h + 1.5 * V),
    "ablate": (lambda vector, at: vector.ablate(positions=at), lambda h: h - (h @ U) * U),
    "clamp": (lambda vector, at: vector.clamp(7.0, 0.8, positions=at), lambda h: h + 0.8 * (7.0 - h @ U) * U),
    "rotate": (
        lambda vector, at: vector.rotate(-2.0, positions=at),
        lambda h: (h - 2.0 * V) * h.norm() / (h - 2.0 * V).norm(),
    ),
}

Chosen = Callable[[int, int, Sequence[int]], bool]
"""Whether to edit, given a position, the length of the prompt and the row's tokens, generated ones too."""


def last_nine(n_prompt: int, tokens: Sequence[int]) -> int:
    return max(place for place in range(n_prompt) if tokens[place] == 9)


SELECTORS: dict[str, tuple[Any, Chosen]] = {
    "all": ("all", lambda p, n, tokens: True),
    "prompt": ("prompt", lambda p, n, tokens: p < n),
    "generated": ("generated", lambda p, n, tokens: p >= n),
    "number": (2, lambda p, n, tokens: p == 2),
    "at": ({"at": [0, 2, 6]}, lambda p, n, tokens: p in (0, 2, 6)),
    "first": ({"first": 4}, lambda p, n, tokens: p < 4),
    "last": ({"last": 2}, lambda p, n, tokens: n - 2 <= p < n),
    "within": ({"within": "word6"}, lambda p, n, tokens: p == last_nine(n, tokens)),
    "after": ({"after": "word6"}, lambda p, n, tokens: p > last_nine(n, tokens)),
    "tokens": ({"tokens": [9, *range(20, 48)]}, lambda p, n, tokens: tokens[p] == 9 or tokens[p] >= 20),
    "rows": ({"mask": [True, False, True]}, lambda p, n, tokens: tokens[1] != 5),
    "columns": ("made for the batch", lambda p, n, tokens: p < n and p in (0, 2)),
    "not": ({"not": {"first": 1}}, lambda p, n, tokens: p > 0),
    "not last": ({"not": {"last": 1}}, lambda p, n, tokens: p != n - 1),
    "parts": ({"prompt": {"last": 1}, "generated": {"at": [1]}}, lambda p, n, tokens: p in (n - 1, n + 1)),
    "not parts": ({"not": {"generated": {"first": 2}}}, lambda p, n, tokens: not n <= p < n + 2),
}


@pytest.fixture(scope="module", params=CLASSES)
def model(request: pytest.FixtureRequest, folders: tuple[Path, Path]) -> Any:
    return load_model(folders[1], model_class=request.param, dtype=torch.float64)


@pytest.fixture(scope="module")
def vector(model: Any) -> SteeringVector:
    return SteeringVector(DIRECTION, site_of(model, layer=LAYER))


@cache
def reference(folder: Path, row: tuple[int, ...], n_prompt: int, operator: str, selector: str) -> tuple[Tensor, Tensor]:
    """States and logits."""
    (_, edit), (_, chosen) = OPERATORS[operator], SELECTORS[selector]

    def edit_chosen(position: int, state: Tensor) -> Tensor:
        return edit(state) if chosen(position, n_prompt, row) else state

    return residual_and_logits(folder, row, LAYER, edit_chosen, dtype=torch.float64)


def batch(padding: str) -> tuple[tuple[tuple[int, ...], ...], Tensor, Tensor]:
    """Rows, tokens and mask."""
    rows = EVEN if padding == "none" else RAGGED
    width = max(map(len, rows))
    tokens, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        columns = slice(width - len(row), width) if padding == "left" else slice(len(row))
        tokens[number, columns], mask[number, columns] = torch.tensor(row), True
    return rows, tokens, mask


def steering_of(vector: SteeringVector, operator: str, selector: str, mask: Tensor) -> Steering:
    positions = SELECTORS[selector][0]
    if selector == "columns":
        index = mask.long().cumsum(1) - 1
        positions = {"mask": mask & torch.isin(index, torch.tensor([0, 2]))}
    return OPERATORS[operator][0](vector, positions)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_one_forward_pass(
    model: Any, vector: SteeringVector, folders: tuple[Path, Path], padding: str, selector: str, operator: str
) -> None:
    rows, tokens, mask = batch(padding)
    states: list[Tensor] = []
    with (
        torch.no_grad(),
        steering_of(vector, operator, selector, mask).apply(model) as handle,
        model.hooks(fwd_hooks=[(NAME, lambda activation, hook: states.append(activation))]),
    ):
        logits = model(tokens) if padding == "none" else model(tokens, attention_mask=mask.long())
    for number, row in enumerate(rows):
        expected_states, expected_logits = reference(folders[1], row, len(row), operator, selector)
        assert_close(states[0][number][mask[number]], expected_states)
        assert_close(logits[number][mask[number]], expected_logits)
        assert handle.changed[number] == [p for p in range(len(row)) if SELECTORS[selector][1](p, len(row), row)]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no cache"])
def test_generation(
    model: Any,
    vector: SteeringVector,
    folders: tuple[Path, Path],
    padding: str,
    selector: str,
    operator: str,
    use_cache: bool,
) -> None:
    """The states of every pass, and the tokens, are those of one pass over the finished text."""
    rows, tokens, mask = batch(padding)
    if padding == "none":
        padded: dict[str, Any] = {}
    else:
        padded = {"attention_mask": mask.long()} if hasattr(model, "original_model") else {"padding_side": "left"}
    settings = {"do_sample": False, "stop_at_eos": False, "verbose": False, "use_past_kv_cache": use_cache}
    states: list[Tensor] = []
    with (
        steering_of(vector, operator, selector, mask).apply(model) as handle,
        model.hooks(fwd_hooks=[(NAME, lambda activation, hook: states.append(activation))]),
    ):
        out = model.generate(tokens, max_new_tokens=N_NEW, **settings, **padded)
    widths = [1] * 3 if use_cache else [tokens.shape[1] + n for n in (1, 2, 3)]
    assert [each.shape[1] for each in states] == [tokens.shape[1], *widths]
    for number, row in enumerate(rows):
        new = tuple(out[number, -N_NEW:].tolist())
        finished, n_prompt = row + new[:-1], len(row)
        expected_states, expected_logits = reference(folders[1], finished, n_prompt, operator, selector)
        assert expected_logits[n_prompt - 1 :].argmax(-1).tolist() == list(new)
        for step, found in enumerate(states):
            end = n_prompt + step
            here = found[number, -min(end, found.shape[1]) :]
            assert_close(here, expected_states[end - len(here) : end])
        chosen = [p for p in range(len(finished)) if SELECTORS[selector][1](p, n_prompt, finished)]
        assert handle.changed[number] == chosen


def test_the_cells_of_the_table_differ(folders: tuple[Path, Path]) -> None:
    """Or a mistake in one of them might go unnoticed: no two selectors and no two operators give one continuation."""
    row = (*RAGGED[0], 5, 9, 30)
    logits = [reference(folders[1], row, 7, "add", selector)[1][-1] for selector in SELECTORS if selector != "rows"]
    logits += [reference(folders[1], row, 7, operator, "all")[1][-1] for operator in OPERATORS if operator != "add"]
    for number, one in enumerate(logits):
        for other in logits[:number]:
            assert float((one - other).abs().max()) > 1e-3 * float(one.abs().max())
