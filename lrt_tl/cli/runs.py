"""Commands that measure: the whole chain, the demonstration, and one vector."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrt_tl.cli.options import (
    GRID,
    BatchSize,
    Behaviors,
    ChatTemplate,
    Coefficients,
    Compare,
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
    Questions,
    RandomWeights,
    Search,
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

if TYPE_CHECKING:
    from lrt_tl.steering.vector import SteeringVector


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
    random_weights: RandomWeights = True,
    questions: Questions = None,
    search: Search = False,
    compare: Compare = False,
    seed: Seed = 0,
) -> None:
    """Do it all: fit the map, find the vectors, carry them over, measure, judge, and write a report."""
    if len(contrast) != len(behavior):
        raise LrtError(f"{len(contrast)} --contrast and {len(behavior)} --behavior: give one of each for every vector")
    grid, ends = numbers_of(coefficients), ends_of(layers, several_targets=True)
    from lrt_tl.artifacts import refuse_existing
    from lrt_tl.evaluation.behavior import read_behavior, texts_of
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
    searched = None
    if search:
        from lrt_tl.alignment.layer_search import search_layers

        tried_on = texts_of(*(part for task in tasks for part in task))
        searched = search_layers(
            models[0],
            models[1],
            read,
            exclude=tried_on,
            batch_size=batch_size,
            context_length=context_length,
            layout=layout,
            prepend_bos=prepend_bos,
            seed=seed,
        )
    compared = None
    if compare:
        from lrt_tl.compare import compare as run_compare

        try:
            compared = run_compare(models[0], models[1], read, batch_size=batch_size, prepend_bos=prepend_bos).verdict
        except LrtError as error:
            print(f"the models are not compared: {error}", file=sys.stderr)
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
        random_weights=random_weights,
        questions=questions,
        search=searched,
        comparison=compared,
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
        if found.decision is not None:
            print(f"{found.result.behavior}: {found.decision.answer}")
    _say_where(out)


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
    from lrt_tl.demo import BEHAVIORS, best_first, demonstrate, legend, rows, stories

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
    for found in best_first(run.behaviors)[:2]:
        print_columns(*stories(models[1], found, seed=seed))
        print()
    print(f"Vectors of {names[0]}, carried to {names[1]} by a map fitted on text")
    print_columns("Effect on the next word, in nats for each length of the target's own vector", rows(run))
    print_table("", legend(run))
    decisions = {found.result.behavior: found.decision for found in run.behaviors}
    print_table(
        "\nThe verdicts, and why", {f"{name}:": found.answer for name, found in decisions.items() if found is not None}
    )
    _say_where(out)


def _say_where(out: Path) -> None:
    holds = {"report.html": "shows it all", "card.md": "is a card for the hub", "summary.json": "holds the figures"}
    print("\n" + "; ".join(f"{out / name} {what}" for name, what in holds.items()) + ".")


def evaluate(
    target: Target,
    transferred: Annotated[Path, typer.Option(help="The folder of the transferred vector.")],
    native: Annotated[Path, typer.Option(help="The folder of the target's own vector.")],
    behavior: Annotated[str, typer.Option(help="The behavior, .json, or storyworld:mood.")],
    map: Annotated[Path | None, typer.Option(help="The folder of the map: adds the null of shuffled pairs.")] = None,
    neutral: Annotated[
        str | None,
        typer.Option(help="Neutral documents, or storyworld: adds matched KL, and the mean activation."),
    ] = None,
    source: Annotated[str | None, typer.Option(help="The source model: adds the effect there.")] = None,
    source_vector: Annotated[
        Path | None, typer.Option(help="The folder of the source's vector: goes with --source.")
    ] = None,
    unrelated: Annotated[
        list[Path] | None, typer.Option(help="Folders of other behaviors' vectors that the map carried.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(help="The folder of the vector that a source with random weights carries: what has to be beaten."),
    ] = None,
    contrast: Annotated[
        str | None, typer.Option(help="Contrast pairs: the first is tried as an example in the prompt.")
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
    """Measure a transferred vector against the native one and the nulls. What is not given is named as missing."""
    grid = numbers_of(coefficients)
    if (source is None) != (source_vector is None):
        raise LrtError("--source and --source-vector go together: the model, and the vector that was found in it")
    import torch

    from lrt_tl.alignment.affine_map import AffineMap
    from lrt_tl.artifacts import refuse_existing, write_json
    from lrt_tl.evaluation.behavior import read_behavior
    from lrt_tl.evaluation.evaluate import evaluate_transfer
    from lrt_tl.steering.contrast import read_contrast_pairs
    from lrt_tl.steering.vector import SteeringVector
    from lrt_tl.storyworld.named import named_behavior, named_contrast_pairs, named_documents
    from lrt_tl.transfer import neutral_texts

    if figures is not None:
        refuse_existing(figures)
    vectors, measured = (
        [SteeringVector.load(folder) for folder in (transferred, native)],
        read_behavior(named_behavior(behavior)),
    )
    affine_map = None if map is None else AffineMap.load(map)
    texts = [] if neutral is None else neutral_texts(named_documents(neutral))
    others = [_at(vectors[1], SteeringVector.load(folder)).direction for folder in unrelated or ()]
    beaten = None if baseline is None else _at(vectors[1], SteeringVector.load(baseline)).direction
    pairs = [] if contrast is None else read_contrast_pairs(named_contrast_pairs(contrast))
    own = None if source_vector is None else SteeringVector.load(source_vector)
    options = (model_class, processed, device, dtype)
    result = evaluate_transfer(
        load(target, *options),
        vectors[0],
        measured,
        native=vectors[1],
        affine_map=affine_map,
        controls={"unrelated": torch.stack(others)} if others else {},
        baselines={} if beaten is None else {"random_weights": beaten[None]},
        source=None if source is None or own is None else (load(source, *options), own),
        examples=(pairs[0].positive, pairs[0].negative) if pairs else (),
        neutral=texts,
        coefficients=grid,
        n_draws=draws,
        prepend_bos=prepend_bos,
        seed=seed,
    )
    if figures is not None:
        write_json(figures, result.summary())
    print_table(result.behavior, result.table())


def _at(native: "SteeringVector", other: "SteeringVector") -> "SteeringVector":
    """Another vector, if it is of the native one's site."""
    from lrt_tl.models.identity import require_same_site

    require_same_site(native.site, other.site, what="the native vector's site")
    return other
