"""The demonstration on the bundled models, with few draws, on little text."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lrt_tl import demo, storyworld
from lrt_tl.cli import main
from lrt_tl.errors import LrtError
from lrt_tl.evaluation.decide import Decision, Verdict
from lrt_tl.evaluation.recovery import FEWEST_DRAWS, Recovery
from tests.checkpoints import has_hooked
from tests.runs.synthetic import a_result, a_run
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
    monkeypatch.setenv("COLUMNS", "80")
    command = f"lrt-tl demo --behavior refusal --draws {FEWEST_DRAWS} --out shown"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert "the grammar says" in shown
    assert "Vectors of storyworld-small" in shown
    lengths = " ".join(shown.split("┏")[0].split())
    assert re.fullmatch(
        r"refusal \(refusing or complying\): storyworld-large, from the same random numbers, "
        r"steered toward \w+ at the prompt, at 0\.\d\d lengths of its own vector",
        lengths,
    )
    table = shown[shown.rindex("┏") :].splitlines()
    assert re.findall(r"\w+", table[1] + table[2]) == [
        *("own", "carried", "largest"),
        *("behavior", "vector", "over", "random", "recovered", "verdict"),
    ]
    assert table[4].startswith("│ refusal: refusing │ +")
    assert "over the coefficients -0.5 … 0.5" in shown
    assert re.search(r"and why *\nrefusal: +(go|caution|no-go): ", shown)
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
            storyworld.score(story["text"], "refusal").probabilities["harmful"]
            for story in demo.stories(bundled[1], found, seed=seed)[1]
        )
        moved.append(abs(carried - plain))
    assert sum(moved) / 4 > 0.5


def test_the_best_comes_first() -> None:
    none = Recovery(None, None, None, "of no effect")
    given: tuple[tuple[str, Verdict | None, Recovery], ...] = (
        ("unjudged", None, Recovery(0.99, 0.98, 1.0)),
        ("no-go", "no-go", Recovery(0.9, 0.8, 1.0)),
        ("none", "caution", none),
        ("caution", "caution", Recovery(0.6, 0.5, 0.7)),
        ("less", "go", Recovery(0.7, 0.6, 0.8)),
        ("most", "go", Recovery(0.8, 0.7, 0.9)),
    )
    found = [
        a_run([a_result(name, recovery)], decision=None if verdict is None else Decision(name, verdict, ())).behaviors[
            0
        ]
        for name, verdict, recovery in given
    ]
    assert [each.result.behavior for each in demo.best_first(found)] == [
        *("most", "less", "caution", "none", "no-go", "unjudged"),
    ]


@pytest.fixture(scope="module")
def bundled() -> tuple[Any, Any]:
    """Of the older class, where there is one: the command has the other."""
    older: Any = "hooked" if has_hooked else "bridge"
    return storyworld.load("small", model_class=older), storyworld.load("large", model_class=older)


def test_other_models_are_refused(bridges: tuple[Any, Any]) -> None:
    with pytest.raises(LrtError, match="for storyworld's models, not"):
        demo.demonstrate(*bridges)
