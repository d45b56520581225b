"""What recovery to expect of a vector carried to a target, before the target is ever steered."""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.fit import fit_affine_map
from lrt_tl.alignment.layer_search import LayerSearch
from lrt_tl.artifacts import typed
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.evaluation.comparability import held_out_batches
from lrt_tl.evaluation.features import Features, features_of, measure_map
from lrt_tl.evaluation.forecasting import FEATURES, learnt
from lrt_tl.evaluation.middle import worth_in_the_middle
from lrt_tl.identifiability.verdict import Verdict
from lrt_tl.models.hook_names import check_writable, resolve_hook_name
from lrt_tl.models.identity import identify, require_same_model
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.tables import html_columns

Vectors = SteeringVector | Sequence[SteeringVector]
"""One vector; or, where the map begins at several sites, the same feature's vector at each."""


@dataclass(frozen=True)
class Forecast:
    """The recovery to expect of a vector that is carried to a target, which has not been steered.

    It was learnt on the transfers of `benchmarks/forecast_campaign.py`, and says beside it how such forecasts did on
    pairs of models that were left out. Those are small models of one family, and one further pair: what it is worth on
    others is not known.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("large")
        >>> vector = lrt.mean_difference(source, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> found = lrt.forecast(source, target, storyworld.documents(60), vector, layer=3)
        >>> found.low < found.estimate < found.high
        True
        >>> found.error < found.error_of_mean, found.predicts
        (True, True)
    """

    estimate: float
    """Expected recovery: 1 for what the target's own vector does, 0 for what a random one does."""
    low: float
    """Of the 90 % interval."""
    high: float
    features: Features
    error: float
    """Mean absolute error of such forecasts, on pairs of models left out."""
    error_of_mean: float
    """The same of the forecast that knows nothing: the mean recovery of the other pairs."""
    rank_correlation: float
    """Spearman's, of forecast and measured recovery, on pairs left out."""
    coverage: float
    """How often the interval held what was measured, on pairs left out."""
    n_pairs: int
    """Of models, that it was learnt on."""
    n_transfers: int
    extrapolates: tuple[str, ...] = ()
    """Features beyond all that was seen in learning, in words."""
    unknown: tuple[str, ...] = ()
    """Features that are learnt from and not known here; they are taken to be what they are on average."""
    distances: dict[str, float] | None = None
    """Of the models' output distributions, as `Verdict.distance_features` has them, where the two were compared: shown,
    and not learnt from."""

    @property
    def predicts(self) -> bool:
        """Whether such forecasts did better than the mean on pairs left out."""
        return self.error < self.error_of_mean

    def rows(self) -> list[dict[str, str]]:
        """For a table, a row a feature, and how it went along with recovery (see `in_the_middle`)."""
        found, worth = [], worth_in_the_middle()
        for key, value in {**asdict(self.features), **(self.distances or {})}.items():
            name = key.replace("_", " ")
            named = re.compile(rf"{re.escape(name)} -?[\d.]")
            beyond = next((f"extrapolates: {each}" for each in self.extrapolates if named.match(each)), "")
            row = {"feature": name, "value": "" if value is None else f"{value:.3g}"}
            learnt_from = "yes" if key in FEATURES else "no"
            went_along = worth[key].shown() if key in worth else ""
            row |= {"learnt from": learnt_from, "rank correlation with recovery": went_along}
            found.append({**row, "note": "not known here" if value is None else beyond})
        return found

    def in_the_middle(self) -> str:
        """What the distance of output distributions tells of a transfer between middle layers, about which the theory
        of linear identifiability is silent: as measured."""
        everything, apart = worth_in_the_middle(), worth_in_the_middle(trained_apart=True)
        best = max(FEATURES, key=lambda name: abs(everything[name].estimate))

        def said(name: str) -> str:
            whole, some = everything[name], apart[name]
            return (
                f"{whole.shown()} over {whole.n_pairs} pairs of models, {some.shown()} over the {some.n_pairs} of them "
                "that were trained apart"
            )

        return (
            "How far apart output distributions are (divergence) had a rank correlation with recovery between middle "
            f"layers of {said('divergence')}; {best.replace('_', ' ')}, which is learnt from, of {said(best)}."
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "extrapolates": list(self.extrapolates), "unknown": list(self.unknown)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Forecast":
        """Raises:
        TypeError: it is not what `to_json` gives.
        """
        lists = {name: tuple(value[name]) for name in ("extrapolates", "unknown")}
        return typed(cls(**{**value, **lists, "features": typed(Features(**value["features"]))}))

    def __str__(self) -> str:
        expected = f"a recovery of {self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}] is expected"
        learnt_on = f"{self.n_pairs} pairs of models ({self.n_transfers} transfers)"
        if not self.predicts:
            return (
                f"{expected}, but the features predict nothing: left out in turn, {learnt_on} are forecast with an "
                f"error of {self.error:.2f}, and by the mean of the others with {self.error_of_mean:.2f}"
            )
        beyond = f"; it extrapolates: {'; '.join(self.extrapolates)}" if self.extrapolates else ""
        return (
            f"{expected}; left out in turn, {learnt_on} were forecast with a mean error of {self.error:.2f} (the mean "
            f"alone: {self.error_of_mean:.2f}) and a rank correlation of {self.rank_correlation:.2f}{beyond}"
        )

    def __repr__(self) -> str:
        beyond = f", extrapolates in {len(self.extrapolates)}" if self.extrapolates else ""
        return (
            f"Forecast({self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}], mean error {self.error:.2f} against "
            f"{self.error_of_mean:.2f} of the mean{beyond})"
        )

    def _repr_html_(self) -> str:
        said = (html.escape(str(self)), html.escape(self.in_the_middle()))
        return f"<p>{said[0]}</p>{html_columns(self.rows())}<p>{said[1]}</p>"


def forecast(
    source: HookedModel,
    target: HookedModel,
    documents: Any,
    vector: Vectors,
    *,
    affine_map: AffineMap | None = None,
    layer: int | None = None,
    search: LayerSearch | None = None,
    verdict: Verdict | None = None,
    batch_size: int = 16,
    prepend_bos: bool = True,
) -> Forecast:
    """Say what recovery to expect of a vector, before the target is steered or its own vector found.

    Args:
        documents: whatever `read_documents` takes; those that the map was fitted on, of which the test documents, up to
            64 of them, are read again.
        vector: of the source; or, where the map begins at several sites, the same feature's vector at each.
        affine_map: what carries it. By default one is fitted on the documents, from where the vectors are; give one
            that was fitted without the texts that the vector is to be tried on.
        layer: of the target, at which a map ends that is fitted here; by default the one at half of its depth.
        search: a search of layers between the two models, where one is at hand: shown, and not learnt from.
        verdict: of source and target, in this order, where they were compared: its distances are shown, and not learnt
            from.

    Raises:
        LrtError: there is no test document, a model is being steered, or what `fit_affine_map` refuses.
        MismatchError: map, vector, verdict and models do not belong together.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("large")
        >>> vector = lrt.mean_difference(source, storyworld.contrast_pairs("refusal", 8), layer=2)
        >>> lrt.forecast(source, target, storyworld.documents(60), vector, layer=3)  # doctest: +ELLIPSIS
        Forecast(0.6... [0.2..., 1.0...], mean error 0.17 against 0.36 of the mean...)
    """
    options: dict[str, Any] = {"affine_map": affine_map, "layer": layer, "search": search, "verdict": verdict}
    options |= {"batch_size": batch_size, "prepend_bos": prepend_bos}
    return forecasts(source, target, documents, [vector], **options)[0]


def forecasts(
    source: HookedModel,
    target: HookedModel,
    documents: Any,
    vectors: Sequence[Vectors],
    *,
    affine_map: AffineMap | None = None,
    layer: int | None = None,
    search: LayerSearch | None = None,
    verdict: Verdict | None = None,
    batch_size: int = 16,
    prepend_bos: bool = True,
) -> list[Forecast]:
    """`forecast` for several vectors that go through one map: what is common to them is measured once.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("large")
        >>> pairs = [storyworld.contrast_pairs(task, 8) for task in ("refusal", "mood")]
        >>> vectors = [lrt.mean_difference(source, each, layer=2) for each in pairs]
        >>> found = lrt.forecasts(source, target, storyworld.documents(60), vectors, layer=3)
        >>> [each.low < each.estimate < each.high for each in found]
        [True, True]
    """
    if not vectors:
        raise LrtError("there is no vector to forecast")
    each_at = [[each] if isinstance(each, SteeringVector) else list(each) for each in vectors]
    for vector in (vector for found in each_at for vector in found):
        vector.check_model(source)
    apart = None if verdict is None else _distances(verdict, source, target)
    if affine_map is None:
        end = resolve_hook_name(target, layer=target.cfg.n_layers // 2 if layer is None else layer)
        begin = [vector.site.hook_name for vector in each_at[0]]
        affine_map = fit_affine_map(source, target, documents, hook_names=(begin, end), prepend_bos=prepend_bos)
    elif layer is not None:
        raise LrtError(f"layer={layer} is of a map that is fitted here; the one given ends at {affine_map.target}")
    _check_map(affine_map, source, target)
    batches = held_out_batches(source, target, documents, batch_size=batch_size, prepend_bos=prepend_bos)
    measured = measure_map(source, target, affine_map, batches)
    return [_forecast(features_of(measured, source, target, found, search), apart) for found in each_at]


def _check_map(affine_map: AffineMap, source: HookedModel, target: HookedModel) -> None:
    for sites, model, what in (
        (affine_map.sources, source, "the map's source"),
        ((affine_map.target,), target, "the map's target"),
    ):
        for site in sites:
            if site.model is not None:
                require_same_model(site.model, identify(model), what=what)
    check_writable(target, affine_map.target.hook_name)


def _distances(verdict: Verdict, source: HookedModel, target: HookedModel) -> dict[str, float]:
    names = (str(source.cfg.model_name), str(target.cfg.model_name))
    if verdict.names != names:
        told, wanted = (" and ".join(each) for each in (verdict.names, names))
        raise MismatchError(f"the verdict is of {told}, in this order, not of {wanted}")
    return {name: value for name, value in verdict.distance_features().items() if math.isfinite(value)}


def _forecast(features: Features, distances: dict[str, float] | None) -> Forecast:
    forecaster, known = learnt(), asdict(features)
    estimate, low, high = forecaster.forecast(known)
    return Forecast(
        estimate,
        low,
        high,
        features,
        forecaster.error,
        forecaster.error_of_mean,
        forecaster.rank_correlation,
        forecaster.coverage,
        forecaster.n_pairs,
        forecaster.n_transfers,
        forecaster.extrapolates(known),
        tuple(name for name in FEATURES if known[name] is None),
        distances,
    )
