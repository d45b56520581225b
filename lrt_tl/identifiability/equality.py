"""Whether two distributions can be called equal, to ε: by an upper bound of their distance, never because no difference
was found."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import MEASURES, Distances, shown_measure
from lrt_tl.tables import html_table

ENOUGH = 300
"""Documents with which the bound holds nearly as often as it says, of heavy-tailed distances too
(`benchmarks/equality_power.py`: a mean that is ε itself is found equal 8 % of the time, and 18 % with 30)."""
_RESAMPLES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Equality:
    """Whether two distributions can be called equal, to ε: the upper end of a one-sided 95 % interval of their mean
    distance lies under it. That a difference was not found would be no evidence.

    Attributes:
        measure: which distance.
        estimate: its mean.
        upper: the upper end; infinite where a KL is.
        epsilon: what still counts as equal.
        contexts: how many there are,
        documents: and of how many documents, which are what is resampled.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = torch.randn(50, 10, generator=generator)
        >>> found = lrt.distances_of_logits(logits, logits + 0.1 * torch.randn(50, 10, generator=generator))
        >>> equal = lrt.equality(found, epsilon=0.01)
        >>> equal.equal, equal.documents, equal.estimate < equal.upper < equal.epsilon
        (True, 50, True)
    """

    measure: str
    estimate: float
    upper: float
    epsilon: float
    contexts: int
    documents: int

    @property
    def equal(self) -> bool:
        """Whether equality is supported."""
        return self.upper < self.epsilon

    def summary(self) -> dict[str, str]:
        """For a table."""
        rows = {
            "verdict": "equal" if self.equal else "not shown to be equal",
            f"mean {shown_measure(self.measure)}": f"{self.estimate:.3g}",
            "at most, with 95 % confidence": self._most(),
            "ε": f"{self.epsilon:g}",
            "contexts, documents": f"{self.contexts}, {self.documents}",
        }
        if self.documents < ENOUGH:
            rows["beware"] = f"fewer than {ENOUGH} documents: where the distance is skewed the bound is too low"
        return rows

    def to_json(self) -> dict[str, str | float | int | bool | None]:
        """All figures; an infinite bound is None."""
        return {**vars(self), "upper": self.upper if math.isfinite(self.upper) else None, "equal": self.equal}

    def __str__(self) -> str:
        verdict = "equal" if self.equal else "not shown to be equal"
        mean = f"mean {shown_measure(self.measure)} {self.estimate:.3g}"
        return f"{verdict}: {mean}, at most {self._most()}, against ε = {self.epsilon:g}"

    def _most(self) -> str:
        return f"{self.upper:.3g}" if math.isfinite(self.upper) else "anything"

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def equality(
    found: Distances, epsilon: float, *, measure: str = "kl", n_bootstrap: int = 2000, seed: int = 0
) -> Equality:
    """Test that a mean distance is under ε, by a studentized bootstrap over documents.

    Distances are skewed: a few contexts hold most of a mean. So each resample's mean is measured in its own standard
    error (Efron and Tibshirani 1993, section 12.5), without which the bound lies too low.
    Infinite KLs are not in the means: where there are any, the distributions are not equal, whatever ε is.

    Raises:
        LrtError: ε is not positive, there is no such measure, or there are fewer than five documents.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = torch.randn(50, 10, generator=generator)
        >>> found = lrt.distances_of_logits(logits, logits + 0.1 * torch.randn(50, 10, generator=generator))
        >>> for epsilon in (0.1, 0.001):
        ...     print(lrt.equality(found, epsilon))
        equal: mean KL 0.00457, at most 0.00529, against ε = 0.1
        not shown to be equal: mean KL 0.00457, at most 0.00529, against ε = 0.001
    """
    if measure not in MEASURES:
        raise LrtError(f"measure={measure!r}: it must be one of {', '.join(MEASURES)}")
    tested = equality_of_values(getattr(found, measure), found.documents, epsilon, measure, n_bootstrap, seed)
    return replace(tested, upper=math.inf) if any(found.n_infinite) else tested


def equality_of_values(
    values: Float64[Tensor, "context"],
    documents: Int[Tensor, "context"],
    epsilon: float,
    measure: str,
    n_bootstrap: int,
    seed: int,
) -> Equality:
    """The same of any distance, by the name `measure`. Raises: as `equality` does."""
    if not epsilon > 0:
        raise LrtError(f"epsilon={epsilon}: it must be a positive number")
    sums, counts = _by_document(values, documents)
    if len(sums) < 5:
        raise LrtError(
            f"the contexts are of {len(sums)} document(s): their scatter cannot be known. Give five or more, better "
            "hundreds, and enough contexts to reach them (`n_contexts`)"
        )
    upper = _upper_bound(sums, counts, n_bootstrap, seed)
    return Equality(measure, float(values.mean()), upper, epsilon, len(values), len(sums))


def documents_needed(found: Distances, epsilon: float, *, measure: str = "kl", power: float = 0.8) -> int | None:
    """About how many documents, of as many contexts each, `equality` needs to find two distributions equal to ε with
    this probability, if the mean distance and its scatter are what they are here:

        n = ((z₀.₉₅ + z_power) · s / (ε − mean))²,  s the standard deviation of a document's part in the mean

    (of a normal mean; where it comes to fewer than fifty, take twice as many, for distances are skewed).

    Raises:
        LrtError: there is no such measure, or the power is not between 0 and 1.

    Returns:
        None where the mean is not under ε, or a KL is infinite: no number would do.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> logits = torch.randn(50, 10, generator=generator)
        >>> found = lrt.distances_of_logits(logits, logits + 0.1 * torch.randn(50, 10, generator=generator))
        >>> found.mean("kl") < 0.005
        True
        >>> lrt.documents_needed(found, epsilon=0.006) < 50, lrt.documents_needed(found, epsilon=0.001)
        (True, None)
    """
    if measure not in MEASURES or not 0 < power < 1:
        raise LrtError(f"measure={measure!r}, power={power}: one of {', '.join(MEASURES)}, and between 0 and 1")
    sums, counts = _by_document(getattr(found, measure), found.documents)
    mean, error = _mean_and_error(sums, counts)
    gap = epsilon - float(mean)
    if gap <= 0 or any(found.n_infinite):
        return None
    z = torch.special.ndtri(torch.tensor([0.95, power], dtype=torch.float64)).sum()
    return max(5, math.ceil(len(sums) * float(z * error / gap) ** 2))


def _by_document(values: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the values of each document."""
    _, of = torch.unique(documents, return_inverse=True)
    n = int(of.max()) + 1
    sums, counts = (torch.zeros(n, dtype=torch.float64).index_add_(0, of, x) for x in (values, torch.ones_like(values)))
    return sums, counts


def _mean_and_error(sums: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over contexts, and its standard error from the scatter of documents (in the last dimension)."""
    n = counts.sum(-1)
    mean = sums.sum(-1) / n
    return mean, (sums - mean[..., None] * counts).norm(dim=-1) / n


def _upper_bound(sums: Tensor, counts: Tensor, n_bootstrap: int, seed: int) -> float:
    mean, error = _mean_and_error(sums, counts)
    generator = torch.Generator().manual_seed(seed)
    ratios = []
    at_once = max(1, _RESAMPLES_AT_ONCE // len(sums))
    for start in range(0, n_bootstrap, at_once):
        size = min(at_once, n_bootstrap - start)
        drawn = torch.randint(len(sums), (size, len(sums)), generator=generator)
        means, errors = _mean_and_error(sums[drawn], counts[drawn])
        ratios.append((means - mean) / errors)
    found = torch.cat(ratios).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)  # no scatter at all: 0/0
    return float(mean - error * found.quantile(0.05, interpolation="lower")) if float(error) > 0 else float(mean)
