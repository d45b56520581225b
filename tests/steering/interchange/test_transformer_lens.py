"""Interventions: against what the same steering does here, and before TransformerLens's own validators."""

import json
from typing import Any

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.models.identity import Site, site_of
from lrt_tl.steering.interchange.transformer_lens import to_interventions
from lrt_tl.steering.probe import Probe
from lrt_tl.steering.steering import Steering
from lrt_tl.steering.vector import SteeringVector
from tests.checkpoints import has_hooked
from tests.steering.interchange.examples import vectors_of


def steerings(model: Any) -> dict[str, Steering]:
    first, second = vectors_of(model, 1, 2)
    before = SteeringVector(second.direction, site_of(model, hook_name="blocks.2.hook_resid_pre"))
    return {
        "all": first.add(1.5),
        "summed": first.add(1.5) + 2.0 * first.add(-0.25) + before.add() + second.add(positions=3),
        "at": first.add(positions={"at": [3, 1, 1]}),
        "first": first.add(positions={"first": 2}) + first.add(-3.0, positions=[0, 1]),
    }


def played(model: Any, tokens: Any, specifications: dict[str, dict[str, Any]]) -> Any:
    """The logits of a model on which the specifications are done by hooks."""

    def hook(specification: dict[str, Any]) -> Any:
        def add(activation: Any, hook: Any) -> Any:
            changed = activation.clone()
            changed[:, specification.get("pos", slice(None))] += torch.tensor(specification["value"])
            return changed

        return add

    return model.run_with_hooks(tokens, fwd_hooks=[(name, hook(each)) for name, each in specifications.items()])


@pytest.mark.parametrize("name", ["all", "summed", "at", "first"])
def test_interventions_do_what_the_steering_does(bridges: Any, name: str) -> None:
    model, tokens = bridges[1], torch.tensor([[1, 7, 9, 4, 30]])
    steering = steerings(model)[name]
    specifications = json.loads(json.dumps(to_interventions(steering)))
    with steering.apply(model):
        expected = model(tokens)
    torch.testing.assert_close(played(model, tokens, specifications), expected, atol=2e-4, rtol=1e-4)
    assert not torch.equal(expected, model(tokens))


def test_steps_at_one_point_become_one_specification(bridges: Any) -> None:
    (first,) = vectors_of(bridges[1], 1)
    found = to_interventions(first.add(2.0, positions=3) + first.add(positions=[3]))
    (name,) = found
    assert (name, found[name]["op"], found[name]["pos"]) == ("blocks.1.hook_out", "add", [3])
    torch.testing.assert_close(torch.tensor(found[name]["value"]), 3 * first.direction)


@pytest.mark.skipif(has_hooked, reason="interventions came with TransformerLens 4")
def test_transformer_lens_takes_them(bridges: Any) -> None:
    from transformer_lens.model_bridge.sources.inspect.hooks import supported_hook_points
    from transformer_lens.model_bridge.sources.inspect.intervention import build_interventions
    from transformer_lens.model_bridge.sources.vllm.intervention_specs import validate_spec
    from transformer_lens.model_bridge.sources.vllm.worker_extension import _apply_intervention

    for steering in steerings(bridges[1]).values():
        specifications = to_interventions(steering)
        assert build_interventions(specifications, supported_hook_points(4)).keys() <= {"1:resid_post", "2:resid_post"}
        for name, specification in specifications.items():
            assert validate_spec(name, specification, width=24) == specification
            scale, bias = torch.ones(5, 24), torch.zeros(5, 24)  # vLLM's h · scale + bias, by position
            _apply_intervention(scale, bias, specification)
            expected = torch.zeros(5, 24)
            expected[specification.get("pos", slice(None))] = torch.tensor(specification["value"])
            assert torch.equal(scale, torch.ones(5, 24))
            assert torch.equal(bias, expected)


def test_what_cannot_be_said_is_refused_by_name(bridges: Any) -> None:
    (vector,) = vectors_of(bridges[1], 1)
    probe = Probe(vector.direction, 0.0, 0.0, vector.site)
    start = SteeringVector(vector.direction, site_of(bridges[1], hook_name="blocks.0.hook_resid_pre"))
    for steering, message in (
        (vector.add() + vector.ablate(0.5), r"step 1 \(ablate × 0.5 on large L1\) cannot be run remotely: of our"),
        (vector.rotate(), r"step 0 \(rotate"),
        (vector.clamp(1.0), r"step 0 \(clamp to 1"),
        (vector.add(when=probe), "it has a condition"),
        (vector.add(positions={"at": 1}) + vector.add(), r"has \[1\] already"),
        (start.add(), r"at the output of a block"),
        *((vector.add(positions=positions), "positions are 'all', or numbers from 0") for positions in TEXTUAL),
    ):
        with pytest.raises(LrtError, match=message):
            to_interventions(steering)
    other = SteeringVector(torch.ones(16), Site("blocks.1.hook_resid_post", 16))
    with pytest.raises(LrtError, match="of two models"):
        to_interventions(vector.add() + other.add())


TEXTUAL: list[Any] = [
    "prompt",
    "generated",
    {"last": 1},
    {"within": "word1"},
    {"after": "word1"},
    {"tokens": [5]},
    {"mask": [[True, False]]},
    {"not": {"first": 1}},
    {"prompt": {"first": 1}},
]
