"""The demonstration on the bundled models, with few draws, on little text."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lrt_tl import demo, storyworld
from lrt_tl.cli import main
from lrt_tl.errors import LrtError
from lrt_tl.evaluation.recovery import FEWEST_DRAWS
from tests.checkpoints import has_hooked
from tests.unchecked import without_type_checks


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    few = {"N_DOCUMENTS": 200, "N_PAIRS": 32, "N_PROMPTS": 12, "COEFFICIENTS": (-0.5, 0.0, 0.5), "_STORY_TOKENS": 50}
    for name, value in few.items():
        monkeypatch.setattr(demo, name, value)
    with without_type_checks():  # of the grammar, whose checks take a minute
        yield


def test_the_command_shows_what_was_carried_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    command = f"lrt-tl demo --behavior refusal --draws {FEWEST_DRAWS} --out shown"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert "by the one carried over" in shown
    assert "storyworld-small" in shown
    report = (tmp_path / "shown" / "report.html").read_text(encoding="utf-8")
    assert "refusal: the transferred vector has" in report


def test_steering_by_the_carried_vector_changes_what_the_grammar_sees(bundled: tuple[Any, Any]) -> None:
    run = demo.demonstrate(*bundled, ["refusal"], n_draws=FEWEST_DRAWS)
    (found,) = run.behaviors
    assert found.result.recovery.low is not None
    assert found.result.recovery.low > 0
    moved = []
    for seed in range(4):
        plain, _, carried = (
            storyworld.score(story.text, "refusal").probabilities["harmful"]
            for story in demo.stories(bundled[1], found, seed=seed)
        )
        moved.append(abs(carried - plain))
    assert sum(moved) / 4 > 0.5


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    """Of the older class, where there is one: the command has the other."""
    older: Any = "hooked" if has_hooked else "bridge"
    return storyworld.load("small", model_class=older), storyworld.load("large", model_class=older)


def test_other_models_are_refused(bridges: tuple[Any, Any]) -> None:
    with pytest.raises(LrtError, match="for storyworld's models, not"):
        demo.demonstrate(*bridges)
