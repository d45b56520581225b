"""A sample of the campaign of `benchmarks/forecast_campaign.py`, measured anew."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from lrt_tl.alignment.moments import Centered
from tests.unchecked import without_type_checks

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BEHAVIOR, SETTING = "narrator", "ridge, one layer"


@pytest.fixture(scope="module")
def campaign() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return import_module("forecast_campaign")


def committed(campaign: Any) -> dict[str, Any]:
    held = json.loads(campaign.LEARNT.read_text())
    wanted = {"source": "medium", "target": "small", "shuffled": False, "setting": SETTING, "behavior": BEHAVIOR}
    (row,) = (row for row in held["transfers"] if wanted.items() <= row.items())
    return {**row, "features": dict(zip(held["features"], row["features"], strict=True))}


def test_shuffled_moments_are_those_of_shuffled_rows(campaign: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    x = torch.randn(300, 3, generator=generator, dtype=torch.float64) @ mixed
    y = x[:, :2] + torch.randn(300, 2, generator=generator, dtype=torch.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    part = Centered(300, x.mean(0), y.mean(0), x.T @ x, x.T @ y, y.T @ y)
    drawn = torch.stack([each.source_target.flatten() for each in campaign.shuffled_parts([part] * 4000)])
    orders = (torch.randperm(300, generator=generator) for _ in range(4000))
    by_hand = torch.stack([(x.T @ y[order]).flatten() for order in orders])
    scale = by_hand.std(0)
    torch.testing.assert_close((drawn / scale).T.cov(), (by_hand / scale).T.cov(), rtol=0, atol=0.12)
    assert float((drawn.mean(0) / scale).abs().max()) < 0.08


def test_a_sample_of_the_campaign_gives_its_committed_row(campaign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "BEHAVIORS", (BEHAVIOR,))
    with without_type_checks():  # of the grammar, whose checks take a minute
        family = campaign.storyworld_family()
        target = family.load("small")
        effects = campaign.Effects(family, target, target.cfg.n_layers // 2)
        (found,) = campaign.transfers(family, "medium", effects, [False], [SETTING])
    row = committed(campaign)
    assert found["recovery"]["estimate"] == pytest.approx(row["recovery"], abs=0.05)
    for name, value in row["features"].items():
        assert found["features"][name] == pytest.approx(value, rel=0.1, abs=0.03), name
