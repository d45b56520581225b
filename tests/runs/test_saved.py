"""A run's folder, read back: whole, or refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lrt_tl.errors import ArtifactError
from lrt_tl.evaluation.recovery import Recovery
from lrt_tl.report.page import Table
from lrt_tl.runs.saved import compare, read_run
from lrt_tl.runs.summary import check_summary, schema
from tests.runs.synthetic import a_result, a_run

NEW = ("answer", "data", "off_target", "search")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_run([a_result("a/b"), a_result("c", Recovery(None, None, None, "why"))]).save(
        tmp_path_factory.mktemp("saved") / "run"
    )


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    change(summary)
    path.write_text(json.dumps(summary), encoding="utf-8")


def test_a_run_is_read_as_it_was_written(saved: Path) -> None:
    run = read_run(saved)
    assert run.recoveries() == {"a/b": Recovery(0.5, 0.4, 0.6), "c": Recovery(None, None, None, "why")}
    assert run.summary["answer"]["number"] == 0.5
    assert run.summary["behaviors"][0]["forecast"] is None
    assert [row["recovery"] for row in run.rows()] == ["0.50 [0.40, 0.60]", "none: why"]
    assert run.conditions()["arguments seed"] == "3"


def test_a_run_of_version_1_is_read_too(copy: Path) -> None:
    def older(summary: dict[str, Any]) -> None:
        summary["format_version"] = 1
        for name in NEW:
            del summary[name]
        for behavior in summary["behaviors"]:
            for name in ("side_effects", "pareto", "capability", "forecast", "decision"):
                del behavior[name]

    edit(copy, older)
    assert read_run(copy).recoveries()["a/b"].estimate == 0.5
    assert compare([read_run(copy)]).answer.number == 0.5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda summary: summary.update(format_version=3), "format version 3; this lrt_tl reads up to 2"),
        (lambda summary: summary.update(format_version=True), "format version True"),
        (lambda summary: summary.pop("format_version"), "format version None"),
        (lambda summary: summary.pop("map"), r"at \$, 'map' is a required property"),
        (lambda summary: summary.pop("answer"), "'answer' is a required property"),
        (lambda summary: summary["map"].update(tokens="many"), r"at \$.map.tokens, 'many' is not of type"),
        (lambda summary: summary["behaviors"].clear(), r"at \$.behaviors"),
        (lambda summary: summary["behaviors"][0]["recovery"].update(low=float("nan")), "holds NaN"),
        (lambda summary: summary["behaviors"][0].update(native_slope=float("-inf")), "holds -Infinity"),
        (lambda summary: summary["behaviors"][0].update(random_slope=1.0), "random_slope, 1.0 is not of type"),
        (lambda summary: summary["behaviors"][0].update(decision={"rules": []}), "'verdict' is a required property"),
    ],
)
def test_a_summary_that_is_not_one_is_refused(copy: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    edit(copy, change)
    with pytest.raises(ArtifactError, match=said):
        read_run(copy)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "cannot be read as the summary of a run"),
        (b"\xff", "cannot be read as the summary of a run"),
        (b"[" * 100_000, "cannot be read as the summary of a run"),
        (b"[1]", "holds no mapping"),
        (b'{"format_version": 1e999}', "holds 1e999"),
    ],
)
def test_a_file_that_is_no_summary_is_refused(copy: Path, content: bytes, said: str) -> None:
    (copy / "summary.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=said):
        read_run(copy)


@pytest.mark.parametrize(
    "lost", ["summary.json", "map", "map/tensors.safetensors", "vectors", "vectors/a-b/native", "vectors/c/transferred"]
)
def test_a_folder_of_which_a_part_is_gone_is_refused(copy: Path, lost: str) -> None:
    path = copy / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError, match=f"incomplete.*{lost}|{lost}.*incomplete"):
        read_run(copy)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"holds no summary\.json"):
        read_run(tmp_path)


def test_a_run_with_a_figure_that_is_none_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"NaN or infinity at \$\.vector\.cosine_with_native"):
        a_run([replace(a_result(), cosine_with_native=float("nan"))]).save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def undescribed(part: Any, place: str = "$") -> list[str]:
    """The keys of a schema that it does not describe."""
    if not isinstance(part, dict):
        return []
    named = {**part.get("properties", {}), **part.get("patternProperties", {}), **part.get("$defs", {})}
    missing = [f"{place}.{name}" for name, each in named.items() if not each.get("description")]
    return missing + [found for name, each in named.items() for found in undescribed(each, f"{place}.{name}")]


def test_every_key_of_the_summary_is_described() -> None:
    whole = schema()
    assert undescribed(whole) == []
    summary = check_summary(a_run().summary())
    assert summary.keys() <= whole["properties"].keys()
    assert set(whole["required"]) | set(whole["then"]["required"]) | {"comparison"} == summary.keys()


def test_runs_are_compared_side_by_side(saved: Path, tmp_path: Path) -> None:
    better = a_run([a_result("a/b", Recovery(0.9, 0.8, 1.0))], arguments={"seed": 4, "n_draws": 64})
    other = better.save(tmp_path / "other")
    page = compare([read_run(saved), read_run(other)])
    assert page.answer.number == 0.9
    assert "other" in page.answer.sentence
    alone = a_run([a_result("d")]).save(tmp_path / "alone")
    assert compare([read_run(other), read_run(alone)]).answer.number is None
    sections = {section.title: section.blocks for section in page.sections}
    table = next(block for block in sections["Recovery"] if isinstance(block, Table))
    assert [(row["run"], row["behavior"]) for row in table.rows] == [("run", "a/b"), ("run", "c"), ("other", "a/b")]  # type: ignore[index]
    (differ,) = sections["In what they differ"]
    assert isinstance(differ, Table)
    found = {row[""]: (row["run"], row["other"]) for row in differ.rows}  # type: ignore[index,union-attr]
    assert found["arguments seed"] == ("3", "4")
    assert found["arguments n draws"] == ("–", "64")
    (alike,) = sections["What they have in common"]
    assert alike.rows["versions lrt-tl"]  # type: ignore[union-attr,call-overload]
