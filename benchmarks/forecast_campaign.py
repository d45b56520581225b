"""What forecasts learn from: every pair of the bundled models, those that should fail included, and others where given.

`python benchmarks/forecast_campaign.py measure rows.jsonl` measures recovery, and what is known of each transfer before
its target is steered, for six behaviors and three maps a pair; it goes on where it was stopped, and takes about half
an hour on one core. `--reviews FOLDER` adds a pair of models that lie in `FOLDER/small` and `FOLDER/large`, with
their `documents.jsonl`, `contrast-NAME.jsonl` and `behavior-NAME.json`.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from storyworld_transfer import load
from torch import Tensor
from torch.nn.functional import normalize

import lrt_tl as lrt
from lrt_tl import storyworld
from lrt_tl.alignment.accumulation import HarvestedMoments
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.fit import prepare, solve
from lrt_tl.alignment.moments import Moments, fit_pairs
from lrt_tl.evaluation.behavior import Behavior, read_behavior
from lrt_tl.evaluation.comparability import comparability, held_out_batches
from lrt_tl.evaluation.controls import random_directions
from lrt_tl.evaluation.effects import dose_response, slopes
from lrt_tl.evaluation.forecast import features_of, measure_map
from lrt_tl.evaluation.recovery import Recovery, recovery
from lrt_tl.steering.contrast import ContrastPair
from lrt_tl.text.documents import N_SPLITS

SOURCES = ("small", "medium", "large", "large-b", "large-alt", "medium-early", "medium-foreign", "untrained")
TARGETS = ("small", "medium", "large", "large-b", "large-alt")
SHUFFLED = {"small": "medium", "medium": "small", "large": "medium", "large-b": "small", "large-alt": "medium"}
"""For each target, the source from which a map is fitted on shuffled pairs of states."""
SETTINGS = {
    "whitened, all layers": ("whitened", True),
    "ridge, all layers": ("ridge", True),
    "ridge, one layer": ("ridge", False),
}
"""The method, and whether it maps from all source layers, or from the middle one; always to the target's middle one."""
BEHAVIORS = ("mood", "register", "language", "refusal", "tense", "narrator")
COEFFICIENTS = {"storyworld": (-1.0, -0.5, 0.0, 0.5, 1.0), "reviews": (-8.0, -4.0, 0.0, 4.0, 8.0)}
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
    return Family("reviews", list(lrt.read_documents(folder / "documents.jsonl"))[:400], tasks, "mean", folder)


def moments_of(family: Family, source: Any, target: Any, layer: int, *, shuffled: bool) -> HarvestedMoments:
    """The moments of all source layers and the target's; on request with the target's positions shuffled."""
    harvest, sources, targets = prepare(
        source, target, family.documents, layers=("all", layer), exclude=family.texts, batch_size=32
    )
    calibration, counts, keys = harvest.calibrate(), HarvestCounts(), harvest.keys
    moments = Moments.empty(N_SPLITS, calibration.means, fit_pairs(*keys, stacked=True))
    generator = torch.Generator().manual_seed(0)
    for batch in harvest.run(calibration, counts):
        order = torch.randperm(len(batch.splits), generator=generator)
        moved = {key: batch.states[key][order] for key in keys[1]} if shuffled else {}
        moments.update({**batch.states, **moved}, batch.splits)
    return HarvestedMoments(tuple(sources), tuple(targets), moments, counts)


def maps_of(moments: HarvestedMoments, settings: Sequence[str]) -> Iterator[tuple[str, lrt.AffineMap]]:
    """The map of each setting, all from the same moments."""
    (target,) = moments.targets
    for name in settings:
        method, all_layers = SETTINGS[name]
        sources = moments.sources if all_layers else moments.sources[len(moments.sources) // 2 :][:1]
        fitted = solve(moments.parts(sources, target), sources, target, moments.counts, method=method)  # type: ignore[arg-type]
        yield name, fitted


def transfers(
    family: Family, source_name: str, effects: Effects, settings: Sequence[str] = tuple(SETTINGS), *, shuffled: bool
) -> Iterator[dict[str, Any]]:
    """Every behavior through every map of a pair: what was known beforehand, and the recovery."""
    source, target = family.load(source_name), effects.model
    moments = moments_of(family, source, target, effects.layer, shuffled=shuffled)
    at = [site.hook_name for site in moments.sources]
    vectors = [lrt.mean_difference(source, t.pairs, hook_name=at, position=family.position) for t in family.tasks]
    batches = held_out_batches(source, target, family.documents)
    compared = comparability(source, target, batches)
    for setting, affine_map in maps_of(moments, settings):
        measured = measure_map(source, target, affine_map, batches, compared)
        mapped = {site.hook_name for site in affine_map.sources}
        for number, (task, found) in enumerate(zip(family.tasks, vectors, strict=True)):
            chosen = [vector for vector in found if vector.site.hook_name in mapped]
            features = features_of(measured, source, target, chosen)
            outcome = effects.recovery(number, affine_map.transport(chosen))
            yield {
                "family": family.name,
                "source": source_name,
                "target": target.cfg.model_name.removeprefix("storyworld-"),
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
    families = [] if reviews is None else [(reviews_family(reviews), ("small", "large"), ("large", "small"))]
    families.append((storyworld_family(), SOURCES, TARGETS))
    for family, sources, targets in families:
        for target_name in targets:
            pairs = [(name, False) for name in sources if name != target_name]
            pairs += [(SHUFFLED[target_name], True)]
            missing = [pair for pair in pairs if (family.name, pair[0], target_name, pair[1]) not in done]
            if not missing:
                continue
            target = family.load(target_name)
            effects = Effects(family, target, target.cfg.n_layers // 2)
            for source_name, shuffled in missing:
                started = time.perf_counter()
                found = list(transfers(family, source_name, effects, shuffled=shuffled))
                with rows.open("a") as file:
                    file.writelines(json.dumps({**row, "target": target_name}) + "\n" for row in found)
                seconds = time.perf_counter() - started
                print(f"{source_name}{' shuffled' * shuffled} → {target_name}: {seconds:.0f} s", flush=True)


def read_rows(rows: Path) -> list[dict[str, Any]]:
    """The transfers measured so far."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    measuring = steps.add_parser("measure")
    measuring.add_argument("rows", type=Path)
    measuring.add_argument("--reviews", type=Path)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning, module="lrt_tl")
    measure(given.rows, given.reviews)


if __name__ == "__main__":
    main()
