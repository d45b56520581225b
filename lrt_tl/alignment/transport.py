"""Carry what is linear to another model: steering, probes and subspaces. (Vectors: `AffineMap.transport`.)

What writes to the residual stream goes with the map, v ↦ A v; what reads it goes against the map of the way back,
w ↦ Bᵀw. So the rows of an autoencoder's decoder go through `affine_map.transport(W_dec)`, its decoder bias, a state,
through `affine_map(b_dec)`, and its encoder through `back.pull_back(W_enc.T, b_enc)`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.carried import warn_of_little
from lrt_tl.errors import LrtError, MismatchError
from lrt_tl.models.identity import Site, require_same_site
from lrt_tl.steering.operators import Step
from lrt_tl.steering.probe import Probe
from lrt_tl.steering.steering import Steering
from lrt_tl.steering.vector import SteeringVector

Maps = AffineMap | Iterable[AffineMap]
_FALLEN = 1e-5
"""A singular value below this fraction of the largest is zero."""


def transport_steering(steering: Steering, maps: Maps, *, back: Maps = ()) -> Steering:
    """Carry steering to the target, step by step; operators, coefficients, values and positions stay.

    A direction v becomes A v: it is added, rotated towards, or ablated (projected out orthogonally in the target). A
    clamp moves along A u, u its unit direction, until its reader has the value, and the reader is the source's, pulled
    back: the component that *the target's state carried back to the source* has along u. A condition (`when`) is pulled
    back alike.

    Args:
        maps: one from each step's site, to where the step is to be done.
        back: maps from the target to the source, for clamps (from where the step is to be done to where it was) and
            conditions (to where they were read). They read: fit them by `method="ridge"`.

    Raises:
        MismatchError: no map begins, or ends, at a step's site, or several do; or one begins at several sites.
        LrtError: a clamp or a condition without its map back; positions of token ids or a mask, which mean nothing to
            another tokenizer.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small, medium = storyworld.load("small"), storyworld.load("medium")
        >>> vector = lrt.mean_difference(small, storyworld.contrast_pairs("refusal", 8), layer=3)
        >>> steering = vector.ablate(positions="prompt") + vector.add(2.0, positions="generated")
        >>> affine_map = lrt.fit_affine_map(small, medium, storyworld.documents(60), layers=(3, 5))
        >>> for step in lrt.transport_steering(steering, affine_map).steps:
        ...     print(step)
        ablate × 1 on storyworld-medium L5 at 'prompt'
        add × 2 on storyworld-medium L5 at 'generated'
    """
    there, returning = _listed(maps), _listed(back)
    return Steering(tuple(_step(step, there, returning) for step in steering.steps))


def transport_probe(probe: Probe, back: AffineMap) -> Probe:
    """Carry a probe to the other model: the reader of h is that of the source's state which `back` makes of h.

    Its weight is Bᵀw and its bias w · b + c; the threshold stays. What is read of mapped states varies less than of the
    source's own: `provenance["carried"]["variance"]` says by how much. So set the threshold anew where labelled texts
    are at hand: `choose_threshold(transport_probe(probe, back), target, texts, labels)`.

    Args:
        back: from where the probe is to read in the target, to where it reads in the source; by `method="ridge"`.

    Raises:
        MismatchError: `back` does not end at the probe's site.
        LrtError: `back` begins at several sites, or the probe's position is one of token ids, or a mask, and the
            tokenizers are not known to be the same.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small, medium = storyworld.load("small"), storyworld.load("medium")
        >>> pairs = storyworld.contrast_pairs("refusal", 8)
        >>> texts = [pair.positive for pair in pairs] + [pair.negative for pair in pairs]
        >>> probe = lrt.fit_probe(small, texts, [True] * 8 + [False] * 8, layer=3)
        >>> back = lrt.fit_affine_map(medium, small, storyworld.documents(60), layers=(5, 3), method="ridge")
        >>> lrt.transport_probe(probe, back)
        Probe(storyworld-medium L5, 128 dimensions, 'mean' > 0, logistic regression)
    """
    require_same_site(probe.site, back.target, what="the probe")
    _check_positions(probe.position, probe.site, back.source)
    weight, bias = back.pull_back(probe.weight, probe.bias)
    provenance = {
        **probe.provenance,
        "transported_through": repr(back),
        "transported_from": str(probe.site),
        "carried": {"variance": _variance_kept(probe.weight, back)},
    }
    return Probe(weight, float(bias), probe.threshold, back.source, probe.position, provenance)


def transport_subspace(basis: Float[Tensor, "k d_source"], affine_map: AffineMap) -> Float[Tensor, "k d_target"]:
    """Carry a subspace: an orthonormal basis of its image under the map, the directions that it lengthens most first.

    Args:
        basis: rows that span the subspace, orthonormal or not.

    Raises:
        MismatchError: the width is not the source's.
        LrtError: the rows are linearly dependent, or their image has fewer dimensions than they.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> small, medium = storyworld.load("small"), storyworld.load("medium")
        >>> tasks = [storyworld.contrast_pairs(name, 8) for name in ("mood", "refusal")]
        >>> basis = torch.stack([lrt.mean_difference(small, pairs, layer=3).direction for pairs in tasks])
        >>> affine_map = lrt.fit_affine_map(small, medium, storyworld.documents(60), layers=(3, 5))
        >>> carried = lrt.transport_subspace(basis, affine_map)
        >>> carried.shape, torch.allclose(carried @ carried.T, torch.eye(2), atol=1e-5)
        (torch.Size([2, 128]), True)
    """
    orthonormal = _orthonormal(basis.double(), "the rows of the basis")
    image = _orthonormal(affine_map.transport(orthonormal), "the image of the subspace under the map")
    judged = [affine_map.carried(row) for row in orthonormal.float()]
    for number, carried in enumerate(judged):
        warn_of_little(carried, what=f"direction {number} of the subspace")
    return image.to(basis.dtype)


def _step(step: Step, maps: Sequence[AffineMap], back: Sequence[AffineMap]) -> Step:
    affine_map = _only([each for each in maps if _same_place(each, step.site)], f"from {step.site}")
    _check_positions(step.positions, step.site, affine_map.target)
    unit = step.direction / step.direction.norm()
    along = unit if step.operator == "clamp" else step.direction
    carried = affine_map.transport(SteeringVector(along, step.site, provenance=step.provenance))
    return replace(
        step,
        direction=carried.direction,
        site=carried.site,
        provenance=carried.provenance,
        when=None if step.when is None else _condition(step.when, back),
        reads=_reader(step, unit, affine_map.target, back) if step.operator == "clamp" else None,
    )


def _reader(step: Step, unit: Float[Tensor, "d_model"], target: Site, back: Sequence[AffineMap]) -> Probe:
    """What a clamp reads of a state of the target."""
    if not back:
        raise LrtError(
            f"to clamp at {step.site} is to read there, and reading goes against the map: give back=, a map from "
            f"{target} to {step.site}"
        )
    returning = [each for each in back if _same_place(each, target) and each.target.hook_name == step.site.hook_name]
    reads = step.reads or Probe(unit, 0.0, 0.0, step.site, "last", {"method": "component along the direction"})
    return transport_probe(reads, _only(returning, f"back from {target} to {step.site}"))


def _condition(when: Probe, back: Sequence[AffineMap]) -> Probe:
    if not back:
        raise LrtError(
            f"a condition reads at {when.site}, and reading goes against the map: give back=, a map to there"
        )
    returning = [each for each in back if each.target.hook_name == when.site.hook_name]
    return transport_probe(when, _only(returning, f"back to {when.site}, where a condition is read,"))


def _listed(maps: Maps) -> list[AffineMap]:
    return [maps] if isinstance(maps, AffineMap) else list(maps)


def _only(found: Sequence[AffineMap], which: str) -> AffineMap:
    if len(found) != 1:
        raise MismatchError(
            f"exactly one map {which} is needed, and {len(found)} are given. (A map from several sites carries a "
            "vector of each: affine_map.transport(vectors), and then steer with what comes)"
        )
    return found[0]


def _same_place(affine_map: AffineMap, site: Site) -> bool:
    return len(affine_map.sources) == 1 and affine_map.source.hook_name == site.hook_name


def _check_positions(positions: Any, source: Site, target: Site) -> None:
    """Refuse positions that belong to another tokenizer."""
    known = source.model is not None and target.model is not None
    if known and source.model.tokenizer == target.model.tokenizer:  # type: ignore[union-attr]
        return
    if not isinstance(positions, Mapping):
        return
    for key, value in positions.items():
        if key in ("tokens", "mask"):
            raise LrtError(
                f"positions={positions!r} mean nothing in {target}, whose tokenizer is "
                f"{'another one' if known else 'not known'}: say it in text, as {{'within': …}} or {{'after': …}}"
            )
        _check_positions(value, source, target)


def _variance_kept(weight: Float[Tensor, "d_target"], back: AffineMap) -> float | None:
    """How much what a reader reads of mapped states varies, over what it reads of true ones."""
    if back.source_covariance is None:
        return None
    pulled = weight @ back.weight
    return float((pulled @ back.source_covariance @ pulled) / (weight @ back.target_covariance @ weight))


def _orthonormal(rows: Float[Tensor, "k d"], what: str) -> Float[Tensor, "k d"]:
    """An orthonormal basis of the rows' span."""
    _, lengths, directions = torch.linalg.svd(rows, full_matrices=False)
    rank = int((lengths > _FALLEN * lengths[:1]).sum())
    if rank < len(rows):
        raise LrtError(f"{what} are of {rank} dimensions, and not of {len(rows)}: leave out what is lost")
    basis: Tensor = directions
    return basis
