"""The coefficient at which KL reaches a budget, for every operator, against a KL computed here."""

from typing import Any

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.models.identity import site_of
from lrt_tl.steering.calibration import calibrate_coefficient
from lrt_tl.steering.steering import Steering
from lrt_tl.steering.vector import SteeringVector

TEXTS = ["word1 word2 word7", "word9 word30 word4 word5 word12 word8", "word3"]


def kl_by_hand(model: Any, steering: Steering) -> float:
    """One text at a time, without padding."""
    found = []
    for text in TEXTS:
        tokens = torch.tensor([[1, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        plain = model(tokens).detach()[0, 1:].double().softmax(-1)
        with steering.apply(model):
            steered = model(tokens).detach()[0, 1:].double().softmax(-1)
        found += [float((p * (p / q).log()).sum()) for p, q in zip(plain, steered, strict=True)]
    return sum(found) / len(found)


def some_vector(model: Any) -> SteeringVector:
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(3))
    return SteeringVector(direction, site_of(model, layer=1), residual_norm=5.0)


@pytest.mark.parametrize("kl", [1e-3, 0.05])
@pytest.mark.parametrize("operator", ["vector", "add", "rotate", "ablate", "clamp", "several"])
def test_the_budget_is_reached_to_two_percent(pair: Any, operator: str, kl: float) -> None:
    model = pair[0]
    vector = some_vector(model)
    steering = {
        "add": vector.add(),
        "rotate": vector.rotate(),
        "ablate": vector.ablate(),
        "clamp": vector.clamp(2.0),
        "several": vector.add(1.0, positions={"first": 2}) + (-vector).rotate(0.5, positions={"last": 1}),
    }.get(operator, vector.add())
    coefficient = calibrate_coefficient(model, vector if operator == "vector" else steering, TEXTS, kl=kl)
    assert kl_by_hand(model, coefficient * steering) == pytest.approx(kl, rel=0.021)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"kl": 0.0}, "must be a positive number"),
        ({"kl": float("nan")}, "must be a positive number"),
        ({"kl": 1e6}, "no coefficient gives a KL of 1e"),
        ({"kl": 0.1, "texts": []}, "needs neutral text"),
    ],
)
def test_what_cannot_be_reached_is_refused(bridges: Any, asked: dict[str, Any], message: str) -> None:
    model = bridges[0]
    with pytest.raises(LrtError, match=message):
        calibrate_coefficient(model, some_vector(model), **{"texts": TEXTS, **asked})


def test_steering_that_touches_nothing_in_the_texts_is_refused(bridges: Any) -> None:
    model = bridges[0]
    with pytest.raises(LrtError, match="Steer positions that the texts have"):
        calibrate_coefficient(model, some_vector(model).add(positions="generated"), TEXTS, kl=0.1)


def test_a_model_that_is_steered_already_is_refused(bridges: Any) -> None:
    model = bridges[0]
    with some_vector(model).apply(model), pytest.raises(LrtError, match="is being steered"):
        calibrate_coefficient(model, some_vector(model), TEXTS, kl=0.1)
