"""The picture of the README, from a run: `make demo`, then `python docs/pictures/carried.py demo`.

It reads `summary.json` of the run's folder. Plotly needs kaleido, and Chrome or Chromium, to write a PNG.
"""

import json
import sys
from pathlib import Path
from typing import Any

from plotly.graph_objects import Scatter
from plotly.subplots import make_subplots

from lrt_tl.report.style import color_of, layout

NAMES = {"mood": "happy", "register": "ornate", "language": "Spanish", "refusal": "refusing"}
RANDOM_WEIGHTS = "the same, from the small model with random weights"


def lines(found: dict[str, Any]) -> dict[str, tuple[list[float], dict[str, Any]]]:
    """Of each vector its effect at each coefficient, and how it is drawn."""
    at = found["coefficients"]
    plain = at.index(0.0)
    rise = {name: [score - of[plain] for score in of] for name, of in found["curves"].items()}
    untrained = found["baselines"]["random_weights"]["slope"]
    return {
        "found in the large model itself": (rise["native"], {"color": color_of("native"), "width": 3}),
        "found in the small model, carried over": (
            rise["transferred"],
            {"color": color_of("transferred"), "width": 3, "dash": "dash"},
        ),
        RANDOM_WEIGHTS: ([untrained * c for c in at], {"color": color_of("random_weights"), "width": 2, "dash": "dot"}),
    }


def band(found: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Where the effects of random vectors of that length lie: their mean slope, and two standard deviations of it."""
    slope, at = found["random_slope"], found["coefficients"]
    edges = [slope["mean"] + side * 2 * slope["std"] for side in (1, -1)]
    return [*at, *reversed(at)], [edges[0] * c for c in at] + [edges[1] * c for c in reversed(at)]


def figure(behaviors: list[dict[str, Any]]) -> Any:
    titles = [f"<b>{NAMES[each['name']]}</b><br>recovers {each['recovery']['estimate']:.2f}" for each in behaviors]
    drawn = make_subplots(1, len(behaviors), subplot_titles=titles, horizontal_spacing=0.06)
    for column, found in enumerate(behaviors, 1):
        first = column == 1
        x, y = band(found)
        fill = {"fill": "toself", "fillcolor": "rgba(127,127,127,0.25)", "mode": "none"}
        drawn.add_trace(Scatter(x=x, y=y, name="random vectors", showlegend=first, **fill), 1, column)
        for name, (rise, line) in lines(found).items():
            trace = Scatter(x=found["coefficients"], y=rise, name=name, mode="lines", line=line, showlegend=first)
            drawn.add_trace(trace, 1, column)
        drawn.update_xaxes(title="strength", tickvals=[-1, 0, 1], row=1, col=column)
    drawn.update_yaxes(title="effect on the next word, nats", col=1)
    legend = {"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom", "x": 0, "font": {"size": 13}}
    return drawn.update_layout(
        layout(height=370, width=1000, legend=legend, margin={"l": 60, "r": 20, "t": 60, "b": 105})
    )


if __name__ == "__main__":
    run = json.loads((Path(sys.argv[1]) / "summary.json").read_text(encoding="utf-8"))
    figure(run["behaviors"]).write_image(Path(__file__).with_suffix(".png"), scale=1.6)
