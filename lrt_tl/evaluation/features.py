"""What is known of a transfer before the target is steered: of the models, the map, and the vector that it carries."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.layer_search import LayerSearch
from lrt_tl.evaluation.comparability import Comparability, comparability, effective_dimension
from lrt_tl.evaluation.stitched import (
    MappedStates,
    StitchedLoss,
    correlation_along,
    mapped_states,
    mean_cosine,
    r2_along,
    stitched_loss,
    token_share,
)
from lrt_tl.models.hook_names import layer_of
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.text.batches import TokenBatch


@dataclass(frozen=True)
class Features:
    """What is known of a transfer before the target is steered. None: not known here. Yes is 1, no is 0.

    None of them looks at the target's own vector or at anything steered.
    """

    same_architecture: float | None
    """See `Comparability`, as for the next three."""
    same_tokenizer: float | None
    agreement: float | None
    divergence: float | None
    source_dimension: float | None
    """Participation ratio of the source's states, of all sites of the map together: 1 to their dimensions (see
    `effective_dimension`)."""
    target_dimension: float | None
    """The same of the target's states."""
    depth: float | None
    """Share of the target's blocks that are done where the map ends, 0 to 1."""
    depth_gap: float | None
    """How far the nearest site of the map is from there, in the same share of the source's blocks, 0 to 1."""
    layers_read: float | None
    """Sites of the map over blocks of the source."""
    tokens_per_dimension: float | None
    """n/d: positions that the map was fitted on, over source dimensions."""
    test_r2: float | None
    """R² of the map on test documents, at most 1."""
    stitched: float | None
    """Share of the loss kept by the target with mapped states in place of its own: see `StitchedLoss.kept`."""
    direction_r2: float | None
    """R² of the map along this vector's image: see `r2_along`."""
    direction_correlation: float | None
    """See `correlation_along`."""
    token_share: float | None
    """How much of what the target's states do along the vector's image the token alone explains: see `token_share`."""
    mean_cosine: float | None
    """Of the vector's image with the target's mean state, in absolute value: see `mean_cosine`."""
    prominence: float | None
    """Variance of the target's states along the vector's image, over their mean variance a dimension."""
    determined: float | None
    """See `Carried`, as for the next two: how well the map carries this vector, as far as the map alone can tell."""
    gain: float | None
    predicted_cosine: float | None
    auc: float | None
    """How well the vector tells its contrast pairs apart in the source, 0 to 1: see `ExtractionReport`. Of several
    vectors the best, as for d′."""
    d_prime: float | None
    above_null: float | None = None
    """R² of the best pair of layers on the sample of a layer search, less the best that shuffled positions gave."""


@dataclass(frozen=True)
class MapMeasured:
    """What is measured once for a map, whichever vectors it carries."""

    affine_map: AffineMap
    comparability: Comparability
    stitched: StitchedLoss
    states: Sequence[MappedStates]


def measure_map(
    source: HookedModel,
    target: HookedModel,
    affine_map: AffineMap,
    batches: Sequence[TokenBatch],
    compared: Comparability | None = None,
) -> MapMeasured:
    """Compare the models on test documents, and run the target from mapped states.

    Args:
        batches: of `held_out_batches`.
        compared: the comparison, where it is at hand.
    """
    states = mapped_states(source, target, affine_map, batches)
    stitched = stitched_loss(target, affine_map.target.hook_name, states)
    return MapMeasured(affine_map, compared or comparability(source, target, batches), stitched, states)


def features_of(
    measured: MapMeasured,
    source: HookedModel,
    target: HookedModel,
    vectors: Sequence[SteeringVector],
    search: LayerSearch | None = None,
) -> Features:
    """What is known of one vector's transfer through a measured map."""
    affine_map, compared = measured.affine_map, measured.comparability
    transferred = affine_map.transport(vectors)
    carried: dict[str, float] = transferred.provenance["carried"] or {}
    depth = _depth(affine_map.target.hook_name, target)
    depths = [_depth(site.hook_name, source) for site in affine_map.sources]
    of_source = affine_map.source_covariance
    reports = [vector.report for vector in vectors if vector.report is not None]
    along = measured.states, transferred.direction
    return Features(
        same_architecture=None if compared.same_architecture is None else float(compared.same_architecture),
        same_tokenizer=float(compared.same_tokenizer),
        agreement=compared.agreement,
        divergence=compared.divergence,
        source_dimension=None if of_source is None else effective_dimension(of_source),
        target_dimension=effective_dimension(affine_map.target_covariance),
        depth=depth,
        depth_gap=min(abs(depth - each) for each in depths),
        layers_read=len(depths) / source.cfg.n_layers,
        tokens_per_dimension=affine_map.report.tokens_per_dimension,
        test_r2=affine_map.report.test_r2,
        stitched=measured.stitched.kept,
        direction_r2=r2_along(*along),
        direction_correlation=correlation_along(*along),
        token_share=token_share(*along),
        mean_cosine=abs(mean_cosine(*along)),
        prominence=_prominence(affine_map.target_covariance, transferred.direction),
        determined=carried.get("determined"),
        gain=carried.get("gain"),
        predicted_cosine=carried.get("predicted_cosine"),
        auc=max((report.auc for report in reports if report.auc is not None), default=None),
        d_prime=max((report.d_prime for report in reports if report.d_prime is not None), default=None),
        above_null=None if search is None else search.sample_best - max(search.null_best),
    )


def _prominence(covariance: Float[Tensor, "d d"], direction: Float[Tensor, "d"]) -> float:
    variance = direction @ covariance @ direction / direction.square().sum()
    return float(variance * len(direction) / covariance.trace())


def _depth(hook_name: str, model: HookedModel) -> float:
    """Share of a model's blocks that are done at a hook point."""
    return (layer_of(hook_name) + (not hook_name.endswith("resid_pre"))) / float(model.cfg.n_layers)
