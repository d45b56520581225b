"""Do pairs of tokens that stand in one relation differ by one direction?

    g(y1) − g(y0) = β (g(y3) − g(y2)),    log p(y1|x)/p(y0|x) = β log p(y3|x)/p(y2|x) for all x

The second form, and the first projected on F or on N, are fixed by the distribution; the raw one is not, where
representations of tokens have a part that no context reads (*All or None*, arXiv 2410.23501).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.coordinates import token_coordinates
from lrt_tl.identifiability.properties.scores import PropertyScores, Score, ratio_score
from lrt_tl.identifiability.subspaces import Subspaces, triangle

_N_RANDOM = 200
_SMALLEST = 1e-5
"""Of the largest singular value of g: directions of less spread are not whitened."""
_ROUNDING = 1e-9
"""A difference of this share of the tokens' spread is none, and parallel to nothing."""


def parallelism(
    predictor: Predictor, found: Subspaces, *, pairs: Int[Tensor, "pair 2"], seed: int = 0
) -> PropertyScores:
    """Mean cosine of each pair's difference with the mean of the other pairs', against random pairs of tokens.

    Effective: of the log-ratios log p(y1|x)/p(y0|x) as vectors over contexts. Others: projected on `F`, on `N`, and
    `causal`, by the causal inner product of Park et al. 2024 (arXiv 2311.03658), which whitens by the covariance of g.

    Args:
        pairs: tokens y0 and y1 of each.

    Raises:
        LrtError: fewer than two pairs, a token that the predictor lacks, or a pair of one token with itself.
    """
    _check_pairs(pairs, len(predictor.g))
    generator = torch.Generator().manual_seed(seed)
    random = torch.randint(len(predictor.g), (_N_RANDOM, *pairs.shape), generator=generator)
    g, factor = predictor.g, triangle(predictor.g, centered=True)
    spread = float(factor.norm()) / len(g) ** 0.5
    differences, null = ((g[some[..., 1]].double() - g[some[..., 0]].double()) / spread for some in (pairs, random))
    forms: dict[str, Score] = {}
    for name, coordinates in _forms(predictor, found, factor):
        scale = float(coordinates.norm(2))
        ours, theirs = (leave_one_out_cosines(each @ (coordinates / scale)) for each in (differences, null))
        forms[name] = ratio_score(ours, torch.ones_like(ours), torch.arange(len(ours)), theirs.mean(-1), seed=seed)
    return PropertyScores(forms.pop("raw"), forms.pop("effective"), forms)


def pairing(predictor: Predictor, found: Subspaces, *, pairs: Int[Tensor, "pair 2"], seed: int = 0) -> PropertyScores:
    """What parallelism is left beyond that of two groups of words: (cosine − c̄)/(1 − c̄), c̄ the cosine where the second
    tokens are exchanged among the pairs. Where all first tokens are alike, and all second ones, every such pair is
    parallel to every other, whatever stands in which: that is 0 here, and exact parallelism 1. Null: single exchanges.

    Args:
        pairs: tokens y0 and y1 of each.

    Raises:
        LrtError: as of `parallelism`.
    """
    _check_pairs(pairs, len(predictor.g))
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(len(pairs), generator=generator) for _ in range(_N_RANDOM)])
    g = predictor.g.double() - predictor.g.mean(0, dtype=torch.float64)
    scores: list[Score] = []
    for coordinates in (torch.eye(predictor.d_model, dtype=torch.float64), token_coordinates(predictor, found)):
        states = g[pairs] @ (coordinates / float(coordinates.norm(2)))
        of_pair = states[:, 1] - states[:, 0]
        of_exchanged = states[:, 1][orders] - states[:, 0]
        ours, theirs = leave_one_out_cosines(of_pair), leave_one_out_cosines(of_exchanged).mean(-1)
        left = 1 - float(theirs.mean())
        null = (theirs - theirs.mean()) / left
        scores.append(
            ratio_score(ours - theirs.mean(), torch.full_like(ours, left), torch.arange(len(ours)), null, seed=seed)
        )
    return PropertyScores(scores[0], scores[1])


def leave_one_out_cosines(differences: Float64[Tensor, "*draw pair d"]) -> Float64[Tensor, "*draw pair"]:
    """Of each difference with the mean of the others; 0 where one of the two is nothing."""
    others = differences.sum(-2, keepdim=True) - differences
    lengths = differences.norm(dim=-1), others.norm(dim=-1)
    product = (lengths[0] * lengths[1]).clamp(min=torch.finfo(torch.float64).tiny)
    either_is_nothing = (lengths[0] <= _ROUNDING) | (lengths[1] <= _ROUNDING)
    cosines: Tensor = (differences * others).sum(-1) / product
    return cosines.masked_fill(either_is_nothing, 0.0)


def _forms(
    predictor: Predictor, found: Subspaces, factor: Float64[Tensor, "d_model d_model"]
) -> Iterator[tuple[str, Float64[Tensor, "d_model _"]]]:
    """By name the matrix that takes a difference of two tokens to the coordinates in which it is measured."""
    yield "raw", torch.eye(predictor.d_model, dtype=torch.float64)
    yield "effective", token_coordinates(predictor, found)
    yield "F", found.F
    yield "N", found.N
    _, values, right = torch.linalg.svd(factor)
    kept = values > _SMALLEST * values[0]
    yield "causal", right[kept].T / values[kept]


def _check_pairs(pairs: Int[Tensor, "pair 2"], n_tokens: int) -> None:
    if len(pairs) < 2:
        raise LrtError(f"{len(pairs)} pairs of tokens: parallelism compares two or more")
    if int(pairs.min()) < 0 or int(pairs.max()) >= n_tokens:
        raise LrtError(f"a pair has a token that is none of the {n_tokens}: {int(pairs.min())} to {int(pairs.max())}")
    same = pairs[:, 0] == pairs[:, 1]
    if bool(same.any()):
        raise LrtError(f"pair {int(same.nonzero()[0])} is token {int(pairs[same][0, 0])} twice: it has no direction")
