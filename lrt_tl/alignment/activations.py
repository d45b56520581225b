"""Fit the affine map to activations already in hand, such as caches."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lrt_tl.alignment.affine_map import AffineMap
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.fit import RELATIVE_RIDGES, solve
from lrt_tl.alignment.harvest import SINK_RATIO
from lrt_tl.alignment.moments import Moments, fit_pairs
from lrt_tl.alignment.selection import Method
from lrt_tl.errors import LrtError
from lrt_tl.models.hook_names import spelled_as_stored
from lrt_tl.models.identity import Site, site_of
from lrt_tl.models.protocol import HookedModel
from lrt_tl.text.documents import N_SPLITS, split_of


def fit_activations(
    source: Any,
    target: Any,
    document_ids: Sequence[Any] | Tensor,
    *,
    hook_names: tuple[str, str] | None = None,
    mask: Tensor | None = None,
    models: tuple[HookedModel, HookedModel] | None = None,
    drop_sinks: bool = True,
    method: Method = "whitened",
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
) -> AffineMap:
    """Fit a map to activations already in hand. Splits, choices and report are those of `fit_affine_map`.

    Args:
        source: `[position, d_source]` or `[row, position, d_source]`, or a cache (`ActivationCache`, or a mapping by
            hook name) that holds such a tensor at `hook_names[0]`.
        target: the same for the target, at the same positions.
        document_ids: for each position, or each row, the document that it is from, so that no document is on both sides
            of a split.
        hook_names: where the activations were taken. Needed with caches and with `models`; without them a map between
            tensors knows only their widths, and carries tensors but no steering vector.
        mask: True at the positions to use, in the shape of the activations without their last axis; leave out padding
            and special tokens. Needed where the activations have rows.
        models: the two models, to write their identities into the map.
        drop_sinks: leave out positions whose norm is over 10× the median in either model.

    Raises:
        LrtError: shapes that do not pair, a cache without hook names, activations that are not finite, or fewer
            positions than dimensions.

    Examples:
        >>> import torch
        >>> import lrt_tl as lrt
        >>> generator = torch.Generator().manual_seed(0)
        >>> source = torch.randn(4000, 8, generator=generator)
        >>> target = source @ torch.randn(8, 12, generator=generator) + 3.0
        >>> affine_map = lrt.fit_activations(source, target, document_ids=torch.arange(4000) // 20)
        >>> affine_map(source).allclose(target, atol=1e-3)
        True
    """
    names = hook_names or ("", "")
    x, y = _rows_of(source, names[0], "source"), _rows_of(target, names[1], "target")
    if x.shape[:-1] != y.shape[:-1]:
        raise LrtError(f"activations {tuple(x.shape)} and {tuple(y.shape)} are not of the same positions")
    sites = _sites(names, (x.shape[-1], y.shape[-1]), models)
    splits = _splits(document_ids, x.shape[:-1])
    if mask is None and len(splits.shape) > 1:
        raise LrtError(
            "say with mask= which positions of the rows are text, so that padding and special tokens are left out "
            "(mask=torch.ones(rows, positions) if all are to be used)"
        )
    keep = torch.ones(splits.shape, dtype=torch.bool) if mask is None else mask.bool().cpu()
    if keep.shape != splits.shape:
        raise LrtError(f"a mask {tuple(keep.shape)} does not fit activations {tuple(x.shape)}")
    for activations, side in ((x, "source"), (y, "target")):
        _check_finite(activations, keep, document_ids, f"the {side}, {names[side == 'target']}")
    x, y, splits = x[keep.to(x.device)], y[keep.to(y.device)], splits[keep]
    norms = {f"source:{sites[0].hook_name}": x.norm(dim=-1), f"target:{sites[1].hook_name}": y.norm(dim=-1)}
    medians = {key: float(norm.median()) for key, norm in norms.items()} if len(splits) else {}
    counts = HarvestCounts(documents=len(set(_as_list(document_ids))), median_norms=medians)
    kept = torch.ones(len(splits), dtype=torch.bool)
    if drop_sinks and medians:
        calm = [(norm <= SINK_RATIO * medians[key]).cpu() for key, norm in norms.items()]
        kept = calm[0] & calm[1]
        counts.sinks_dropped = int((~kept).sum())
        x, y, splits = x[kept.to(x.device)], y[kept.to(y.device)], splits[kept]
    for key, norm in norms.items():
        counts.add_norms(key, norm, norm[kept.to(norm.device)])
    counts.positions = len(splits)
    if not counts.positions:
        raise LrtError("there are no positions to fit on: the mask leaves none")
    shifts = {"source": x.mean(0), "target": y.mean(0)}
    moments = Moments.empty(N_SPLITS, shifts, fit_pairs(["source"], ["target"]))
    parts = moments.update({"source": x, "target": y}, splits).between(["source"], "target")
    return solve(parts, sites[:1], sites[1], counts, method=method, relative_ridges=relative_ridges)


def _sites(
    hook_names: tuple[str, str], widths: tuple[int, int], models: tuple[HookedModel, HookedModel] | None
) -> list[Site]:
    if models is None:
        names = [name and spelled_as_stored(name) for name in hook_names]
        return [Site(name, width) for name, width in zip(names, widths, strict=True)]
    if not all(hook_names):
        raise LrtError("say with hook_names where in the models the activations were taken")
    return [site_of(model, hook_name=name) for model, name in zip(models, hook_names, strict=True)]


def _rows_of(activations: Any, hook_name: str, side: str) -> Float[Tensor, "*position d_model"]:
    if not isinstance(activations, Tensor):
        if not hook_name:
            raise LrtError(f"the {side} is a cache: say with hook_names where in it the activations are")
        try:
            activations = activations[hook_name]
        except KeyError as error:
            raise LrtError(f"the {side}'s cache holds no {hook_name!r}") from error
    if activations.ndim not in (2, 3):
        raise LrtError(f"the {side}'s activations must be [position, d_model] or [row, position, d_model]")
    rows: Tensor = activations.detach()
    return rows if rows.dtype == torch.float64 else rows.float()


def _splits(document_ids: Sequence[Any] | Tensor, shape: Sequence[int]) -> Int[Tensor, "*position"]:
    ids = _as_list(document_ids)
    if len(ids) != shape[0]:
        raise LrtError(f"{len(ids)} document ids do not fit activations of {shape[0]} rows")
    splits = torch.tensor([split_of(str(document)) for document in ids])
    return splits if len(shape) == 1 else torch.broadcast_to(splits[:, None], tuple(shape))


def _check_finite(activations: Tensor, keep: Tensor, document_ids: Sequence[Any] | Tensor, where: str) -> None:
    bad = (~torch.isfinite(activations).all(-1).cpu() & keep).nonzero()
    if len(bad):
        raise LrtError(
            f"{where}: an activation is NaN or infinite in document {_as_list(document_ids)[int(bad[0, 0])]}"
        )


def _as_list(document_ids: Sequence[Any] | Tensor) -> list[Any]:
    return document_ids.tolist() if isinstance(document_ids, Tensor) else list(document_ids)
