"""Figures, returned and never shown. Plotly is imported on use."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from lrt_tl.evaluation.recovery import Recovery
from lrt_tl.evaluation.result import TransferResult
from lrt_tl.report.style import NULLS, OTHERS, SYMBOLS, color_of, layout
from lrt_tl.report.text import figure_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def effect_figure(result: TransferResult) -> "Figure":
    """A behavior's score against the coefficient: the native vector, the transferred one, and where 90 % of each null's
    draws lie. The lines are means over prompts.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small = storyworld.load("small")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> result = lrt.evaluate_transfer(small, vector, storyworld.behavior("refusal", 8), native=vector, n_draws=19)
        >>> figure = lrt.effect_figure(result)  # figure.show() opens it
        >>> [trace.name for trace in figure.data if trace.showlegend is not False]
        ['random (90 % of draws)', 'native', 'transferred']
    """
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for name, scores in result.baselines.items():
        figure.add_trace(_band(result.coefficients, scores, name, group="baselines"))
    for name, scores in reversed(list(result.controls.items())):
        figure.add_trace(_band(result.coefficients, scores, name, group=NULLS))
    for place, name in enumerate(("native", "transferred")):
        figure.add_trace(
            Scatter(
                x=list(result.coefficients),
                y=getattr(result, name).mean(-1).tolist(),
                name=name,
                legendrank=1,
                mode="lines+markers",
                line={"color": color_of(name), "width": 3, "dash": "dash" if name == "transferred" else "solid"},
                marker={"symbol": SYMBOLS[place], "size": 8},
            )
        )
    figure.update_layout(
        layout(
            title=figure_text(result.behavior),
            xaxis_title="coefficient (1 = the native vector's length)",
            yaxis_title="score, mean over prompts",
            height=460,
        )
    )
    return figure


def recovery_figure(found: Mapping[str, Mapping[str, Recovery]]) -> "Figure":
    """Recoveries with their intervals: a color for each key of `found`, a row for each behavior. 0 is what random
    vectors do, 1 what the native one does. Where there is no recovery, it says so."""
    from plotly.graph_objects import Figure, Scatter

    behaviors = list(dict.fromkeys(name for recoveries in found.values() for name in recoveries))
    figure = Figure()
    for place, (series, recoveries) in enumerate(found.items()):
        rows = {name: -behaviors.index(name) - _offset(place, len(found)) for name in recoveries}
        stated = {name: points for name, each in recoveries.items() if (points := _points(each))}
        look = {"color": OTHERS[place % len(OTHERS)], "symbol": SYMBOLS[place % len(SYMBOLS)], "size": 11}
        marks: dict[str, Any] = {"mode": "markers", "marker": look}
        error = {
            "type": "data",
            "symmetric": False,
            "array": [high - estimate for _, estimate, high in stated.values()],
            "arrayminus": [estimate - low for low, estimate, _ in stated.values()],
        }
        x, y = [estimate for _, estimate, _ in stated.values()], [rows[name] for name in stated]
        figure.add_trace(Scatter(x=x, y=y, name=figure_text(series), error_x=error, **marks))
        if none := [row for name, row in rows.items() if name not in stated]:
            said = {
                "mode": "text",
                "text": [f"none, {figure_text(series)}"] * len(none),
                "textposition": "middle right",
                "showlegend": False,
            }
            figure.add_trace(Scatter(x=[0.0] * len(none), y=none, hoverinfo="skip", **(marks | said)))
    for at in (0, 1):
        figure.add_vline(x=at, line={"width": 1, "dash": "dot", "color": "#888888"})
    figure.update_layout(
        layout(
            xaxis_title="recovery (0: random, 1: native vector)",
            yaxis={
                "tickvals": [-place for place in range(len(behaviors))],
                "ticktext": [figure_text(name) for name in behaviors],
                "range": [0.6 - len(behaviors), 0.6],
                "zeroline": False,
            },
            legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "xanchor": "left"},
            height=170 + 45 * len(behaviors) * max(1, len(found) // 2),
        )
    )
    return figure


def _offset(place: int, n: int) -> float:
    """How far below its behavior's line a series stands."""
    return 0.6 * ((place + 0.5) / n - 0.5)


def _points(found: Recovery) -> tuple[float, float, float] | None:
    """Lower bound, estimate, upper bound; None where none of them is stated."""
    if found.low is None or found.estimate is None or found.high is None:
        return None
    return found.low, found.estimate, found.high


def _band(x: Iterable[float], scores: Float[Tensor, "draw coefficient prompt"], name: str, *, group: str) -> Any:
    """Where 90 % of a control's draws lie: filled for random vectors, an outline for the others."""
    from plotly.graph_objects import Scatter

    x, means, filled = list(x), scores.mean(-1), name == "random"
    low, high = (means.quantile(quantile, dim=0).tolist() for quantile in (0.05, 0.95))
    one = low == high
    return Scatter(
        x=x if one else [*x, *reversed(x)],
        y=high if one else [*high, *reversed(low)],
        fill="toself" if filled else "none",
        mode="lines",
        line={"color": color_of(name), "width": 0 if filled else 2, "dash": "dot"},
        name=figure_text(name.replace("_", " ")) + ("" if one else " (90 % of draws)"),
        meta=group,
        opacity=0.5 if filled else 0.8,
        hoverinfo="skip",
    )
