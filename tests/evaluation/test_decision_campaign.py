"""The rules on what the campaign has measured, and a sample of it measured again."""

import json
from typing import Any

import pytest

from tests.campaigns import RESULTS, campaign
from tests.unchecked import without_type_checks


@pytest.fixture(scope="module")
def script() -> Any:
    return campaign("decision_campaign")


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return json.loads((RESULTS / "decision.json").read_text(encoding="utf-8"))


def test_the_rules_say_go_of_good_transfers_and_not_of_nulls(script: Any, committed: dict[str, Any]) -> None:
    """By the rules as they are now; `large-b` had no part in the choice of thresholds."""
    counts = script.counts(committed["rows"])
    assert counts == committed["counts"]
    nulls = [line for line in counts if (line["kind"], line["way"]) == ("null", "all")]
    assert sum(line["judged"] for line in nulls) >= 200
    assert sum(line["go"] for line in nulls) <= 4
    for line in counts:
        if (line["kind"], line["way"]) == ("good", "all"):
            assert line["go"] >= 0.8 * line["judged"], line


def test_language_from_another_language_is_no_go(script: Any, committed: dict[str, Any]) -> None:
    """It recovers most of the native effect, and so would a source with random weights."""
    rows = [
        row
        for row in committed["rows"]
        if row["behavior"] == row["vector"] == "language" and row["way"].startswith("medium-foreign, ")
    ]
    assert max(row["estimate"] for row in rows) > 0.6
    assert all(script.judged(row) != "go" for row in rows)


def test_a_sample_of_the_campaign(script: Any, committed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tense, and five other behaviors' vectors in its place, from small to layer 3 of large: the same figures, but
    for the share beyond random weights, which takes another map, and that above shuffled maps, which here takes less
    text."""
    monkeypatch.setattr(script, "_SHUFFLED_DOCUMENTS", 100)
    with without_type_checks():  # of the grammar, whose checks take a minute
        moments = script.harvested(script.model("small"), "large")
        vectors, affine_map = script.carried(moments, script.own_vectors("small", script.SEEDS["large"]), 0)
        tokens = affine_map.report.tokens_per_dimension
        way = script.Way("small, whitened", "open", vectors, ("small", vectors), "small", tokens, True)
        found = script.cell("large", script.LAYERS[0], "tense", [way])
    assert len(found) == len(script.BEHAVIORS)
    for row in found:
        key = {name: row[name] for name in ("target", "layer", "behavior", "kind", "way", "vector")}
        (before,) = [each for each in committed["rows"] if key.items() <= each.items()]
        assert row["estimate"] == pytest.approx(before["estimate"], abs=0.02)
        for name in ("recovery", "above unrelated vectors", "anti-steerable prompts", "mean activation"):
            assert row["figures"][name] == pytest.approx(before["figures"][name], abs=0.02)
        for name in ("effect in the source", "text for the map"):
            assert row["figures"][name] == pytest.approx(before["figures"][name], rel=0.02, abs=0.02)
        assert row["figures"]["above random vectors"] == pytest.approx(
            before["figures"]["above random vectors"], abs=2 / 65
        )
