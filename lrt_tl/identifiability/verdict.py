"""All or none: which linear properties do two predictors share, because they are one distribution?

If two next-token predictors have equal distributions, what is linear in the effective subspaces of one is linear in
those of the other (Marconato et al. 2025, arXiv 2410.23501). The premise is tested first; where it fails nothing is
concluded.
"""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import Distances, Equality, distances, equality
from lrt_tl.identifiability.equivalence import Equivalence, equivalence
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.scores import Property, PropertyScores
from lrt_tl.identifiability.properties.steering import steering_mismatch
from lrt_tl.identifiability.subspaces import Subspaces
from lrt_tl.tables import html_columns

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

EPSILON = 0.01
"""The mean KL divergence, in nats, under which two distributions count as equal unless another is given."""
Answer = Literal["shared", "model-specific", "neither", "undetermined"]
ANSWERS: tuple[Answer, ...] = ("shared", "model-specific", "neither", "undetermined")
"""Of a property: it holds in both effective subspaces, and to one degree; it holds in none of them, but in a model's
representations as they are; it holds nowhere; or the premise fails, so that the theory says nothing."""
Contrasts = Mapping[str, tuple[Int[Tensor, "positive"], Int[Tensor, "negative"]]]
"""By name, the contexts with a feature and those without."""


@dataclass(frozen=True)
class PropertyVerdict:
    """What is said of one property, and both predictors' figures."""

    answer: Answer
    reason: str
    scores: tuple[PropertyScores, PropertyScores]

    @property
    def holds_in(self) -> str:
        """In whose effective subspaces it holds, by its figures alone: both, first, second or neither."""
        first, second = (each.effective.holds for each in self.scores)
        return "both" if first and second else "first" if first else "second" if second else "neither"


@dataclass(frozen=True, eq=False)
class Verdict:
    """What two predictors share, with every figure behind it.

    Attributes:
        names: of the two.
        distances: of their distributions.
        equality: whether these can be called equal.
        equivalences: the linear fit of the first from the second, and of the second from the first.
        against: why the premise fails; empty where it holds.
        properties: by name.
        steering_mismatch: of each contrast's vector, how far what it does when carried from the first to the second is
            from what it does at home, over all tokens, and the same back (see `steering.steering_mismatch`): 0 is the
            same, 1 what no vector does.
        missing: what could not be measured, and why.
        notes: what of the models was left out, such as a soft cap.
    """

    names: tuple[str, str]
    distances: Distances
    equality: Equality
    equivalences: tuple[Equivalence, Equivalence]
    against: tuple[str, ...]
    properties: Mapping[str, PropertyVerdict]
    steering_mismatch: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def premise(self) -> bool:
        """Whether the two are one distribution, as far as was tested."""
        return not self.against

    def distance_features(self) -> dict[str, float]:
        """How far apart the two are, in numbers to foretell from: as what share of a vector's effect is recovered."""
        apart, (there, back) = self.distances.to_json(), self.equivalences
        return {
            **{name: float(apart[name]) for name in ("kl", "reverse_kl", "js", "total_variation", "logit_distance")},
            "context_r2": there.of_contexts.r2,
            "context_r2_back": back.of_contexts.r2,
            "context_worst_r2": min(there.of_contexts.worst, back.of_contexts.worst),
            "token_r2": there.of_tokens.r2,
            "token_r2_back": back.of_tokens.r2,
            "token_worst_r2": min(there.of_tokens.worst, back.of_tokens.worst),
            "duality_residual": max(there.duality_residual, back.duality_residual),
        }

    def sentence(self) -> str:
        """The answer in words."""
        names, found = f"{self.names[0]} and {self.names[1]}", list(self.properties.values())
        if self.premise:
            counts = {answer: sum(each.answer == answer for each in found) for answer in ANSWERS}
            told = ", ".join(f"{count} {answer}" for answer, count in counts.items() if count)
            return (
                f"{names} are one distribution, to ε = {self.equality.epsilon:g}, and linearly the same where it "
                f"depends on them. Of {len(found)} properties: {told or 'none was measured'}."
            )
        both = sum(each.holds_in == "both" for each in found)
        return (
            f"{names} are not shown to be one distribution ({self.against[0]}), so that theory says nothing of what "
            f"they share. Of {len(found)} properties that were measured, {both} hold in both."
        )

    def rows(self) -> list[dict[str, str]]:
        """For a table, a row a property."""
        return [
            {
                "property": name,
                "verdict": found.answer,
                "holds in": found.holds_in,
                **{
                    f"{model}, {form}": str(getattr(scores, form))
                    for form in ("effective", "raw")
                    for model, scores in zip(("first", "second"), found.scores, strict=True)
                },
                **({"because": found.reason} if self.premise else {}),
            }
            for name, found in self.properties.items()
        ]

    def summary(self) -> dict[str, str]:
        """The premise, for a table."""
        rows = {"premise": "one distribution" if self.premise else "; ".join(self.against)}
        rows["distributions"] = str(self.equality)
        for name, found in zip(("first from second", "second from first"), self.equivalences, strict=True):
            rows |= {f"{name}, {key}": value for key, value in found.summary().items()}
        return rows

    def to_json(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        there, back = (
            {
                **_finite(fit.to_json()),
                "context_r2_by_direction": fit.of_contexts.r2_by_direction.tolist(),
                "token_r2_by_direction": fit.of_tokens.r2_by_direction.tolist(),
            }
            for fit in self.equivalences
        )
        return {
            "names": list(self.names),
            "premise": self.premise,
            "against": list(self.against),
            "equality": self.equality.to_json(),
            "distances": _finite(self.distances.to_json()),
            "equivalence": there,
            "equivalence_back": back,
            "subspaces": [found.to_json() for found in self.equivalences[0].subspaces],
            "properties": {
                name: {
                    "verdict": found.answer,
                    "because": found.reason,
                    "holds_in": found.holds_in,
                    "first": found.scores[0].to_json(),
                    "second": found.scores[1].to_json(),
                }
                for name, found in self.properties.items()
            },
            "steering_mismatch": {name: list(found) for name, found in self.steering_mismatch.items()},
            "missing": dict(self.missing),
            "notes": list(self.notes),
        }

    def figure(self) -> "Figure":
        """Every property's score in either model with its interval: effective filled, raw open."""
        from lrt_tl.identifiability.figures import property_figure

        return property_figure(self)

    def __repr__(self) -> str:
        found = ", ".join(f"{name}: {each.answer}" for name, each in self.properties.items())
        return f"Verdict({self.names[0]} and {self.names[1]}: {found})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.sentence())}</p>{html_columns(self.rows())}"


def all_or_none(
    predictor_a: Predictor,
    predictor_b: Predictor,
    properties: Mapping[str, Property],
    *,
    contrasts: Contrasts | None = None,
    epsilon: float = EPSILON,
    measure: str = "kl",
    least_r2: float = 0.9,
    most_duality: float = 0.1,
    agreement: float = 0.05,
    seed: int = 0,
) -> Verdict:
    """Whether two predictors are one distribution, and which properties they therefore share.

    A property is *shared* only if the distributions' distance is shown to be under ε, every canonical direction is
    linear in the other model (both ways, for contexts and tokens, on rows held out), contexts and tokens are turned the
    same way, *and* the property holds in both effective subspaces to one degree.

    Args:
        predictor_a: with `predictor_b` at the same contexts and of the same tokens, as `read_predictors` gives them.
        properties: by name, such as `{"comparatives": partial(parallelism, pairs=pairs)}`. One that cannot be measured
            of these predictors is named among what is `missing`.
        contrasts: by name the contexts with a feature and those without, between whose means a steering vector lies:
            each is carried to the other predictor.
        epsilon: the largest mean distance that counts as equal; nats, for the KL divergence.
        measure: which distance, one of `distribution.MEASURES`.
        least_r2: of the worst canonical direction.
        most_duality: the largest residual of the duality.
        agreement: by how much effective scores may differ.

    Raises:
        LrtError: the predictors cannot be compared, ε is not positive, or there are too few documents, contexts or
            tokens.
    """
    if not (agreement > 0 and most_duality > 0 and least_r2 < 1):
        raise LrtError(f"least_r2={least_r2}, most_duality={most_duality}, agreement={agreement}: they allow nothing")
    apart = distances(predictor_a, predictor_b)
    equal = equality(apart, epsilon, measure=measure, seed=seed)
    there = equivalence(predictor_a, predictor_b, seed=seed)
    back = equivalence(predictor_b, predictor_a, seed=seed)
    against = tuple(_against(equal, (there, back), least_r2, most_duality))
    measured, missing = _measured((predictor_a, predictor_b), there.subspaces, properties)
    mismatches: dict[str, tuple[float, float]] = {}
    for name, (positive, negative) in (contrasts or {}).items():
        ours, theirs = (each.f[positive].mean(0) - each.f[negative].mean(0) for each in (predictor_a, predictor_b))
        mismatches[name] = (
            steering_mismatch(predictor_a, predictor_b, ours, back),
            steering_mismatch(predictor_b, predictor_a, theirs, there),
        )
    return Verdict(
        (predictor_a.name, predictor_b.name),
        apart,
        equal,
        (there, back),
        against,
        {name: _property_verdict(scores, against, agreement) for name, scores in measured.items()},
        mismatches,
        missing,
        tuple(f"{each.name}: {each.note}" for each in (predictor_a, predictor_b) if each.note),
    )


def _measured(
    predictors: tuple[Predictor, Predictor], found: tuple[Subspaces, Subspaces], properties: Mapping[str, Property]
) -> tuple[dict[str, tuple[PropertyScores, PropertyScores]], dict[str, str]]:
    """Every property's scores in both, and what could not be measured, with the reason."""
    measured: dict[str, tuple[PropertyScores, PropertyScores]] = {}
    missing: dict[str, str] = {}
    for name, of in tqdm(properties.items(), desc="properties", leave=False):
        try:
            measured[name] = of(predictors[0], found[0]), of(predictors[1], found[1])
        except LrtError as error:
            missing[name] = str(error)
    return measured, missing


def _against(equal: Equality, fits: tuple[Equivalence, Equivalence], least_r2: float, most_duality: float) -> list[str]:
    """All that speaks against the premise."""
    found = [] if equal.equal else [str(equal)]
    for what in ("of_contexts", "of_tokens"):
        worst = min(getattr(each, what).worst for each in fits)
        if not worst >= least_r2:
            name = what.removeprefix("of_")
            found.append(f"the worst direction of {name} has a held-out R² of {worst:.3g}, under {least_r2:g}")
    residual = max(each.duality_residual for each in fits)
    if not residual <= most_duality:
        found.append(f"the duality's residual is {residual:.3g}, over {most_duality:g}")
    return found


def _property_verdict(
    scores: tuple[PropertyScores, PropertyScores], against: tuple[str, ...], agreement: float
) -> PropertyVerdict:
    if against:
        return PropertyVerdict("undetermined", against[0], scores)
    effective = [each.effective for each in scores]
    apart = abs(effective[0].estimate - effective[1].estimate)
    raw = ", ".join(
        name for name, each in zip(("the first", "the second"), scores, strict=True) if each.raw.holds
    ).replace(", ", " and ")
    if not apart <= agreement or effective[0].holds != effective[1].holds:
        reason = f"the effective scores differ by {apart:.3g}, though the distributions pass as equal"
        return PropertyVerdict("undetermined", reason, scores)
    if effective[0].holds:
        reason = f"it holds in both effective subspaces; in the representations as they are, in {raw or 'neither'}"
        return PropertyVerdict("shared", reason, scores)
    if raw:
        reason = f"it holds outside of the effective subspaces alone, in {raw}"
        return PropertyVerdict("model-specific", reason, scores)
    return PropertyVerdict("neither", "it does not hold above its null", scores)


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
