"""The choice of a target layer against slopes taken one layer at a time."""

from typing import Any

import pytest
import torch

import lrt_tl as lrt
from lrt_tl.evaluation.behavior import AnswerTokens, Behavior
from lrt_tl.evaluation.effects import dose_response, slopes
from lrt_tl.evaluation.layer_choice import choose_layer
from lrt_tl.models.identity import site_of
from tests.checkpoints import PROMPTS

GRID = (-1.0, 0.0, 1.0)
BEHAVIORS = [
    Behavior("up", tuple(PROMPTS), AnswerTokens(("word1",), ("word3",))),
    Behavior("<b>down", tuple(PROMPTS[:3]), AnswerTokens(("word5",), ("word4",))),
]


def vectors(model: Any, layers: range) -> list[list[tuple[lrt.SteeringVector, lrt.SteeringVector]]]:
    generator = torch.Generator().manual_seed(3)

    def one(layer: int) -> lrt.SteeringVector:
        direction = torch.randn(model.cfg.d_model, generator=generator)
        return lrt.from_directions(model, direction, hook_name=site_of(model, layer=layer).hook_name)

    return [[(one(layer), one(layer)) for _ in BEHAVIORS] for layer in layers]


def by_hand(model: Any, native: lrt.SteeringVector, transferred: lrt.SteeringVector, behavior: Behavior) -> list[float]:
    equal = transferred.direction * native.norm / transferred.norm
    arms = [
        dose_response(model, native.site.hook_name, each[None], behavior, GRID) for each in (native.direction, equal)
    ]
    return [float(slopes(scores, GRID).mean()) for scores in arms]


def test_the_layer_where_the_carried_vectors_do_most_is_chosen(bridges: tuple[Any, Any]) -> None:
    target = bridges[1]
    tried = vectors(target, range(4))
    found = choose_layer(target, tried, BEHAVIORS, coefficients=GRID)
    expected = [
        [by_hand(target, *pair, behavior) for pair, behavior in zip(of_layer, BEHAVIORS, strict=True)]
        for of_layer in tried
    ]
    for place, behavior in enumerate(BEHAVIORS):
        assert found.native[behavior.name] == pytest.approx([row[place][0] for row in expected], rel=1e-4, abs=1e-6)
        assert found.transferred[behavior.name] == pytest.approx(
            [row[place][1] for row in expected], rel=1e-4, abs=1e-6
        )
    shares = torch.tensor([[cell[1] for cell in row] for row in expected])
    assert found.chosen == int((shares / shares.abs().amax(0)).sum(1).argmax())
    assert found.hook_names[found.chosen] == tried[found.chosen][0][0].site.hook_name
    assert found.to_json()["chosen"] == found.hook_names[found.chosen]


def test_it_shows_as_a_table_and_a_heat_map(bridges: tuple[Any, Any]) -> None:
    found = choose_layer(bridges[1], vectors(bridges[1], range(2)), BEHAVIORS, coefficients=GRID)
    assert [row["layer"].endswith("(chosen)") for row in found.rows()].index(True) == found.chosen
    assert "&lt;b&gt;down" in found._repr_html_()
    assert "<b>" not in found.figure().to_json()
    assert list(found.figure().data[0].z[1]) == pytest.approx(
        [slope / max(map(abs, found.transferred["<b>down"])) for slope in found.transferred["<b>down"]]
    )
