"""What the largest log-probabilities of two models, all that an interface may give, say of their distance.

Tokens in both lists are known. The rest of either distribution may lie anywhere: a distance is smallest if the two
rests agree as far as their masses let them (merging outcomes never adds to a divergence), and largest if they have no
token in common. KL has no upper bound then.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import shown_measure
from lrt_tl.identifiability.equality import Equality, equality_of_values
from lrt_tl.tables import html_table

BOUNDED = ("kl", "reverse_kl", "js", "total_variation", "hellinger")
_ROUNDING = 1e-3
"""By which probabilities that were rounded may add up to more than one."""


@dataclass(frozen=True, eq=False, repr=False)
class DistanceBounds:
    """Between what bounds the distances of p and q lie at every context, in nats where they are divergences.

    Attributes:
        low: of each of `BOUNDED`, the least that it can be.
        high: the most: infinite for a KL.
        coverage_p: the probability that p gives to the tokens of both lists.
        coverage_q: that q gives them.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> tokens, log_p = torch.tensor([[7, 3]]), torch.tensor([[0.5, 0.4]]).log()
        >>> found = lrt.distance_bounds(tokens, log_p, tokens, log_p)
        >>> found
        DistanceBounds(total variation 0 to 0.1 over 1 contexts)
        >>> found.coverage_p
        tensor([0.9000], dtype=torch.float64)
    """

    low: dict[str, Float64[Tensor, "context"]]
    high: dict[str, Float64[Tensor, "context"]]
    coverage_p: Float64[Tensor, "context"]
    coverage_q: Float64[Tensor, "context"]

    def mean(self, measure: str) -> tuple[float, float]:
        """Bounds of the mean over contexts."""
        return float(self.low[measure].mean()), float(self.high[measure].mean())

    def summary(self) -> dict[str, str]:
        """Of the means, for a table."""
        bounds = {name: self.mean(name) for name in BOUNDED}
        rows = {shown_measure(name): f"{low:.4g} to {high:.4g}" for name, (low, high) in bounds.items()}
        coverage = f"{float(self.coverage_p.mean()):.4g} and {float(self.coverage_q.mean()):.4g}"
        return rows | {"tokens of both lists, of either's probability": coverage}

    def to_json(self) -> dict[str, object]:
        """Bounds of the means; an infinite one is None."""
        bounds = {name: [bound if math.isfinite(bound) else None for bound in self.mean(name)] for name in BOUNDED}
        coverage = {"coverage_p": float(self.coverage_p.mean()), "coverage_q": float(self.coverage_q.mean())}
        return {**bounds, **coverage, "contexts": len(self.coverage_p)}

    def __repr__(self) -> str:
        low, high = self.mean("total_variation")
        return f"DistanceBounds(total variation {low:.3g} to {high:.3g} over {len(self.coverage_p)} contexts)"

    def _repr_html_(self) -> str:
        return html_table(self.summary())


def distance_bounds(
    tokens_p: Int[Tensor, "context top_p"],
    log_p: Float[Tensor, "context top_p"],
    tokens_q: Int[Tensor, "context top_q"],
    log_q: Float[Tensor, "context top_q"],
) -> DistanceBounds:
    """Bounds from the ids and log-probabilities of each model's likeliest tokens, in nats, in any order.

    They hold for whatever tokens are listed, and are narrow where the tokens of both lists cover most of both
    distributions.

    Raises:
        LrtError: the lists do not fit together, one names a token twice, or its probabilities are more than one.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> tokens = torch.tensor([[7, 3]])  # the two likeliest of each model, at one context
        >>> log_p, log_q = torch.tensor([[0.5, 0.4]]).log(), torch.tensor([[0.7, 0.2]]).log()
        >>> lrt.distance_bounds(tokens, log_p, tokens, log_q)
        DistanceBounds(total variation 0.2 to 0.3 over 1 contexts)
    """
    if tokens_p.shape != log_p.shape or tokens_q.shape != log_q.shape or len(tokens_p) != len(tokens_q):
        shapes = ", ".join(str(tuple(each.shape)) for each in (tokens_p, log_p, tokens_q, log_q))
        raise LrtError(f"lists of {shapes}: every token needs its log-probability, and both models the same contexts")
    for tokens, log in ((tokens_p, log_p), (tokens_q, log_q)):
        in_order = tokens.sort(1).values
        if bool((in_order[:, 1:] == in_order[:, :-1]).any()):
            raise LrtError("a token is listed twice for one context")
        if not bool((log.double().exp().sum(1) <= 1 + _ROUNDING).all()):
            raise LrtError("probabilities of one context add up to more than one, or are NaN: give log-probabilities")
    matches = tokens_p[:, :, None] == tokens_q[:, None, :]
    p = log_p.double().exp() * matches.any(2)
    q = torch.einsum("cpq,cq->cp", matches.double(), log_q.double().exp())
    coverage_p, coverage_q = p.sum(1), q.sum(1)
    rounding = torch.finfo(log_p.dtype).eps * tokens_p.shape[1], torch.finfo(log_q.dtype).eps * tokens_q.shape[1]
    rest_p, rest_q = (
        (1 - each).clamp(min=least)[:, None] for each, least in zip((coverage_p, coverage_q), rounding, strict=True)
    )
    nothing = torch.zeros_like(rest_p)
    low = _divergences(torch.cat([p, rest_p], 1), torch.cat([q, rest_q], 1))
    high = _divergences(torch.cat([p, rest_p, nothing], 1), torch.cat([q, nothing, rest_q], 1))
    infinite = torch.full_like(coverage_p, math.inf)
    return DistanceBounds(low, high | {"kl": infinite, "reverse_kl": infinite}, coverage_p, coverage_q)


def equality_of_bounds(
    found: DistanceBounds,
    epsilon: float,
    *,
    measure: str = "js",
    documents: Int[Tensor, "context"] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Equality:
    """Test that a mean distance is under ε, whatever the tokens do that are in no list: `distribution.equality` of the
    most that it can be. With lists that leave out more than ε of the probability it is never found.

    Args:
        measure: one of `BOUNDED` but the KLs, which have no upper bound.
        documents: which document each context is of; by default each is one of its own.

    Raises:
        LrtError: there is no such measure or it has no upper bound, ε is not positive, or there are fewer than five
            documents.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> tokens, log_p = torch.tensor([[7, 3]] * 6), torch.tensor([[0.6, 0.399]] * 6).log()
        >>> found = lrt.distance_bounds(tokens, log_p, tokens, log_p)
        >>> print(lrt.equality_of_bounds(found, epsilon=0.01))
        equal: mean largest possible JS 0.000693, at most 0.000693, against ε = 0.01
    """
    finite = [name for name in BOUNDED if not name.endswith("kl")]
    if measure not in finite:
        raise LrtError(f"measure={measure!r}: it must be one of {', '.join(finite)}, which have an upper bound")
    most = found.high[measure]
    documents = torch.arange(len(most)) if documents is None else documents
    return equality_of_values(most, documents, epsilon, f"largest_possible_{measure}", n_bootstrap, seed)


def _divergences(
    p: Float64[Tensor, "context outcome"], q: Float64[Tensor, "context outcome"]
) -> dict[str, Float64[Tensor, "context"]]:
    """From probabilities, zeros among them; 0 log 0 = 0."""
    middle = (p + q) / 2
    js = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    hellinger = (p.sqrt() - q.sqrt()).norm(dim=1) / math.sqrt(2)
    distances = (_relative_entropy(p, q), _relative_entropy(q, p), js, (p - q).abs().sum(1) / 2, hellinger)
    return dict(zip(BOUNDED, distances, strict=True))


def _relative_entropy(p: Float64[Tensor, "context outcome"], q: Float64[Tensor, "context outcome"]) -> Tensor:
    tiny = torch.finfo(p.dtype).tiny
    return (p * (p.clamp(min=tiny) / q.clamp(min=tiny)).log()).sum(1).clamp(min=0)
