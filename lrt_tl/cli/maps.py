"""Commands about maps."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lrt_tl.cli.options import (
    BatchSize,
    ChatTemplate,
    Checkpoint,
    ContextLength,
    Device,
    DocumentsOption,
    DtypeOption,
    Exclude,
    LayerList,
    Layers,
    LayoutOption,
    MethodOption,
    ModelClassOption,
    Out,
    PrependBos,
    Processed,
    Seed,
    SelectLayers,
    Sequential,
    Source,
    Target,
    documents_of,
    ends_of,
    layers_of,
    load,
)
from lrt_tl.tables import print_columns, print_table


def fit(
    source: Source,
    target: Target,
    layers: Layers,
    out: Out,
    documents: DocumentsOption = None,
    chat_template: ChatTemplate = False,
    exclude: Exclude = None,
    method: MethodOption = "whitened",
    select_layers: SelectLayers = False,
    checkpoint: Checkpoint = None,
    sequential: Sequential = False,
    model_class: ModelClassOption = "bridge",
    processed: Processed = False,
    device: Device = None,
    dtype: DtypeOption = "float32",
    batch_size: BatchSize = 16,
    context_length: ContextLength = None,
    layout: LayoutOption = "split",
    prepend_bos: PrependBos = True,
) -> None:
    """Fit the affine map between two models' residual streams, and save it."""
    from lrt_tl.alignment.fit import fit_affine_map
    from lrt_tl.alignment.processes import is_first, join_launched
    from lrt_tl.artifacts import refuse_existing

    refuse_existing(out)
    ends = ends_of(layers)
    device, distributed = join_launched(device)
    options = (model_class, processed, device, dtype)
    models, texts = _models_and_texts(source, target, documents, exclude, chat_template, options, sequential=sequential)
    affine_map = fit_affine_map(
        models[0],
        models[1],
        texts[0],
        exclude=texts[1],
        **ends,
        batch_size=batch_size,
        context_length=context_length,
        layout=layout,
        prepend_bos=prepend_bos,
        method=method,
        select_layers=select_layers,
        sequential=sequential,
        checkpoint=checkpoint,
        distributed=distributed,
    )
    if not is_first():
        return
    affine_map.save(out)
    print_table("The map", affine_map.summary())
    print_table("The text that it was fitted on", affine_map.report.harvested())


def harvest(
    source: Source,
    target: Target,
    layers: Layers,
    out: Out,
    documents: DocumentsOption = None,
    chat_template: ChatTemplate = False,
    exclude: Exclude = None,
    checkpoint: Checkpoint = None,
    sequential: Sequential = False,
    model_class: ModelClassOption = "bridge",
    processed: Processed = False,
    device: Device = None,
    dtype: DtypeOption = "float32",
    batch_size: BatchSize = 16,
    context_length: ContextLength = None,
    layout: LayoutOption = "split",
    prepend_bos: PrependBos = True,
) -> None:
    """Save the moments of one part of the text: `merge` adds parts up, `solve` makes the map."""
    from lrt_tl.alignment.fit import harvest_moments
    from lrt_tl.alignment.processes import is_first, join_launched
    from lrt_tl.artifacts import refuse_existing

    refuse_existing(out)
    ends = ends_of(layers)
    device, distributed = join_launched(device)
    options = (model_class, processed, device, dtype)
    models, texts = _models_and_texts(source, target, documents, exclude, chat_template, options, sequential=sequential)
    moments = harvest_moments(
        models[0],
        models[1],
        texts[0],
        exclude=texts[1],
        **ends,
        batch_size=batch_size,
        context_length=context_length,
        layout=layout,
        prepend_bos=prepend_bos,
        sequential=sequential,
        checkpoint=checkpoint,
        distributed=distributed,
    )
    if not is_first():
        return
    moments.save(out)
    print(moments)


def merge(
    parts: Annotated[list[Path], typer.Argument(help="Folders of moments, of different documents.")], out: Out
) -> None:
    """Add up the moments of several parts of the text."""
    from functools import reduce

    from lrt_tl.alignment.accumulation import HarvestedMoments
    from lrt_tl.artifacts import refuse_existing

    refuse_existing(out)
    merged = reduce(HarvestedMoments.merge, map(HarvestedMoments.load, parts))
    merged.save(out)
    print(merged)


def solve(
    moments: Annotated[Path, typer.Option(help="A folder of moments.")],
    out: Out,
    method: MethodOption = "whitened",
    select_layers: SelectLayers = False,
) -> None:
    """Make the map of moments."""
    from lrt_tl.alignment.accumulation import HarvestedMoments
    from lrt_tl.alignment.fit import fit_moments
    from lrt_tl.artifacts import refuse_existing

    refuse_existing(out)
    affine_map = fit_moments(HarvestedMoments.load(moments), method=method, select_layers=select_layers)
    affine_map.save(out)
    print_table("The map", affine_map.summary())
    print_table("The text that it was fitted on", affine_map.report.harvested())


def search(
    source: Source,
    target: Target,
    out: Annotated[Path | None, typer.Option(help="An .html file for the heat map. It must not exist.")] = None,
    source_layers: LayerList = None,
    target_layers: LayerList = None,
    documents: DocumentsOption = None,
    chat_template: ChatTemplate = False,
    exclude: Exclude = None,
    checkpoint: Checkpoint = None,
    sequential: Sequential = False,
    nulls: Annotated[int, typer.Option(min=1, help="Searches on shuffled positions, to compare with.")] = 20,
    sketch: Annotated[
        int | None, typer.Option(min=1, help="See both through a random projection to so many dimensions.")
    ] = None,
    model_class: ModelClassOption = "bridge",
    processed: Processed = False,
    device: Device = None,
    dtype: DtypeOption = "float32",
    batch_size: BatchSize = 16,
    context_length: ContextLength = None,
    layout: LayoutOption = "split",
    prepend_bos: PrependBos = True,
    seed: Seed = 0,
) -> None:
    """Find which layers to pair: fit a map between every pair of them, in one pass."""
    from lrt_tl.alignment.layer_search import search_layers
    from lrt_tl.alignment.processes import is_first, join_launched
    from lrt_tl.artifacts import refuse_existing

    if out is not None:
        refuse_existing(out)
    device, distributed = join_launched(device)
    options = (model_class, processed, device, dtype)
    models, texts = _models_and_texts(source, target, documents, exclude, chat_template, options, sequential=sequential)
    found = search_layers(
        models[0],
        models[1],
        texts[0],
        source_layers=layers_of(source_layers),
        target_layers=layers_of(target_layers),
        exclude=texts[1],
        n_nulls=nulls,
        sketch=sketch,
        batch_size=batch_size,
        context_length=context_length,
        layout=layout,
        prepend_bos=prepend_bos,
        sequential=sequential,
        checkpoint=checkpoint,
        seed=seed,
        distributed=distributed,
    )
    if not is_first():
        return
    print_columns("R² on test documents, of a ridge map between each pair of layers", found.rows())
    print_table("The best pair", found.summary())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        found.figure().write_html(out, include_plotlyjs=True)
        print(f"{out} shows the heat map.")


def _models_and_texts(
    source: str,
    target: str,
    documents: str | None,
    exclude: list[str] | None,
    chat_template: bool,
    options: tuple[Any, ...],
    *,
    sequential: bool,
) -> tuple[list[Any], tuple[Any, list[str]]]:
    """Both models, or what loads them; the documents, and the texts to leave out of them."""
    from lrt_tl.evaluation.behavior import texts_of
    from lrt_tl.storyworld.named import named_behavior, named_contrast_pairs

    texts = texts_of(*(named(file) for file in exclude or [] for named in (named_contrast_pairs, named_behavior)))
    read = documents_of(documents, source, target)
    loaders = [partial(load, name, *options) for name in (source, target)]
    models: list[Any] = [load_one if sequential else load_one() for load_one in loaders]
    if chat_template:
        tokenizer = (models[1]() if sequential else models[1]).tokenizer
        read = documents_of(documents, source, target, chat_template=tokenizer)
    return models, (read, texts)
