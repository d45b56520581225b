"""Did it transfer? A behavior's dose–response under the native vector, the transferred one and the nulls."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.evaluation.behavior import read_behavior
from lrt_tl.evaluation.controls import (
    N_DRAWS,
    padded_direction,
    random_directions,
    random_map_directions,
    shuffled_map_directions,
)
from lrt_tl.evaluation.effects import COEFFICIENTS, check_coefficients, dose_response, slopes
from lrt_tl.evaluation.matched_kl import scales_of_equal_kl
from lrt_tl.evaluation.prompted import check_examples, prompted_effect
from lrt_tl.evaluation.recovery import Recovery, recovery, recovery_over_baseline
from lrt_tl.evaluation.result import VECTORS
from lrt_tl.evaluation.result import TransferResult as TransferResult
from lrt_tl.evaluation.strength import chosen_strength
from lrt_tl.models.identity import identify, require_same_model
from lrt_tl.models.protocol import HookedModel
from lrt_tl.steering.extraction import mean_activation
from lrt_tl.steering.handle import require_at_rest
from lrt_tl.steering.vector import SteeringVector

_RANDOM_MAPS = 16


def evaluate_transfer(
    target: HookedModel,
    transferred: SteeringVector,
    behavior: Any,
    *,
    native: SteeringVector,
    affine_map: AffineMap | None = None,
    controls: Mapping[str, Tensor] | None = None,
    baselines: Mapping[str, Tensor] | None = None,
    source: tuple[HookedModel, SteeringVector] | None = None,
    examples: Sequence[str] = (),
    neutral: Sequence[str] = (),
    coefficients: Sequence[float] = COEFFICIENTS,
    n_draws: int = N_DRAWS,
    batch_size: int = 256,
    prepend_bos: bool = True,
    seed: int = 0,
) -> TransferResult:
    """Measure a behavior of the target under the transferred vector, the native one and nulls, all of equal norm.

    The controls are a default set, and what of it cannot be measured for want of an argument is named in the result's
    `missing`.

    Args:
        behavior: whatever `read_behavior` takes.
        native: the vector found in the target itself, at the same hook point.
        affine_map: the map that carried the vector: adds the nulls of maps fitted on row-shuffled pairs, and of random
            maps with its singular values.
        controls: further nulls, by name: directions `[draw, d_model]`, of any length; `unrelated`, other behaviors'
            vectors through the same map, belongs to the default set, and others of it (`mean_activation`, `padded`) are
            taken from here where they are given.
        baselines: directions that are no nulls but have to be beaten, by name, as `random_weights`: the vector found in
            `reinitialized(source)`, and carried from there by a map of its own.
        source: the source model and its own vector: adds the effect there, and the vector padded to the target's width.
        examples: a text with the behavior and one without, put in front of the prompts for the reference of a prompt
            alone; by default the behavior's instruction.
        neutral: a few texts that have nothing to do with the behavior: adds the recovery at matched KL, and the
            target's mean activation over them.
        coefficients: in units of the native vector; symmetric about 0, which is added where it is left out.
        n_draws: random vectors, and shuffled maps; of random maps, which are random vectors again, at most 16.

    Raises:
        MismatchError: a vector, or the map's end, is not of the target, or they are not at one hook point.
        LrtError: bad coefficients, behavior or examples, no draw, or a model that is being steered.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target, documents = storyworld.load("small"), storyworld.load("medium"), storyworld.documents(150)
        >>> pairs, behavior = storyworld.contrast_pairs("refusal", 16), storyworld.behavior("refusal", 8)
        >>> tried_on = lrt.texts_of(pairs, behavior)
        >>> affine_map = lrt.fit_affine_map(source, target, documents, layers=("all", 3), exclude=tried_on)
        >>> vectors = [lrt.mean_difference(source, pairs, hook_name=site.hook_name) for site in affine_map.sources]
        >>> transferred, native = affine_map.transport(vectors), lrt.mean_difference(target, pairs, layer=3)
        >>> result = lrt.evaluate_transfer(target, transferred, behavior, native=native, coefficients=(-1.0, 0.0, 1.0))
        >>> round(result.recovery.estimate, 1)  # of the effect of the target's own vector
        0.9
    """
    behavior = read_behavior(behavior)
    check_coefficients(coefficients)
    check_examples(examples)
    if n_draws < 1:
        raise LrtError(f"n_draws={n_draws}: without random vectors nothing can be said")
    _check_vectors(target, native, transferred, affine_map)
    if source is not None:
        require_at_rest(source[0])
        source[1].check_model(source[0])
    coefficients = sorted({*coefficients, 0.0})
    running: dict[str, Any] = {"batch_size": batch_size, "prepend_bos": prepend_bos}
    options = {"coefficients": coefficients, **running}
    hook_name = native.site.hook_name
    measure = partial(dose_response, target, hook_name, behavior=behavior, **options)
    nulls, missing = _controls(
        target,
        hook_name,
        controls or {},
        affine_map,
        source,
        neutral,
        n_draws=n_draws,
        seed=seed,
        prepend_bos=prepend_bos,
    )
    baselines = _checked(baselines or {}, target.cfg.d_model, taken=nulls)
    if not baselines:
        missing["baselines"] = "no vector of a source with random weights was given (baselines={'random_weights': …})"
    directions = {"native": native.direction[None], "transferred": transferred.direction[None], **nulls, **baselines}
    equal = {name: some * (native.norm / some.norm(dim=1, keepdim=True)) for name, some in directions.items()}
    scores = _measured(measure, equal)
    at_norm = at_kl = _recovery(scores, coefficients, seed)
    if not neutral:
        at_kl = Recovery(None, None, None, "no neutral text was given")
    elif at_norm.estimate is not None:
        scale = partial(scales_of_equal_kl, target, hook_name, texts=neutral, prepend_bos=prepend_bos)
        at_kl = _at_matched_kl(measure, scale, equal, coefficients, seed)
    arms = scores["native"][0], scores["transferred"][0]
    strength = chosen_strength(behavior, coefficients, *arms, scores["random"], seed=seed)
    plain = arms[0][coefficients.index(0)]
    prompted = prompted_effect(target, hook_name, behavior, plain, strength, examples, seed=seed, **running)
    if prompted.reason is not None:
        missing["prompted"] = prompted.reason
    in_source = None
    if source is not None:
        model, own = source
        in_source = dose_response(model, own.site.hook_name, own.direction[None], behavior, **options)[0]
    return TransferResult(
        behavior=behavior.name,
        prompts=behavior.prompts,
        coefficients=tuple(coefficients),
        native=arms[0],
        transferred=arms[1],
        controls={name: scores[name] for name in nulls},
        source_native=in_source,
        recovery=at_norm,
        recovery_matched_kl=at_kl,
        cosine_with_native=float(torch.cosine_similarity(native.direction, transferred.direction, dim=0)),
        norm_over_native=transferred.norm / native.norm,
        baselines={name: scores[name] for name in baselines},
        over_baseline={name: _over_baseline(scores, name, at_norm, coefficients, seed) for name in baselines},
        baseline_recovery={name: _recovery(scores, coefficients, seed, arm=name) for name in baselines},
        strength=strength,
        prompted=prompted,
        cosine_with_mean=_cosine_with_mean(transferred, nulls),
        missing=missing,
    )


def _controls(
    target: HookedModel,
    hook_name: str,
    given: Mapping[str, Tensor],
    affine_map: AffineMap | None,
    source: tuple[HookedModel, SteeringVector] | None,
    neutral: Sequence[str],
    *,
    n_draws: int,
    seed: int,
    prepend_bos: bool,
) -> tuple[dict[str, Float[Tensor, "draw d_model"]], dict[str, str]]:
    """The default set of controls, with those that were given; and why the others of it are missing."""
    d_model = target.cfg.d_model
    found, missing = {"random": random_directions(n_draws, d_model, seed=seed)}, dict[str, str]()
    if affine_map is None:
        missing |= dict.fromkeys(("shuffled_map", "random_map"), "no map was given (affine_map=)")
    else:
        found["shuffled_map"] = shuffled_map_directions(affine_map, n_draws, seed=seed + 1)
        found["random_map"] = random_map_directions(affine_map, min(n_draws, _RANDOM_MAPS), seed=seed + 2)
    found |= _checked(given, d_model, taken=("random", "shuffled_map", "random_map"))
    if not neutral:
        missing["mean_activation"] = "no neutral text was given (neutral=)"
    elif "mean_activation" not in found:
        mean = mean_activation(target, neutral, hook_name=hook_name, prepend_bos=prepend_bos)
        found["mean_activation"] = mean.direction[None]
    if source is None:
        missing |= dict.fromkeys(("padded", "source_native"), "no source was given (source=)")
    elif "padded" not in found:
        found["padded"] = padded_direction(source[1], d_model)
    missing["unrelated"] = "no other behavior's vector was given (controls={'unrelated': …})"
    return found, {name: reason for name, reason in missing.items() if name not in found}


def _cosine_with_mean(transferred: SteeringVector, nulls: Mapping[str, Tensor]) -> float | None:
    if "mean_activation" not in nulls:
        return None
    return float(torch.cosine_similarity(transferred.direction, nulls["mean_activation"].mean(0), dim=0))


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


def _recovery(
    scores: Mapping[str, Tensor], coefficients: Sequence[float], seed: int, *, arm: str = "transferred"
) -> Recovery:
    native, carried, random = (slopes(scores[name], coefficients) for name in ("native", arm, "random"))
    return recovery(native[0], carried.mean(0), random, seed=seed)


def _over_baseline(
    scores: Mapping[str, Tensor], name: str, at_norm: Recovery, coefficients: Sequence[float], seed: int
) -> Recovery:
    """None where there is no recovery to begin with."""
    if at_norm.estimate is None:
        return at_norm
    native, transferred, baseline = (slopes(scores[arm], coefficients) for arm in ("native", "transferred", name))
    return recovery_over_baseline(native[0], transferred[0], baseline, seed=seed)


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


def _checked(directions: Mapping[str, Tensor], d_model: int, *, taken: Iterable[str]) -> dict[str, Tensor]:
    """Controls or baselines that were given: float32, on the CPU.

    Raises:
        LrtError: a name is that of another arm, or they are not directions of this width.
    """
    names = {*taken, *VECTORS}
    for name, some in directions.items():
        if name in names:
            raise LrtError(f"a control or baseline cannot be named {name!r}: that is another arm of the measurement")
        if some.ndim != 2 or some.shape[1] != d_model or not some.numel() or not some.norm(dim=1).all():
            raise LrtError(f"control {name!r} must be directions [draw, {d_model}], none of them zero")
    return {name: some.float().cpu() for name, some in directions.items()}
