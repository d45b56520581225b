"""Did it transfer? A behavior's dose–response under the native vector, the transferred one and the nulls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.evaluation.behavior import Behavior, read_behavior
from lrt_tl.evaluation.controls import N_DRAWS, random_directions, shuffled_map_directions
from lrt_tl.evaluation.effects import COEFFICIENTS, check_coefficients, dose_response, slopes
from lrt_tl.evaluation.matched_kl import scales_of_equal_kl
from lrt_tl.evaluation.recovery import Recovery, rank, recovery
from lrt_tl.models.identity import identify, require_same_model
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.steering.vector import SteeringVector
from lrt_tl.tables import html_table

_ARMS = ("native", "transferred", "source_native", "random", "shuffled_map")


@dataclass(frozen=True, eq=False)
class TransferResult:
    """The effect of a transferred vector on one behavior of the target, beside the native vector's and the nulls'.

    All vectors have the native vector's norm, which is the unit of the coefficients.
    """

    behavior: str
    prompts: tuple[str, ...]
    coefficients: tuple[float, ...]
    native: Float[Tensor, "coefficient prompt"]
    """Scores."""
    transferred: Float[Tensor, "coefficient prompt"]
    controls: Mapping[str, Float[Tensor, "draw coefficient prompt"]]
    source_native: Float[Tensor, "coefficient prompt"] | None
    """The source's own vector in the source, in units of its own norm."""
    recovery: Recovery
    """At matched norm."""
    recovery_matched_kl: Recovery
    """With every vector scaled to the native one's KL on neutral text."""
    cosine_with_native: float
    norm_over_native: float
    """Of the transferred vector as the map gave it, before it was scaled."""

    def slope(self, arm: str) -> float:
        """Mean slope over the prompts: of `"native"`, `"transferred"` or `"source_native"`."""
        return float(slopes(getattr(self, arm), self.coefficients).mean())

    def control_slopes(self, name: str) -> Float[Tensor, "draw"]:
        """Mean slope over the prompts of each draw of a control."""
        return slopes(self.controls[name], self.coefficients).mean(-1)

    def summary(self) -> dict[str, Any]:
        """Everything in numbers, ready for JSON."""
        arms = {"native": self.native, "transferred": self.transferred}
        curves = {name: scores.mean(-1).tolist() for name, scores in arms.items()}
        curves |= {name: scores.mean((0, -1)).tolist() for name, scores in self.controls.items()}
        source = self.source_native
        return {
            "name": self.behavior,
            "prompts": len(self.prompts),
            "source_native_slope": None if source is None else self.slope("source_native"),
            "native_slope": self.slope("native"),
            "transferred_slope": self.slope("transferred"),
            **{f"{name}_slope": self._control(name) for name in self.controls},
            "recovery": vars(self.recovery),
            "recovery_matched_kl": vars(self.recovery_matched_kl),
            "anti_steerable": {
                name: float((slopes(scores, self.coefficients) < 0).double().mean()) for name, scores in arms.items()
            },
            "cosine_with_native": self.cosine_with_native,
            "norm_over_native": self.norm_over_native,
            "coefficients": list(self.coefficients),
            "curves": curves | ({} if source is None else {"source_native": source.mean(-1).tolist()}),
        }

    def _control(self, name: str) -> dict[str, Any]:
        draws = self.control_slopes(name)
        return {
            "mean": float(draws.mean()),
            "std": float(draws.std()) if len(draws) > 1 else None,
            "n": len(draws),
            "rank_of_native": rank(self.slope("native"), draws),
            "rank_of_transferred": rank(self.slope("transferred"), draws),
        }

    def table(self) -> dict[str, str]:
        """The figures that a person needs, in words."""
        rows = {"recovery (transferred over native effect)": str(self.recovery)}
        rows["recovery at matched KL"] = str(self.recovery_matched_kl)
        rows["slope, native vector"] = f"{self.slope('native'):+.4f}"
        rows["slope, transferred vector"] = f"{self.slope('transferred'):+.4f}"
        for name in self.controls:
            control = self._control(name)
            spread = "" if control["std"] is None else f" ± {control['std']:.4f} over {control['n']}"
            place = f"transferred ranks {control['rank_of_transferred']} of {control['n'] + 1}"
            rows[f"slope, {name.replace('_', ' ')} (null)"] = f"{control['mean']:+.4f}{spread}; {place}"
        if self.source_native is not None:
            rows["slope, source's vector in the source"] = f"{self.slope('source_native'):+.4f}"
        rows["cosine with the native vector"] = f"{self.cosine_with_native:.3f}"
        against = (slopes(self.transferred, self.coefficients) < 0).double().mean()
        rows["prompts that move the wrong way"] = f"{100 * float(against):.0f} %"
        return rows

    def __repr__(self) -> str:
        return f"TransferResult({self.behavior}: recovery {self.recovery}, {len(self.prompts)} prompts)"

    def _repr_html_(self) -> str:
        return html_table(self.table(), caption=self.behavior)


def evaluate_transfer(
    target: HookedModel,
    transferred: SteeringVector,
    behavior: Any,
    *,
    native: SteeringVector,
    affine_map: AffineMap | None = None,
    controls: Mapping[str, Tensor] | None = None,
    source: tuple[HookedModel, SteeringVector] | None = None,
    neutral: Sequence[str] = (),
    coefficients: Sequence[float] = COEFFICIENTS,
    n_draws: int = N_DRAWS,
    batch_size: int = 256,
    prepend_bos: bool = True,
    seed: int = 0,
) -> TransferResult:
    """Measure a behavior of the target under the transferred vector, the native one and nulls, all of equal norm.

    Args:
        behavior: whatever `read_behavior` takes.
        native: the vector found in the target itself, at the same hook point.
        affine_map: the map that carried the vector: adds the null of maps fitted on row-shuffled pairs.
        controls: further nulls, by name: directions `[draw, d_model]`, of any length. Random ones are always there.
        source: the source model and its own vector: adds the effect there.
        neutral: a few texts that have nothing to do with the behavior: adds the recovery at matched KL.
        coefficients: in units of the native vector; symmetric about 0.
        n_draws: random vectors, and shuffled maps.

    Raises:
        MismatchError: a vector, or the map's end, is not of the target, or they are not at one hook point.
        LrtError: bad coefficients or behavior, or a model that is being steered.
    """
    behavior = read_behavior(behavior)
    check_coefficients(coefficients)
    _check_vectors(target, native, transferred, affine_map)
    options: dict[str, Any] = {"coefficients": coefficients, "batch_size": batch_size, "prepend_bos": prepend_bos}
    hook_name = native.site.hook_name
    measure = partial(dose_response, target, hook_name, behavior=behavior, **options)
    directions = {"native": native.direction[None], "transferred": transferred.direction[None]}
    directions["random"] = random_directions(n_draws, target.cfg.d_model, seed=seed)
    if affine_map is not None:
        directions["shuffled_map"] = shuffled_map_directions(affine_map, n_draws, seed=seed + 1)
    directions |= _named(controls or {}, target.cfg.d_model)
    equal = {name: some * (native.norm / some.norm(dim=1, keepdim=True)) for name, some in directions.items()}
    scores = _measured(measure, equal)
    at_norm = at_kl = _recovery(scores, coefficients, seed)
    if not neutral:
        at_kl = Recovery(None, None, None, "no neutral text was given")
    elif at_norm.estimate is not None:
        scale = partial(scales_of_equal_kl, target, hook_name, texts=neutral, prepend_bos=prepend_bos)
        at_kl = _at_matched_kl(measure, scale, equal, coefficients, seed)
    return TransferResult(
        behavior=behavior.name,
        prompts=behavior.prompts,
        coefficients=tuple(coefficients),
        native=scores["native"][0],
        transferred=scores["transferred"][0],
        controls={name: some for name, some in scores.items() if name not in ("native", "transferred")},
        source_native=None if source is None else _in_source(*source, behavior, options),
        recovery=at_norm,
        recovery_matched_kl=at_kl,
        cosine_with_native=float(torch.cosine_similarity(native.direction, transferred.direction, dim=0)),
        norm_over_native=transferred.norm / native.norm,
    )


Measure = Callable[[Tensor], Float[Tensor, "arm coefficient prompt"]]


def _check_vectors(
    target: HookedModel, native: SteeringVector, transferred: SteeringVector, affine_map: AffineMap | None
) -> None:
    """All of one place in the target, which nothing else steers."""
    require_at_rest(target)
    if "transported_through" in native.provenance:
        raise LrtError(f"the native vector must be found in the target itself; this one was transported: {native}")
    for vector in (native, transferred):
        vector.check_model(target)
    if native.site.hook_name != transferred.site.hook_name:
        raise MismatchError(f"the native vector is at {native.site}, the transferred one at {transferred.site}")
    if affine_map is None:
        return
    end = affine_map.target
    if (end.hook_name, end.d_model) != (native.site.hook_name, native.site.d_model):
        raise MismatchError(
            f"the map ends at {end} ({end.d_model} dimensions), the vectors are at {native.site} "
            f"({native.site.d_model} dimensions)"
        )
    if end.model is not None:
        require_same_model(end.model, identify(target), what="the map's target")


def _measured(measure: Measure, directions: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "arm coefficient prompt"]]:
    """All arms in one go, so that they share batches and the run at coefficient 0."""
    return _split_like(directions, measure(torch.cat(list(directions.values()))))


def _in_source(
    model: HookedModel, vector: SteeringVector, behavior: Behavior, options: Mapping[str, Any]
) -> Float[Tensor, "coefficient prompt"]:
    require_at_rest(model)
    vector.check_model(model)
    return dose_response(model, vector.site.hook_name, vector.direction[None], behavior, **options)[0]


def _recovery(scores: Mapping[str, Tensor], coefficients: Sequence[float], seed: int) -> Recovery:
    native, transferred, random = (slopes(scores[name], coefficients) for name in ("native", "transferred", "random"))
    return recovery(native[0], transferred[0], random, seed=seed)


def _at_matched_kl(
    measure: Measure,
    scale: Callable[[Tensor, float], Tensor],
    directions: Mapping[str, Tensor],
    coefficients: Sequence[float],
    seed: int,
) -> Recovery:
    """Recovery again, with the transferred vector and the random ones at the native one's KL on neutral text."""
    arms = {name: directions[name] for name in ("native", "transferred", "random")}
    together = torch.cat(list(arms.values()))
    try:
        scales = scale(together, max(coefficients))
    except LrtError as error:
        return Recovery(None, None, None, str(error))
    return _recovery(_measured(measure, _split_like(arms, scales[:, None].float() * together)), coefficients, seed)


def _split_like(arms: Mapping[str, Tensor], together: Tensor) -> dict[str, Tensor]:
    return dict(zip(arms, torch.split(together, [len(some) for some in arms.values()]), strict=True))


def _named(controls: Mapping[str, Tensor], d_model: int) -> dict[str, Tensor]:
    for name, directions in controls.items():
        if name in _ARMS:
            raise LrtError(f"a control cannot be named {name!r}: that is another arm of the measurement")
        if directions.ndim != 2 or directions.shape[1] != d_model or not directions.norm(dim=1).all():
            raise LrtError(f"control {name!r} must be directions [draw, {d_model}], none of them zero")
    return {name: directions.float().cpu() for name, directions in controls.items()}
