"""Vectors of steering-vectors: by the shape of its object, and beside the package on a Hugging Face model."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lrt_tl.errors import LrtError
from lrt_tl.steering.interchange.steering_vectors import from_steering_vectors, to_steering_vectors
from tests.steering.interchange.examples import directions, vectors_of


def theirs(layers: Any, layer_type: str = "decoder_block") -> Any:
    return SimpleNamespace(layer_activations=layers, layer_type=layer_type)


def test_layers_are_outputs_of_blocks_in_any_precision(bridges: Any) -> None:
    rows = {2: torch.arange(24).half(), 0: torch.ones(24, dtype=torch.float64)}
    first, second = from_steering_vectors(theirs(rows), bridges[1])
    assert [v.site.hook_name for v in (first, second)] == ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    assert torch.equal(second.direction, torch.arange(24.0))
    rows[0] *= 2  # what was read is ours
    assert torch.equal(first.direction, torch.ones(24))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (theirs({}), "with layer_activations"),
        (torch.ones(24), "with layer_activations"),
        (theirs({1: torch.ones(24)}, "mlp"), "'mlp'; only 'decoder_block'"),
        (theirs({1: torch.ones(23)}), "layer 1 .* has 23 dimensions, and large L1 has 24"),
        (theirs({4: torch.ones(24)}), "layer 4 is out of range"),
        (theirs({-1: torch.ones(24)}), "layer -1 is out of range"),
        (theirs({1: torch.ones(1, 24)}), r"the shape \(1, 24\)"),
        (theirs({1: torch.ones(24, dtype=torch.long)}), r"torch\.int64"),
        (theirs({1: [1.0] * 24}), "is no tensor"),
        (theirs({1: torch.full((24,), 1e300, dtype=torch.float64)}), "NaN or infinity"),
    ],
)
def test_what_is_no_steering_of_the_residual_stream_is_refused(bridges: Any, given: Any, message: str) -> None:
    with pytest.raises(LrtError, match=message):
        from_steering_vectors(given, bridges[1])


def test_without_the_package_it_is_said_how_to_get_it(bridges: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "steering_vectors", None)
    with pytest.raises(LrtError, match="pip install steering-vectors"):
        to_steering_vectors(vectors_of(bridges[1], 1))


def test_the_package_steers_a_hugging_face_model_the_same(bridges: Any, folders: Any) -> None:
    pytest.importorskip("steering_vectors")
    from transformers import AutoModelForCausalLM

    for bridge, folder in zip(bridges, folders, strict=True):
        vectors, tokens = vectors_of(bridge, 0, 2), torch.tensor([[1, 7, 9, 4]])
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        packed = to_steering_vectors(vectors)
        with torch.no_grad(), packed.apply(model, multiplier=1.5):
            expected = model(tokens).logits
        with vectors[0].apply(bridge, 1.5), vectors[1].apply(bridge, 1.5):
            torch.testing.assert_close(bridge(tokens), expected, atol=2e-4, rtol=1e-4)
        found = directions(from_steering_vectors(packed, bridge))
        assert all(torch.equal(direction, found[name]) for name, direction in directions(vectors).items())
