"""Which map carries behaviors best? Every method, choice of source layers and fitting text.

`python benchmarks/recovery_by_method.py` compares them on the bundled models; give --source, --target, --documents,
--contrast and --behavior (repeatable) for your own. Penalties, ranks and layers are chosen on the fitting text, never
on a behavior. Prints a table for people, and last one line of JSON.
"""

import argparse
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize

import lrt_tl as lrt
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.fit import solve
from lrt_tl.alignment.harvest import Harvest
from lrt_tl.alignment.moments import Moments, fit_pairs, pool
from lrt_tl.alignment.selection import Method
from lrt_tl.alignment.solvers import canonical
from lrt_tl.evaluation.behavior import Behavior, read_behavior
from lrt_tl.evaluation.controls import random_directions
from lrt_tl.evaluation.effects import COEFFICIENTS, dose_response, slopes
from lrt_tl.evaluation.recovery import recovery
from lrt_tl.storyworld.named import named_behavior, named_contrast_pairs, named_documents
from lrt_tl.tables import print_columns
from lrt_tl.text.documents import N_FOLDS, N_SPLITS, Exclusion, hash_of, read_documents

ALL_LAYERS = ("ridge", "ridge_per_target", "reduced_rank", "partial_least_squares", "procrustes", "whitened")
WEIGHT, LITTLE = 4, 0.85


@dataclass(frozen=True)
class Task:
    """A behavior, and its vector at every source layer and in the target."""

    behavior: Behavior
    vectors: list[lrt.SteeringVector]
    native: lrt.SteeringVector


@dataclass(frozen=True)
class Candidate:
    """A map, for all behaviors or for one."""

    name: str
    affine_map: lrt.AffineMap
    task: Task | None = None

    def carry(self, task: Task) -> Tensor:
        """The task's vector in the target."""
        at = {vector.site.hook_name: vector for vector in task.vectors}
        return self.affine_map.transport([at[site.hook_name] for site in self.affine_map.sources]).direction


def by_method(moments: lrt.HarvestedMoments, layer: int) -> Iterator[Candidate]:
    """Every method from one layer; the layer that cross-validation prefers; all layers; and those that it selects."""
    target, sources = moments.targets[0], moments.sources

    def of(name: str, chosen: Sequence[Any], method: Method, *, select: bool = False) -> Candidate:
        parts = moments.parts(chosen, target)
        return Candidate(name, solve(parts, chosen, target, moments.counts, method=method, select_layers=select))

    for method in get_args(Method):
        yield of(f"{method.replace('_', ' ')}, layer {layer}", [sources[layer]], method)
    singles = [of(f"ridge, layer {number}, searched", [site], "ridge") for number, site in enumerate(sources)]
    yield max(singles, key=lambda each: each.affine_map.report.cv_r2)
    for method in ALL_LAYERS:
        yield of(f"{method.replace('_', ' ')}, all layers", sources, method)  # type: ignore[arg-type]
    for method in ("ridge", "whitened"):
        yield of(f"{method}, selected layers", sources, method, select=True)  # type: ignore[arg-type]


def of_text(harvest: Harvest, whole: lrt.HarvestedMoments, name: str, texts: Any) -> Iterator[Candidate]:
    """From all layers, fitted on another text."""
    pass_over = replace(harvest, documents=read_documents(texts))
    yield from _both(weighted(pass_over, whole, None), f"all layers, {name}")


def of_task(harvest: Harvest, whole: lrt.HarvestedMoments, task: Task) -> Iterator[Candidate]:
    """From all layers, with positions of which the source's vector says much counted four times."""
    yield from _both(weighted(harvest, whole, task), "all layers, positions weighted", task)


def parts_of_native(moments: lrt.HarvestedMoments, task: Task) -> Iterator[tuple[str, Tensor]]:
    """Why maps differ: the target's own vector, in canonical coordinates of all source layers and the target."""
    folds = moments.parts(moments.sources, moments.targets[0])[:N_FOLDS]
    form = canonical(pool(folds), 1e-6)
    coordinates, little = form.of_target.T @ task.native.direction.double(), form.correlations < LITTLE
    if len(form.correlations) == len(task.native.direction):  # else they do not hold the whole vector
        share = float(coordinates[little].square().sum() / coordinates.square().sum())
        yield "own vector, shrunk by the correlations", form.to_target.T @ (form.correlations * coordinates)
        yield f"own vector, what is correlated under {LITTLE} ({share:.0%})", form.to_target.T @ (little * coordinates)
        yield "own vector, the rest of it", form.to_target.T @ (~little * coordinates)


def _both(moments: lrt.HarvestedMoments, name: str, task: Task | None = None) -> Iterator[Candidate]:
    for method in ("ridge", "whitened"):
        yield Candidate(f"{method}, {name}", lrt.fit_moments(moments, method=method), task)  # type: ignore[arg-type]


def weighted(harvest: Harvest, whole: lrt.HarvestedMoments, task: Task | None) -> lrt.HarvestedMoments:
    """The moments of a pass, in which the quarter of positions with the largest components along the task's vectors
    (about the mean, in absolute value, summed over the layers in units of their spread) count `WEIGHT` times."""
    calibration, counts = harvest.calibrate(), HarvestCounts()
    keys = [[f"{side}:{site.hook_name}" for site in sites] for side, sites in _sides(whole)]
    moments = Moments.empty(N_SPLITS, calibration.means, fit_pairs(*keys, stacked=True))
    for batch in harvest.run(calibration, counts):
        times = torch.ones(len(batch.splits), dtype=torch.long)
        if task is not None and len(times):
            along = [
                (batch.states[key] - calibration.means[key].float()) @ vector.direction
                for key, vector in zip(keys[0], task.vectors, strict=True)
            ]
            size = torch.stack([(each / each.std()).abs() for each in along]).sum(0)
            times[size >= size.quantile(0.75)] = WEIGHT
        repeated = torch.arange(len(times)).repeat_interleave(times)
        moments.update({key: states[repeated] for key, states in batch.states.items()}, batch.splits[repeated])
    return lrt.HarvestedMoments(whole.sources, whole.targets, moments, counts)


def _sides(whole: lrt.HarvestedMoments) -> list[tuple[str, Any]]:
    return [("source", whole.sources), ("target", whole.targets)]


def measured(
    task: Task,
    candidates: Sequence[Candidate],
    references: Sequence[tuple[str, Tensor]],
    target: Any,
    given: argparse.Namespace,
) -> list[Any]:
    """Recovery of each candidate and reference, all on the same prompts, beside the same random vectors."""
    native, coefficients = task.native, tuple(map(float, given.coefficients.split(",")))
    mine = [(each.name, each.affine_map, each.carry(task)) for each in candidates if each.task in (None, task)]
    mine += [(name, None, direction.float()) for name, direction in references]
    carried = torch.stack([direction for _, _, direction in mine])
    units = normalize(torch.cat([native.direction[None], carried]), dim=1)
    units = torch.cat([units, random_directions(given.draws, target.cfg.d_model)])
    scores = dose_response(target, native.site.hook_name, native.norm * units, task.behavior, coefficients)
    found = slopes(scores, coefficients)
    rows = []
    for number, (name, affine_map, _) in enumerate(mine, start=1):
        result = recovery(found[0], found[number], found[1 + len(mine) :])
        rows.append(
            {
                "behavior": task.behavior.name,
                "map": name,
                "chosen": affine_map and affine_map.report.described(),
                "sources": affine_map and [str(site) for site in affine_map.sources],
                "r_squared": affine_map and affine_map.report.test_r2,
                "cosine": float(units[number] @ units[0]),
                "norm_ratio": float(carried[number - 1].norm()) / native.norm,
                "recovery": result.estimate,
                "low": result.low,
                "high": result.high,
                "reason": result.reason,
            }
        )
    return rows


def main() -> None:
    """Fit, carry, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="storyworld-small")
    parser.add_argument("--target", default="storyworld-large")
    parser.add_argument("--documents", default="storyworld")
    parser.add_argument("--other-documents", help="fit on this text, too")
    parser.add_argument("--contrast", action="append")
    parser.add_argument("--behavior", action="append")
    parser.add_argument("--layers", default="2:4", help="source and target layer")
    parser.add_argument("--position", default="last", choices=("mean", "last"))
    parser.add_argument("--coefficients", default="-1,-0.5,0,0.5,1", help=f"{COEFFICIENTS} is usual elsewhere")
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--one-pass", action="store_true", help="leave out the rows that need the text again")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*tokens per source dimension.*")
    layer, target_layer = map(int, given.layers.split(":"))
    named = [f"storyworld:{name}" for name in ("mood", "register", "language", "refusal")]
    contrasts = [
        lrt.read_contrast_pairs(named_contrast_pairs(name)) for name in given.contrast or given.behavior or named
    ]
    behaviors = [read_behavior(named_behavior(name)) for name in given.behavior or named]
    source, target = lrt.load_model(given.source), lrt.load_model(given.target)
    documents = read_documents(named_documents(given.documents))
    tried_on = lrt.texts_of(*contrasts, *behaviors)
    moments = lrt.harvest_moments(
        source, target, documents, layers=(range(source.cfg.n_layers), target_layer), exclude=tried_on
    )
    harvest = Harvest(
        source,
        target,
        [site.hook_name for site in moments.sources],
        [site.hook_name for site in moments.targets],
        documents,
        context_length=min(256, source.cfg.n_ctx, target.cfg.n_ctx),
        exclude=Exclusion(tried_on),
    )
    tasks = []
    for contrast, behavior in zip(contrasts, behaviors, strict=True):
        vectors = [
            lrt.mean_difference(source, contrast, hook_name=site.hook_name, position=given.position)
            for site in moments.sources
        ]
        native = lrt.mean_difference(target, contrast, layer=target_layer, position=given.position)
        tasks.append(Task(behavior, vectors, native))
    candidates = list(by_method(moments, layer))
    if not given.one_pass:
        quarter = [document.text for document in documents if hash_of(document.text[::-1]) % 4 == 0]
        candidates += of_text(harvest, moments, "a quarter of the text", quarter)
        candidates += [each for task in tasks for each in of_task(harvest, moments, task)]
    if given.other_documents:
        candidates += of_text(harvest, moments, "other text", named_documents(given.other_documents))
    rows = [
        row for task in tasks for row in measured(task, candidates, list(parts_of_native(moments, task)), target, given)
    ]
    print_columns(f"recovery, {given.source} → {given.target} L{target_layer}", _shown(rows, tasks))
    print(json.dumps({"benchmark": "recovery_by_method", "arguments": vars(given), "results": rows}))


def _shown(rows: Sequence[dict[str, Any]], tasks: Sequence[Task]) -> list[dict[str, str]]:
    """One row for each map, and one column for each behavior."""
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        line = table.setdefault(row["map"], {"map": row["map"], "R²": _short(row["r_squared"])})
        share = "none" if row["reason"] else f"{row['recovery']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        line[row["behavior"]] = f"{share} cos {row['cosine']:.2f}"
    names = ["map", "R²", *(task.behavior.name for task in tasks)]
    return [{name: line.get(name, "") for name in names} for line in table.values()]


def _short(r2: float | None) -> str:
    return "" if r2 is None else f"{r2:.3f}"


if __name__ == "__main__":
    main()
