"""Fit the affine map: one pass over the text, then linear algebra."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lrt_tl.alignment.accumulation import HarvestedMoments, accumulate
from lrt_tl.alignment.affine_map import AffineMap, FitReport
from lrt_tl.alignment.diagnostics import r_squared
from lrt_tl.alignment.harvest import SINK_RATIO, Harvest, HarvestCounts
from lrt_tl.alignment.moments import Centered, Moments, fit_pairs, pool
from lrt_tl.alignment.selection import Method, choose
from lrt_tl.errors import LrtError
from lrt_tl.models.hook_names import resolve_hook_name, spelled_as_stored
from lrt_tl.models.identity import Site, site_of
from lrt_tl.models.protocol import HookedModel
from lrt_tl.text.batches import Layout
from lrt_tl.text.documents import N_FOLDS, N_SPLITS, TEST, VALIDATION, Exclusion, read_documents, split_of

RELATIVE_RIDGES = tuple(10.0**exponent for exponent in range(-8, 3))
FOLDS = tuple(range(N_FOLDS))
_SPLIT_NAMES = (*(f"fold {fold} of the cross-validation" for fold in FOLDS), "the validation split", "the test split")


def fit_affine_map(
    source: HookedModel,
    target: HookedModel,
    documents: Any,
    *,
    layers: tuple[int | Sequence[int], int] | None = None,
    hook_names: tuple[str | Sequence[str], str] | None = None,
    exclude: Iterable[str] = (),
    batch_size: int = 16,
    context_length: int | None = None,
    layout: Layout = "split",
    prepend_bos: bool = True,
    method: Method = "ridge",
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
    checkpoint: str | Path | None = None,
) -> AffineMap:
    """Fit h_target ≈ A h_source + b over the token positions of a text, and print its report.

    The text streams through both models once; only its moments are kept. The ridge, or the rank, is chosen by 5-fold
    cross-validation over documents, the map is fitted on all folds, and judged on test documents that no choice has
    seen (Bello et al. 2025, arXiv 2506.00653, fit the same loss by gradient descent).

    Args:
        documents: whatever `read_documents` takes.
        layers: source and target layer (`resid_post`); or `hook_names`, of both. Several source layers,
            `((0, 1, 2), 3)`, make a map from all of them at once, which then carries a vector of each together.
        exclude: texts that the map will be tried on: documents that contain one are dropped, and counted.
        batch_size: rows in a forward pass.
        context_length: tokens in a row; by default 256, or as many as both models read.
        layout: what becomes of documents that are longer: see `text.batches`.
        prepend_bos: begin each row with the beginning-of-sequence token, where the tokenizer has one.
        method: which map: see `alignment.solvers`, and the README's table of which to choose when.
        relative_ridges: candidates for λ, per position, in units of the mean variance of a source dimension.
        checkpoint: a folder to keep the moments in every minute, so that a fit that was killed goes on from there.

    Raises:
        LrtError: a bad layer or document, an activation that is not finite, or fewer positions than dimensions.
    """
    harvested = harvest_moments(
        source,
        target,
        documents,
        layers=layers,
        hook_names=hook_names,
        exclude=exclude,
        batch_size=batch_size,
        context_length=context_length,
        layout=layout,
        prepend_bos=prepend_bos,
        checkpoint=checkpoint,
    )
    fitted = fit_moments(harvested, method=method, relative_ridges=relative_ridges)
    print(fitted)
    return fitted


def harvest_moments(
    source: HookedModel,
    target: HookedModel,
    documents: Any,
    *,
    layers: tuple[int | Sequence[int], int] | None = None,
    hook_names: tuple[str | Sequence[str], str] | None = None,
    exclude: Iterable[str] = (),
    batch_size: int = 16,
    context_length: int | None = None,
    layout: Layout = "split",
    prepend_bos: bool = True,
    checkpoint: str | Path | None = None,
) -> HarvestedMoments:
    """The pass over the text of `fit_affine_map` alone, which takes the same arguments.

    Moments of different documents add up (`merge`), so that several machines, each with a part of the text, make one
    map. Each part measures for itself what is a sink.
    """
    source_hooks, target_hook = resolve_ends(source, target, layers, hook_names)
    sources = [site_of(source, hook_name=name) for name in source_hooks]
    harvest = Harvest(
        source,
        target,
        source_hooks,
        [target_hook],
        read_documents(documents),
        batch_size=batch_size,
        context_length=min(256, source.cfg.n_ctx, target.cfg.n_ctx) if context_length is None else context_length,
        layout=layout,
        prepend_bos=prepend_bos,
        exclude=Exclusion(exclude),
    )
    pairs = fit_pairs([f"source:{name}" for name in source_hooks], [f"target:{target_hook}"], stacked=True)
    return accumulate(harvest, sources, [site_of(target, hook_name=target_hook)], pairs, checkpoint=checkpoint)


def fit_moments(
    moments: HarvestedMoments,
    *,
    method: Method = "ridge",
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
) -> AffineMap:
    """The map from all sources of the moments to their one target. Nothing is read or run.

    Raises:
        LrtError: a split has too few positions.
    """
    target = moments.targets[0]
    parts = moments.parts(moments.sources, target)
    return solve(parts, moments.sources, target, moments.counts, method=method, relative_ridges=relative_ridges)


def resolve_ends(
    source: HookedModel,
    target: HookedModel,
    layers: tuple[int | Sequence[int], int] | None,
    hook_names: tuple[str | Sequence[str], str] | None,
) -> tuple[list[str], str]:
    """The hook names at which a map begins, one or several, and ends.

    Raises:
        LrtError: neither or both of layers and hook names are given, or one does not exist, or is given twice.
    """
    if (layers is None) == (hook_names is None):
        raise LrtError(f"give layers or hook_names, and not both: layers={layers}, hook_names={hook_names}")
    ends: Any = hook_names if layers is None else layers
    if not isinstance(ends, (tuple, list)) or len(ends) != 2:
        raise LrtError(f"layers and hook_names are of source and target, as layers=(2, 3), not {ends!r}")
    begins = ends[0] if isinstance(ends[0], (tuple, list, range)) else [ends[0]]

    def resolve(model: HookedModel, end: Any) -> str:
        return resolve_hook_name(model, layer=None if layers is None else end, hook_name=None if layers else end)

    found = [resolve(source, each) for each in begins]
    if not found or len(set(found)) < len(found):
        raise LrtError(f"the source layers must be one or more different ones, not {begins}")
    return found, resolve(target, ends[1])


def fit_activations(
    source: Any,
    target: Any,
    document_ids: Sequence[Any] | Tensor,
    *,
    hook_names: tuple[str, str] | None = None,
    mask: Tensor | None = None,
    models: tuple[HookedModel, HookedModel] | None = None,
    drop_sinks: bool = True,
    method: Method = "ridge",
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
) -> AffineMap:
    """Fit a map to activations already in hand. Splits, ridge and report are those of `fit_affine_map`.

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
    if drop_sinks and medians:
        calm = [(norm <= SINK_RATIO * medians[key]).cpu() for key, norm in norms.items()]
        kept = calm[0] & calm[1]
        counts.sinks_dropped = int((~kept).sum())
        x, y, splits = x[kept.to(x.device)], y[kept.to(y.device)], splits[kept]
    counts.positions = len(splits)
    if not counts.positions:
        raise LrtError("there are no positions to fit on: the mask leaves none")
    shifts = {"source": x.double().mean(0), "target": y.double().mean(0)}
    moments = Moments.empty(N_SPLITS, shifts, fit_pairs(["source"], ["target"]))
    parts = moments.update({"source": x, "target": y}, splits).between(["source"], "target")
    return solve(parts, sites[:1], sites[1], counts, method=method, relative_ridges=relative_ridges)


def solve(
    parts: Sequence[Centered],
    sources: Sequence[Site],
    target: Site,
    counts: HarvestCounts,
    *,
    method: Method = "ridge",
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
) -> AffineMap:
    """The moments of each split → the map that cross-validation chooses, with its report.

    Raises:
        LrtError: there are no more positions than source dimensions, or a split has none.
    """
    folds = [parts[fold] for fold in FOLDS]
    smallest = sum(fold.count for fold in folds) - max(fold.count for fold in folds)
    d_source = sum(site.d_model for site in sources)
    if smallest <= d_source:
        raise LrtError(
            f"{smallest} positions (without the largest fold) cannot determine a map of {d_source} source "
            "dimensions: give it more text, at least 20 positions a dimension"
        )
    for part, name in zip(parts, _SPLIT_NAMES, strict=True):
        if part.count < 2:
            raise LrtError(
                f"{name} has {part.count} positions: there is too little text; give it a few hundred documents"
            )
    train, choice = pool(folds), choose(method, folds, relative_ridges)
    report = FitReport(
        method=method,
        test_r2=r_squared(choice.solution, parts[TEST]),
        validation_r2=r_squared(choice.solution, parts[VALIDATION]),
        cv_r2=sum(choice.fold_r2) / len(folds),
        fold_r2=choice.fold_r2,
        ridge=choice.ridge,
        relative_ridge=choice.relative_ridge,
        rank=choice.rank,
        candidates=choice.candidates,
        curve=choice.curve,
        tokens=train.count,
        tokens_per_dimension=train.count / d_source,
        harvest=asdict(counts),
    )
    return AffineMap(
        choice.solution.weight.T.float().cpu().contiguous(),
        choice.solution.bias.float().cpu(),
        tuple(sources),
        target,
        (train.target_target / train.count).float().cpu(),
        counts.median_norms.get(f"target:{target.hook_name}"),
        report,
    )


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
