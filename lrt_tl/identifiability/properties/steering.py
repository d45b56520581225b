"""Steering at the output: f(x) + v moves every log-ratio by v · (g(y) − g(y′)), in every context alike.

A vector of F can be carried to another predictor of the same distribution, where it does the same: φ̃ = W φ gives
ṽ = Q_M̃ W Q_Mᵀ v. A vector outside of F cannot: what it does through G ∩ F^⊥ is not of the distribution.
(Derived for this package.)
"""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.identifiability.equivalence import Equivalence
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.scores import N_NULL, PropertyScores, Score
from lrt_tl.identifiability.subspaces import Subspaces, centered_tokens
from lrt_tl.tables import html_table


@dataclass(frozen=True)
class SteeringEffect:
    """What a vector does at the output, in nats.

    Attributes:
        effect: by how much it moves log p(y1|x)/p(y0|x), mean over the pairs that it is meant to move.
        leakage: root mean square over all other tokens of by how much log p(y|x) less its mean over tokens moves.
    """

    effect: float
    leakage: float

    @property
    def selectivity(self) -> float:
        """effect/√(effect² + leakage²): 1 if nothing else moves, −1 if that goes the wrong way; 0 if nothing moves."""
        length = (self.effect**2 + self.leakage**2) ** 0.5
        return self.effect / length if length > 0 else 0.0

    def to_json(self) -> dict[str, float]:
        return {**asdict(self), "selectivity": self.selectivity}

    def rows(self) -> dict[str, str]:
        """For a table."""
        return {name: f"{value:.4g}" for name, value in self.to_json().items()}

    def _repr_html_(self) -> str:
        return html_table(self.rows())


def steering_effect(
    predictor: Predictor, vector: Float[Tensor, "d_model"], pairs: Int[Tensor, "pair 2"]
) -> SteeringEffect:
    """Effect on the log-ratios of pairs of tokens y0 and y1, and leakage to the tokens that are in none.

    Raises:
        LrtError: there is no pair, or no other token; or the vector is not as wide as the predictor.
    """
    effect, leakage = _effects(_shifts(predictor, vector[None]), pairs)
    return SteeringEffect(float(effect), float(leakage))


def steering(
    predictor: Predictor,
    found: Subspaces,
    *,
    positive: Int[Tensor, "positive"],
    negative: Int[Tensor, "negative"],
    pairs: Int[Tensor, "pair 2"],
    n_null: int = 10 * N_NULL,
    seed: int = 0,
) -> PropertyScores:
    """The selectivity of the difference of means of f between two sets of contexts, with an interval over contexts.
    Effective: of P_M v, which does the same, since v ∈ F. Null: random vectors as the contexts' representations are
    spread, Σ cᵢ (f(xᵢ) − f̄) with cᵢ ~ N(0, 1). (To exchange contexts between the sets would be none: where the two are
    tight, every exchange gives ± a multiple of the same vector, which is just as selective.)

    Raises:
        LrtError: a set of contexts is empty, there is no pair of tokens, or no token outside of the pairs.
    """
    if not len(positive) or not len(negative):
        raise LrtError(f"{len(positive)} positive and {len(negative)} negative contexts: both are needed")
    generator = torch.Generator().manual_seed(seed)
    sides = [predictor.f[each].double() for each in (positive, negative)]
    drawn = [side[torch.randint(len(side), (n_null, len(side)), generator=generator)].mean(1) for side in sides]
    drawn_from = torch.randn(n_null, len(predictor.f), generator=generator, dtype=torch.float64)
    random = (drawn_from - drawn_from.mean(1, keepdim=True)) @ predictor.f.double()
    vectors = torch.cat([(sides[0].mean(0) - sides[1].mean(0))[None], drawn[0] - drawn[1], random])
    raw, effective = (
        _selectivity(_shifts(predictor, each), pairs, n_null) for each in (vectors, vectors @ found.M @ found.M.T)
    )
    return PropertyScores(raw, effective)


def carried(vector: Float[Tensor, "d_model"], between: Equivalence) -> Float64[Tensor, "d_other"]:
    """The vector of the second predictor that does what `vector` does in the first, as far as it lies in M.

    Args:
        between: `equivalence(second, first)`, which fits the second's contexts from the first's. (To invert the fit of
            the first from the second is the same where it is exact; else it blows up what was not found again.)

    Raises:
        MismatchError: the vector is not as wide as the first predictor.
    """
    theirs, ours = between.subspaces
    if len(vector) != len(ours.M):
        raise MismatchError(f"a vector of {len(vector)} dimensions, for a predictor of {len(ours.M)}")
    return theirs.M @ between.of_contexts.weight @ (ours.M.T @ vector.double())


def steering_mismatch(
    first: Predictor, second: Predictor, vector: Float[Tensor, "d_model"], between: Equivalence
) -> float:
    """How far what the carried vector does in the second is from what the vector does in the first, over all tokens:
    ‖shift − shift′‖/‖shift‖ of the log-probabilities less their means. 0 is the same, 1 what no vector does.

    Args:
        between: `equivalence(second, first)`.

    Raises:
        LrtError: the vector moves nothing in the first predictor.
    """
    wanted = _shifts(first, vector[None])
    if not float(wanted.norm()) > 0:
        raise LrtError("the vector moves no log-ratio: there is nothing to carry")
    return float((wanted - _shifts(second, carried(vector, between)[None])).norm() / wanted.norm())


def _shifts(predictor: Predictor, vectors: Float[Tensor, "vector d_model"]) -> Float64[Tensor, "vector token"]:
    if vectors.shape[1] != predictor.d_model:
        raise MismatchError(f"a vector of {vectors.shape[1]} dimensions, for a predictor of {predictor.d_model}")
    return centered_tokens(predictor, vectors.double().T).T


def _effects(
    shifts: Float64[Tensor, "vector token"], pairs: Int[Tensor, "pair 2"]
) -> tuple[Float64[Tensor, "vector"], Float64[Tensor, "vector"]]:
    others = torch.ones(shifts.shape[1], dtype=torch.bool)
    others[pairs.flatten()] = False
    if not len(pairs) or not bool(others.any()):
        raise LrtError(f"{len(pairs)} pairs of tokens, {int(others.sum())} others: one or more of each are needed")
    effect = (shifts[:, pairs[:, 1]] - shifts[:, pairs[:, 0]]).mean(1)
    return effect, shifts[:, others].square().mean(1).sqrt()


def _selectivity(shifts: Float64[Tensor, "vector token"], pairs: Int[Tensor, "pair 2"], n: int) -> Score:
    """Of the first; its interval from the next n, its null from the last n."""
    effect, leakage = _effects(shifts, pairs)
    found = effect / (effect.square() + leakage.square()).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    low, high = found[1 : n + 1].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Score(float(found[0]), low, high, float(found[n + 1 :].quantile(0.95)))
