"""How many contexts decide whether two distributions are equal to ε.

`python benchmarks/equality_power.py` makes predictors whose logits differ by noise of a known size, so that their mean
KL is a known share of ε, and draws n contexts, each of a document of its own, 200 times: how often does `equality` find
them equal? How many `documents_needed` says would do four times in five, from a pilot of 200, stands beside it. Then
what black boxes allow. From samples alone: how often does the permutation test notice a KL, from n prompts with ten
one-token samples each? From the k largest log-probabilities alone: between what bounds does the mean Jensen–Shannon
divergence lie, and how often does `equality_of_bounds` find it under ε? Prints tables for people, and last one line of
JSON; `--out FOLDER` also saves this there, as `equality_power.json`. It takes a few minutes on one core.
"""

import argparse
import json
from pathlib import Path

import torch

from lrt_tl.identifiability.distribution import Distances, distances_of_logits
from lrt_tl.identifiability.equality import documents_needed, equality
from lrt_tl.identifiability.samples import compare_samples
from lrt_tl.identifiability.top_log_probabilities import DistanceBounds, distance_bounds, equality_of_bounds
from lrt_tl.tables import print_columns

N_CONTEXTS, N_TOKENS, N_TRIALS = 4000, 500, 200
EPSILON = 0.01
SHARES, SIZES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0), (10, 30, 100, 300, 1000)
KLS, PROMPTS, N_SAMPLES = (0.0, 0.03, 0.1, 0.3, 1.0), (5, 20, 80), 10
LISTED, SHARPNESS, N_LISTED = (5, 20, 100, 300), {"some sure, some not": (1, 6), "all sure": (6, 12)}, 300


def pair(kl: float, sharpness: tuple[float, float] = (1, 6), *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of contexts, some sure and some not, and the same with noise that differs from context to context, scaled
    until the mean KL is `kl` (to second order, KL is half the variance)."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(N_CONTEXTS, N_TOKENS, generator=generator, dtype=torch.float64)
    p *= torch.empty(N_CONTEXTS, 1).uniform_(*sharpness, generator=generator).double()
    noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    noise *= (0.7 * torch.randn(N_CONTEXTS, 1, generator=generator, dtype=torch.float64)).exp()
    scale = 0.1
    for _ in range(8 if kl else 0):
        scale *= (kl / distances_of_logits(p, p + scale * noise).mean("kl")) ** 0.5
    return p, p + (scale if kl else 0.0) * noise


def some_of(found: Distances, n: int, seed: int) -> Distances:
    """At n contexts drawn at random."""
    chosen = torch.randperm(N_CONTEXTS, generator=torch.Generator().manual_seed(seed))[:n]
    return Distances(**{name: values[chosen] for name, values in vars(found).items()})


def power_of_equality(share: float) -> dict[str, float | int | None]:
    """How often equality to ε is found where the mean KL is this share of it, by the number of contexts."""
    found = distances_of_logits(*pair(share * EPSILON))
    row: dict[str, float | int | None] = {
        str(n): sum(equality(some_of(found, n, t), EPSILON, n_bootstrap=300).equal for t in range(N_TRIALS)) / N_TRIALS
        for n in SIZES
    }
    return row | {"needed": documents_needed(some_of(found, 200, 0), EPSILON)}


def power_of_samples(kl: float) -> dict[str, float]:
    """How often the permutation test rejects at .05, by the number of prompts."""
    p, q = (each.softmax(1) for each in pair(kl))
    found = {}
    for n in PROMPTS:
        rejected = 0
        for trial in range(N_TRIALS):
            generator = torch.Generator().manual_seed(trial)
            chosen = torch.randperm(N_CONTEXTS, generator=generator)[:n]
            drawn = [torch.multinomial(x[chosen], N_SAMPLES, True, generator=generator)[..., None] for x in (p, q)]
            rejected += compare_samples(*drawn, n_permutations=99, seed=trial).p_value <= 0.05
        found[str(n)] = rejected / N_TRIALS
    return found


def power_of_lists(kl: float, sharpness: tuple[float, float]) -> dict[str, dict[str, float]]:
    """What the k largest log-probabilities say of the mean Jensen–Shannon divergence, by k."""
    p, q = pair(kl, sharpness)
    truth, found = distances_of_logits(p, q).mean("js"), {}
    logs = [each.log_softmax(1) for each in (p, q)]
    for k in LISTED:
        lists = [each.topk(k, dim=1) for each in logs]
        bounds = distance_bounds(*(part for each in lists for part in (each.indices, each.values)))
        low, high = bounds.mean("js")
        equal = sum(
            equality_of_bounds(contexts_of(bounds, N_LISTED, t), EPSILON, n_bootstrap=300).equal
            for t in range(N_TRIALS)
        )
        left_out = 1 - float(bounds.coverage_p.mean())
        found[str(k)] = {"left_out": left_out, "js": truth, "low": low, "high": high, "equal": equal / N_TRIALS}
    return found


def contexts_of(found: DistanceBounds, n: int, seed: int) -> DistanceBounds:
    """At n contexts drawn at random."""
    chosen = torch.randperm(N_CONTEXTS, generator=torch.Generator().manual_seed(seed))[:n]
    low, high = ({name: values[chosen] for name, values in each.items()} for each in (found.low, found.high))
    return DistanceBounds(low, high, found.coverage_p[chosen], found.coverage_q[chosen])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    equal = {str(share): power_of_equality(share) for share in SHARES}
    rows = [
        {
            "mean KL / ε": share,
            **{f"n = {n}": f"{row[str(n)]:.2f}" for n in SIZES},
            "n for .80, from a pilot of 200": str(row["needed"] or "none"),
        }
        for share, row in equal.items()
    ]
    print_columns(f"Found equal to ε = {EPSILON:g} nats, by contexts of as many documents", rows)
    noticed = {str(kl): power_of_samples(kl) for kl in KLS}
    columns = [
        {"mean KL": kl, **{f"{n} prompts": f"{row[str(n)]:.2f}" for n in PROMPTS}} for kl, row in noticed.items()
    ]
    print_columns(f"Noticed by the permutation test (p ≤ .05), {N_SAMPLES} samples a prompt", columns)
    listed = {f"{name}, mean KL {kl:g}": power_of_lists(kl, at) for name, at in SHARPNESS.items() for kl in (0.0, 0.3)}
    columns = [
        {
            "contexts": name,
            "k": k,
            "left out": f"{row['left_out']:.3f}",
            "mean JS": f"{row['js']:.4f}",
            "bounds": f"{row['low']:.4f} to {row['high']:.4f}",
            f"equal to ε = {EPSILON:g}": f"{row['equal']:.2f}",
        }
        for name, rows in listed.items()
        for k, row in rows.items()
    ]
    print_columns(f"From the k largest of {N_TOKENS} log-probabilities at {N_LISTED} contexts", columns)
    result = {
        "benchmark": "equality_power",
        "command": "python benchmarks/equality_power.py --out benchmarks/results",
        "epsilon": EPSILON,
        "equality": equal,
        "samples": noticed,
        "lists": listed,
    }
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "equality_power.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
