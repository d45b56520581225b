"""Which sections a run has, and what is said of those that are missing."""

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from lrt_tl.alignment.layer_search import LayerSearch
from lrt_tl.evaluation.capability import Capability
from lrt_tl.evaluation.decide import Decision, Rule
from lrt_tl.evaluation.features import Features
from lrt_tl.evaluation.forecast import Forecast
from lrt_tl.evaluation.off_target import OffTarget, OffTargetSlope
from lrt_tl.evaluation.pareto import CostRatio, Dose, Pareto
from lrt_tl.evaluation.recovery import Recovery
from lrt_tl.report.page import Code, Figure, Note, Page, Section, Table, Texts
from lrt_tl.runs.provenance import call_of, digest, model_rows, models_of
from lrt_tl.runs.run import TransferRun
from lrt_tl.runs.sections import page_of, recovery_rows
from lrt_tl.runs.summary import check_summary
from tests.runs.synthetic import a_result, a_run, a_site

R2 = torch.tensor([[0.1, 0.5], [0.2, 0.3]])
SEARCH = LayerSearch("small", "large", (0, 1), (2, 3), R2, R2, R2, 0.4, (0.1, 0.2), 100, 1000, None)


SPILL = OffTarget({"mood": {"mood": OffTargetSlope(1.0, 0.5, 1.5, 1.0)}})
RIGHT = {"plain": torch.tensor([True, True]), "native": torch.tensor([True, False])}
DECISION = Decision("mood", "caution", (Rule("recovery", 0.5, 0.6, False, False, "recovery is 0.5, under 0.6"),))
DOSES = {
    arm: (Dose(-1.0, -effect, 0.1), Dose(1.0, effect, 0.1)) for arm, effect in (("native", 2.0), ("transferred", 1.0))
}
PARETO = Pareto("mood", DOSES, (), CostRatio(1.5, 1.2, 1.9, 1.0))
FEATURES = Features(**{field.name: 0.5 for field in fields(Features)})
FORECAST = Forecast(0.7, 0.5, 0.9, FEATURES, 0.1, 0.3, 0.8, 0.9, 16, 333)
EVIDENCE = {
    "pareto": PARETO,
    "capability": Capability(RIGHT, RIGHT, 0.25),
    "forecast": FORECAST,
    "decision": DECISION,
}


def whole() -> TransferRun:
    return a_run(search=SEARCH, off_target=SPILL, **EVIDENCE)


def sections_of(page: Page) -> dict[str, Section]:
    return {section.title: section for section in page.sections}


def tables(section: Section) -> list[Any]:
    return [block.rows for block in section.blocks if isinstance(block, Table)]


def test_a_bare_run_has_the_sections_that_it_can_fill_and_names_the_rest() -> None:
    result = replace(a_result(), missing={"shuffled_map": "there is no map"})
    found = sections_of(page_of(a_run([result])))
    assert list(found) == [
        "Recovery",
        "Texts, plain and steered",
        "What the vectors do",
        "The map",
        "What was left out",
        "How to reproduce this",
    ]
    _, missing = tables(found["What was left out"])
    assert missing["mood"] == "side effects; pareto; capability; forecast; decision; shuffled map (there is no map)"
    assert missing["of the run"] == "off target; layer search; what the models share"


def test_every_part_of_the_evidence_has_its_place() -> None:
    page = page_of(whole())
    found = sections_of(page)
    assert page.answer.verdict == DECISION.answer
    assert found["What it costs at equal effect"].blocks == [Note(PARETO.sentence())]
    assert tables(found["What it costs at equal length"]) == [PARETO.rows(), EVIDENCE["capability"].rows()]
    assert tables(found["What else moves"]) == [SPILL.rows()]
    assert [block for block in found["Decision"].blocks if isinstance(block, Note)] == [Note(DECISION.answer)]
    assert tables(found["Decision"]) == [DECISION.rows()]
    figures = [block.figure for block in found["What it costs at equal length"].blocks if isinstance(block, Figure)]
    assert len(figures) == 2
    forecast, *_ = found["Forecast and outcome"].blocks
    assert isinstance(forecast, Figure)
    assert [list(trace.x) for trace in forecast.figure.data] == [[0.7], [0.5]]
    assert tables(found["Which layers"]) == [SEARCH.summary()]
    assert found["What was left out"].title in found
    assert list(found)[:2] == ["Recovery", "Decision"]
    assert [title for title, section in found.items() if not section.folded] == [
        "Recovery",
        "Decision",
        "What it costs at equal effect",
        "Texts, plain and steered",
        "What was left out",
    ]


def test_several_behaviors_have_a_row_each_in_the_answer() -> None:
    results = [a_result("a"), a_result("b", Recovery(None, None, None, "why"))]
    answer = page_of(a_run(results)).answer
    assert (answer.number, answer.interval, answer.verdict) == (None, None, "")
    rows = [{"behavior": "a", "recovery": "0.50 [0.40, 0.60]"}, {"behavior": "b", "recovery": "none: why"}]
    assert answer.each == rows
    decided = page_of(a_run(results, decision=DECISION)).answer
    assert decided.each == [row | {"verdict": DECISION.answer} for row in rows]


def test_prompts_with_the_same_texts_share_a_row() -> None:
    written = {"plain": " a", "native": " b"}
    samples = [{"prompt": "p", **written}, {"prompt": "q", **written, "native": " c"}, {"prompt": "r", **written}]
    (texts,) = sections_of(page_of(a_run(samples=samples)))["Texts, plain and steered"].blocks
    assert isinstance(texts, Texts)
    assert texts.rows == [{"prompt": "p\nr", **written}, {"prompt": "q", **written, "native": " c"}]


def test_the_texts_and_the_way_to_reproduce_are_the_runs() -> None:
    samples = [{"prompt": "p", "plain": "a", "native": "b"}]
    found = sections_of(page_of(a_run(samples=samples, arguments={"command": "lrt-tl transfer --seed 3"})))
    texts = found["Texts, plain and steered"].blocks[0]
    assert isinstance(texts, Texts)
    assert (texts.rows, texts.against) == (samples, "plain")
    code = found["How to reproduce this"].blocks[0]
    assert code == Code("lrt-tl transfer --seed 3")


def test_rows_say_the_rank_among_random_vectors() -> None:
    result = a_result()
    (row,) = recovery_rows(a_run([result]))
    above = sum(float(slope) >= 1.0 for slope in result.control_slopes("random"))
    assert row["its rank among random ones"] == f"{1 + above} of 21"
    assert row["effect of a prompt alone"] == "none: it was not measured"
    assert (row["recovery"], row["own vector's slope"], row["transferred"]) == ("0.50 [0.40, 0.60]", "+2.000", "+1.000")


def test_in_a_notebook_a_run_is_one_short_table() -> None:
    shown = a_run([a_result("<b>"), a_result("b", Recovery(None, None, None, "why"))])._repr_html_()
    assert shown.count("<tr>") == 3
    assert "<b>" not in shown
    assert "none: why" in shown


def test_a_call_in_python_is_spelled_out() -> None:
    assert call_of({}).startswith("lrt_tl.transfer(")
    assert call_of({"layers": (1, 2), "seed": 3}).splitlines()[2:] == ["    layers=(1, 2),", "    seed=3,", ")"]


def test_models_are_told_by_their_fingerprints() -> None:
    rows = model_rows(models_of([a_site("a", 0, 4), a_site("a", 1, 4), a_site("b", 0, 4)]))
    assert [row["model"] for row in rows] == ["a", "b"]
    assert rows[0]["SHA-256 of the weights' fingerprint"] == rows[1]["SHA-256 of the weights' fingerprint"]


def test_a_digest_is_of_the_texts_and_their_order() -> None:
    assert digest([]) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    others = [["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", ""], ["\ud800"]]
    assert len({digest(texts) for texts in others}) == len(others)


@pytest.mark.parametrize("missing", ["pareto", "forecast", "decision"])
def test_a_part_that_is_missing_is_named(missing: str) -> None:
    run = a_run(**{name: part for name, part in EVIDENCE.items() if name != missing})
    _, left_out = tables(sections_of(page_of(run))["What was left out"])
    assert left_out["mood"].split("; ")[:2] == ["side effects", missing]


def test_the_summary_holds_every_part() -> None:
    summary = check_summary(whole().summary())
    assert summary["search"]["best"] == [0, 3]  # 0.5 is the highest of R2
    assert summary["search"]["test_r2"] == R2.tolist()
    assert summary["off_target"] == SPILL.to_json()
    (behavior,) = summary["behaviors"]
    assert behavior["decision"]["verdict"] == "caution"
    assert (behavior["forecast"]["estimate"], behavior["pareto"]["cost_ratio"]["estimate"]) == (0.7, 1.5)
    assert behavior["side_effects"] is None
