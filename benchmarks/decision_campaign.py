"""Are the rules of `decide` right? On storyworld, "go" should be said of transfers that are good by construction, and
of none that is null by construction.

`python benchmarks/decision_campaign.py --out benchmarks/results/decision.json` carries vectors of six behaviors to two
layers of two targets, from all layers of a source, and judges each:

- good: the target's own vector (identity); the vector of a twin, which has the same distribution by another residual
  stream; that of the other large model, and of medium;
- null: vectors through maps of row-shuffled pairs; from medium-foreign, in which every word means what another one
  means; and another behavior's vector, carried over for this one;
- open: from small. They are counted, and nothing is asked of them.

The thresholds were chosen on the first target; the second, with other prompts, contrast pairs and random vectors, is
what the rules are judged on. All vectors of a target's layer are measured together, with 64 random ones and 64 of
shuffled maps. The cost at equal effect is KL over the native vector's KL, over the squared ratio of the slopes.

Prints a table for people, and last one line of JSON. It takes about half an hour on one core; what was measured is kept
in `--work`, and not measured again.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lrt_tl as lrt
from lrt_tl import storyworld
from lrt_tl.alignment.fit import solve
from lrt_tl.alignment.selection import Method
from lrt_tl.demo import N_PAIRS
from lrt_tl.evaluation.controls import N_DRAWS, random_directions, shuffled_map_directions
from lrt_tl.evaluation.decide import judge, lower_bound, share_above
from lrt_tl.evaluation.effects import dose_response, slopes
from lrt_tl.evaluation.matched_kl import kl_of_steering
from lrt_tl.evaluation.recovery import recovery, recovery_over_baseline
from lrt_tl.models.capture import capture
from lrt_tl.models.identity import Site
from lrt_tl.models.loading import load_model
from lrt_tl.models.reinitialized import reinitialized
from lrt_tl.steering.calibration import neutral_batch
from lrt_tl.tables import print_columns
from lrt_tl.text.batches import pad, tokenize

SEEDS = {"large": 0, "large-b": 1}
"""The targets: the first for the thresholds, the second to judge them by; and the seed of prompts, pairs and draws."""
LAYERS = (3, 5)
BEHAVIORS = ("mood", "register", "language", "refusal", "tense", "narrator")
TWINS = {"twin, as wide": 192, "twin, wider": 288}
COEFFICIENTS = (-1.0, 0.0, 1.0)
N_PROMPTS, N_DOCUMENTS, N_SHUFFLED, N_NEUTRAL = 24, 800, 2, 16
_SHUFFLED_DOCUMENTS = 400

Vectors = Mapping[str, Tensor]
"""By behavior, a direction [d_model]."""


@dataclass(frozen=True)
class Way:
    """How vectors of all behaviors came to the target.

    Attributes:
        kind: good, null or open.
        vectors: as they were carried.
        random: the same from the source's architecture with random weights, and which that is.
        source: the model in which the vector's own effect is measured; the target itself where that is "".
        tokens: of the map's text, per source dimension.
        others: whether another behavior's vector that came so is a null, too.
    """

    name: str
    kind: str
    vectors: Vectors
    random: tuple[str, Vectors]
    source: str
    tokens: float
    others: bool = False


@cache
def model(name: str) -> Any:
    """A bundled model; "random-medium" is medium with random weights."""
    return reinitialized(model(name[7:])) if name.startswith("random-") else load_model(f"storyworld-{name}")


@cache
def own_vectors(name: str, seed: int) -> dict[str, list[lrt.SteeringVector]]:
    """By behavior, the model's own vector of every layer."""
    return {task: _extracted(model(name), task, seed) for task in BEHAVIORS}


def _extracted(of: Any, task: str, seed: int) -> list[lrt.SteeringVector]:
    pairs = storyworld.contrast_pairs(task, N_PAIRS, seed=seed)
    return lrt.mean_difference(of, pairs, layer=range(of.cfg.n_layers), position="last")


@cache
def documents() -> list[str]:
    """What maps are fitted on."""
    return storyworld.documents(N_DOCUMENTS)


def carried(
    moments: lrt.HarvestedMoments,
    vectors: Mapping[str, list[lrt.SteeringVector]],
    at: int,
    method: Method = "whitened",
    sources: Sequence[Site] = (),
) -> tuple[dict[str, Tensor], lrt.AffineMap]:
    """The vectors of all sources of the moments, or of some, at the target of that number."""
    sources, target = sources or moments.sources, moments.targets[at]
    affine_map = solve(moments.parts(sources, target), sources, target, moments.counts, method=method)
    hooks = {site.hook_name for site in sources}
    chosen = {task: [each for each in some if each.site.hook_name in hooks] for task, some in vectors.items()}
    return {task: affine_map.transport(some).direction for task, some in chosen.items()}, affine_map


def harvested(source: Any, target_name: str, layers: Any = "all") -> lrt.HarvestedMoments:
    return lrt.harvest_moments(source, model(target_name), documents(), layers=(layers, LAYERS), batch_size=64)


def shuffled(source_name: str, target_name: str, seed: int) -> list[list[dict[str, Tensor]]]:
    """Vectors through maps that were fitted on row-shuffled pairs, of each layer and each shuffle."""
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in range(8)]
    source, target = model(source_name), model(target_name)
    x, ids = _states(source, hooks[: source.cfg.n_layers])
    found = []
    for layer in LAYERS:
        y, _ = _states(target, [hooks[layer]])
        found.append([])
        for number in range(N_SHUFFLED):
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1000 * seed + number))
            affine_map = lrt.fit_activations(x, y[order], ids)
            whole = {
                task: torch.cat([each.direction for each in some])
                for task, some in own_vectors(source_name, seed).items()
            }
            found[-1].append({task: affine_map.transport(vector) for task, vector in whole.items()})
    return found


def _states(of: Any, hooks: Sequence[str]) -> tuple[Tensor, list[int]]:
    """[position d]: of all hooks side by side; and the document of each position."""
    rows = tokenize(of.tokenizer, documents()[:_SHUFFLED_DOCUMENTS])
    states, ids = [], []
    for start in range(0, len(rows), 32):
        tokens, mask, content = pad(of.tokenizer, rows[start : start + 32])
        seen = capture(of, tokens, mask, list(hooks))
        states.append(torch.cat([seen[hook][content] for hook in hooks], -1))
        ids += (start + content.nonzero()[:, 0]).tolist()
    return torch.cat(states), ids


def ways(target_name: str, seed: int, sources: Iterable[str] | None = None) -> list[list[Way]]:
    """All ways to each layer of a target; only those from some sources, where they are named."""
    other = {"large": "large-b", "large-b": "large"}[target_name]
    asked = ("", other, "medium", "medium-foreign", "small") if sources is None else tuple(sources)
    architecture = {other: "large", "": "large", "medium-foreign": "medium"}
    random = {name: architecture.get(name, name) for name in asked}
    nothing = {name: _from_random(name, target_name, seed) for name in sorted(set(random.values()))}
    found: list[list[Way]] = [[] for _ in LAYERS]
    for name in asked:
        without = nothing[random[name]]
        if name == "":
            _add_own(found, target_name, seed, without)
            continue
        moments, own = harvested(model(name), target_name), own_vectors(name, seed)
        kind = {other: "good", "medium": "good", "medium-foreign": "null"}.get(name, "open")
        methods: tuple[Method, ...] = ("whitened", "ridge") if name == "medium-foreign" else ("whitened",)
        mixed = shuffled(name, target_name, seed) if name in ("small", "medium") else [[] for _ in LAYERS]
        for at, some in enumerate(found):
            for method in methods:
                vectors, affine_map = carried(moments, own, at, method)
                tokens = affine_map.report.tokens_per_dimension
                wrong = name in ("small", "medium", other)
                some.append(Way(f"{name}, {method}", kind, vectors, without[at], name, tokens, wrong))
            for number, through in enumerate(mixed[at]):
                some.append(Way(f"{name}, shuffled pairs {number}", "null", through, without[at], name, tokens))
    return found


def _from_random(name: str, target_name: str, seed: int) -> list[tuple[str, dict[str, Tensor]]]:
    source = f"random-{name}"
    moments = harvested(model(source), target_name)
    return [(source, carried(moments, own_vectors(source, seed), at)[0]) for at in range(len(LAYERS))]


def _add_own(found: list[list[Way]], target_name: str, seed: int, random: Sequence[tuple[str, Vectors]]) -> None:
    """The target's own vectors, and those of its twins."""
    own = own_vectors(target_name, seed)
    for at, layer in enumerate(LAYERS):
        natives = {task: vectors[layer].direction for task, vectors in own.items()}
        found[at].append(Way("identity", "good", natives, random[at], "", 1000.0))
    for name, width in TWINS.items():
        twin = storyworld.widen(model(target_name), width, seed=seed + width)
        vectors = {task: _extracted(twin, task, seed) for task in BEHAVIORS}
        moments = harvested(twin, target_name, LAYERS)
        for at in range(len(LAYERS)):
            directions, affine_map = carried(moments, vectors, at, sources=moments.sources[at : at + 1])
            tokens = affine_map.report.tokens_per_dimension
            found[at].append(Way(name, "good", directions, random[at], "", tokens))


def cell(target_name: str, layer: int, behavior_name: str, some: Sequence[Way]) -> list[dict[str, Any]]:
    """All candidates at one layer, for one behavior: the figures that `decide` judges."""
    target, seed, hook_name = model(target_name), SEEDS[target_name], f"blocks.{layer}.hook_resid_post"
    behavior = storyworld.behavior(behavior_name, N_PROMPTS, seed=seed)
    native = own_vectors(target_name, seed)[behavior_name][layer]
    arms: dict[str, Tensor] = {"native": native.direction[None]}
    for way in some:
        arms |= {f"{way.name}/carried": torch.stack(list(way.vectors.values()))}
        arms |= {way.random[0]: torch.stack(list(way.random[1].values()))}
    arms["random"] = random_directions(N_DRAWS, target.cfg.d_model, seed=seed)
    arms["shuffled_map"] = shuffled_map_directions(_covariance(target_name, layer), N_DRAWS, seed=seed + 1)
    arms = {name: native.norm * rows / rows.norm(dim=1, keepdim=True) for name, rows in arms.items()}
    measured = slopes(
        dose_response(target, hook_name, torch.cat(list(arms.values())), behavior, COEFFICIENTS), COEFFICIENTS
    )
    by_arm = dict(zip(arms, torch.split(measured, [len(rows) for rows in arms.values()]), strict=True))
    disturbed = _disturbance(target, hook_name, arms, seed)
    mean = _mean_state(target_name, layer)
    draws = {name: by_arm[name].mean(1) for name in ("random", "shuffled_map")}
    own = by_arm["native"][0]
    found = []
    for way in some:
        for number, vector_of in enumerate(way.vectors):
            is_wrong = vector_of != behavior_name
            if is_wrong and not way.others:
                continue
            slope = by_arm[f"{way.name}/carried"][number]
            unrelated = [
                float(each.mean())
                for task, each in zip(way.vectors, by_arm[f"{way.name}/carried"], strict=True)
                if task not in (behavior_name, vector_of)
            ]
            whole = recovery(own, slope, by_arm["random"], seed=seed)
            beyond = recovery_over_baseline(own, slope, by_arm[way.random[0]][[number]], seed=seed)
            ratio = float(slope.mean() / own.mean())
            kl = float(disturbed[way.name][number] / disturbed["native"][0])
            direction = way.vectors[vector_of]
            figures = {
                "above random vectors": share_above(slope.mean(), draws["random"]),
                "above shuffled maps": share_above(slope.mean(), draws["shuffled_map"]),
                "recovery": whole.low,
                "beyond random weights": beyond.low,
                "above unrelated vectors": float((slope.mean() - max(unrelated)) / own.mean()),
                "effect in the source": source_effect(way.source or target_name, vector_of, behavior_name, seed),
                "anti-steerable prompts": float((slope < 0).double().mean()),
                "cost": kl / ratio**2 if ratio > 0 else None,
                "mean activation": abs(float(torch.cosine_similarity(direction, mean, dim=0))),
                "text for the map": way.tokens,
            }
            found.append(
                {
                    "target": target_name,
                    "layer": layer,
                    "behavior": behavior_name,
                    "kind": "null" if is_wrong else way.kind,
                    "way": way.name,
                    "vector": vector_of,
                    "estimate": _rounded(whole.estimate),
                    "reason": whole.reason,
                    "native": _rounded(share_above(own.mean(), draws["random"])),
                    "figures": {name: _rounded(figure) for name, figure in figures.items()},
                }
            )
    return found


def _disturbance(target: Any, hook_name: str, arms: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """KL on neutral text of the native vector and those that were carried over, at ± their length."""
    batch = neutral_batch(target, storyworld.documents(N_NEUTRAL, seed=77 + seed))
    names = ["native", *(name for name in arms if name.endswith("/carried"))]
    chosen = {name.removesuffix("/carried"): arms[name] for name in names}
    whole = torch.cat(list(chosen.values()))
    both = kl_of_steering(target, hook_name, torch.cat([whole, -whole]), *batch).reshape(2, -1).mean(0)
    return dict(zip(chosen, torch.split(both, [len(rows) for rows in chosen.values()]), strict=True))


@cache
def _covariance(target_name: str, layer: int) -> lrt.AffineMap:
    """Any map to that layer, for the covariance of the target's states there: from the target itself."""
    target = model(target_name)
    with_few = documents()[:_SHUFFLED_DOCUMENTS]
    return lrt.fit_affine_map(target, target, with_few, layers=(layer, layer), batch_size=64, method="ridge")


@cache
def _mean_state(target_name: str, layer: int) -> Tensor:
    texts = documents()[:N_NEUTRAL]
    return lrt.mean_activation(model(target_name), texts, layer=layer).direction


@cache
def source_effect(name: str, vector_of: str, behavior_name: str, seed: int) -> float | None:
    """Lower bound of the slope of a model's own vector, of its last layer, in that model."""
    vector = own_vectors(name, seed)[vector_of][-1]
    behavior = storyworld.behavior(behavior_name, N_PROMPTS, seed=seed)
    scores = dose_response(model(name), vector.site.hook_name, vector.direction[None], behavior, COEFFICIENTS)
    return lower_bound(slopes(scores, COEFFICIENTS)[0])


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else float(f"{figure:.4g}")


def judged(row: Mapping[str, Any]) -> str:
    """The verdict on a row, by the rules as they are now."""
    return judge(row["behavior"], row["figures"], native=row["native"], reason=row["reason"]).verdict


def counts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By target, kind and way: how many transfers could be judged, and of how many of them each verdict was said."""
    found = []
    for target in SEEDS:
        for kind in ("good", "null", "open"):
            of = [row for row in rows if (row["target"], row["kind"]) == (target, kind)]
            groups = {"all": of}
            for row in of:
                is_wrong = row["vector"] != row["behavior"]
                way = f"{row['way'].split(',')[0]}, another's vector" if is_wrong else row["way"]
                groups.setdefault(way, []).append(row)
            for way, some in groups.items():
                verdicts = [judged(row) for row in some if row["reason"] is None]
                by_verdict = {name: verdicts.count(name) for name in ("go", "caution", "no-go")}
                figures = {"target": target, "kind": kind, "way": way, "not judged": len(some) - len(verdicts)}
                found.append({**figures, "judged": len(verdicts), **by_verdict})
    return found


def measured(target_name: str, work: Path) -> list[dict[str, Any]]:
    """All rows of a target; what is in the folder is not measured again."""
    places = {
        (at, name): work / f"{target_name}-{layer}-{name}.json" for at, layer in enumerate(LAYERS) for name in BEHAVIORS
    }
    missing = [place for place, file in places.items() if not file.is_file()]
    some = ways(target_name, SEEDS[target_name]) if missing else []
    for at, name in missing:
        places[at, name].write_text(json.dumps(cell(target_name, LAYERS[at], name, some[at])), encoding="utf-8")
        print(target_name, LAYERS[at], name, flush=True)
    return [row for file in places.values() for row in json.loads(file.read_text(encoding="utf-8"))]


def main() -> None:
    """Measure what has not been measured, judge, and write it all down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to write the results, as JSON")
    parser.add_argument("--work", type=Path, default=Path("decision_work"), help="where measurements are kept")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = [row for target_name in SEEDS for row in measured(target_name, given.work)]
    table = counts(rows)
    print_columns("What was said of them", [{key: str(value) for key, value in line.items()} for line in table])
    result = {
        "benchmark": "decision_campaign",
        "command": "python benchmarks/decision_campaign.py --out benchmarks/results/decision.json",
        "seeds": SEEDS,
        "counts": table,
        "rows": rows,
    }
    if given.out:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(row) for row in rows)
        head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1)
        given.out.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n]\n}}\n', encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}))


if __name__ == "__main__":
    main()
