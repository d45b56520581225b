"""The sections of a run's report. What was not measured is left out, and named in the section on what is missing."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lrt_tl.evaluation.figures import effect_figure, recovery_figure
from lrt_tl.evaluation.published import published_agreement
from lrt_tl.evaluation.recovery import Recovery, rank
from lrt_tl.models.identity import describe_sites
from lrt_tl.report.page import Answer, Block, Code, Figure, Note, Page, Row, Section, Table, Texts
from lrt_tl.report.style import NULLS
from lrt_tl.report.text import shown_name
from lrt_tl.runs.premise import premise_sections
from lrt_tl.runs.provenance import call_of, model_rows, models_of, versions
from lrt_tl.runs.run import TransferRun
from lrt_tl.tables import flattened

_RULE = ("rule", "passed", "says", "figure", "threshold", "kind")
"""The columns of a decision, what is read first first."""


def page_of(run: TransferRun) -> Page:
    """The whole report of a run."""
    title = f"From {describe_sites(run.affine_map.sources)} to {run.affine_map.target}"
    found = [
        _recovery(run),
        _decisions(run),
        _costs_at_equal_effect(run),
        _texts(run),
        _effects(run),
        _agreement(run),
        _costs_at_equal_length(run),
        _off_target(run),
        _layers(run),
        _map(run),
        _premise(run),
        _forecasts(run),
        _left_out(run),
        _reproduction(run),
    ]
    return Page(title, _answer(run), [section for section in found if section.blocks])


def _answer(run: TransferRun) -> Answer:
    """The run's, with the reason of the verdict; of several behaviors with a row each in place of the number."""
    answer, decided = run.answer(), [each.decision for each in run.behaviors]
    verdicts = ["" if decision is None else decision.answer for decision in decided]
    if len(run.behaviors) == 1:
        return replace(answer, verdict=verdicts[0])
    rows = []
    for each, verdict in zip(run.behaviors, verdicts, strict=True):
        row = {"behavior": shown_name(each.result.behavior), "recovery": str(each.result.recovery)}
        rows.append(row | {"verdict": verdict} if any(verdicts) else row)
    return replace(answer, number=None, interval=None, verdict="", each=rows)


def recovery_rows(run: TransferRun) -> list[dict[str, str]]:
    """The result as a table, a row a behavior."""
    rows = []
    for behavior in run.behaviors:
        result = behavior.result
        draws = result.control_slopes("random")
        row = {
            "behavior": shown_name(result.behavior),
            "recovery": str(result.recovery),
            **result.prompted.table(),
            "at matched KL": str(result.recovery_matched_kl),
            "own vector's slope": f"{result.slope('native'):+.3f}",
            "transferred": f"{result.slope('transferred'):+.3f}",
            "its rank among random ones": f"{rank(result.slope('transferred'), draws)} of {len(draws) + 1}",
        }
        rows.append(row if behavior.decision is None else row | {"verdict": behavior.decision.verdict})
    return rows


def _effects(run: TransferRun) -> Section:
    blocks: list[Block] = []
    for each in run.behaviors:
        blocks += [Figure(effect_figure(each.result), optional=NULLS), Table(each.result.table(), each.result.behavior)]
    note = (
        "The vectors all have the native vector's length. A null is a vector that should do nothing in particular: the "
        "transferred vector is worth something only where it stands out from them."
    )
    return Section("What the vectors do", blocks, note, folded=True)


def _recovery(run: TransferRun) -> Section:
    results = [behavior.result for behavior in run.behaviors]
    points = {
        "matched norm": {result.behavior: result.recovery for result in results},
        "matched KL": {result.behavior: result.recovery_matched_kl for result in results},
    }
    for name in {name: None for result in results for name in result.over_baseline}:
        over = {result.behavior: result.over_baseline[name] for result in results if name in result.over_baseline}
        points[f"over {name.replace('_', ' ')}"] = over
    note = (
        "Recovery = (slope of the transferred vector − slope of random vectors) / (slope of the native vector − slope "
        "of random vectors). Intervals are 95 %, by bootstrap over prompts and random draws together. None is stated "
        "where the native vector itself does no better than random ones. A prompt alone is text in front that shows or "
        "asks for the behavior, without steering: its effect on the score, and how many times the native vector's that "
        "is, at the coefficient chosen for it."
    )
    return Section("Recovery", [Figure(recovery_figure(points)), Table(recovery_rows(run))], note)


def _agreement(run: TransferRun) -> Section:
    results = [behavior.result for behavior in run.behaviors if len(behavior.result.prompts) > 2]
    blocks = [Table(published_agreement(result).rows(), result.behavior) for result in results]
    note = (
        "The published measures compare one model with itself on the same prompts, so that r is high whatever was "
        "transferred: it has to beat the r of random vectors."
    )
    return Section("Agreement of scores, as published", blocks, note, folded=True)


def _costs_at_equal_effect(run: TransferRun) -> Section:
    blocks = [Note(each.pareto.sentence()) for each in run.behaviors if each.pareto is not None]
    return Section("What it costs at equal effect", blocks, "The decision goes by this ratio.")


def _costs_at_equal_length(run: TransferRun) -> Section:
    blocks: list[Block] = []
    for each in run.behaviors:
        for part in (each.side_effects, each.pareto, each.capability):
            blocks += _shown(part, each.result.behavior)
    note = (
        "Both vectors have the native vector's length. One that costs less there may also do less: what it costs at "
        "equal effect says whether it does."
    )
    return Section("What it costs at equal length", blocks, note, folded=True)


def _off_target(run: TransferRun) -> Section:
    note = "Steered for one behavior, measured on another."
    return Section("What else moves", list(_shown(run.off_target)), note, folded=True)


def _layers(run: TransferRun) -> Section:
    blocks: list[Block] = []
    if run.layer_choice is not None:
        chosen = f"{run.layer_choice.hook_names[run.layer_choice.chosen]} was chosen on prompts that nothing else uses."
        blocks += [Note(chosen), *_shown(run.layer_choice)]
    if run.search is not None:
        warning = "The best of many pairs looks related even where none is: it has to beat the search of shuffled text."
        blocks += [Note(warning), Figure(run.search.figure()), Table(run.search.summary())]
    return Section("Which layers", blocks, folded=True)


def _map(run: TransferRun) -> Section:
    blocks: list[Block] = [Table(run.affine_map.summary(), "The map")]
    for each in run.behaviors:
        blocks.append(Table(each.transferred.summary(), f"The vector carried over: {each.result.behavior}"))
    note = "R² says how well the target's states are predicted, not how well a behavior transfers."
    return Section("The map", blocks, note, folded=True)


def _texts(run: TransferRun) -> Section:
    blocks = [
        Texts(_grouped(each.samples), caption=f"{each.result.behavior}, coefficient {each.sample_coefficient:g}")
        for each in run.behaviors
        if each.samples
    ]
    note = (
        "Coefficients in lengths of the native vector; one seed for all, sampled at temperature 0.8. Words that differ "
        "from the plain text are marked. Prompts with the same texts share a row."
    )
    return Section("Texts, plain and steered", blocks, note)


def _grouped(samples: Sequence[Row]) -> list[Row]:
    """The prompts after which the same was written in one row, a line each."""
    prompts: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for row in samples:
        written = tuple((name, text) for name, text in row.items() if name != "prompt")
        prompts.setdefault(written, []).append(row["prompt"])
    return [{"prompt": "\n".join(dict.fromkeys(of)), **dict(written)} for written, of in prompts.items()]


def _premise(run: TransferRun) -> Section:
    """The comparison of the two models, in one section."""
    if run.comparison is None:
        return Section("What the two models share", [])
    blocks: list[Block] = [Note(run.comparison.sentence())]
    for section in premise_sections(run.comparison):
        blocks += [*section.blocks, *([Note(section.note)] if section.note else [])]
    return Section("What the two models share", blocks, folded=True)


def _forecasts(run: TransferRun) -> Section:
    made = [(each.result, each.forecast) for each in run.behaviors if each.forecast is not None]
    if not made:
        return Section("Forecast and outcome", [])
    foretold = {result.behavior: Recovery(forecast.estimate, forecast.low, forecast.high) for result, forecast in made}
    points = {"forecast": foretold, "found": {result.behavior: result.recovery for result, _ in made}}
    blocks: list[Block] = [Figure(recovery_figure(points))]
    for result, forecast in made:
        blocks += [Note(f"{result.behavior}: {forecast}"), *_shown(forecast, result.behavior)]
    blocks.append(Note(made[0][1].in_the_middle()))
    return Section("Forecast and outcome", blocks, "The forecast was made before the target was steered.", folded=True)


def _decisions(run: TransferRun) -> Section:
    blocks: list[Block] = []
    for each in run.behaviors:
        if each.decision is not None:
            rows = [{name: rule[name] for name in _RULE} for rule in each.decision.rows()]
            blocks += [Table(rows, f"{each.result.behavior}: {each.decision.verdict}"), Note(each.decision.answer)]
    return Section("Decision", blocks)


def _left_out(run: TransferRun) -> Section:
    missing: dict[str, str] = {}
    for each in run.behaviors:
        parts = [name.replace("_", " ") for name, part in each.evidence().items() if part is None]
        parts += [f"{name.replace('_', ' ')} ({reason})" for name, reason in each.result.missing.items()]
        missing[each.result.behavior] = "; ".join(parts) or "nothing"
    whole = {"off target": run.off_target, "layer search": run.search, "what the models share": run.comparison}
    missing["of the run"] = "; ".join(name for name, part in whole.items() if part is None) or "nothing"
    harvested = Table(run.affine_map.report.harvested(), "Text that the map was fitted on")
    return Section("What was left out", [harvested, Table(missing, "Not measured")])


def _reproduction(run: TransferRun) -> Section:
    blocks: list[Block] = [Code(call_of(run.arguments))]
    if "command" in run.arguments:
        blocks.append(Note("What the command does not say, the seed included, is at this version's default."))
    blocks += [
        Table(versions(), "Versions"),
        Table(model_rows(models_of([*run.affine_map.sources, run.affine_map.target])), "Models"),
        Table(run.digests(), "Data"),
        Table(flattened(run.affine_map.report.harvest.get("settings", {})), "How the text was read"),
    ]
    return Section("How to reproduce this", blocks, folded=True)


def _shown(part: Any, caption: str = "") -> Iterator[Block]:
    """A part of the evidence, if it is there: its figure, if it has one, and its table."""
    if part is None:
        return
    if hasattr(part, "figure"):
        yield Figure(part.figure())
    yield Table(part.rows() if hasattr(part, "rows") else part.table(), caption)
