"""A run → one self-contained page: it needs no network and opens from a file. All text is escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lrt_tl.evaluation.evaluate import TransferResult
from lrt_tl.evaluation.figures import effect_figure
from lrt_tl.tables import html_table


@dataclass(frozen=True)
class BehaviorSection:
    """What the report shows of one behavior."""

    result: TransferResult
    samples: Sequence[Mapping[str, str]] = ()
    """Texts by column: the prompt, and what follows it."""
    coefficient: float = 0.0
    """Of the samples, in units of the native vector."""


def headline(result: TransferResult, target: str) -> str:
    """The answer in one sentence."""
    found = result.recovery
    if found.estimate is None:
        return f"{result.behavior}: no recovery can be stated on {target}, for {found.reason}."
    estimate, low, high = (round(100 * (value or 0)) for value in (found.estimate, found.low, found.high))
    return (
        f"{result.behavior}: the transferred vector has {estimate} % [{low}, {high}] of the effect of "
        f"{target}'s own vector, over that of random vectors of the same length."
    )


def render_report(
    title: str,
    sections: Sequence[BehaviorSection],
    *,
    target: str,
    map_table: Mapping[str, str],
    harvest_table: Mapping[str, str],
    versions: Mapping[str, str],
    reproduce: str,
) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("lrt_tl", "evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals["table"] = lambda rows: Markup(html_table(rows))
    # plotly's program and its figures, which hold the data as JSON, are markup as they are
    return environment.get_template("report.html.j2").render(
        title=title,
        sentences=[headline(section.result, target) for section in sections],
        behaviors=[_behavior(section, Markup) for section in sections],
        map=map_table,
        harvest=harvest_table,
        versions=versions,
        reproduce=reproduce,
        plotly_js=Markup(get_plotlyjs()),
    )


def _behavior(section: BehaviorSection, markup: Any) -> dict[str, Any]:
    figure = effect_figure(section.result).to_html(
        full_html=False, include_plotlyjs=False, config={"responsive": True, "displayModeBar": False}
    )
    return {
        "name": section.result.behavior,
        "figure": markup(figure),
        "table": section.result.table(),
        "samples": section.samples,
        "coefficient": f"{section.coefficient:g}",
    }
