"""All or none: is the premise met, and which linear properties do two predictors therefore share?

If two next-token predictors have equal distributions, what is linear in the effective subspaces of one is linear in
those of the other (Marconato et al. 2025, arXiv 2410.23501). The premise is tested first; where it fails nothing is
concluded.
"""

from collections.abc import Mapping

from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from lrt_tl.errors import LrtError
from lrt_tl.identifiability.distribution import distances
from lrt_tl.identifiability.equality import Equality, equality
from lrt_tl.identifiability.equivalence import Equivalence, equivalence
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.scores import Property, PropertyScores
from lrt_tl.identifiability.properties.steering import steering_mismatch
from lrt_tl.identifiability.subspaces import Subspaces
from lrt_tl.identifiability.verdict import PropertyVerdict, Verdict
from lrt_tl.progress import BAR

EPSILON = 0.01
"""The mean KL divergence, in nats, under which two distributions count as equal unless another is given."""
Contrasts = Mapping[str, tuple[Int[Tensor, "positive"], Int[Tensor, "negative"]]]
"""By name, the contexts with a feature and those without."""


def all_or_none(
    predictor_a: Predictor,
    predictor_b: Predictor,
    properties: Mapping[str, Property],
    *,
    contrasts: Contrasts | None = None,
    extended: tuple[Predictor, Predictor] | None = None,
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
        extended: the two with further contexts, such as `with_texts` gives them, to which the indices of properties and
            contrasts refer. Whether they are one distribution is asked at the contexts of the first two alone.
        epsilon: the largest mean distance that counts as equal; nats, for the KL divergence.
        measure: which distance, one of `distribution.MEASURES`.
        least_r2: of the worst canonical direction.
        most_duality: the largest residual of the duality.
        agreement: by how much effective scores may differ.

    Raises:
        LrtError: the predictors cannot be compared, ε is not positive, or there are too few documents, contexts or
            tokens.

    Examples:
        >>> from functools import partial
        >>> import torch
        >>> import lrt_tl as lrt
        >>> from lrt_tl.identifiability.properties.parallelism import parallelism
        >>> generator = torch.Generator().manual_seed(0)
        >>> f, g = torch.randn(200, 4, generator=generator), torch.randn(30, 4, generator=generator)
        >>> g[10:20] = g[:10] + torch.tensor([3.0, 0.0, 0.0, 0.0])  # ten pairs of tokens with one difference
        >>> pairs = torch.stack([torch.arange(10), torch.arange(10, 20)], dim=1)
        >>> p, q = lrt.Predictor.from_arrays(f, g), lrt.Predictor.from_arrays(2 * f, g / 2)
        >>> verdict = lrt.all_or_none(p, q, {"shift": partial(parallelism, pairs=pairs)})
        >>> verdict.premise, verdict.properties["shift"].answer
        (True, 'shared')
    """
    if not (agreement > 0 and most_duality > 0 and least_r2 < 1):
        raise LrtError(f"least_r2={least_r2}, most_duality={most_duality}, agreement={agreement}: they allow nothing")
    apart = distances(predictor_a, predictor_b)
    equal = equality(apart, epsilon, measure=measure, seed=seed)
    there = equivalence(predictor_a, predictor_b, seed=seed)
    back = equivalence(predictor_b, predictor_a, seed=seed)
    against = tuple(_against(equal, (there, back), least_r2, most_duality))
    both = extended or (predictor_a, predictor_b)
    measured, missing = _measured(both, there.subspaces, properties)
    mismatches: dict[str, tuple[float, float]] = {}
    for name, (positive, negative) in (contrasts or {}).items():
        ours, theirs = (each.f[positive].mean(0) - each.f[negative].mean(0) for each in both)
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
        {name: _property_verdict(scores, against, agreement, there.subspaces) for name, scores in measured.items()},
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
    for name, of in tqdm(properties.items(), desc="properties", **BAR):
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
    scores: tuple[PropertyScores, PropertyScores],
    against: tuple[str, ...],
    agreement: float,
    found: tuple[Subspaces, Subspaces],
) -> PropertyVerdict:
    if against:
        return PropertyVerdict("undetermined", against[0], scores)
    effective = [each.effective for each in scores]
    apart = abs(effective[0].estimate - effective[1].estimate)
    places = list(zip(("the first", "the second"), scores, found, strict=True))
    told = " and ".join(name for name, score, _ in places if score.raw.holds)
    outside = " and ".join(name for name, score, each in places if _has_more(each) and _stands_out(score))
    if not apart <= agreement or effective[0].holds != effective[1].holds:
        reason = f"the effective scores differ by {apart:.3g}, though the distributions pass as equal"
        if apart <= agreement:
            reason = "it stands out from its null in one of the effective subspaces alone, by a small difference"
        return PropertyVerdict("undetermined", reason, scores)
    if effective[0].holds:
        reason = f"it holds in both effective subspaces; in the representations as they are, in {told or 'neither'}"
        return PropertyVerdict("shared", reason, scores)
    if outside:
        return PropertyVerdict(
            "model-specific", f"it holds outside of the effective subspaces alone, in {outside}", scores
        )
    reason = "it does not hold above its null"
    if told:
        reason = f"it holds in {told} as it is, but by too little to differ from its effective score, which does not"
    return PropertyVerdict("neither", reason, scores)


def _stands_out(scores: PropertyScores) -> bool:
    """Whether it holds as it is, clearly more than effectively: penalties, and chance, move either a little."""
    return scores.raw.holds and scores.raw.low > scores.effective.high


def _has_more(found: Subspaces) -> bool:
    """Whether anything of a predictor's representations lies outside of its effective subspaces."""
    return max(found.F.shape[1], found.G.shape[1]) > found.k
