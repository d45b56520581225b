"""Commands that measure: the whole chain, the demonstration, and one vector."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from lrt_tl.cli.options import (
    GRID,
    BatchSize,
    Behaviors,
    ChatTemplate,
    Coefficients,
    ContextLength,
    Contrasts,
    Device,
    DocumentsOption,
    Draws,
    DtypeOption,
    Layers,
    LayoutOption,
    MethodOption,
    ModelClassOption,
    Out,
    Position,
    PrependBos,
    Processed,
    Seed,
    SelectLayers,
    Source,
    Target,
    documents_of,
    ends_of,
    load,
    numbers_of,
    position_of,
)
from lrt_tl.errors import LrtError
from lrt_tl.tables import print_columns, print_table


def transfer(
    source: Source,
    target: Target,
    contrast: Contrasts,
    behavior: Behaviors,
    layers: Layers,
    out: Out,
    documents: DocumentsOption = None,
    chat_template: ChatTemplate = False,
    model_class: ModelClassOption = "bridge",
    processed: Processed = False,
    device: Device = None,
    dtype: DtypeOption = "float32",
    batch_size: BatchSize = 16,
    context_length: ContextLength = None,
    layout: LayoutOption = "split",
    prepend_bos: PrependBos = True,
    method: MethodOption = "whitened",
    select_layers: SelectLayers = False,
    position: Position = "mean",
    coefficients: Coefficients = GRID,
    draws: Draws = 64,
    seed: Seed = 0,
) -> None:
    """Do it all: fit the map, find the vectors, carry them over, measure, and write a report."""
    if len(contrast) != len(behavior):
        raise LrtError(f"{len(contrast)} --contrast and {len(behavior)} --behavior: give one of each for every vector")
    grid, ends = numbers_of(coefficients), ends_of(layers)
    from lrt_tl.artifacts import refuse_existing
    from lrt_tl.evaluation.behavior import read_behavior
    from lrt_tl.runs.answer import headline
    from lrt_tl.steering.contrast import read_contrast_pairs
    from lrt_tl.storyworld.named import named_behavior, named_contrast_pairs
    from lrt_tl.transfer import transfer as run_transfer

    refuse_existing(out)
    read = documents_of(documents, source, target)
    tasks = [
        (read_contrast_pairs(named_contrast_pairs(pairs)), read_behavior(named_behavior(file)))
        for pairs, file in zip(contrast, behavior, strict=True)
    ]
    models = [load(name, model_class, processed, device, dtype) for name in (source, target)]
    if chat_template:
        read = documents_of(documents, source, target, chat_template=models[1].tokenizer)
    run = run_transfer(
        models[0],
        models[1],
        read,
        tasks,
        **ends,
        method=method,
        select_layers=select_layers,
        position=position_of(position),
        coefficients=grid,
        n_draws=draws,
        batch_size=batch_size,
        context_length=context_length,
        layout=layout,
        prepend_bos=prepend_bos,
        seed=seed,
        arguments={"command": shlex.join(["lrt-tl", *sys.argv[1:]])},
    )
    run.save(out)
    print_table("The map", run.affine_map.summary())
    for found in run.behaviors:
        print_table(found.result.behavior, found.result.table())
        print(headline(found.result, models[1].cfg.model_name))
    print(f"\n{out / 'report.html'} shows the curves and texts; {out / 'summary.json'} holds the figures.")


def demo(
    source: Annotated[str, typer.Option(help="A model of storyworld: small, medium, large, ….")] = "small",
    target: Annotated[str, typer.Option(help="Another one.")] = "large",
    behavior: Annotated[
        list[str] | None, typer.Option(help="mood, language, refusal, register, tense, …; repeat it for several.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="As of transfer; by default all of the source's, and half of the target's depth.")
    ] = None,
    out: Out = Path("demo"),
    model_class: ModelClassOption = "bridge",
    draws: Draws = 24,
    seed: Seed = 0,
) -> None:
    """Carry vectors between the bundled models, and show what they do there."""
    from lrt_tl.artifacts import refuse_existing
    from lrt_tl.demo import BEHAVIORS, demonstrate, rows, stories

    refuse_existing(out)
    models = [
        load(f"storyworld-{name.removeprefix('storyworld-')}", model_class, False, None, "float32")
        for name in (source, target)
    ]
    run = demonstrate(
        models[0],
        models[1],
        behavior or BEHAVIORS,
        **({} if layers is None else ends_of(layers)),
        n_draws=draws,
        seed=seed,
        arguments={"command": shlex.join(["lrt-tl", *sys.argv[1:]])},
    )
    run.save(out)
    names = [model.cfg.model_name for model in models]
    for found in run.behaviors[:2]:
        told = stories(models[1], found, seed=seed)
        print_columns(f"{found.result.behavior}: {names[1]}, from the same random numbers", map(vars, told))
    print(f"\n{len(run.behaviors)} vectors found in {names[0]}, carried over to {names[1]} by a map fitted on text")
    print_columns("Effect on the next word, in nats for each length of the target's own vector", rows(run))
    print(f"{out / 'report.html'} shows the curves and texts; {out / 'summary.json'} holds the figures.")


def evaluate(
    target: Target,
    transferred: Annotated[Path, typer.Option(help="The folder of the transferred vector.")],
    native: Annotated[Path, typer.Option(help="The folder of the target's own vector.")],
    behavior: Annotated[str, typer.Option(help="The behavior, .json, or storyworld:mood.")],
    map: Annotated[Path | None, typer.Option(help="The folder of the map: adds the null of shuffled pairs.")] = None,
    neutral: Annotated[
        str | None, typer.Option(help="Neutral documents, or storyworld: adds the recovery at matched KL.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--json", help="A file to write the figures to. It must not exist.")
    ] = None,
    coefficients: Coefficients = GRID,
    draws: Draws = 64,
    model_class: ModelClassOption = "bridge",
    processed: Processed = False,
    device: Device = None,
    dtype: DtypeOption = "float32",
    prepend_bos: PrependBos = True,
    seed: Seed = 0,
) -> None:
    """Measure a transferred vector against the native one and the nulls."""
    grid = numbers_of(coefficients)
    from lrt_tl.alignment.affine_map import AffineMap
    from lrt_tl.artifacts import refuse_existing, write_json
    from lrt_tl.evaluation.behavior import read_behavior
    from lrt_tl.evaluation.evaluate import evaluate_transfer
    from lrt_tl.steering.vector import SteeringVector
    from lrt_tl.storyworld.named import named_behavior, named_documents
    from lrt_tl.transfer import neutral_texts

    if figures is not None:
        refuse_existing(figures)
    vectors, measured = (
        [SteeringVector.load(folder) for folder in (transferred, native)],
        read_behavior(named_behavior(behavior)),
    )
    affine_map = None if map is None else AffineMap.load(map)
    texts = [] if neutral is None else neutral_texts(named_documents(neutral))
    result = evaluate_transfer(
        load(target, model_class, processed, device, dtype),
        vectors[0],
        measured,
        native=vectors[1],
        affine_map=affine_map,
        neutral=texts,
        coefficients=grid,
        n_draws=draws,
        prepend_bos=prepend_bos,
        seed=seed,
    )
    if figures is not None:
        write_json(figures, result.summary())
    print_table(result.behavior, result.table())
