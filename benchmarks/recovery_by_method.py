"""Which map carries a behavior best? Every method and choice of source layers, from one pass over the text.

`python benchmarks/recovery_by_method.py` compares them on the bundled models; give --source, --target, --documents,
--contrast and --behavior for your own. Penalties, ranks and layers are chosen on the fitting text, never on the
behavior. Prints a table for people, and last one line of JSON.
"""

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch.nn.functional import normalize

import lrt_tl as lrt
from lrt_tl.alignment.fit import solve
from lrt_tl.alignment.selection import Method
from lrt_tl.evaluation.behavior import read_behavior
from lrt_tl.evaluation.controls import random_directions
from lrt_tl.evaluation.effects import COEFFICIENTS, dose_response, slopes
from lrt_tl.evaluation.recovery import recovery
from lrt_tl.storyworld.named import named_behavior, named_contrast_pairs, named_documents
from lrt_tl.tables import print_columns


@dataclass(frozen=True)
class Candidate:
    """A map, and the vector that it carries."""

    name: str
    affine_map: lrt.AffineMap
    vector: lrt.SteeringVector


def candidates(moments: lrt.HarvestedMoments, vectors: list[lrt.SteeringVector], layer: int) -> Iterator[Candidate]:
    """Every method from one layer; ridge from each layer, and from all layers at once."""
    target = moments.targets[0]

    def of(name: str, chosen: list[int], method: Method) -> Candidate:
        sites = [moments.sources[i] for i in chosen]
        found = solve(moments.parts(sites, target), sites, target, moments.counts, method=method)
        return Candidate(name, found, found.transport([vectors[i] for i in chosen]))

    for method in get_args(Method):
        yield of(f"{method.replace('_', ' ')}, layer {layer}", [layer], method)
    for other in range(len(vectors)):
        if other != layer:
            yield of(f"ridge, layer {other}", [other], "ridge")
    for method in ("ridge", "ridge_per_target", "reduced_rank", "whitened", "partial_least_squares"):
        yield of(f"{method.replace('_', ' ')}, all layers", list(range(len(vectors))), method)  # type: ignore[arg-type]


def figures(
    candidate: Candidate, native: lrt.SteeringVector, own: Any, of_native: Any, of_random: Any
) -> dict[str, Any]:
    """One row."""
    found = recovery(of_native, own, of_random)
    unit = normalize(candidate.vector.direction, dim=0), normalize(native.direction, dim=0)
    return {
        "map": candidate.name,
        "chosen": candidate.affine_map.report.described(),
        "r_squared": candidate.affine_map.report.test_r2,
        "cosine": float(unit[0] @ unit[1]),
        "norm_ratio": candidate.vector.norm / native.norm,
        "recovery": found.estimate,
        "low": found.low,
        "high": found.high,
        "reason": found.reason,
    }


def main() -> None:
    """Measure every candidate on the same prompts, beside the same random vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="storyworld-small")
    parser.add_argument("--target", default="storyworld-large")
    parser.add_argument("--documents", default="storyworld")
    parser.add_argument("--contrast", default="storyworld:mood")
    parser.add_argument("--behavior", default="storyworld:mood")
    parser.add_argument("--layers", default="2:4", help="source and target layer")
    parser.add_argument("--position", default="mean", choices=("mean", "last"))
    parser.add_argument("--coefficients", default=",".join(map(str, COEFFICIENTS)))
    parser.add_argument("--draws", type=int, default=64)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*tokens per source dimension.*")
    layer, target_layer = map(int, given.layers.split(":"))
    coefficients = tuple(map(float, given.coefficients.split(",")))
    source, target = lrt.load_model(given.source), lrt.load_model(given.target)
    contrast = lrt.read_contrast_pairs(named_contrast_pairs(given.contrast))
    behavior = read_behavior(named_behavior(given.behavior))
    moments = lrt.harvest_moments(
        source,
        target,
        named_documents(given.documents),
        layers=(range(source.cfg.n_layers), target_layer),
        exclude=lrt.texts_of(contrast, behavior),
    )
    vectors = [
        lrt.mean_difference(source, contrast, hook_name=site.hook_name, position=given.position)
        for site in moments.sources
    ]
    native = lrt.mean_difference(target, contrast, layer=target_layer, position=given.position)
    tried = list(candidates(moments, vectors, layer))
    carried = torch.stack([normalize(each.vector.direction, dim=0) for each in tried])
    units = torch.cat(
        [normalize(native.direction, dim=0)[None], carried, random_directions(given.draws, target.cfg.d_model)]
    )
    scores = dose_response(target, native.site.hook_name, native.norm * units, behavior, coefficients)
    found = slopes(scores, coefficients)
    random = found[1 + len(tried) :]
    rows = [figures(each, native, own, found[0], random) for each, own in zip(tried, found[1:], strict=False)]
    print_columns(f"{behavior.name}: {given.source} → {given.target} L{target_layer}", map(_shown, rows))
    print(json.dumps({"benchmark": "recovery_by_method", "arguments": vars(given), "results": rows}))


def _shown(row: dict[str, Any]) -> dict[str, str]:
    share = row["reason"] or f"{row['recovery']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    return {
        "map": row["map"],
        "chosen": row["chosen"],
        "R²": f"{row['r_squared']:.3f}",
        "cosine": f"{row['cosine']:.3f}",
        "norm ratio": f"{row['norm_ratio']:.2f}",
        "recovery": share,
    }


if __name__ == "__main__":
    main()
