"""KL of steering against PyTorch's, one text at a time; and scales that equalize it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.matched_kl import kl_of_steering, scales_of_equal_kl
from lrt_tl.steering.calibration import TOKENS_PER_TEXT, neutral_batch
from tests.checkpoints import WORDS

TEXTS = ("word1 word2", "word3 nothing word4 word5 word6", "word7", " ".join(WORDS[3:] * 2))
HOOK = "blocks.1.hook_resid_post"


def deltas(n: int, size: float = 1.0) -> Tensor:
    return size * torch.randn(n, 24, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def kl(model: Any, delta: Tensor) -> float:
    """KL(plain ‖ steered), a mean over the tokens that are not special, one text at a time."""
    found = []
    for text in TEXTS:
        ids = [1, *(WORDS.index(word) if word in WORDS else 0 for word in text.split())][:TOKENS_PER_TEXT]
        tokens = torch.tensor([ids])
        plain = model(tokens)[0].double().log_softmax(-1)
        steered = model.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda states, hook: states + delta)])[0]
        each = functional.kl_div(steered.double().log_softmax(-1), plain, log_target=True, reduction="none").sum(-1)
        found.append(each[tokens[0] >= 3])
    return float(torch.cat(found).mean())


def test_kl_is_pytorchs(pair: tuple[Any, Any]) -> None:
    tokens, mask, content = neutral_batch(pair[1], TEXTS)
    some = torch.cat([deltas(40), deltas(1, 0.05), torch.zeros(1, 24)])  # more than one batch of rows
    found = kl_of_steering(pair[1], HOOK, some, tokens, mask, content)
    for index in (0, 31, 32, 39, 40):
        assert float(found[index]) == pytest.approx(kl(pair[1], some[index]), rel=1e-3, abs=1e-6)
    assert float(found[-1]) == pytest.approx(0, abs=1e-6)
    assert float(found[:-1].min()) > 1e-5


def test_the_first_tokens_of_each_text(bridges: tuple[Any, Any]) -> None:
    tokens, mask, content = neutral_batch(bridges[0], TEXTS)
    assert tokens.shape == mask.shape == content.shape == (4, TOKENS_PER_TEXT)
    assert content.sum(1).tolist() == [2, 4, 1, TOKENS_PER_TEXT - 1]
    assert mask.sum(1).tolist() == [3, 6, 2, TOKENS_PER_TEXT]  # with <s>, and a special token in the second
    assert neutral_batch(bridges[0], TEXTS, prepend_bos=False)[2].sum(1).tolist() == [2, 4, 1, TOKENS_PER_TEXT]


@pytest.mark.parametrize("coefficient", [0.5, 4.0])
def test_scaled_directions_have_the_kl_of_the_first(bridges: tuple[Any, Any], coefficient: float) -> None:
    directions = deltas(6) * torch.tensor([1.0, 1.0, 0.2, 5.0, 1.0, 2.0])[:, None]
    scales = scales_of_equal_kl(bridges[1], HOOK, directions, coefficient, TEXTS)
    assert float(scales[0]) == 1

    def both_ways(index: int) -> float:
        delta = float(scales[index]) * coefficient * directions[index]
        return (kl(bridges[1], delta) + kl(bridges[1], -delta)) / 2

    wanted = both_ways(0)
    assert wanted > 1e-3
    for index in range(1, 6):
        assert both_ways(index) == pytest.approx(wanted, rel=0.021)


def test_the_scale_undoes_a_factor(bridges: tuple[Any, Any]) -> None:
    direction = deltas(1)
    scales = scales_of_equal_kl(bridges[1], HOOK, torch.cat([direction, direction / 3, -direction]), 1.0, TEXTS)
    torch.testing.assert_close(scales, torch.tensor([1.0, 3.0, 1.0]).double(), rtol=0.015, atol=0)


def test_a_kl_that_leaps_is_matched(monkeypatch: pytest.MonkeyPatch, bridges: tuple[Any, Any]) -> None:
    """As where a prediction flips: KL = ‖δ‖² (1 + 100 σ(40 log(‖δ‖/θ))), with a leap of its own for each direction; and
    directions that have the KL that is wanted are not run again."""
    leaps, ran = torch.tensor([9.0, 0.4, 0.5, 2.0, 9.0]).double(), list[int]()
    directions = torch.eye(5, 24)

    def leaping(given: Tensor) -> Tensor:
        ran.append(len(given) // 2)
        size = given.norm(dim=1).double()
        leap = (given.abs().double()[:, :5] @ leaps) / size
        return size**2 * (1 + 100 * torch.sigmoid(40 * (size / leap).log()))

    monkeypatch.setattr("lrt_tl.evaluation.matched_kl.kl_on", lambda *_: leaping)
    scales = scales_of_equal_kl(bridges[1], HOOK, directions, 1.0, TEXTS)
    kls = leaping(torch.cat([scales[:, None].float() * directions] * 2))[:5]
    torch.testing.assert_close(kls / kls[0], torch.ones(5).double(), rtol=0.021, atol=0)
    assert float(scales[4]) == 1
    assert ran[0] == 5
    assert max(ran[1:-1]) <= 3


def test_a_direction_that_does_nothing_is_refused(bridges: tuple[Any, Any]) -> None:
    directions = torch.cat([deltas(1), torch.zeros(1, 24)])
    with pytest.raises(LrtError, match="number 1 after the native one, was not brought to its KL"):
        scales_of_equal_kl(bridges[1], HOOK, directions, 1.0, TEXTS)


@pytest.mark.parametrize(("texts", "message"), [((), "needs neutral text"), (("nothing",), "special tokens only")])
def test_neutral_text_must_be_text(bridges: tuple[Any, Any], texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        neutral_batch(bridges[0], texts)
