"""The parts of `benchmarks/one_distribution.py` and `benchmarks/copies.py`, by hand; and what they left."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from tests.campaigns import BENCHMARKS, RESULTS, campaign


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return campaign("one_distribution")


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "one_distribution.json").read_text())
    return found


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(40, 30)])
        self.embed = nn.Linear(40, 30)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = Blocks()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_quantized_rows_have_their_levels(bits: int) -> None:
    model, copies = Model(), campaign("copies")
    before = model.model.embed.weight.detach().clone()
    bias = model.model.embed.bias.detach().clone()
    copies.quantize(model, bits)
    after, step = model.model.embed.weight.detach(), before.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert max(len(row.unique()) for row in after) <= 2**bits - 1
    assert bool(((after - before).abs() <= step * 0.5001).all())
    torch.testing.assert_close(after.abs().amax(1), before.abs().amax(1))
    assert torch.equal(model.model.embed.bias, bias)


def test_pruning_takes_the_smallest_weights_of_the_blocks() -> None:
    model, copies = Model(), campaign("copies")
    before, embed = (each.weight.detach().clone() for each in (model.model.layers[0], model.model.embed))
    copies.prune(model, 0.3)
    after = model.model.layers[0].weight.detach()
    assert int((after == 0).sum()) == 360
    assert float(before[after == 0].abs().max()) < float(after[after != 0].abs().min())
    assert torch.equal(after[after != 0], before[after != 0])
    assert torch.equal(model.model.embed.weight, embed)


def found(model: str, ladder: str, kl: float, premise: bool, apart: float, mismatch: float) -> dict[str, Any]:
    scores = [{"estimate": 0.8}, {"estimate": 0.8 - apart}]
    return {
        "model": model,
        "ladder": ladder,
        "premise": premise,
        "features": {"kl": kl},
        "steering_mismatch": {"mood": mismatch, "register": 0.0},
        "properties": {"a: parallelism": {"effective": scores}, "b: relational linearity": {"effective": scores}},
    }


def test_the_answer_is_the_last_before_the_first_that_loses(script: Any) -> None:
    results = [
        found("itself", "", 0.0, True, 0.0, 0.0),
        found("4 bits", "quantized", 3e-3, False, 0.02, 0.05),
        found("8 bits", "quantized", 1e-5, True, 0.0, 0.0),
        found("3 bits", "quantized", 4e-2, False, 0.2, 0.3),
        found("30% pruned", "pruned", 1e-3, True, 0.1, 0.08),
        found("large-b", "", 1e-4, False, 0.9, 1.0),
    ]
    answered = script.answer(results)
    reached = answered["reached"]
    assert reached["the premise"]["keeps_up_to"] == {"model": "30% pruned", "kl": 1e-3}
    assert reached["the premise"]["first_lost_at"] == {"model": "4 bits", "kl": 3e-3}
    assert reached["parallelism"]["keeps_up_to"]["model"] == "8 bits"
    assert reached["parallelism"]["first_lost_at"]["model"] == "30% pruned"
    assert reached["parallelism"]["ladders"]["quantized"] == ["4 bits", "3 bits"]
    assert reached["parallelism"]["ladders"]["pruned"] == [None, "30% pruned"]
    assert reached["steering"]["first_lost_at"]["model"] == "3 bits"
    assert reached["steering"]["ladders"]["pruned"] == ["30% pruned", None]
    assert "is kept down to quantized: 8 bits (not 4 bits), pruned: 30% pruned, trained" in answered["sentence"]
    assert "lost first at KL 0.003, by 4 bits." in answered["sentence"]
    assert "pruned: none (not 30% pruned)" in answered["sentence"]
    assert answered["mean_score_of_large"] == {"parallelism": 0.8, "relational linearity": 0.8}


def test_the_committed_answer_comes_from_the_committed_results(script: Any, committed: dict[str, Any]) -> None:
    assert committed["answer"] == json.loads(json.dumps(script.answer(committed["results"])))


def test_where_the_premise_fails_nothing_is_shared(committed: dict[str, Any]) -> None:
    by_name = {each["model"]: each for each in committed["results"]}
    for each in committed["results"]:
        verdicts = {of["verdict"] for of in each["properties"].values()}
        assert each["premise"] or verdicts == {"undetermined"}
    for name in ("itself", "twin"):
        assert by_name[name]["premise"]
        assert by_name[name]["features"]["kl"] < 1e-9
        for of in by_name[name]["properties"].values():
            one, other = (score["estimate"] for score in of["effective"])
            assert one == pytest.approx(other, abs=1e-3)
        verdicts = [of["verdict"] for of in by_name[name]["properties"].values()]
        assert set(verdicts) <= {"shared", "neither"}
    near, lost = by_name["large-b"], by_name["3 bits"]
    assert near["features"]["kl"] < lost["features"]["kl"] / 4
    assert near["features"]["context_worst_r2"] < lost["features"]["context_worst_r2"]
    assert not near["premise"]
