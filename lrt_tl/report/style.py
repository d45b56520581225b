"""One look for all figures: colors that the color-blind tell apart, and a light and a dark template."""

from typing import Any

COLORS = {
    "native": "#1f77b4",
    "transferred": "#d62728",
    "random": "#7f7f7f",
    "shuffled_map": "#bc9a3c",
    "mean_activation": "#009e73",
    "padded": "#e377c2",
    "unrelated": "#17becf",
    "random_map": "#a0522d",
    "random_weights": "#8c6bb1",
}
OTHERS = ("#1f77b4", "#d55e00", "#009e73", "#cc79a7", "#bc9a3c", "#17becf", "#7f7f7f")
"""For series without a color of their own, by their places (after Okabe and Ito 2008)."""
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")
NULLS = "nulls"
"""The `meta` of traces that should do nothing in particular, by which a page shows and hides them."""


def color_of(name: str) -> str:
    """The color of an arm, a control or a baseline; others share one."""
    return COLORS.get(name, "#6b6bd6")


def layout(**more: Any) -> dict[str, Any]:
    """What all figures share, for `Figure.update_layout`: white paper; a page sets its own."""
    shared = {
        "template": "plotly_white",
        "colorway": list(OTHERS),
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 60},
    }
    return shared | more


def page_template(*, dark: bool) -> dict[str, Any]:
    """A plotly template for figures on a page: no background of their own, text and lines that stand out from it."""
    ink, line, paper = ("#e4e4e4", "#ffffff26", "#1b1b1d") if dark else ("#222222", "#0000001c", "#ffffff")
    axis = {"gridcolor": line, "zerolinecolor": line, "linecolor": line, "automargin": True}
    return {
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"color": ink, "family": "system-ui, sans-serif"},
            "colorway": list(OTHERS),
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": paper, "font": {"color": ink}},
            "hovermode": "closest",
            "title": {"x": 0, "xanchor": "left", "xref": "container", "pad": {"l": 10}},
        }
    }
