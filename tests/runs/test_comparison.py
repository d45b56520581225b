"""A comparison's folder: its summary is as its schema says, and its report shows what was found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lrt_tl.errors import ArtifactError
from lrt_tl.identifiability.all_or_none import all_or_none
from lrt_tl.identifiability.verdict import Verdict
from lrt_tl.models.identity import ModelIdentity
from lrt_tl.runs.comparison import ComparisonRun
from lrt_tl.runs.premise import premise_sections
from lrt_tl.runs.saved import read_run
from lrt_tl.runs.summary import check_summary, schema
from tests.identifiability.test_verdict import PROPERTIES, noisy, whole
from tests.runs.synthetic import a_run, a_site
from tests.runs.test_saved import undescribed

SIDES = {"side": (torch.arange(0, 40), torch.arange(40, 80))}


@pytest.fixture(scope="module")
def verdict() -> Verdict:
    return all_or_none(whole(), noisy(0.5), {"relation": PROPERTIES["relation"]}, contrasts=SIDES)


def run_of(verdict: Verdict) -> ComparisonRun:
    def model(name: str) -> ModelIdentity:
        found = a_site(name, 0, 4).model
        assert found is not None
        return found

    return ComparisonRun(verdict, (model("a"), model("b")), {"epsilon": 0.01}, {"documents": "sha256:0"})


def test_the_folder_of_a_comparison(verdict: Verdict, tmp_path: Path) -> None:
    out = run_of(verdict).save(tmp_path / "run")
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "summary.json"]
    saved = check_summary(json.loads((out / "summary.json").read_text()), kind="comparison")
    assert saved["verdict"] == json.loads(json.dumps(verdict.to_json()))
    assert saved["answer"]["number"] == verdict.equality.estimate
    assert [model["name"] for model in saved["models"]] == ["a", "b"]
    report = (out / "report.html").read_text()
    assert "not shown to be one distribution" in report
    assert "lrt_tl.compare(" in report
    with pytest.raises(ArtifactError, match="exists"):
        run_of(verdict).save(out)
    with pytest.raises(ArtifactError, match="compares two models, and carries no vector"):
        read_run(out)


def test_every_key_of_the_summary_is_described(verdict: Verdict) -> None:
    described = schema("comparison")
    assert undescribed(described) == []
    assert set(described["required"]) == run_of(verdict).summary().keys()
    assert set(described["$defs"]["verdict"]["required"]) == verdict.to_json().keys()


def test_nothing_is_written_of_figures_that_are_none(verdict: Verdict, tmp_path: Path) -> None:
    broken = replace(verdict, equality=replace(verdict.equality, estimate=float("nan")))
    with pytest.raises(ArtifactError, match="NaN or infinity at"):
        run_of(broken).save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_names_are_shown_and_not_run(verdict: Verdict) -> None:
    hostile = replace(verdict, names=("<script>alert(1)</script>", "b"), notes=("<img src=x onerror=alert(1)>",))
    shown = run_of(hostile).report()
    assert "<script>alert" not in shown
    assert "<img src=x" not in shown
    assert "<script>" not in hostile._repr_html_()


def test_what_was_not_measured_is_left_out_or_named(verdict: Verdict) -> None:
    titles = [section.title for section in premise_sections(replace(verdict, properties={}, steering_mismatch={}))]
    assert titles == ["Are they one distribution?", "Where are they linearly the same?", "What this says of the middle"]
    named = premise_sections(replace(verdict, missing={"words: parallelism": "one pair"}))
    assert named[-1].title == "What was left out"


def test_a_transfer_shows_what_its_models_share(verdict: Verdict) -> None:
    run = a_run(comparison=verdict)
    assert check_summary(run.summary())["comparison"]["names"] == list(verdict.names)
    assert verdict.sentence().replace("'", "&#39;") in run.report()
    without = a_run()
    assert without.summary()["comparison"] is None
    assert "What the two models share" not in without.report()
    assert "what the models share" in without.report()
