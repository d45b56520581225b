"""The target run from mapped states, and how well those are predicted along one direction, against a text at a time."""

from typing import Any

import numpy as np
import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.comparability import held_out_batches
from lrt_tl.evaluation.stitched import (
    MappedStates,
    StitchedLoss,
    correlation_along,
    mapped_states,
    mean_cosine,
    r2_along,
    stitched_loss,
    token_share,
)
from lrt_tl.text.batches import TokenRows
from lrt_tl.text.documents import TEST, split_of
from tests.evaluation.maps import given_map

HOOK = "blocks.2.hook_resid_post"


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_identity_map_costs_nothing(bridges: Any, texts: list[str]) -> None:
    model = bridges[1]
    identity = given_map(model, model, (2, 2), torch.eye(24), torch.zeros(24))
    states = mapped_states(model, model, identity, held_out_batches(model, model, texts))
    loss = stitched_loss(model, HOOK, states)
    assert loss.stitched == loss.plain
    assert loss.mean_ablated != loss.plain
    assert r2_along(states, drawn(24)) == 1.0
    assert correlation_along(states, drawn(24)) == pytest.approx(1.0)


def test_a_map_to_the_mean_is_mean_ablation(bridges: Any, texts: list[str]) -> None:
    source, target = bridges
    batches = held_out_batches(source, target, texts)
    own = mapped_states(source, target, given_map(source, target, (1, 2), torch.zeros(24, 16), torch.ones(24)), batches)
    mean = torch.cat([each.own for each in own]).mean(0)
    states = mapped_states(source, target, given_map(source, target, (1, 2), torch.zeros(24, 16), mean), batches)
    loss = stitched_loss(target, HOOK, states)
    assert loss.stitched == pytest.approx(loss.mean_ablated, rel=1e-6)
    assert r2_along(states, drawn(24)) == pytest.approx(0.0, abs=1e-6)
    assert correlation_along(states, drawn(24)) == pytest.approx(0.0, abs=1e-6)
    assert mean_cosine(states, mean) == pytest.approx(1.0)
    assert mean_cosine(states, -mean) == pytest.approx(-1.0)


@torch.no_grad()
def test_each_figure_against_a_loop(pair: Any, texts: list[str]) -> None:
    source, target = pair
    weight, bias, direction = 0.3 * drawn(24, 16), drawn(24, seed=1), drawn(24, seed=2)
    plain, stitched, own, mapped = [], [], [], []
    for text in texts:
        if split_of(text) != TEST:
            continue
        tokens = torch.tensor([[1, *source.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        seen = source.run_with_cache(tokens)[1]["blocks.1.hook_resid_post"][0]
        mapped.append((seen @ weight.T + bias)[1:])
        own.append(target.run_with_cache(tokens)[1][HOOK][0, 1:])

        def put(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            return torch.cat([activation[:, :1], mapped[-1][None]], dim=1)

        for found, hooks in ((plain, []), (stitched, [(HOOK, put)])):
            logits = target.run_with_hooks(tokens, fwd_hooks=hooks)[0]
            found += [
                float(-logits[i].double().log_softmax(-1)[tokens[0, i + 1]]) for i in range(1, tokens.shape[1] - 1)
            ]
    affine_map = given_map(source, target, (1, 2), weight, bias)
    states = mapped_states(source, target, affine_map, held_out_batches(source, target, texts, batch_size=3))
    loss = stitched_loss(target, HOOK, states)
    assert loss.plain == pytest.approx(np.mean(plain), rel=1e-5)
    assert loss.stitched == pytest.approx(np.mean(stitched), rel=1e-5)
    y, p = (torch.cat(each).double().numpy() @ direction.double().numpy() for each in (own, mapped))
    assert r2_along(states, direction) == pytest.approx(
        1 - ((y - p) ** 2).sum() / ((y - y.mean()) ** 2).sum(), rel=1e-4
    )
    assert correlation_along(states, direction) == pytest.approx(np.corrcoef(y, p)[0, 1], rel=1e-4)
    assert r2_along(states, 7 * direction) == pytest.approx(r2_along(states, direction))


def test_sinks_are_left_alone(bridges: Any, texts: list[str]) -> None:
    source, target = bridges
    batches, arguments = held_out_batches(source, target, texts), ((1, 2), torch.zeros(24, 16), torch.zeros(24))
    everywhere = mapped_states(source, target, given_map(source, target, *arguments), batches)
    norms = torch.cat([each.own for each in everywhere]).norm(dim=1)
    limit = float(norms.median())
    medians = {f"target:{HOOK}": limit / 10}
    calm = mapped_states(source, target, given_map(source, target, *arguments, medians), batches)
    assert sum(len(each.own) for each in calm) == int((norms <= limit).sum()) < len(norms)
    assert all(int(each.at.sum()) == len(each.own) == len(each.mapped) for each in calm)
    none = given_map(source, target, *arguments, {"source:blocks.1.hook_resid_post": 1e-9})
    with pytest.raises(LrtError, match="is a sink"):
        mapped_states(source, target, none, batches)


@pytest.mark.parametrize(
    ("losses", "kept"), [((1.0, 2.0, 5.0), 0.75), ((1.0, 9.0, 5.0), -1.0), ((2.0, 1.0, 1.0), None)]
)
def test_what_is_kept(losses: tuple[float, float, float], kept: float | None) -> None:
    assert StitchedLoss(*losses).kept == kept


def planted(own: torch.Tensor, tokens: torch.Tensor) -> list[MappedStates]:
    rows = TokenRows(tokens[None], torch.ones_like(tokens[None]).bool(), torch.ones_like(tokens[None]).bool())
    return [MappedStates(rows, rows.mask, own, own)]


def test_the_share_that_the_token_explains() -> None:
    tokens = torch.arange(2000) % 50
    by_token, by_context = drawn(50, 3)[tokens], drawn(2000, 3, seed=1)
    along = torch.tensor([1.0, 0.0, 0.0])
    assert token_share(planted(by_token, tokens), along) == pytest.approx(1.0)
    assert token_share(planted(by_context, tokens), along) == pytest.approx(0.0, abs=0.03)
    half = float(by_token[:, 0].var() / (by_token[:, 0].var() + 1))
    assert token_share(planted(by_token + by_context, tokens), along) == pytest.approx(half, abs=0.04)
    with pytest.raises(LrtError, match="each of them once"):
        token_share(planted(by_context, torch.arange(2000)), along)
    with pytest.raises(LrtError, match="do not vary"):
        r2_along(planted(torch.ones(2000, 3), tokens), along)
