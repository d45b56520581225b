"""Is it known beforehand how close a carried vector comes to the target's own?

`python benchmarks/predicted_cosine.py` carries a vector of every task between the bundled models, to several target
layers, by ridge from one layer and by the whitened map from all, and compares what could be said before the target
is looked at with the cosine that is then measured. Each prediction is of the form ‖Av‖/√(‖Av‖² + u), u the squared
length of what the map does not see:

- deviations: u = (m²/d) tr Σ, m² = vᵀ(Sxx + λ)⁻¹v: the sides differ in what is unseen by as many standard deviations a
  dimension as in what is seen. It is what `AffineMap.carried` says;
- estimation: u = (m²/n) tr Σ: nothing is unseen but the noise of estimation, of n positions;
- variance: u in proportion to the variance, so that the cosine is √R², the same for every vector.

Prints a table for people, and last one line of JSON.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import lrt_tl as lrt
from lrt_tl.alignment.fit import solve
from lrt_tl.models.capture import capture
from lrt_tl.storyworld.language import documents
from lrt_tl.storyworld.tasks import TASKS, contrast_pairs
from lrt_tl.tables import print_columns
from lrt_tl.text.batches import pad, tokenize

PAIRS = "small:large,medium:large,medium-early:large,medium-foreign:large,large:large-b"
PREDICTIONS = ("deviations", "estimation", "variance")
BANDS = (0.0, 0.6, 0.8, 0.9, 1.0)


def vectors_of(model: Any, n_pairs: int) -> dict[str, Tensor]:
    """By task, the mean difference `[layer, d_model]` at the last token, of all layers in one pass."""
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
    found = {}
    for task in TASKS:
        pairs = contrast_pairs(task, n_pairs)
        rows = tokenize(model.tokenizer, [pair.positive for pair in pairs] + [pair.negative for pair in pairs])
        states = []
        for start in range(0, len(rows), 32):
            tokens, mask, _ = pad(model.tokenizer, rows[start : start + 32])
            seen = capture(model, tokens, mask, hooks)
            states.append(torch.stack([seen[hook][torch.arange(len(mask)), mask.sum(1) - 1] for hook in hooks]).cpu())
        both = torch.cat(states, 1)
        found[task] = both[:, :n_pairs].mean(1) - both[:, n_pairs:].mean(1)
    return found


def maps_of(moments: lrt.HarvestedMoments, target_layer: int) -> Iterator[tuple[str, slice, lrt.AffineMap]]:
    """Ridge from the layer at the same relative depth, and whitened from all; with the layers that each begins at."""
    n_source, target = len(moments.sources), moments.targets[target_layer]
    layer = max(0, round((target_layer + 1) / len(moments.targets) * n_source) - 1)
    for name, layers, method in (
        ("ridge, one layer", slice(layer, layer + 1), "ridge"),
        ("whitened, all layers", slice(0, n_source), "whitened"),
    ):
        sources = moments.sources[layers]
        yield name, layers, solve(moments.parts(sources, target), sources, target, moments.counts, method=method)  # type: ignore[arg-type]


def measured(affine_map: lrt.AffineMap, vector: Tensor, native: Tensor) -> dict[str, float]:
    """The cosine, and each prediction of it."""
    image, carried = affine_map.transport(vector), affine_map.carried(vector)
    assert carried is not None
    unseen = 1 / carried.predicted_cosine**2 - 1  # u/‖Av‖²
    by_noise = unseen * affine_map.d_source / affine_map.report.tokens
    return {
        "cosine": float(torch.cosine_similarity(image, native, dim=0)),
        "deviations": carried.predicted_cosine,
        "estimation": (1 + by_noise) ** -0.5,
        "variance": max(0.0, affine_map.report.test_r2) ** 0.5,
        "determined": carried.determined,
        "gain": carried.gain,
    }


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, ties as they come."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each prediction: rank correlation with the measured cosine, mean error, and how often it is too high."""
    cosine = torch.tensor([row["cosine"] for row in rows])
    result: dict[str, Any] = {"vectors": len(rows), "mean_cosine": float(cosine.mean())}
    for name in PREDICTIONS:
        said = torch.tensor([row[name] for row in rows])
        result[name] = {
            "rank_correlation": rank_correlation(said, cosine) if len(said.unique()) > 1 else None,
            "mean_error": float((said - cosine).abs().mean()),
            "too_high": float((said > cosine).float().mean()),
        }
    return result


def bands(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """By what was predicted: number of vectors, and the quartiles of their measured cosines."""
    found = {}
    for low, high in pairwise(BANDS):
        cosines = torch.tensor([row["cosine"] for row in rows if low < row["deviations"] <= high])
        if len(cosines):
            quartiles = cosines.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
            found[f"{low} to {high}"] = [len(cosines), *quartiles]
    return found


def main() -> None:
    """Fit, carry, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default=PAIRS, help="source:target, by the names of the bundled models")
    parser.add_argument("--documents", type=int, default=600)
    parser.add_argument("--contrast-pairs", type=int, default=48)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*(tokens per source dimension|the vector).*")
    rows: list[dict[str, Any]] = []
    for pair in given.pairs.split(","):
        source, target = (lrt.load_model(f"storyworld-{name}") for name in pair.split(":"))
        source_vectors, target_vectors = (vectors_of(model, given.contrast_pairs) for model in (source, target))
        depth = target.cfg.n_layers
        moments = lrt.harvest_moments(source, target, documents(given.documents), layers=("all", range(depth)))
        for target_layer in range(1, depth, 2):
            for name, layers, affine_map in maps_of(moments, target_layer):
                for task in TASKS:
                    vector, native = source_vectors[task][layers].reshape(-1), target_vectors[task][target_layer]
                    figure = measured(affine_map, vector, native)
                    rows.append({"pair": pair, "map": name, "target_layer": target_layer, "task": task, **figure})
    groups = {"all": rows}
    for key in ("map", "pair", "task"):
        groups |= {value: [row for row in rows if row[key] == value] for value in dict.fromkeys(r[key] for r in rows)}
    result = {name: figures(some) for name, some in groups.items()}
    print_columns(
        "predicted and measured cosine with the target's own vector",
        [
            {"vectors": name, "n": str(of["vectors"]), "mean cosine": f"{of['mean_cosine']:.2f}"}
            | {f"{kind}: ρ, error": _shown(of[kind]) for kind in PREDICTIONS}
            for name, of in result.items()
        ],
    )
    found = bands(rows)
    for band, (n, *quartiles) in found.items():
        print(f"predicted {band}: {n:.0f} vectors, measured {', '.join(f'{q:.2f}' for q in quartiles)} (quartiles)")
    print(json.dumps({"groups": result, "bands": found}))


def _shown(of: dict[str, Any]) -> str:
    rank = "none" if of["rank_correlation"] is None else f"{of['rank_correlation']:+.2f}"
    return f"{rank}, {of['mean_error']:.2f}"


if __name__ == "__main__":
    main()
