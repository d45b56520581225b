"""A sample of the campaign of `benchmarks/forecast_campaign.py`, measured anew."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

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


def test_a_sample_of_the_campaign_gives_its_committed_row(campaign: Any) -> None:
    whole = campaign.storyworld_family()
    family = replace(whole, tasks=[task for task in whole.tasks if task.behavior.name == BEHAVIOR])
    target = family.load("small")
    effects = campaign.Effects(family, target, target.cfg.n_layers // 2)
    (found,) = campaign.transfers(family, "medium", effects, [False], [SETTING])
    row = committed(campaign)
    assert found["recovery"]["estimate"] == pytest.approx(row["recovery"], abs=0.05)
    for name, value in row["features"].items():
        assert found["features"][name] == pytest.approx(value, rel=0.1, abs=0.03), name
