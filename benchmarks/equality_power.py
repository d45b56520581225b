"""How many contexts decide whether two distributions are equal to ε.

`python benchmarks/equality_power.py` makes predictors whose logits differ by noise of a known size, so that their mean
KL is a known share of ε, and draws n contexts, each of a document of its own, 200 times: how often does `equality` find
them equal? How many `documents_needed` says would do four times in five, from a pilot of 200, stands beside it. Then
the same of samples alone: how often does the permutation test notice a KL, from n prompts with ten one-token samples
each? Prints tables for people, and last one line of JSON.
"""

import json

import torch

from lrt_tl.identifiability.distribution import Distances, distances_of_logits, documents_needed, equality
from lrt_tl.identifiability.samples import compare_samples
from lrt_tl.tables import print_columns

N_CONTEXTS, N_TOKENS, N_TRIALS = 4000, 500, 200
EPSILON = 0.01
SHARES, SIZES = (0.0, 0.25, 0.5, 0.75, 0.9), (10, 30, 100, 300, 1000)
KLS, PROMPTS, N_SAMPLES = (0.0, 0.03, 0.1, 0.3, 1.0), (5, 20, 80), 10


def pair(kl: float, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of contexts, some sure and some not, and the same with noise that differs from context to context, scaled
    until the mean KL is `kl` (to second order, KL is half the variance)."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(N_CONTEXTS, N_TOKENS, generator=generator, dtype=torch.float64)
    p *= torch.empty(N_CONTEXTS, 1).uniform_(1, 6, generator=generator).double()
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


def main() -> None:
    """Print both tables."""
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
    print(json.dumps({"benchmark": "equality_power", "epsilon": EPSILON, "equality": equal, "samples": noticed}))


if __name__ == "__main__":
    main()
