"""Near in KL, far in representation: the circle of Nielsen et al. 2025 (arXiv 2506.03784, Table 1), theirs and ours.

`python benchmarks/circle_permutation.py` puts seven labels on a circle, at unembeddings of length ρ, and as many
contexts around twice the direction of each label. In the second model labels have changed places, and every context has
been turned along with its label. What is likeliest stays so; all else is permuted. So KL falls with ρ, as the rest of
the probability does, and the representations remain as different as they were.

How far the contexts lie from the labels' directions the paper's table does not say. Here it is Gaussian, with a
standard deviation of 0.05 in both coordinates, which gives the KLs of the table to 2.2 % (the last, which is rounded to
one digit, to 7 %), and all that does not depend on it. Prints a table for people, and last one line of JSON;
`--out FOLDER` also saves this there, as `circle_permutation.json`.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor

from lrt_tl.identifiability.distribution import distances
from lrt_tl.identifiability.likelihood_distance import likelihood_distance
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.similarity import d_svd, mean_cca
from lrt_tl.tables import print_columns

PERMUTATION = (5, 0, 2, 4, 6, 1, 3)
PAPER = {3: 0.887, 6: 0.223, 9: 0.037, 12: 0.0055, 15: 7.6e-4, 18: 1.0e-4}
"""KL(p ‖ permuted) by ρ."""
PAPER_CONSTANT = {"d_llv": 1.317, "mean_cca": 0.001, "d_svd": 0.999}
"""The same for every ρ; mean CCA and d_SVD are of the contexts."""
N_PER_LABEL, SPREAD, RADIUS = 1000, 0.05, 2.0


def on_circle(angles: Tensor) -> Tensor:
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def models(length: float, seed: int = 1) -> tuple[Predictor, Predictor]:
    """Both predictors, with unembeddings of this length."""
    n_labels = len(PERMUTATION)
    angles = torch.arange(n_labels, dtype=torch.float64) * (2 * math.pi / n_labels)
    permuted = angles[list(PERMUTATION)]
    label = torch.arange(n_labels).repeat_interleave(N_PER_LABEL)
    noise = torch.randn(len(label), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    f = RADIUS * on_circle(angles)[label] + SPREAD * noise
    turn = (permuted - angles)[label]
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=1).reshape(-1, 2, 2)
    turned = torch.einsum("nij,nj->ni", rotation, f)
    return (
        Predictor.from_arrays(f, length * on_circle(angles)),
        Predictor.from_arrays(turned, length * on_circle(permuted)),
    )


def figures(length: float) -> dict[str, float]:
    """All that the table has."""
    p, q = models(length)
    found = distances(p, q)
    return {
        "kl": found.mean("kl"),
        "reverse_kl": found.mean("reverse_kl"),
        "d_llv": likelihood_distance(p, q).value,
        "mean_cca": mean_cca(p.f, q.f),
        "d_svd": d_svd(p.f, q.f),
    }


def main() -> None:
    """Print the paper's figures and ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    found = {length: figures(length) for length in PAPER}
    rows = [
        {
            "ρ": str(length),
            "KL, paper": f"{PAPER[length]:.3g}",
            "KL, ours": f"{row['kl']:.3g}",
            "reverse KL": f"{row['reverse_kl']:.3g}",
            **{f"{name}, paper and ours": f"{value:g} {row[name]:.4f}" for name, value in PAPER_CONSTANT.items()},
        }
        for length, row in found.items()
    ]
    print_columns("Seven labels on a circle, and a permutation of them", rows)
    result = {
        "benchmark": "circle_permutation",
        "command": "python benchmarks/circle_permutation.py --out benchmarks/results",
        "paper": {"kl": PAPER, **PAPER_CONSTANT},
        "ours": found,
    }
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "circle_permutation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
