"""Which models are one distribution with `large`, and which linear properties do they therefore share? Its twin, its
other seed, smaller models, and copies moved away in controlled steps: how far may one compress before these part?

`python benchmarks/one_distribution.py` prints a table for people, the answer, and last one line of JSON; `--out FOLDER`
adds that as a file, and a figure of similarity against divergence. It takes about a quarter of an hour of
CPU time.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from copies import LADDERS, copies, ladder_of, load_copy
from storyworld_transfer import load

from lrt_tl import storyworld
from lrt_tl.identifiability.all_or_none import all_or_none
from lrt_tl.identifiability.comparison import (
    Contrast,
    contexts_of_contrasts,
    properties_of,
    texts_of_contrasts,
    texts_of_relations,
)
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.facts import with_texts
from lrt_tl.identifiability.properties.scores import Property, PropertyScores
from lrt_tl.identifiability.reading import read_predictor
from lrt_tl.identifiability.similarity import mean_cca
from lrt_tl.identifiability.subspaces import Subspaces
from lrt_tl.identifiability.verdict import Verdict
from lrt_tl.report.style import OTHERS, SYMBOLS, layout
from lrt_tl.storyworld.named import default_relations
from lrt_tl.storyworld.tasks import contrast_pairs
from lrt_tl.tables import print_columns

EPSILON, LEAST_R2, MOST_DUALITY, AGREEMENT = 0.01, 0.9, 0.1, 0.05
"""What the premise, and a property, have to keep to: see `all_or_none`."""
MOST_MISMATCH = 0.1
"""Of what a vector does at the output, the share that may be lost or added where it is carried."""
N_CONTEXTS, N_DOCUMENTS, N_PAIRS, SEED = 20_000, 320, 30, 77
TASKS = ("mood", "register", "language", "refusal")
PARALLEL = ("comparative", "superlative")
COMMAND = "python benchmarks/one_distribution.py --out benchmarks/results"
ITSELF, APART = "itself", ("large-b", "medium", "small", "medium-early", "medium-foreign", "untrained")
LABELLED = APART[:3]
KINDS = ("relational linearity", "parallelism")


def read(model: Any, documents: list[str], texts: list[str]) -> tuple[Predictor, Predictor]:
    """The predictor on the documents, for what is asked of distributions; and with the texts of facts and contrast
    pairs, for properties."""
    plain = read_predictor(model, documents, n_contexts=N_CONTEXTS)
    return plain, with_texts(plain, model, texts)


def remembered(measure: Property, predictor: Predictor) -> Property:
    """The same, measured once of this predictor, which is in every pair."""
    found: list[PropertyScores] = []

    def of(other: Predictor, its: Subspaces) -> PropertyScores:
        if other is not predictor:
            return measure(other, its)
        if not found:
            found.append(measure(other, its))
        return found[0]

    return of


def figures(name: str, verdict: Verdict, p: Predictor, q: Predictor) -> dict[str, Any]:
    """What is kept of one model beside `large`. Vectors are carried from `large` to it."""
    features = verdict.distance_features() | {
        "mean_cca_contexts": mean_cca(p.f, q.f),
        "mean_cca_tokens": mean_cca(p.g, q.g),
    }
    return {
        "model": name,
        "ladder": ladder_of(name),
        "premise": verdict.premise,
        "against": list(verdict.against),
        "at_most": verdict.equality.upper,
        "features": rounded(features),
        "steering_mismatch": rounded({task: there for task, (there, _) in verdict.steering_mismatch.items()}),
        "properties": {
            of: {
                "verdict": each.answer,
                **{
                    form: [rounded(getattr(scores, form).to_json()) for scores in each.scores]
                    for form in ("effective", "raw")
                },
            }
            for of, each in verdict.properties.items()
        },
    }


def rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """To four digits."""
    return {name: None if value is None else float(f"{value:.4g}") for name, value in values.items()}


def scores(found: Mapping[str, Any], kind: str) -> list[tuple[float, float]]:
    """The effective scores of all properties of a kind, in `large` and in the other."""
    named = [each["effective"] for name, each in found["properties"].items() if name.endswith(kind)]
    return [(one["estimate"], other["estimate"]) for one, other in named]


def apart(found: Mapping[str, Any], kind: str) -> float:
    """The largest difference of effective scores among the properties of a kind."""
    return max(abs(one - other) for one, other in scores(found, kind))


def mismatch(found: Mapping[str, Any]) -> float:
    """The largest of all vectors."""
    return max(found["steering_mismatch"].values())


def row(found: Mapping[str, Any]) -> dict[str, str]:
    """The same for people."""
    features = found["features"]

    def mean(kind: str) -> str:
        both = scores(found, kind)
        means = ", ".join(f"{sum(side) / len(both):.2f}" for side in zip(*both, strict=True))
        return f"{means}; {apart(found, kind):.2f}"

    return {
        "large and": found["model"],
        "KL": f"{features['kl']:.2g}",
        "at most": f"{found['at_most']:.2g}",
        "R², contexts": f"{features['context_r2']:.3f}",
        "worst": f"{features['context_worst_r2']:.2f}",
        "worst, tokens": f"{features['token_worst_r2']:.2f}",
        "duality": f"{features['duality_residual']:.2g}",
        "relational R²: means; apart": mean("relational linearity"),
        "parallelism: means; apart": mean("parallelism"),
        "steering mismatch": f"{mismatch(found):.2f}",
        "one distribution": "yes" if found["premise"] else "not shown",
        "verdicts": ", ".join(sorted({each["verdict"] for each in found["properties"].values()})),
    }


def answer(found: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """How far copies may be moved: for each thing that should stay, the last copy, by KL, before the first that loses
    it, and that one; along each ladder the last of the steps before the first that loses it."""
    found = list(found)
    of_copies = sorted((each for each in found if each["ladder"]), key=lambda each: each["features"]["kl"])
    kept = {
        "the premise": lambda each: each["premise"],
        **{kind: lambda each, kind=kind: apart(each, kind) <= AGREEMENT for kind in KINDS},
        "steering": lambda each: mismatch(each) <= MOST_MISMATCH,
    }
    reached: dict[str, Any] = {}
    for what, keeps in kept.items():
        last, first = turn(of_copies, keeps)
        along = {}
        for ladder, changes in LADDERS.items():
            steps = sorted(
                (e for e in of_copies if e["ladder"] == ladder), key=lambda e: list(changes).index(e["model"])
            )
            along[ladder] = [each and each["model"] for each in turn(steps, keeps)]
        reached[what] = {
            "keeps_up_to": last and {"model": last["model"], "kl": last["features"]["kl"]},
            "first_lost_at": first and {"model": first["model"], "kl": first["features"]["kl"]},
            "ladders": along,
        }
    own = {kind: [one for one, _ in scores(found[0], kind)] for kind in KINDS}
    of_large = {kind: float(f"{sum(each) / len(each):.4g}") for kind, each in own.items()}
    return {"reached": reached, "mean_score_of_large": of_large, "sentence": sentence(reached, of_large)}


def turn(ordered: list[Mapping[str, Any]], keeps: Any) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The last before the first that does not keep it, and that first one; None where there is none."""
    lost = next((place for place, each in enumerate(ordered) if not keeps(each)), len(ordered))
    return (ordered[lost - 1] if lost else None), (ordered[lost] if lost < len(ordered) else None)


def sentence(reached: Mapping[str, Any], of_large: Mapping[str, float]) -> str:
    """The answer in words."""
    said = {
        "the premise": f"One distribution (KL under {EPSILON:g}, worst R² over {LEAST_R2:g}, duality under "
        f"{MOST_DUALITY:g})",
        "steering": f"Steering at the output (all but {MOST_MISMATCH:g} of the effect)",
        **{
            kind: f"{kind.capitalize()} (effective scores within {AGREEMENT:g}; in large {of_large[kind]:.2f})"
            for kind in KINDS
        },
    }
    parts = []
    for what, words in said.items():
        along, first = reached[what]["ladders"], reached[what]["first_lost_at"]
        steps = ", ".join(
            f"{ladder}: {last or 'none'} (not {lost})" if lost else f"{ladder}: {last}"
            for ladder, (last, lost) in along.items()
        )
        until = f"lost first at KL {first['kl']:.2g}, by {first['model']}" if first else "lost by none"
        parts.append(f"{words} is kept down to {steps}; {until}.")
    return " ".join(parts)


def figure(found: Iterable[Mapping[str, Any]]) -> Any:
    """Four similarities against the divergence, a series a ladder; that of a twin is none."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    panels = {
        "R² of contexts": lambda each: each["features"]["context_r2"],
        "R² of the worst direction": lambda each: each["features"]["context_worst_r2"],
        "steering carried: 1 − mismatch": lambda each: 1 - mismatch(each),
        "parallelism: 1 − difference": lambda each: 1 - apart(each, "parallelism"),
    }
    drawn = make_subplots(2, 2, subplot_titles=list(panels), shared_xaxes=True, vertical_spacing=0.1)
    series = {**{ladder: list(changes) for ladder, changes in LADDERS.items()}, "trained apart": list(APART)}
    by_name = {each["model"]: each for each in found}
    for place, similarity in enumerate(panels.values()):
        where = {"row": place // 2 + 1, "col": place % 2 + 1}
        for number, (name, members) in enumerate(series.items()):
            shown = [by_name[member] for member in members if member in by_name]
            drawn.add_trace(
                Scatter(
                    x=[each["features"]["kl"] for each in shown],
                    y=[max(0.0, similarity(each)) for each in shown],
                    text=[each["model"] if each["model"] in LABELLED and place == 0 else "" for each in shown],
                    textposition="middle left",
                    customdata=[each["model"] for each in shown],
                    hovertemplate="%{customdata}: KL %{x:.2g}, %{y:.3f}<extra></extra>",
                    mode="lines+markers" if name in LADDERS else "markers+text",
                    marker={"symbol": SYMBOLS[number], "size": 9, "color": OTHERS[number]},
                    name=name,
                    legendgroup=name,
                    showlegend=place == 0,
                ),
                **where,
            )
        drawn.add_vline(x=EPSILON, line={"dash": "dot", "color": "#7f7f7f"}, **where)
    drawn.update_yaxes(range=[-0.04, 1.04])
    drawn.update_xaxes(type="log", dtick=1, exponentformat="power")
    drawn.update_xaxes(title="KL(large ‖ other), nats; dotted: ε", row=2)
    drawn.update_layout(
        **layout(
            title="Similarity to large against divergence from it (what is under 0 is drawn at 0)",
            width=1000,
            height=700,
            margin={"l": 60, "r": 20, "t": 90, "b": 110},
        )
    )
    return drawn


def write(path: Path, line: Mapping[str, Any]) -> None:
    """As JSON, with a line for each model."""
    head = json.dumps({name: value for name, value in line.items() if name != "results"}, ensure_ascii=False)
    results = ",\n".join(json.dumps(each, allow_nan=False, ensure_ascii=False) for each in line["results"])
    path.write_text(f'{head[:-1]}, "results": [\n{results}\n]}}\n', encoding="utf-8")


def main() -> None:
    """Compare all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for one_distribution.json and one_distribution.html")
    given = parser.parse_args()
    documents = storyworld.documents(N_DOCUMENTS, seed=SEED)
    large = storyworld.load("large")
    relations = default_relations(large)
    contrasts = {task: Contrast(contrast_pairs(task, N_PAIRS), (), ()) for task in TASKS}
    texts = list(dict.fromkeys([*texts_of_relations(relations), *texts_of_contrasts(contrasts)]))
    plain, whole = read(large, documents, texts)
    wanted = [f"{name}: relational linearity" for name in relations] + [f"{name}: parallelism" for name in PARALLEL]
    measures = properties_of(plain, large.tokenizer, relations, {}, texts)
    properties = {name: remembered(measures[name], whole) for name in wanted}
    sides = contexts_of_contrasts(contrasts, {text: len(plain.f) + place for place, text in enumerate(texts)})
    allowed = {"epsilon": EPSILON, "least_r2": LEAST_R2, "most_duality": MOST_DUALITY, "agreement": AGREEMENT}
    found = []
    for name in (ITSELF, *copies(), *APART):
        other = large if name == ITSELF else load_copy(name) if name in copies() else load(name, "bridge")
        there, theirs = read(other, documents, texts)
        verdict = all_or_none(plain, there, properties, contrasts=sides, extended=(whole, theirs), **allowed)
        found.append(figures(name, verdict, plain, there))
        print(row(found[-1]), flush=True)
    print_columns("One distribution?", map(row, found))
    answered = answer(found)
    print(answered["sentence"])
    line = {"benchmark": "one_distribution", "command": COMMAND, **allowed, "most_mismatch": MOST_MISMATCH}
    line |= {"contexts": len(plain.f), "documents": plain.n_documents, "answer": answered, "results": found}
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        write(given.out / "one_distribution.json", line)
        figure(found).write_html(given.out / "one_distribution.html", include_plotlyjs="cdn")
    print(json.dumps(line, allow_nan=False))


if __name__ == "__main__":
    main()
