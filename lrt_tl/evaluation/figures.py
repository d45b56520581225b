"""Figures, returned and never shown. Plotly is imported on use."""

import html
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from lrt_tl.evaluation.evaluate import TransferResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_COLORS = {
    "native": "#1f77b4",
    "transferred": "#d62728",
    "random": "#7f7f7f",
    "shuffled_map": "#bc9a3c",
    "mean_activation": "#009e73",
    "padded": "#e377c2",
    "unrelated": "#17becf",
}
_OTHER = "#8c6bb1"


def effect_figure(result: TransferResult) -> "Figure":
    """A behavior's score against the coefficient: the native vector, the transferred one, and where 90 % of each null's
    draws lie. The lines are means over prompts."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for name, scores in reversed(list(result.controls.items())):
        low, high = _band(scores)
        figure.add_trace(_area(result.coefficients, low, high, name))
    for name, scores in (("native", result.native), ("transferred", result.transferred)):
        figure.add_trace(
            Scatter(
                x=list(result.coefficients),
                y=scores.mean(-1).tolist(),
                name=name,
                mode="lines+markers",
                line={"color": _COLORS[name], "width": 3, "dash": "dash" if name == "transferred" else "solid"},
            )
        )
    figure.update_layout(
        title=html.escape(result.behavior),
        xaxis_title="coefficient (1 = the native vector's length)",
        yaxis_title="score: log-odds of the behavior (nats)",
        template="plotly_white",
        paper_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": -0.25},
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
        height=430,
    )
    return figure


def _band(scores: Float[Tensor, "draw coefficient prompt"]) -> tuple[list[float], list[float]]:
    means = scores.mean(-1)
    return means.quantile(0.05, dim=0).tolist(), means.quantile(0.95, dim=0).tolist()


def _area(x: tuple[float, ...], low: list[float], high: list[float], name: str) -> Any:
    from plotly.graph_objects import Scatter

    return Scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        fill="toself" if name == "random" else "none",
        mode="lines",
        line={"color": _COLORS.get(name, _OTHER), "width": 0 if name == "random" else 2, "dash": "dot"},
        name=html.escape(name.replace("_", " ")) + ("" if low == high else " (90 % of draws)"),
        opacity=0.5,
        hoverinfo="skip",
    )
