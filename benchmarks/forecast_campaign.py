"""What forecasts learn from: every pair of the bundled models, those that should fail included, and others where given.

`python benchmarks/forecast_campaign.py measure rows.jsonl` measures recovery, and what is known of each transfer before
its target is steered, for six behaviors and three maps a pair; it goes on where it was stopped, and takes about half
an hour on one core. `--reviews FOLDER` adds a pair of models that lie in `FOLDER/small` and `FOLDER/large`, with
their `documents.jsonl`, `contrast-NAME.jsonl` and `behavior-NAME.json`.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from storyworld_transfer import load
from torch import Tensor
from torch.nn.functional import normalize

import lrt_tl as lrt
from lrt_tl import storyworld
from lrt_tl.alignment.fit import solve
from lrt_tl.alignment.moments import Centered
from lrt_tl.evaluation.behavior import Behavior, read_behavior
from lrt_tl.evaluation.comparability import comparability, held_out_batches
from lrt_tl.evaluation.controls import random_directions
from lrt_tl.evaluation.effects import dose_response, slopes
from lrt_tl.evaluation.features import features_of, measure_map
from lrt_tl.evaluation.forecasting import (
    FORMAT_VERSION,
    KnownTransfer,
    clipped,
    learn,
    out_of_pair,
    rank_correlation,
)
from lrt_tl.evaluation.recovery import Recovery, recovery
from lrt_tl.steering.contrast import ContrastPair
from lrt_tl.tables import print_columns

SOURCES = ("small", "medium", "large", "large-b", "large-alt", "medium-early", "medium-foreign", "untrained")
SHUFFLED = {"small": "medium", "medium": "small", "large": "small", "large-b": "small"}
"""For each target, the source from which maps are fitted on shuffled pairs of states, too. `large-alt` is no target:
its tokenizer splits answers."""
SETTINGS = {
    "whitened, all layers": ("whitened", True),
    "ridge, all layers": ("ridge", True),
    "ridge, one layer": ("ridge", False),
}
"""The method, and whether it maps from all source layers, or from the middle one; always to the target's middle one."""
BEHAVIORS = ("mood", "register", "language", "refusal", "tense", "narrator")
COEFFICIENTS = {"storyworld": (-1.0, -0.5, 0.0, 0.5, 1.0), "reviews": (-8.0, -4.0, 0.0, 4.0, 8.0)}
COMMAND = "python benchmarks/forecast_campaign.py measure rows.jsonl --reviews FOLDER"
LEARNT = Path(lrt.__file__).parent / "evaluation" / "forecast.json"
RESULTS = Path(__file__).parent / "results" / "forecast.json"
N_DRAWS, N_PAIRS, N_PROMPTS, N_DOCUMENTS = 24, 96, 32, 1000


@dataclass(frozen=True, eq=False)
class Task:
    """A behavior, and the contrast pairs of its vector."""

    pairs: Sequence[ContrastPair]
    behavior: Behavior


@dataclass(frozen=True, eq=False)
class Family:
    """Models that share text and tasks."""

    name: str
    documents: Any
    tasks: Sequence[Task]
    position: Any
    reviews: Path | None = None

    def load(self, name: str) -> Any:
        """One of its models."""
        return load(name, "bridge") if self.reviews is None else lrt.load_model(self.reviews / name)

    @cached_property
    def texts(self) -> list[str]:
        """What maps must not be fitted on."""
        return lrt.texts_of(*(part for task in self.tasks for part in (task.pairs, task.behavior)))


@dataclass(frozen=True, eq=False)
class Effects:
    """What a target's own vectors and random ones do, which is the same whatever is carried there."""

    family: Family
    model: Any
    layer: int

    @cache  # noqa: B019 — one target at a time is kept
    def of(self, number: int) -> tuple[lrt.SteeringVector, Tensor, Tensor]:
        """A task's own vector, its slope at each prompt, and those of random vectors."""
        task = self.family.tasks[number]
        native = lrt.mean_difference(self.model, task.pairs, layer=self.layer, position=self.family.position)
        units = torch.cat([normalize(native.direction[None]), random_directions(N_DRAWS, self.model.cfg.d_model)])
        found = self.slopes(number, native, units)
        return native, found[0], found[1:]

    def slopes(self, number: int, native: lrt.SteeringVector, directions: Tensor) -> Tensor:
        """The slope at each prompt of unit vectors, in units of the native vector."""
        coefficients, behavior = COEFFICIENTS[self.family.name], self.family.tasks[number].behavior
        scores = dose_response(self.model, native.site.hook_name, native.norm * directions, behavior, coefficients)
        return slopes(scores, coefficients)

    def recovery(self, number: int, transferred: lrt.SteeringVector) -> Recovery:
        """Of a transferred vector."""
        native, own, random = self.of(number)
        return recovery(own, self.slopes(number, native, normalize(transferred.direction[None]))[0], random)


def storyworld_family() -> Family:
    """The bundled models."""
    tasks = [Task(storyworld.contrast_pairs(n, N_PAIRS), storyworld.behavior(n, N_PROMPTS)) for n in BEHAVIORS]
    return Family("storyworld", storyworld.documents(N_DOCUMENTS), tasks, "last")


def reviews_family(folder: Path) -> Family:
    """A pair of models in a folder."""
    names = [path.stem.removeprefix("behavior-") for path in sorted(folder.glob("behavior-*.json"))]
    tasks = [
        Task(
            lrt.read_contrast_pairs(folder / f"contrast-{name}.jsonl"), read_behavior(folder / f"behavior-{name}.json")
        )
        for name in names
    ]
    texts = [document.text for document in lrt.read_documents(folder / "documents.jsonl")]
    return Family("reviews", texts[:400], tasks, "mean", folder)


def shuffled_parts(parts: Sequence[Centered]) -> list[Centered]:
    """The moments of row-shuffled pairs of states: cross products that are normal with the covariance Sxx Syy/(n − 1),
    as `shuffled_map_directions` says. Nothing has to be harvested anew."""
    generator = torch.Generator().manual_seed(0)

    def drawn(part: Centered) -> Tensor:
        normal = torch.randn(part.source_target.shape, generator=generator, dtype=torch.float64)
        return root(part.source_source) @ normal @ root(part.target_target) / math.sqrt(part.count - 1)

    return [replace(part, source_target=drawn(part)) for part in parts]


def root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    variances, directions = torch.linalg.eigh(covariance)
    return directions * variances.clamp(min=0).sqrt() @ directions.T


def maps_of(
    moments: lrt.HarvestedMoments, settings: Sequence[str], kinds: Sequence[bool]
) -> Iterator[tuple[str, bool, lrt.AffineMap]]:
    """The map of each setting, of the pairs of states as they are or shuffled, all from the same moments."""
    (target,) = moments.targets
    for shuffled, name in product(kinds, settings):
        method, all_layers = SETTINGS[name]
        sources = moments.sources if all_layers else moments.sources[len(moments.sources) // 2 :][:1]
        parts = moments.parts(sources, target)
        parts = shuffled_parts(parts) if shuffled else parts
        yield name, shuffled, solve(parts, sources, target, moments.counts, method=method)  # type: ignore[arg-type]


def transfers(
    family: Family, source_name: str, effects: Effects, kinds: Sequence[bool], settings: Sequence[str] = tuple(SETTINGS)
) -> Iterator[dict[str, Any]]:
    """Every behavior through every map of a pair: what was known beforehand, and the recovery.

    Args:
        kinds: whether the pairs of states are shuffled.
    """
    source, target = family.load(source_name), effects.model
    moments = lrt.harvest_moments(
        source, target, family.documents, layers=("all", effects.layer), exclude=family.texts, batch_size=32
    )
    at = [site.hook_name for site in moments.sources]
    vectors = [lrt.mean_difference(source, t.pairs, hook_name=at, position=family.position) for t in family.tasks]
    batches = held_out_batches(source, target, family.documents)
    compared = comparability(source, target, batches)
    for setting, shuffled, affine_map in maps_of(moments, settings, kinds):
        measured = measure_map(source, target, affine_map, batches, compared)
        mapped = {site.hook_name for site in affine_map.sources}
        for number, (task, found) in enumerate(zip(family.tasks, vectors, strict=True)):
            chosen = [vector for vector in found if vector.site.hook_name in mapped]
            features = features_of(measured, source, target, chosen)
            outcome = effects.recovery(number, affine_map.transport(chosen))
            yield {
                "family": family.name,
                "source": source_name,
                "shuffled": shuffled,
                "setting": setting,
                "behavior": task.behavior.name,
                "features": _rounded(asdict(features)),
                "losses": _rounded(asdict(measured.stitched)),
                "recovery": _rounded(asdict(outcome)),
            }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}


def measure(rows: Path, reviews: Path | None) -> None:
    """Append the transfers of each pair that the file does not hold yet, a pair at once."""
    done = {(row["family"], row["source"], row["target"], row["shuffled"]) for row in read_rows(rows)}
    families: list[tuple[Family, Sequence[str], dict[str, str]]] = []
    if reviews is not None:
        families.append((reviews_family(reviews), ("small", "large"), {"large": "small", "small": "large"}))
    families.append((storyworld_family(), SOURCES, SHUFFLED))
    for family, sources, shuffled_sources in families:
        for target_name, shuffled_source in shuffled_sources.items():
            missing = {}
            for name in sources:
                kinds = (False, True) if name == shuffled_source else (False,)
                missing[name] = [kind for kind in kinds if (family.name, name, target_name, kind) not in done]
            missing.pop(target_name)
            if not any(missing.values()):
                continue
            target = family.load(target_name)
            effects = Effects(family, target, target.cfg.n_layers // 2)
            for source_name, kinds in missing.items():
                if not kinds:
                    continue
                started = time.perf_counter()
                found = list(transfers(family, source_name, effects, kinds))
                with rows.open("a") as file:
                    file.writelines(json.dumps({**row, "target": target_name}) + "\n" for row in found)
                seconds = time.perf_counter() - started
                print(f"{source_name} → {target_name}: {len(found)} transfers, {seconds:.0f} s", flush=True)


def learn_from(rows: Path) -> None:
    """Write the transfers and what forecasts are worth, and show it."""
    found = read_rows(rows)
    stated = [row for row in found if row["recovery"]["estimate"] is not None]
    known = [KnownTransfer(pair_of(row), row["features"], row["recovery"]["estimate"]) for row in stated]
    forecaster = learn(known)
    predicted, mean = out_of_pair(known)
    measured = clipped([each.recovery for each in known])
    errors, errors_of_mean = (predicted - measured).abs(), (mean - measured).abs()

    def of(name: str, chosen: Sequence[bool]) -> dict[str, Any]:
        here = torch.tensor(chosen)
        return {
            "of": name,
            "transfers": int(here.sum()),
            "error": float(errors[here].mean()),
            "error_of_mean": float(errors_of_mean[here].mean()),
            "rank_correlation": rank_correlation(predicted[here], measured[here]),
            "forecast": float(predicted[here].mean()),
            "measured": float(measured[here].mean()),
        }

    groups = [of("all", [True] * len(known))]
    for key in ("family", "setting", "behavior", "source"):
        values = dict.fromkeys(row[key] for row in stated)
        groups += [of(f"{key} {value}", [row[key] == value for row in stated]) for value in values]
    groups.append(of("shuffled pairs", [row["shuffled"] for row in stated]))
    figures = {
        "error": forecaster.error,
        "error_of_mean": forecaster.error_of_mean,
        "rank_correlation": forecaster.rank_correlation,
        "coverage": forecaster.coverage,
        "half_width": forecaster.half_width,
        "pairs": forecaster.n_pairs,
        "transfers": forecaster.n_transfers,
        "refused_by_the_gate": len(found) - len(stated),
        "slope": forecaster.line.slope,
        "intercept": forecaster.line.intercept,
        "rank_correlation_of_each_feature": alone(known),
        "groups": groups,
    }
    print_columns("Forecasts of pairs left out", map(_shown, groups))
    write_transfers(LEARNT, stated)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"command": COMMAND, "figures": figures}, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({"benchmark": "forecast_campaign", **figures}))


def pair_of(row: dict[str, Any]) -> str:
    """Two models, whatever the direction, and whether their states were shuffled or not."""
    return f"{row['family']}: {' and '.join(sorted((row['source'], row['target'])))}"


def alone(known: Sequence[KnownTransfer]) -> dict[str, float | None]:
    """Spearman's correlation of each feature with recovery; None where it does not vary."""
    found: dict[str, float | None] = {}
    for name in known[0].features:
        here = [(each.features[name], each.recovery) for each in known if each.features[name] is not None]
        feature, measured = torch.tensor(here, dtype=torch.float64).reshape(-1, 2).T
        found[name] = rank_correlation(feature, measured) if len(feature.unique()) > 1 else None
    return found


def write_transfers(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """What forecasts are learnt from, as JSON with a line for each transfer."""
    keys = ("source", "target", "shuffled", "setting", "behavior")
    names = [name for name in rows[0]["features"] if any(row["features"][name] is not None for row in rows)]
    lines = []
    for row in rows:
        line = {"pair": pair_of(row), **{key: row[key] for key in keys}, "recovery": row["recovery"]["estimate"]}
        lines.append(json.dumps({**line, "features": [row["features"][name] for name in names]}, ensure_ascii=False))
    head = json.dumps({"format_version": FORMAT_VERSION, "command": COMMAND, "features": names})[:-1]
    path.write_text(head + ', "transfers": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def _shown(group: dict[str, Any]) -> dict[str, str]:
    return {key: f"{value:.2f}" if isinstance(value, float) else str(value) for key, value in group.items()}


def read_rows(rows: Path) -> list[dict[str, Any]]:
    """The transfers measured so far."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def main() -> None:
    """Measure, or learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    measuring = steps.add_parser("measure")
    measuring.add_argument("rows", type=Path)
    measuring.add_argument("--reviews", type=Path)
    steps.add_parser("learn").add_argument("rows", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="lrt_tl")
    if given.step == "measure":
        measure(given.rows, given.reviews)
    else:
        learn_from(given.rows)


if __name__ == "__main__":
    main()
