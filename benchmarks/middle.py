"""Do distances of output distributions foretell what vectors recover that are carried between middle layers? The theory
of `one_distribution.py` is silent about it: see.

`python benchmarks/middle.py measure` measures the distances of every pair of storyworld models whose transfers are
known from `forecast_campaign.py`, and, into `large` from copies of it that were moved away, both distances and
recovery; it goes on where it was stopped, and takes about a quarter of an hour on one core. `learn` then writes what
distances are worth, which forecasts show.
"""

import argparse
import json
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from copies import copies, load_copy
from forecast_campaign import LEARNT, Effects, Family, storyworld_family, transfers
from one_distribution import EPSILON, N_CONTEXTS, N_DOCUMENTS, SEED
from storyworld_transfer import load
from torch import Tensor

import lrt_tl as lrt
from lrt_tl import storyworld
from lrt_tl.evaluation.forecasting import FEATURES, Line, clipped, geometric_mean, rank_correlation
from lrt_tl.evaluation.intervals import percentiles, resamples
from lrt_tl.evaluation.middle import FORMAT_VERSION, rank_correlation_over_pairs
from lrt_tl.identifiability.all_or_none import all_or_none
from lrt_tl.identifiability.distribution import distances as distances_between
from lrt_tl.identifiability.reading import read_predictors
from lrt_tl.tables import print_columns

RESULTS = Path(__file__).parent / "results"
ROWS, FOUND = RESULTS / "middle_rows.jsonl", RESULTS / "middle.json"
WORTH = Path(lrt.__file__).parent / "evaluation" / "middle.json"
COMMAND = "python benchmarks/middle.py measure && python benchmarks/middle.py learn"
SIMILARITY: dict[str, Callable[[float], float]] = {
    **dict.fromkeys(("context_r2", "context_r2_back", "context_worst_r2"), lambda value: value),
    **dict.fromkeys(("token_r2", "token_r2_back", "token_worst_r2"), lambda value: value),
    **dict.fromkeys(("kl", "reverse_kl", "logit_distance", "duality_residual"), lambda value: 1 / (1 + value)),
    "js": lambda value: 1 - value / math.log(2),
    "total_variation": lambda value: 1 - value,
}
"""Each distance as something that is 1 between equals, as what forecasts are learnt from is."""


@dataclass(frozen=True, eq=False)
class WithCopies(Family):
    """The bundled models, and copies of one."""

    def load(self, name: str) -> Any:
        """One of them."""
        return load_copy(name) if name in copies() else load(name, "bridge")


def measure() -> None:
    """Append a line for each pair that the file does not hold yet."""
    done = {(row["source"], row["target"]) for row in read_rows()}
    family = WithCopies(**vars(storyworld_family()))
    of_campaign = dict.fromkeys((row["source"], row["target"]) for row in of_trained())
    large, effects = family.load("large"), None
    for source, target in [*of_campaign, *((name, "large") for name in copies())]:
        if (source, target) in done:
            continue
        started = time.perf_counter()
        row = {"source": source, "target": target, "distances": distances(family.load(source), family.load(target))}
        if source in copies():
            effects = effects or Effects(family, large, large.cfg.n_layers // 2)
            row["transfers"] = [
                {key: each[key] for key in ("setting", "behavior", "features")}
                | {"recovery": each["recovery"]["estimate"]}
                for each in transfers(family, source, effects, [False])
            ]
        with ROWS.open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        print(f"{source} → {target}: {time.perf_counter() - started:.0f} s", flush=True)


def distances(source: Any, target: Any) -> dict[str, float]:
    """Of source and target, in this order. Two tokenizers have too few tokens in common for linear fits of as many
    dimensions as the large models have: then those of the distributions alone."""
    documents = storyworld.documents(N_DOCUMENTS, seed=SEED)
    both = read_predictors(source, target, documents, n_contexts=N_CONTEXTS)
    if len(both[0].g) < 4 * max(each.d_model for each in both):
        apart = distances_between(*both)
        found = {name: apart.mean(name) for name in ("kl", "reverse_kl", "js", "total_variation", "logit_distance")}
    else:
        found = all_or_none(*both, {}, epsilon=EPSILON).distance_features()
    return {name: float(f"{value:.4g}") for name, value in found.items()}


@dataclass(frozen=True)
class Transfer:
    """One whose outcome is known."""

    source: str
    target: str
    shuffled: bool
    features: dict[str, float | None]
    """The forecast's, and the distances."""
    recovery: float

    @property
    def pair(self) -> str:
        """Its models, in either direction."""
        return " and ".join(sorted((self.source, self.target)))

    @property
    def copied(self) -> bool:
        """Whether one is a copy of the other."""
        return self.source in copies()


def of_trained() -> Iterator[dict[str, Any]]:
    """The transfers between bundled models, with features by name."""
    held = json.loads(LEARNT.read_text(encoding="utf-8"))
    for row in held["transfers"]:
        if row["pair"].startswith("storyworld: "):
            yield {**row, "features": dict(zip(held["features"], row["features"], strict=True))}


def read_rows() -> list[dict[str, Any]]:
    """What was measured so far."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def known() -> list[Transfer]:
    """All transfers, between models that were trained apart and from copies."""
    rows = read_rows()
    apart = {(row["source"], row["target"]): row["distances"] for row in rows}
    found = [{**row, "of": (row["source"], row["target"])} for row in of_trained()]
    found += [
        {**each, "of": (row["source"], row["target"]), "shuffled": False}
        for row in rows
        for each in row.get("transfers", ())
        if each["recovery"] is not None
    ]
    return [
        Transfer(*each["of"], each["shuffled"], each["features"] | apart[each["of"]], each["recovery"])
        for each in found
    ]


def worth(found: Sequence[Transfer]) -> dict[str, dict[str, Any]]:
    """Of each feature that varies: its rank correlation with recovery, transfer by transfer, from the means of each
    source and target, and how far it changes where any one model is left out."""
    said = {}
    for name in dict.fromkeys(name for each in found for name in each.features):
        here = [each for each in found if each.features.get(name) is not None]
        if len({each.features[name] for each in here}) < 2:
            continue
        models = sorted({model for each in here for model in (each.source, each.target)} - {"large"})
        without = [correlation([e for e in here if model not in (e.source, e.target)], name) for model in models]
        said[name] = {
            **asdict(rank_correlation_over_pairs(*table(here, name), [each.pair for each in here])),
            "of_means": rank_correlation(*table(means(here, name), name)),
            "least_and_most_without_a_model": [min(without), max(without)],
        }
    return said


def table(found: Sequence[Transfer], name: str) -> Tensor:
    """A feature and the recovery, a row each."""
    return torch.tensor([(each.features[name], each.recovery) for each in found], dtype=torch.float64).T


def correlation(found: Sequence[Transfer], name: str) -> float:
    """Of a feature and the recovery."""
    return rank_correlation(*table(found, name))


def means(found: Sequence[Transfer], name: str) -> list[Transfer]:
    """One for each source and target: the means of its transfers."""
    groups = defaultdict(list)
    for each in found:
        groups[each.source, each.target].append(each)
    return [
        Transfer(*ends, False, {name: float(table(group, name)[0].mean())}, float(table(group, name)[1].mean()))
        for ends, group in groups.items()
    ]


def help_to_forecasts(found: Sequence[Transfer]) -> dict[str, Any]:
    """The error of forecasts of pairs that are left out in turn, as they are learnt, and with one distance more: within
    the geometric mean, or as a second term. The interval of what is gained is over pairs."""
    x = torch.stack([filled(each.features.get(name) for each in found) for name in FEATURES], 1)
    y, pairs = clipped([each.recovery for each in found]), [each.pair for each in found]

    def error(fit: Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]], columns: Tensor) -> Tensor:
        predicted = torch.empty_like(y)
        for pair in set(pairs):
            out = torch.tensor([each == pair for each in pairs])
            predicted[out] = fit(columns[~out], y[~out])(columns[out])
        return (predicted - y).abs()

    as_learnt = error(Line.fit, x)
    said: dict[str, Any] = {"error_as_learnt": float(as_learnt.mean()), "with": {}}
    for name, similarity in SIMILARITY.items():
        known = [each.features.get(name) for each in found]
        column = filled(None if value is None else similarity(value) for value in known)
        more = torch.cat([x, column[:, None]], 1)
        for form, fit in (("in the mean", Line.fit), ("as a second term", second_term)):
            errors = error(fit, more)
            said["with"][f"{name}, {form}"] = {
                "error": float(errors.mean()),
                "lowered_by": over_pairs(as_learnt - errors, pairs),
            }
    best = min(said["with"], key=lambda name: said["with"][name]["error"])
    return said | {"best": best, "helps": said["with"][best]["lowered_by"][1] > 0}


def filled(values: Iterable[float | None]) -> Tensor:
    """What is not known is taken to be what it is on average."""
    column = torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)
    return torch.where(column.isnan(), column.nanmean(), column)


def second_term(columns: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Least squares on a constant, the geometric mean of all columns but the last, and the last."""

    def terms(of: Tensor) -> Tensor:
        mean = geometric_mean(of[:, :-1], of.new_ones(of.shape[1] - 1))
        return torch.stack([torch.ones_like(mean), mean, of[:, -1]], 1)

    weights = torch.linalg.lstsq(terms(columns), y[:, None], driver="gelsd").solution
    return lambda of: (terms(of) @ weights)[:, 0]


def over_pairs(values: Tensor, pairs: Sequence[str]) -> list[float]:
    """The mean over transfers, and its 95 % interval by a bootstrap over pairs."""
    names = sorted(set(pairs))
    of = torch.tensor([names.index(pair) for pair in pairs])
    sums, counts = (
        torch.zeros(len(names), dtype=torch.float64).index_add_(0, of, each)
        for each in (values, torch.ones_like(values))
    )
    weights = resamples(len(names))
    return [float(values.mean()), *percentiles((weights @ sums) / (weights @ counts)).tolist()]


def learn() -> None:
    """Write and show what distances are worth."""
    found = known()
    as_carried = [each for each in found if not each.shuffled]
    groups = {
        "all": as_carried,
        "trained apart": [each for each in as_carried if not each.copied],
        "copies": [each for each in as_carried if each.copied],
    }
    said = {name: worth(group) for name, group in groups.items()}
    helped = {
        "all": help_to_forecasts(found),
        "trained apart": help_to_forecasts([each for each in found if not each.copied]),
    }
    for name, features in said.items():
        ordered = sorted(features.items(), key=lambda each: -abs(each[1]["estimate"]))
        print_columns(f"Rank correlation with recovery: {name}", [shown(*each) for each in ordered])
    for name, each in helped.items():
        best = each["with"][each["best"]]
        print(f"{name}: error as learnt {each['error_as_learnt']:.4f}; {each['best']}: {best['error']:.4f}, "
              f"lowered by {best['lowered_by']}")  # fmt: skip
    result = {"command": COMMAND, "rank_correlation": said, "forecasts": helped}
    FOUND.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    keys = ("estimate", "low", "high", "n_pairs", "n_transfers")
    kept = {
        group.replace(" ", "_"): {name: {key: each[key] for key in keys} for name, each in said[group].items()}
        for group in ("all", "trained apart")
    }
    WORTH.write_text(json.dumps({"format_version": FORMAT_VERSION, "command": COMMAND, **kept}, indent=1) + "\n")
    print(json.dumps({"benchmark": "middle", **result}))


def shown(name: str, of: dict[str, Any]) -> dict[str, str]:
    """A row for people."""
    return {
        "feature": name + (" (distance)" if name in SIMILARITY else ""),
        "rank correlation": "{estimate:.2f} [{low:.2f}, {high:.2f}]".format(**of),
        "of means": f"{of['of_means']:.2f}",
        "without any one model": "{:.2f} to {:.2f}".format(*of["least_and_most_without_a_model"]),
        "pairs, transfers": "{n_pairs}, {n_transfers}".format(**of),
    }


def main() -> None:
    """Measure, or learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("measure", "learn"))
    warnings.filterwarnings("ignore", category=UserWarning, module="lrt_tl")
    {"measure": measure, "learn": learn}[parser.parse_args().step]()


if __name__ == "__main__":
    main()
