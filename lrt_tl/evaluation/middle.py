"""What the distance of two models' output distributions tells of the middle of them.

*All or none* (Marconato et al. 2025, arXiv 2410.23501) is about the states that the unembedding reads: of vectors that
are carried between middle layers it says nothing. So it was measured, and here is how it came out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float64

from lrt_tl.artifacts import typed
from lrt_tl.errors import ArtifactError
from lrt_tl.evaluation.forecasting import rank_correlation
from lrt_tl.evaluation.intervals import percentiles

FORMAT_VERSION = 1
_N_BOOTSTRAP = 1000
_FILE = Path(__file__).with_name("middle.json")


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's, of something that is known of transfers and the recovery that was measured.

    Attributes:
        low: of the 95 % interval, by a bootstrap over pairs of models.
        high: the other end.
        n_pairs: of models, in either direction.
    """

    estimate: float
    low: float
    high: float
    n_pairs: int
    n_transfers: int

    def shown(self) -> str:
        """For people."""
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def rank_correlation_over_pairs(
    known: Float64[torch.Tensor, "transfer"],
    recovery: Float64[torch.Tensor, "transfer"],
    pairs: Sequence[str],
    *,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's rank correlation. What two models have in common is in all of their transfers, so that pairs of models
    are resampled, whole.

    Args:
        pairs: the two models of each transfer.
    """
    names = sorted(set(pairs))
    of = torch.tensor([names.index(pair) for pair in pairs])
    rows = [(of == number).nonzero()[:, 0] for number in range(len(names))]
    drawn = torch.randint(len(rows), (_N_BOOTSTRAP, len(rows)), generator=torch.Generator().manual_seed(seed))
    found = []
    for chosen in drawn.tolist():
        some = torch.cat([rows[number] for number in chosen])
        found.append(rank_correlation(known[some], recovery[some]))
    low, high = percentiles(torch.tensor(found, dtype=torch.float64)).tolist()
    return RankCorrelation(rank_correlation(known, recovery), low, high, len(rows), len(pairs))


Worth = Mapping[str, RankCorrelation]
"""By feature."""


@cache
def worth_in_the_middle(*, trained_apart: bool = False) -> Worth:
    """How the recovery of vectors that were carried between middle layers went along with each of
    `Verdict.distance_features` and each of `features.Features`, as `benchmarks/middle.py` measured it.

    Args:
        trained_apart: leave out copies of a model that were moved away.

    Raises:
        ArtifactError: its file is missing or damaged.
    """
    return read_worth(_FILE)[trained_apart]


def read_worth(path: Path) -> tuple[Worth, Worth]:
    """From a file: over all pairs of models, and over those that were trained apart.

    Raises:
        ArtifactError: it is missing, of another format, or not whole.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {held['format_version']}, not {FORMAT_VERSION}")
        everything, apart = (
            {name: typed(RankCorrelation(**value)) for name, value in held[group].items()}
            for group in ("all", "trained_apart")
        )
        return everything, apart
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} does not hold what distances are worth: {error}") from error
