"""Fit the affine map: one pass over the text, then linear algebra."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrt_tl.alignment.accumulation import HarvestedMoments, accumulate
from lrt_tl.alignment.affine_map import AffineMap, FitReport
from lrt_tl.alignment.diagnostics import r_squared
from lrt_tl.alignment.harvest import Harvest, HarvestCounts
from lrt_tl.alignment.moments import Centered, fit_pairs, pool
from lrt_tl.alignment.processes import is_first, shared
from lrt_tl.alignment.selection import Method, choose
from lrt_tl.errors import LrtError
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.models.identity import Site, site_of
from lrt_tl.models.protocol import HookedModel
from lrt_tl.text.batches import Layout
from lrt_tl.text.documents import N_FOLDS, TEST, VALIDATION, Exclusion, read_documents

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
    distributed: bool = False,
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
        distributed: share the pass with the other processes of torch.distributed's group, which must be initialized,
            and in which all must call this with the same arguments. Each gets the same map; rank 0 prints.

    Raises:
        LrtError: a bad layer or document, an activation that is not finite, or fewer positions than dimensions; or
            another process failed.
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
        distributed=distributed,
    )
    fitted = fit_moments(harvested, method=method, relative_ridges=relative_ridges)
    if is_first():
        print(fitted)
    return fitted


@shared
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
    distributed: bool = False,
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
    targets = [site_of(target, hook_name=target_hook)]
    return accumulate(harvest, sources, targets, pairs, checkpoint=checkpoint, distributed=distributed)


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
