"""What two predictors share, with every figure behind it."""

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lrt_tl.identifiability.distribution import Distances
from lrt_tl.identifiability.equality import Equality
from lrt_tl.identifiability.equivalence import Equivalence
from lrt_tl.identifiability.properties.scores import PropertyScores
from lrt_tl.tables import html_columns

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Answer = Literal["shared", "model-specific", "neither", "undetermined"]
ANSWERS: tuple[Answer, ...] = ("shared", "model-specific", "neither", "undetermined")
"""Of a property: it holds in both effective subspaces, and to one degree; it holds in none of them, but in a model's
representations as they are; it holds nowhere; or the premise fails, so that the theory says nothing."""


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

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> f, g = torch.randn(200, 4, generator=generator), torch.randn(30, 4, generator=generator)
        >>> verdict = lrt.all_or_none(lrt.Predictor.from_arrays(f, g), lrt.Predictor.from_arrays(2 * f, g), {})
        >>> verdict.premise
        False
        >>> for reason in verdict.against:
        ...     print(reason)
        not shown to be equal: mean KL 0.409, at most 0.426, against ε = 0.01
        the duality's residual is 1, over 0.1
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
            told = ", ".join(f"{count} {answer}" for answer, count in self._counts().items())
            return (
                f"{names} are one distribution, to ε = {self.equality.epsilon:g}, and linearly the same where it "
                f"depends on them. Of {len(found)} properties: {told or 'none was measured'}."
            )
        both = sum(each.holds_in == "both" for each in found)
        counted = f" By their figures alone {both} of {len(found)} properties are in both." if found else ""
        return (
            f"{names} are not shown to be one distribution ({self.against[0]}), so that theory says nothing of what "
            f"they share.{counted}"
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

    def short_rows(self) -> list[dict[str, str]]:
        """For a narrow table: the effective scores alone, without their intervals."""
        return [
            {
                "property": name,
                "verdict": found.answer,
                "holds in": found.holds_in,
                "first": f"{found.scores[0].effective.estimate:.2f}",
                "second": f"{found.scores[1].effective.estimate:.2f}",
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
        one = "" if self.premise else "not shown to be "
        told = ", ".join(f"{count} {answer}" for answer, count in self._counts().items())
        found = f"; of {len(self.properties)} properties {told}" if told else ""
        return f"Verdict({self.names[0]} and {self.names[1]}: {one}one distribution{found})"

    def _counts(self) -> dict[str, int]:
        """How many properties there are of each answer."""
        answers = [each.answer for each in self.properties.values()]
        return {answer: answers.count(answer) for answer in ANSWERS if answer in answers}

    def _repr_html_(self) -> str:
        aside = [*self.notes, *(f"{name} was not measured: {reason}" for name, reason in self.missing.items())]
        said = [self.sentence(), *aside]
        return f"<p>{'<br>'.join(map(html.escape, said))}</p>{html_columns(self.rows())}"


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
