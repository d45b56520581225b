"""Fit the affine map: one pass over the text, then linear algebra."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lrt_tl.alignment.accumulation import HarvestedMoments, accumulate
from lrt_tl.alignment.affine_map import LARGEST_COVARIANCE, AffineMap
from lrt_tl.alignment.affine_maps import AffineMaps
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.diagnostics import r_squared
from lrt_tl.alignment.ends import HookNames, Layers, Model, both_ends, look_at, site_of_features
from lrt_tl.alignment.fit_report import FitReport
from lrt_tl.alignment.harvest import Harvest, Transform
from lrt_tl.alignment.moments import Centered, fit_pairs, pool
from lrt_tl.alignment.processes import shared
from lrt_tl.alignment.selection import Addition, Method, add_sources, choose, narrowed
from lrt_tl.errors import LrtError
from lrt_tl.models.identity import Site, describe_sites
from lrt_tl.text.batches import Layout
from lrt_tl.text.documents import N_FOLDS, TEST, VALIDATION, Exclusion, read_documents
from lrt_tl.text.positions import Positions

RELATIVE_RIDGES = tuple(10.0**exponent for exponent in range(-8, 3))
FOLDS = tuple(range(N_FOLDS))
_SPLIT_NAMES = (*(f"fold {fold} of the cross-validation" for fold in FOLDS), "the validation split", "the test split")


def fit_affine_map(
    source: Model,
    target: Model,
    documents: Any,
    *,
    layers: tuple[Layers, int] | None = None,
    hook_names: tuple[HookNames, str] | None = None,
    features: Transform | None = None,
    exclude: Iterable[str] = (),
    batch_size: int = 16,
    context_length: int | None = None,
    layout: Layout = "split",
    positions: Positions = "all",
    prepend_bos: bool = True,
    sequential: bool = False,
    method: Method = "whitened",
    select_layers: bool = False,
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
    checkpoint: str | Path | None = None,
    distributed: bool = False,
) -> AffineMap:
    """Fit h_target ≈ A h_source + b over the token positions of a text.

    The text streams through both models once; only its moments are kept. The penalty, or the rank, is chosen by 5-fold
    cross-validation over documents, the map is fitted on all folds, and judged on test documents that no choice has
    seen. (Bello et al. 2025, arXiv 2506.00653, fit what `method="ridge"` solves, by gradient descent.)

    Args:
        documents: whatever `read_documents` takes.
        layers: source and target layer (`resid_post`); or `hook_names`, of both. Several source layers,
            `((0, 1, 2), 3)` or `("all", 3)`, make a map from all of them at once, which then carries a vector of each
            together.
        features: map not the source's states but what this makes of them, `[position, d_model]` → `[position,
            d_features]`, such as a sparse autoencoder's `encode`.
        exclude: texts that the map will be tried on: documents that contain one are dropped, and counted.
        batch_size: rows in a forward pass.
        context_length: tokens in a row; by default 256, or as many as both models read.
        layout: what becomes of documents that are longer: see `text.batches`.
        positions: which of the source's tokens to read, such as `{"tokens": [13]}` or `{"not": {"first": 5}}`, as
            `text.positions` says, but for special ones, and for what is generated, or a mask. They are counted in each
            row, that is from the beginning of sequence, and pack is refused.
        prepend_bos: begin each row with the beginning-of-sequence token, where the tokenizer has one.
        sequential: have one model in memory at a time. `source` and `target` are then functions that load them, such as
            `lambda: load_model("small")`. What the first makes of some thousand rows waits on disk for the second; each
            is loaded once for those. The moments are the same.
        method: which map: see `alignment.solvers`, and docs/guides/maps.md on which to choose when.
        select_layers: of several source layers, keep those that the map needs: see `selection.add_sources`.
        relative_ridges: candidates for λ, per position, in units of the mean variance of a dimension: of the source's;
            of each side's, in a whitened map.
        checkpoint: a folder to keep the moments in every minute, so that a fit that was killed goes on from there.
        distributed: share the pass with the other processes of torch.distributed's group, which must be initialized,
            and in which all must call this with the same arguments. Each gets the same map.

    Raises:
        LrtError: a bad layer or document, an activation that is not finite, or fewer positions than dimensions; or
            another process failed.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("large")
        >>> affine_map = lrt.fit_affine_map(source, target, storyworld.documents(60), layers=(1, 3))
        >>> print(affine_map.source, "→", affine_map.target, tuple(affine_map.weight.shape))
        storyworld-small L1 → storyworld-large L3 (192, 64)
        >>> print(f"R² {affine_map.report.test_r2:.1f} on test documents")
        R² 0.3 on test documents
    """
    at_target = both_ends(layers, hook_names)[1]
    if len(at_target) != 1 or at_target == ["all"]:
        raise LrtError(f"a map ends at one layer, and these are several: {at_target}. See fit_affine_maps")
    harvested = harvest_moments(
        source,
        target,
        documents,
        layers=layers,
        hook_names=hook_names,
        features=features,
        exclude=exclude,
        batch_size=batch_size,
        context_length=context_length,
        layout=layout,
        positions=positions,
        prepend_bos=prepend_bos,
        sequential=sequential,
        checkpoint=checkpoint,
        distributed=distributed,
    )
    return fit_moments(harvested, method=method, select_layers=select_layers, relative_ridges=relative_ridges)


def fit_affine_maps(
    source: Model,
    target: Model,
    documents: Any,
    *,
    method: Method = "whitened",
    select_layers: bool = False,
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
    **options: Any,
) -> AffineMaps:
    """Fit a map to each of several target layers, `layers=((0, 1, 2), (3, 4))`, from one pass.

    Args:
        documents: whatever `read_documents` takes.
        method: which map.
        select_layers: of the source layers, keep those that each map needs.
        relative_ridges: candidates for the penalty.
        options: those of `harvest_moments`.

    Raises:
        LrtError: what `fit_affine_map` refuses.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("medium")
        >>> maps = lrt.fit_affine_maps(source, target, storyworld.documents(60), layers=(3, (1, 3, 5)))
        >>> for affine_map in maps:
        ...     print(f"{affine_map.source} → {affine_map.target}, R² {affine_map.report.test_r2:.1f}")
        storyworld-small L3 → storyworld-medium L1, R² 0.1
        storyworld-small L3 → storyworld-medium L3, R² 0.2
        storyworld-small L3 → storyworld-medium L5, R² 0.7
    """
    harvested = harvest_moments(source, target, documents, **options)
    choice: dict[str, Any] = {"method": method, "select_layers": select_layers, "relative_ridges": relative_ridges}
    return AffineMaps(tuple(fit_moments(harvested, target=site, **choice) for site in harvested.targets))


@shared
def harvest_moments(
    source: Model,
    target: Model,
    documents: Any,
    *,
    layers: tuple[Layers, Layers] | None = None,
    hook_names: tuple[HookNames, HookNames] | None = None,
    features: Transform | None = None,
    exclude: Iterable[str] = (),
    batch_size: int = 16,
    context_length: int | None = None,
    layout: Layout = "split",
    positions: Positions = "all",
    prepend_bos: bool = True,
    sequential: bool = False,
    checkpoint: str | Path | None = None,
    distributed: bool = False,
) -> HarvestedMoments:
    """The pass over the text of `fit_affine_map` alone, which takes the same arguments, and several target layers.

    Moments of different documents add up (`merge`), so that several machines, each with a part of the text, make one
    map. Each part measures for itself what is a sink.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("medium")
        >>> moments = lrt.harvest_moments(source, target, storyworld.documents(60), layers=((0, 1), (2, 3)))
        >>> for site in moments.sources + moments.targets:
        ...     print(site)
        storyworld-small L0
        storyworld-small L1
        storyworld-medium L2
        storyworld-medium L3
    """
    harvest, sources, targets = prepare(
        source,
        target,
        documents,
        layers=layers,
        hook_names=hook_names,
        features=features,
        exclude=exclude,
        batch_size=batch_size,
        context_length=context_length,
        layout=layout,
        positions=positions,
        prepend_bos=prepend_bos,
        sequential=sequential,
    )
    pairs = fit_pairs(*harvest.keys, stacked=True)
    return accumulate(harvest, sources, targets, pairs, checkpoint=checkpoint, distributed=distributed)


def prepare(
    source: Model,
    target: Model,
    documents: Any,
    *,
    layers: tuple[Layers, Layers] | None = None,
    hook_names: tuple[HookNames, HookNames] | None = None,
    features: Transform | None = None,
    exclude: Iterable[str] = (),
    context_length: int | None = None,
    sequential: bool = False,
    **reading: Any,
) -> tuple[Harvest, list[Site], list[Site]]:
    """A pass that has yet to be made, and the sites at which it begins and ends; arguments as of `harvest_moments`."""
    begin, end = (
        look_at(model, end, by_layer=hook_names is None, sequential=sequential)
        for model, end in zip((source, target), both_ends(layers, hook_names), strict=True)
    )
    sources = begin.sites if features is None else [site_of_features(begin, features)]
    harvest = Harvest(
        begin.model,
        end.model,
        begin.hook_names,
        end.hook_names,
        read_documents(documents),
        context_length=min(256, *(side.model.cfg.n_ctx for side in (begin, end)))
        if context_length is None
        else context_length,
        exclude=Exclusion(exclude),
        transforms={} if features is None else {f"source:{begin.hook_names[0]}": features},
        **reading,
    )
    return harvest, sources, end.sites


def fit_moments(
    moments: HarvestedMoments,
    *,
    sources: Sequence[Site] | None = None,
    target: Site | None = None,
    method: Method = "whitened",
    select_layers: bool = False,
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
) -> AffineMap:
    """The map from the sources of the moments to their target. Nothing is read or run.

    Args:
        sources: some of `moments.sources`; by default all of them side by side.
        target: one of `moments.targets`, where there are several.
        select_layers: keep those sources that the map needs: see `selection.add_sources`.

    Raises:
        LrtError: a split has too few positions, it is not said which target is meant, or a site is not of the moments.

    Examples:
        >>> import lrt_tl as lrt
        >>> from lrt_tl import storyworld
        >>> source, target = storyworld.load("small"), storyworld.load("medium")
        >>> moments = lrt.harvest_moments(source, target, storyworld.documents(60), layers=(1, 2))
        >>> whitened, ridge = (lrt.fit_moments(moments, method=method) for method in ("whitened", "ridge"))
        >>> whitened.report.cv_r2 < ridge.report.cv_r2  # in predicting, ridge is best
        True
    """
    if target is None and len(moments.targets) > 1:
        raise LrtError(f"these moments have {len(moments.targets)} targets: say which, as target=moments.targets[0]")
    target = moments.targets[0] if target is None else target
    sources = moments.sources if sources is None else tuple(sources)
    if not sources or target not in moments.targets or any(site not in moments.sources for site in sources):
        held = f"{describe_sites(moments.sources)} and {describe_sites(moments.targets)}"
        raise LrtError(f"the moments are of {held}, not of {describe_sites(sources)} and {target}")
    return solve(
        moments.parts(sources, target),
        sources,
        target,
        moments.counts,
        method=method,
        select_layers=select_layers,
        relative_ridges=relative_ridges,
    )


def solve(
    parts: Sequence[Centered],
    sources: Sequence[Site],
    target: Site,
    counts: HarvestCounts,
    *,
    method: Method = "whitened",
    select_layers: bool = False,
    relative_ridges: Sequence[float] = RELATIVE_RIDGES,
) -> AffineMap:
    """The moments of each split → the map that cross-validation chooses, with its report.

    Args:
        parts: of all sources side by side, and the target.

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
    tried: list[Addition] = []
    if select_layers:
        widths = [site.d_model for site in sources]
        chosen, tried = add_sources(method, folds, widths, relative_ridges)
        names = [str(site) for site in sources]
        parts, sources = narrowed(parts, widths, chosen), [sources[number] for number in chosen]
        folds, d_source = [parts[fold] for fold in FOLDS], sum(site.d_model for site in sources)
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
        layers_tried=tuple((names[step.sources[-1]], sum(step.fold_r2) / len(folds)) for step in tried),
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
        (train.source_source / train.count).float().cpu() if d_source <= LARGEST_COVARIANCE else None,
    )
