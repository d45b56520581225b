"""What two predictors share, as pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lrt_tl.identifiability.distribution import shown_measure
from lrt_tl.report.style import OTHERS, layout
from lrt_tl.report.text import figure_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from lrt_tl.identifiability.verdict import Verdict

_FORMS = {"effective": ("circle", 9), "raw": ("circle-open", 7)}
_LOWEST, _N_QUANTILES = 1e-12, 200
_DASHES = ("solid", "dot")
_MARGIN = {"l": 60, "r": 20, "t": 20, "b": 60}
"""No title stands above these."""


def property_figure(verdict: "Verdict") -> "Figure":
    """Every property's score in either model with its interval, a line a property: effective filled, raw open."""
    from plotly.graph_objects import Figure, Scatter

    figure, n = Figure(), len(verdict.properties)
    for form, (symbol, size) in _FORMS.items():
        for number, model in enumerate(verdict.names):
            scores = [getattr(found.scores[number], form) for found in verdict.properties.values()]
            figure.add_trace(
                Scatter(
                    x=[score.estimate for score in scores],
                    y=[place + (0.16 if number else -0.16) for place in range(n)],
                    error_x={
                        "type": "data",
                        "array": [score.high - score.estimate for score in scores],
                        "arrayminus": [score.estimate - score.low for score in scores],
                        "thickness": 1,
                        "width": 2,
                    },
                    text=list(map(figure_text, verdict.properties)),
                    mode="markers",
                    marker={"symbol": symbol, "size": size, "color": OTHERS[number]},
                    name=f"{figure_text(model)}, {form}",
                    visible=True if form == "effective" else "legendonly",
                )
            )
    said = [f": {found.answer}" if verdict.premise else "" for found in verdict.properties.values()]
    ticks = [_in_two_lines(f"{name}{answer}") for name, answer in zip(verdict.properties, said, strict=True)]
    axis = {"tickmode": "array", "tickvals": list(range(n)), "ticktext": ticks, "range": [n - 0.4, -0.6]}
    figure.add_vline(x=0, line={"width": 1, "color": "#888888"})
    return figure.update_layout(
        layout(
            height=130 + 34 * n,
            margin=_MARGIN,
            xaxis={"title": "score: 1 holds exactly, 0 not at all", "range": [-0.55, 1.05]},
            yaxis={**axis, "automargin": True},
        )
    )


def distance_figure(verdict: "Verdict") -> "Figure":
    """The share of contexts at which the distance is under a value, beside its mean and ε."""
    from plotly.graph_objects import Figure, Scatter

    equality = verdict.equality
    values = getattr(verdict.distances, equality.measure).clamp(min=_LOWEST)
    shares = torch.linspace(0, 1, _N_QUANTILES, dtype=torch.float64)
    name = shown_measure(equality.measure)
    figure = Figure(Scatter(x=values.quantile(shares).tolist(), y=shares.tolist(), mode="lines", name="contexts"))
    lines = {"mean": (equality.estimate, OTHERS[1]), "ε": (equality.epsilon, OTHERS[2])}
    for label, (place, color) in lines.items():
        x = [max(place, _LOWEST)] * 2
        line = {"color": color, "dash": "dash"}
        figure.add_trace(Scatter(x=x, y=[0, 1], mode="lines", line=line, name=f"{label} {place:.2g}"))
    return figure.update_layout(
        layout(
            height=340,
            margin=_MARGIN,
            xaxis={"title": f"{name} at a context", "type": "log", "exponentformat": "power"},
            yaxis={"title": "share of contexts below", "range": [0, 1.02]},
        )
    )


def direction_figure(verdict: "Verdict") -> "Figure":
    """Held-out R² of each canonical direction, of contexts and of tokens, both ways; under 0 drawn at 0."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for way, fit, dash in zip(("first from second", "second from first"), verdict.equivalences, _DASHES, strict=True):
        for what, color in (("contexts", OTHERS[0]), ("tokens", OTHERS[1])):
            r2 = getattr(fit, f"of_{what}").r2_by_direction.clamp(min=0).tolist()
            line = {"color": color, "dash": dash}
            figure.add_trace(_line(r2, name=f"{what}, {way}", line=line, scatter=Scatter))
    return figure.update_layout(
        layout(
            height=340,
            margin=_MARGIN,
            xaxis={"title": "canonical direction, best first where they were fitted"},
            yaxis={"title": "held-out R² (under 0 drawn at 0)", "range": [-0.03, 1.03]},
        )
    )


def spectrum_figure(verdict: "Verdict") -> "Figure":
    """Singular values of either log-ratio matrix, and the floor below which they are rounding."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for number, (name, found) in enumerate(zip(verdict.names, verdict.equivalences[0].subspaces, strict=True)):
        spectrum, line = found.spectrum, {"color": OTHERS[number], "dash": _DASHES[number]}
        values = spectrum.singular_values.clamp(min=spectrum.floor / 10).tolist()
        shown = f"{figure_text(name)}: {spectrum.rank} above the floor, 99 % of the energy in {spectrum.energy()}"
        figure.add_trace(_line(values, name=shown, line=line, scatter=Scatter))
    return figure.update_layout(
        layout(
            height=340,
            margin=_MARGIN,
            xaxis={"title": "number of the singular value"},
            yaxis={"title": "singular value", "type": "log", "exponentformat": "power"},
        )
    )


def _in_two_lines(name: str) -> str:
    """`capital-of: parallelism` with its second part below the first, so that a phone has room for the scores."""
    return "<br>".join(figure_text(part) for part in name.split(": ", 1))


def _line(values: Sequence[float], *, name: str, line: dict[str, Any], scatter: Any) -> Any:
    return scatter(x=list(range(1, len(values) + 1)), y=list(values), mode="lines", line=line, name=name)
