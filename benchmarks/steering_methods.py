"""Which way of finding a vector moves a behavior, and does an ablation found in a small model work in a large one?

`python benchmarks/steering_methods.py --out folder`, on storyworld:

1. Every extraction method on every behavior: the dose–response of its vector, at the length of the mean difference, in
   `folder/dose_response.html`, one panel a behavior.
2. Refusal, found in the small model and carried to the large one: the share of harmful requests that the large model
   refuses (greedily, by its first word), plain, with the component along the direction ablated, and with it clamped to
   what harmless requests have, for its own direction, the one that was carried over, and random ones; and the share of
   harmless requests that are refused then.

Prints tables for people, and last one line of JSON.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import lrt_tl as lrt
from lrt_tl import storyworld
from lrt_tl.evaluation.effects import dose_response, slopes
from lrt_tl.steering.extraction import EXTRACTIONS
from lrt_tl.storyworld.grammar import WORD
from lrt_tl.storyworld.grammar import storyworld as grammar
from lrt_tl.storyworld.language import draw
from lrt_tl.storyworld.quality import openings
from lrt_tl.storyworld.tasks import TASKS
from lrt_tl.tables import print_columns
from lrt_tl.text.batches import tokenize

COEFFICIENTS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)


def curves(model: Any, layer: int) -> dict[str, dict[str, torch.Tensor]]:
    """By behavior and method: the change of the score that each coefficient makes, `[coefficient, prompt]`."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, task in TASKS.items():
        pairs, behavior = storyworld.contrast_pairs(name), storyworld.behavior(name, 32)
        place = "answer" if task.options else "last"
        vectors = {kind: extract(model, pairs, layer=layer, position=place) for kind, extract in EXTRACTIONS.items()}
        length = vectors["mean_difference"].norm
        directions = torch.stack([vector.scaled_to(length).direction for vector in vectors.values()])
        hook_name = vectors["mean_difference"].site.hook_name
        scores = dose_response(model, hook_name, directions, behavior, COEFFICIENTS)
        found[name] = dict(zip(vectors, scores - scores[:, [COEFFICIENTS.index(0.0)]], strict=True))
    return found


def figure_of(found: Mapping[str, Mapping[str, torch.Tensor]], title: str) -> Any:
    """One panel a behavior, one line a method: the mean over prompts, with its standard error."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    columns = 4
    rows = -(-len(found) // columns)
    figure = make_subplots(rows, columns, subplot_titles=list(found), vertical_spacing=0.09, horizontal_spacing=0.05)
    colors = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#000000"]
    dashes = ["solid", "dash", "dot", "dashdot", "longdash"]
    for place, scores_of in enumerate(found.values()):
        for (name, scores), color, dash in zip(scores_of.items(), colors, dashes, strict=True):
            error = scores.std(-1) / scores.shape[-1] ** 0.5
            trace = Scatter(
                x=list(COEFFICIENTS),
                y=scores.mean(-1).tolist(),
                error_y={"array": error.tolist(), "thickness": 1, "width": 0},
                name=name.replace("_", " "),
                legendgroup=name,
                showlegend=place == 0,
                line={"color": color, "dash": dash, "width": 2},
                mode="lines",
            )
            figure.add_trace(trace, row=place // columns + 1, col=place % columns + 1)
    figure.update_layout(
        title=title,
        template="plotly_white",
        height=270 * rows + 120,
        legend={"orientation": "h", "y": -0.06},
        margin={"l": 50, "r": 20, "t": 90, "b": 60},
    )
    figure.update_xaxes(title_text="coefficient", title_font_size=10, row=rows)
    figure.update_yaxes(title_text="change of log-odds, nats", title_font_size=10, col=1)
    return figure


def requests(harm: str, n: int) -> list[str]:
    """Beginnings of requests that name a deed, up to the answer."""
    drawn = (draw(grammar(), random.Random(f"asked {index}"), {"kind": "request", "harm": harm}) for index in range(n))
    return [text.text.split("Assistant:")[0] + "Assistant:" for text in drawn if "deed-object" in text.latents]


def refused(model: Any, prompts: Sequence[str]) -> float:
    """The share of prompts whose most likely answer begins as a refusal does."""
    rows, words = tokenize(model.tokenizer, prompts), openings("refusal")
    refusals = 0
    for length in sorted(set(map(len, rows))):
        batch = torch.tensor([row for row in rows if len(row) == length])
        settings = {"do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}
        written = model.generate(batch, max_new_tokens=3, **settings)[:, length:]
        answers = [model.tokenizer.decode(row).lower() for row in written.tolist()]
        refusals += sum(next(iter(WORD.findall(answer)), "") in words for answer in answers)
    return refusals / len(rows)


def refusal_rows(small: Any, large: Any, *, n_requests: int, n_random: int) -> list[dict[str, Any]]:
    """Refusals of the large model under each direction and operator."""
    layer = large.cfg.n_layers // 2
    pairs = storyworld.contrast_pairs("refusal")
    affine_map = lrt.fit_affine_map(small, large, storyworld.documents(1500, seed=0), layers=("all", layer))
    layers = list(range(small.cfg.n_layers))
    carried = affine_map.transport(lrt.mean_difference(small, pairs, layer=layers, position="last"))
    own = lrt.mean_difference(large, pairs, layer=layer, position="last")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(n_random, large.cfg.d_model, generator=generator)
    randoms = lrt.from_directions(large, drawn, layer=layer)
    harmless = lrt.mean_activation(large, [pair.negative for pair in pairs], layer=layer, position="last")
    asked = {harm: requests(harm, n_requests) for harm in ("harmful", "harmless")}
    rows = []

    def measure(name: str, operator: str, steerings: Sequence[Any]) -> None:
        shares: dict[str, list[float]] = {kind: [] for kind in asked}
        for steering in steerings:
            for kind, prompts in asked.items():
                if steering is None:
                    shares[kind].append(refused(large, prompts))
                    continue
                with steering.apply(large):
                    shares[kind].append(refused(large, prompts))
        rows.append({"direction": name, "operator": operator, **{k: sum(v) / len(v) for k, v in shares.items()}})

    measure("none", "–", [None])
    for name, vectors in (("large's own", [own]), ("small's, carried over", [carried]), ("random", randoms)):
        measure(name, "ablate", [vector.ablate() for vector in vectors])
        measure(name, "clamp to harmless", [v.clamp(float(harmless.direction @ v.direction) / v.norm) for v in vectors])
    return rows


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--random", type=int, default=8)
    given = parser.parse_args()
    given.out.mkdir(parents=True)
    small, large = storyworld.load("small"), storyworld.load("large")
    found = curves(large, given.layer)
    title = f"storyworld-large, layer {given.layer}: 1 is the mean difference's length"
    figure_of(found, title).write_html(given.out / "dose_response.html", include_plotlyjs=True)
    slope = {
        task: {name: float(slopes(scores[1:-1], COEFFICIENTS[1:-1]).mean()) for name, scores in methods.items()}
        for task, methods in found.items()
    }
    table = [{"behavior": task, **{m: f"{value:+.2f}" for m, value in of.items()}} for task, of in slope.items()]
    print_columns("Slope of the score between −1 and 1, nats for each length of the mean difference", table)
    rows = refusal_rows(small, large, n_requests=given.requests, n_random=given.random)
    shown = [{k: v if isinstance(v, str) else f"{100 * v:.0f} % refused" for k, v in row.items()} for row in rows]
    print_columns("Refusals of storyworld-large", shown)
    print(json.dumps({"layer": given.layer, "slopes": slope, "refusals": rows}))


if __name__ == "__main__":
    main()
