"""What steering costs, against sums over one text and position at a time."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.side_effects import distinct, repetition, side_effects
from lrt_tl.models.identity import site_of
from lrt_tl.steering.vector import SteeringVector

TEXTS = ["word1 word2 word7 word9", "word9 word30 word4", "word3 word5 word6 word8 word10 word11"]


def some_vector(model: Any) -> SteeringVector:
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3))
    return SteeringVector(direction, site_of(model, layer=1))


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_each_figure_against_a_loop(pair: Any, batch_size: int) -> None:
    model = pair[1]
    steering = some_vector(model).add(3.0)
    kl, loss, loss_plain, same, n = 0.0, 0.0, 0.0, 0, 0
    for text in TEXTS:
        ids = [1, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        plain = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        with steering.apply(model):
            steered = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        for place, following in enumerate(ids[1:]):
            kl += float((plain[place].exp() * (plain[place] - steered[place])).sum())
            loss -= float(steered[place, following])
            loss_plain -= float(plain[place, following])
            same += int(plain[place].argmax() == steered[place].argmax())
            n += 1
    found = side_effects(model, {"native": steering}, TEXTS, batch_size=batch_size)
    effect = found.effects["native"]
    assert effect.kl == pytest.approx(kl / n, rel=1e-3)
    assert effect.perplexity == pytest.approx(math.exp(loss / n), rel=1e-4)
    assert effect.perplexity_plain == pytest.approx(math.exp(loss_plain / n), rel=1e-4)
    assert effect.agreement == same / n
    assert effect.distinct_1 is None
    plain_effect = found.effects["plain"]
    assert (plain_effect.kl, plain_effect.agreement) == (0.0, 1.0)
    assert plain_effect.perplexity == plain_effect.perplexity_plain


@torch.no_grad()
def test_intervals_are_those_of_resampled_texts(bridges: Any, texts: list[str]) -> None:
    model = bridges[1]
    steering = some_vector(model).add(3.0)
    sums = []
    for text in texts[:60]:
        ids = torch.tensor([[1, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        plain = model(ids)[0, :-1].double().log_softmax(-1)
        with steering.apply(model):
            steered = model(ids)[0, :-1].double().log_softmax(-1)
        kl, same = (plain.exp() * (plain - steered)).sum(), (plain.argmax(-1) == steered.argmax(-1)).sum()
        loss = -steered.gather(-1, ids[0, 1:, None]).sum()
        sums.append([float(kl), float(loss), float(same), len(plain)])
    chosen = np.random.default_rng(0).integers(60, size=(4000, 60))
    resampled = np.array(sums)[chosen].sum(1)
    found = side_effects(model, {"native": steering}, texts[:60]).effects["native"]
    means = resampled[:, :3] / resampled[:, 3:]
    for interval, values in (
        (found.kl_interval, means[:, 0]),
        (found.perplexity_interval, np.exp(means[:, 1])),
        (found.agreement_interval, means[:, 2]),
    ):
        expected = np.quantile(values, (0.025, 0.975))
        assert interval == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0]))


def test_one_text_has_no_interval(bridges: Any) -> None:
    found = side_effects(bridges[1], {"native": some_vector(bridges[1]).add(3.0)}, TEXTS[:1])
    assert found.effects["native"].kl_interval is None
    assert "[" not in found.rows()[1]["KL to plain, nats"]


def test_what_is_written_is_counted(bridges: Any) -> None:
    model = bridges[1]
    steering = {"weak": some_vector(model).add(0.0), "strong": some_vector(model).add(200.0)}
    found = side_effects(model, steering, TEXTS, prompts=["word1 word2", "word3"], max_new_tokens=12)
    assert found.effects["weak"] == found.effects["plain"]
    for effect in found.effects.values():
        assert effect.distinct_1 is not None
        assert 0 < effect.distinct_1 <= 1
    assert found.rows()[2]["steering"] == "strong"
    assert "KL to plain" in found._repr_html_()
    assert set(found.to_json()) == {"plain", "weak", "strong"}
    assert repr(found).startswith("SideEffects(plain: KL 0; weak: KL 0;")


@pytest.mark.parametrize(
    ("text", "repeated", "one", "two"),
    [
        ("a b c d", 0.0, 1.0, 1.0),
        ("a a a a", 0.75, 0.25, 1 / 3),
        ("a b a b", 0.5, 0.5, 2 / 3),
        ("a b c a b", 0.0, 0.6, 0.75),
        ("", 0.0, 0.0, 0.0),
        ("a", 0.0, 1.0, 0.0),
    ],
)
def test_repetition_and_distinct_words(text: str, repeated: float, one: float, two: float) -> None:
    words = text.split()
    assert repetition(words) == repeated
    assert distinct(words, 1) == pytest.approx(one)
    assert distinct(words, 2) == pytest.approx(two)


@pytest.mark.parametrize(("texts", "message"), [([], "list of neutral texts"), ([""], "no neutral text has a token")])
def test_text_that_is_none_is_refused(bridges: Any, texts: list[str], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        side_effects(bridges[1], {}, texts)


def test_no_steering_is_called_plain(bridges: Any) -> None:
    with pytest.raises(LrtError, match="cannot be named 'plain'"):
        side_effects(bridges[1], {"plain": some_vector(bridges[1]).add()}, TEXTS)
