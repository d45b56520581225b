"""Every vector against every behavior, where the slopes are known in closed form."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.evaluation.behavior import Behavior
from lrt_tl.evaluation.effects import dose_response
from lrt_tl.evaluation.evaluate import evaluate_transfer
from lrt_tl.evaluation.off_target import off_target
from lrt_tl.models.attach import attached
from lrt_tl.models.identity import site_of
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import PROMPTS

COEFFICIENTS = (-1.0, 0.0, 1.0)
READ_OUTS = torch.randn(3, 24, generator=torch.Generator().manual_seed(5))
NOISE = torch.randn(3, 24, generator=torch.Generator().manual_seed(6))


def vectors(model: Any, directions: Tensor, layer: int = 3) -> dict[str, SteeringVector]:
    site = site_of(model, layer=layer)
    return {name: SteeringVector(each, site) for name, each in zip(("one", "two", "three"), directions, strict=False)}


@pytest.fixture
def linear(bridges: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model whose logits are three linear read-outs of the last layer's states, so that slopes are dot products."""
    from lrt_tl.evaluation import effects

    model = bridges[1]

    def read_out(_: Any, hook_name: str, tokens: Tensor, mask: Tensor, *, last: int) -> Any:
        seen: list[Tensor] = []
        with torch.no_grad(), attached(model, [(hook_name, lambda states, hook: seen.append(states) or states)]):
            model(tokens, attention_mask=mask.long())
        at_end = seen[0][torch.arange(len(mask)), mask.sum(1) - last]
        return lambda deltas: ((at_end + deltas[:, None]) @ READ_OUTS.T)[:, :, None]

    monkeypatch.setattr(effects, "steered_run", read_out)
    return model


def behaviors() -> list[Behavior]:
    def read(column: int) -> Any:
        return lambda logits: logits[:, column]

    return [Behavior(name, PROMPTS, read(column)) for column, name in enumerate(("one", "two", "three"))]


def test_slopes_of_linear_read_outs_are_dot_products(linear: Any) -> None:
    native, carried = vectors(linear, READ_OUTS[:2]), vectors(linear, 3 * (READ_OUTS + NOISE)[:2])
    found = off_target(linear, native, behaviors(), transferred=carried, coefficients=COEFFICIENTS)
    for arm, some in (("native", native), ("transferred", carried)):
        for vector, row in found.arms[arm].items():
            direction = some[vector].direction * native[vector].norm / some[vector].norm
            for column, (behavior, slope) in enumerate(row.items()):
                expected = float(direction @ READ_OUTS[column])
                assert slope.slope == pytest.approx(expected, rel=1e-4)
                assert (slope.low, slope.high) == pytest.approx(
                    (expected, expected), rel=1e-4
                )  # the same at all prompts
                if behavior == "three":
                    assert slope.share is None  # no vector of its own
                else:
                    assert slope.share == pytest.approx(expected / float(READ_OUTS[column].square().sum()), rel=1e-4)
    one, two = READ_OUTS[:2]
    shares = [one @ two / one.square().sum(), one @ two / two.square().sum()]
    assert found.spill("native") == pytest.approx(float(torch.stack(shares).abs().mean()), rel=1e-4)


def test_the_diagonal_is_evaluate_transfers(bridges: Any) -> None:
    model = bridges[1]
    native, carried = vectors(model, READ_OUTS, layer=2), vectors(model, 2 * (READ_OUTS + NOISE), layer=2)
    some = [Behavior(name, PROMPTS, lambda logits, place=place: logits[:, place]) for place, name in enumerate(native)]
    found = off_target(model, native, some, transferred=carried, coefficients=COEFFICIENTS)
    for behavior in some:
        result = evaluate_transfer(
            model, carried[behavior.name], behavior, native=native[behavior.name], coefficients=COEFFICIENTS, n_draws=19
        )
        for arm in ("native", "transferred"):
            slope = found.arms[arm][behavior.name][behavior.name].slope
            assert slope == pytest.approx(result.slope(arm), rel=1e-4)


def test_intervals_are_those_of_resampled_prompts_and_sites_may_differ(bridges: Any) -> None:
    model = bridges[1]
    prompts = tuple(f"word{i} word{j}" for i in range(8) for j in range(8))
    behavior = Behavior("one", prompts, lambda logits: logits[:, 5])
    some = {**vectors(model, READ_OUTS[:1], layer=2), "two": vectors(model, NOISE[:1], layer=1)["one"]}
    found = off_target(model, some, [behavior], coefficients=COEFFICIENTS).native
    for name, layer in (("one", 2), ("two", 1)):
        scores = dose_response(
            model, f"blocks.{layer}.hook_resid_post", some[name].direction[None], behavior, COEFFICIENTS
        )
        per_prompt = ((scores[0, 2] - scores[0, 0]) / 2).numpy()
        chosen = np.random.default_rng(0).integers(64, size=(4000, 64))
        low, high = np.quantile(per_prompt[chosen].mean(1), (0.025, 0.975))
        slope = found[name]["one"]
        assert slope.slope == pytest.approx(per_prompt.mean(), abs=1e-5)
        assert (slope.low, slope.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_no_share_of_a_slope_that_is_not_above_zero(linear: Any) -> None:
    found = off_target(linear, vectors(linear, -READ_OUTS[:1]), behaviors()[:1], coefficients=COEFFICIENTS)
    assert found.native["one"]["one"].share is None
    assert found.spill("native") is None
    one_prompt = Behavior("one", PROMPTS[:1], lambda logits: logits[:, 0])
    slope = off_target(linear, vectors(linear, READ_OUTS[:1]), [one_prompt], coefficients=COEFFICIENTS).native["one"][
        "one"
    ]
    assert (slope.low, slope.high, slope.share) == (None, None, None)


def test_it_is_shown_with_names_escaped(linear: Any) -> None:
    name = "<b>one</b>"
    some = {name: SteeringVector(READ_OUTS[0], site_of(linear, layer=3))}
    found = off_target(linear, some, {name: behaviors()[0]}, transferred=some, coefficients=COEFFICIENTS)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["transferred"][name][name]["share"] == 1
    for page in (found._repr_html_(), json.dumps(found.figure().to_dict(), default=str)):
        assert "&lt;b&gt;one" in page
        assert "<b>one" not in page
    assert [row["arm"] for row in found.rows()] == ["native", "transferred"]
    assert (
        repr(found) == "OffTarget(1 vectors × 1 behaviors; mean share of others: native unknown, transferred unknown)"
    )
    assert set(found.figure().data[0].z[0]) == {1.0}


def test_bad_input_is_refused(bridges: Any) -> None:
    model = bridges[1]
    native = vectors(model, READ_OUTS)
    with pytest.raises(LrtError, match="0 vectors and 3 behaviors"):
        off_target(model, {}, behaviors())
    with pytest.raises(LrtError, match="behaviors need different names"):
        off_target(model, native, behaviors()[:1] * 2)
    with pytest.raises(LrtError, match=r"transferred vectors are \['one'\]"):
        off_target(model, native, behaviors(), transferred=vectors(model, READ_OUTS[:1]))
    with pytest.raises(LrtError, match="symmetric about 0"):
        off_target(model, native, behaviors(), coefficients=(0.0, 1.0, 2.0))
