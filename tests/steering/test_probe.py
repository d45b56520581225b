"""Probes: what they read, and that they come back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.artifacts import save_artifact
from lrt_tl.errors import ArtifactError, LrtError, MismatchError
from lrt_tl.models.identity import Site
from lrt_tl.steering.probe import Probe
from lrt_tl.steering.vector import SteeringVector
from tests.unchecked import without_type_checks

SITE = Site("blocks.1.hook_resid_post", 3)


def probe(**changes: Any) -> Probe:
    settings = {"weight": torch.tensor([1.0, -2.0, 0.5]), "bias": 0.25, "threshold": 0.5, "site": SITE}
    return Probe(**{**settings, "position": "mean", "provenance": {"method": "test"}, **changes})


def test_it_reads_states_of_any_shape_and_precision() -> None:
    states = torch.tensor([[[1.0, 2.0, 4.0]], [[0.0, 0.0, 0.0]]], dtype=torch.float64)
    assert probe()(states).tolist() == [[-0.75], [0.25]]
    assert probe()(states).dtype == torch.float64
    assert probe()(states[0, 0].bfloat16()).dtype == torch.bfloat16


def test_the_probe_of_a_vector_is_the_projection_on_its_unit_direction() -> None:
    vector = SteeringVector(torch.tensor([3.0, 0.0, 4.0]), SITE, provenance={"method": "mean_difference"})
    of = Probe.of_vector(vector, position="mean", threshold=2.0)
    torch.testing.assert_close(of(torch.tensor([[5.0, 1.0, 0.0], [3.0, 9.0, 4.0]])), torch.tensor([3.0, 5.0]))
    assert (of.threshold, of.position, of.site) == (2.0, "mean", SITE)
    assert of.provenance == {"method": "projection", "vector": {"method": "mean_difference"}}


@pytest.mark.parametrize("position", ["mean", "last", -2, {"at": [0, 3]}, {"after": "Assistant:"}], ids=str)
def test_saving_loses_nothing(tmp_path: Path, position: Any) -> None:
    saved = probe(position=position, bias=1 / 3)
    folder = saved.save(tmp_path / "probe")
    loaded = Probe.load(folder)
    assert torch.equal(loaded.weight, saved.weight)
    for name in ("bias", "threshold", "site", "position", "provenance"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert "says yes above: 0.5" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.ones(2)}, r"shape \(2,\) does not read unknown model L1"),
        ({"weight": torch.zeros(3)}, "weight is zero"),
        ({"weight": torch.ones(3).double()}, r"float32 on the CPU, not torch.float64 on cpu: give it as weight.float"),
        ({"weight": torch.tensor([1.0, float("nan"), 0.0])}, "NaN or infinite"),
        ({"bias": float("inf")}, "NaN or infinite"),
        ({"threshold": float("nan")}, "NaN or infinite"),
        ({"position": {"generated": "all"}}, "texts are given, and have no 'generated'"),
    ],
)
def test_a_probe_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LrtError, match=message):
        probe(**changes)


def test_states_of_another_width_are_refused() -> None:
    with (
        without_type_checks(),
        pytest.raises(MismatchError, match=r"L1 with 3 dimensions, not a tensor of shape \(4,\)"),
    ):
        probe()(torch.ones(4))


def test_a_probe_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    save_artifact(tmp_path / "probe", kind="probe", config={}, tensors={"weight": torch.ones(3)}, card="")
    with pytest.raises(ArtifactError, match="is not a whole probe: KeyError"):
        Probe.load(tmp_path / "probe")


def test_how_a_probe_shows() -> None:
    assert repr(probe()) == "Probe(unknown model L1, 3 dimensions, 'mean' > 0.5, test)"
    shown = replace(probe(), provenance={"held_out": {"auc": 0.98765}, "method": "<script>"})._repr_html_()
    assert "<th>held out auc</th><td>0.988</td>" in shown
    assert "<script>" not in shown
