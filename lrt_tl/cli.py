"""The command line. What takes seconds to import is imported by the command that needs it."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lrt_tl.errors import LrtError
from lrt_tl.tables import print_columns, print_table

if TYPE_CHECKING:
    from lrt_tl.models.protocol import HookedModel
    from lrt_tl.text.documents import Documents

app = typer.Typer(
    help="Carry steering vectors from a small language model to a large one, and measure what they do there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


ModelClass = Literal["bridge", "hooked"]
Dtype = Literal["float32", "bfloat16", "float16"]
MODEL = "A model: a bundled one (storyworld-small, …), a name on the Hugging Face hub, or a folder that holds it."
Source = Annotated[str, typer.Option(help=MODEL)]
Target = Annotated[str, typer.Option(help=MODEL)]
DocumentsOption = Annotated[
    str | None,
    typer.Option(help="Text to fit the map on: .txt, .jsonl or .parquet; or storyworld (the default for its models)."),
]
Layers = Annotated[
    str, typer.Option(help="Source and target layer, as 2:3 (the residual stream after these blocks); or hook names.")
]
Out = Annotated[Path, typer.Option(help="The folder to write. It must not exist.")]
ModelClassOption = Annotated[ModelClass, typer.Option(help="TransformerBridge, or HookedTransformer.")]
Processed = Annotated[bool, typer.Option(help="Fold and center the weights, as HookedTransformer does by default.")]
Device = Annotated[str | None, typer.Option(help="Such as cuda or cpu; by default a GPU if there is one.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Of weights and activations.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Rows in a forward pass.")]
ContextLength = Annotated[int | None, typer.Option(help="Tokens in a row; by default 256, or what both models read.")]
LayoutOption = Annotated[
    Literal["split", "truncate", "pack"], typer.Option(help="Long documents: split into rows, truncated, or packed.")
]
PrependBos = Annotated[bool, typer.Option(help="Begin each text with the beginning-of-sequence token, if any.")]
Position = Annotated[str, typer.Option(help="Where contrast texts are read: mean (over tokens), last, or a number.")]
Coefficients = Annotated[str, typer.Option(help="In units of the native vector, symmetric about 0.")]
Draws = Annotated[int, typer.Option(min=1, help="Random vectors, and maps of shuffled pairs, to compare with.")]
Seed = Annotated[int, typer.Option(help="Of the nulls, the bootstrap and the sampled texts.")]
Contrasts = Annotated[
    list[str], typer.Option(help="Contrast pairs, .jsonl or .json, or storyworld:mood; repeat it with --behavior.")
]
Behaviors = Annotated[
    list[str], typer.Option(help="The behavior that the vector should change, .json, or storyworld:mood.")
]
GRID = "-8,-4,0,4,8"


@app.command()
def transfer(
    source: Source,
    target: Target,
    contrast: Contrasts,
    behavior: Behaviors,
    layers: Layers,
    out: Out,
    documents: DocumentsOption = None,
    model_class: ModelClassOption = "bridge",
    processed: Processed = False,
    device: Device = None,
    dtype: DtypeOption = "float32",
    batch_size: BatchSize = 16,
    context_length: ContextLength = None,
    layout: LayoutOption = "split",
    prepend_bos: PrependBos = True,
    position: Position = "mean",
    coefficients: Coefficients = GRID,
    draws: Draws = 64,
    seed: Seed = 0,
) -> None:
    """Do it all: fit the map, find the vectors, carry them over, measure, and write a report."""
    if len(contrast) != len(behavior):
        raise LrtError(f"{len(contrast)} --contrast and {len(behavior)} --behavior: give one of each for every vector")
    grid, ends = _numbers(coefficients), _ends(layers)
    from lrt_tl.artifacts import refuse_existing
    from lrt_tl.evaluation.behavior import read_behavior
    from lrt_tl.evaluation.report import headline
    from lrt_tl.steering.contrast import read_contrast_pairs
    from lrt_tl.storyworld.named import named_behavior, named_contrast_pairs
    from lrt_tl.transfer import transfer as run_transfer

    refuse_existing(out)
    read = _documents(documents, source, target)
    tasks = [
        (read_contrast_pairs(named_contrast_pairs(pairs)), read_behavior(named_behavior(file)))
        for pairs, file in zip(contrast, behavior, strict=True)
    ]
    models = [_load(name, model_class, processed, device, dtype) for name in (source, target)]
    run = run_transfer(
        models[0],
        models[1],
        read,
        tasks,
        **ends,
        position=_position(position),
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


@app.command()
def demo(
    source: Annotated[str, typer.Option(help="A model of storyworld: small, medium, large, ….")] = "small",
    target: Annotated[str, typer.Option(help="Another one.")] = "large",
    behavior: Annotated[
        list[str] | None, typer.Option(help="mood, language, refusal, register, tense, …; repeat it for several.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="As of transfer; by default half of each model's depth.")] = None,
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
        _load(f"storyworld-{name.removeprefix('storyworld-')}", model_class, False, None, "float32")
        for name in (source, target)
    ]
    run = demonstrate(
        models[0],
        models[1],
        behavior or BEHAVIORS,
        **({} if layers is None else _ends(layers)),
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


@app.command()
def fit(
    source: Source,
    target: Target,
    layers: Layers,
    out: Out,
    documents: DocumentsOption = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(help="Contrast pairs or behaviors: documents that contain their texts are left out."),
    ] = None,
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
    ends = _ends(layers)
    from lrt_tl.alignment.fit import fit_affine_map
    from lrt_tl.artifacts import refuse_existing
    from lrt_tl.evaluation.behavior import texts_of
    from lrt_tl.storyworld.named import named_behavior, named_contrast_pairs

    refuse_existing(out)
    texts = texts_of(*(named(file) for file in exclude or [] for named in (named_contrast_pairs, named_behavior)))
    read = _documents(documents, source, target)
    models = [_load(name, model_class, processed, device, dtype) for name in (source, target)]
    affine_map = fit_affine_map(
        models[0],
        models[1],
        read,
        **ends,
        exclude=texts,
        batch_size=batch_size,
        context_length=context_length,
        layout=layout,
        prepend_bos=prepend_bos,
    )
    affine_map.save(out)
    print_table("The map", affine_map.summary())


@app.command()
def extract(
    model: Annotated[str, typer.Option(help=MODEL)],
    contrast: Annotated[str, typer.Option(help="Contrast pairs, .jsonl or .json, or storyworld:mood.")],
    layer: Annotated[str, typer.Option(help="The residual stream after this block; or a hook name.")],
    out: Out,
    position: Position = "mean",
    model_class: ModelClassOption = "bridge",
    processed: Processed = False,
    device: Device = None,
    dtype: DtypeOption = "float32",
    prepend_bos: PrependBos = True,
) -> None:
    """Find a steering vector: the mean difference over contrast pairs."""
    from lrt_tl.artifacts import refuse_existing
    from lrt_tl.steering.contrast import read_contrast_pairs
    from lrt_tl.steering.extraction import mean_difference
    from lrt_tl.storyworld.named import named_contrast_pairs

    refuse_existing(out)
    place: dict[str, Any] = {"layer": int(layer)} if layer.isdigit() else {"hook_name": layer}
    pairs = read_contrast_pairs(named_contrast_pairs(contrast))
    loaded = _load(model, model_class, processed, device, dtype)
    vector = mean_difference(loaded, pairs, position=_position(position), prepend_bos=prepend_bos, **place)
    vector.save(out)
    print(vector)


@app.command()
def transport(
    map: Annotated[Path, typer.Option(help="The folder of an affine map.")],
    vector: Annotated[Path, typer.Option(help="The folder of a steering vector of the source.")],
    out: Out,
) -> None:
    """Carry a steering vector through a map."""
    from lrt_tl.alignment.affine_map import AffineMap
    from lrt_tl.steering.vector import SteeringVector

    carried = AffineMap.load(map).transport(SteeringVector.load(vector))
    carried.save(out)
    print(carried)


@app.command()
def steer(
    model: Annotated[str, typer.Option(help=MODEL)],
    vector: Annotated[Path, typer.Option(help="The folder of a steering vector of that model.")],
    prompt: Annotated[list[str], typer.Option(help="What to continue; repeat it for several.")],
    coefficient: Annotated[float, typer.Option(help="In units of --scale.")] = 1.0,
    scale: Annotated[
        Literal["vector", "residual"], typer.Option(help="The unit: the vector, or the residual stream's median norm.")
    ] = "vector",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 30,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.8,
    model_class: ModelClassOption = "bridge",
    processed: Processed = False,
    device: Device = None,
    dtype: DtypeOption = "float32",
    prepend_bos: PrependBos = True,
    seed: Seed = 0,
) -> None:
    """Write text with and without a vector, side by side."""
    from lrt_tl.evaluation.samples import sample_texts
    from lrt_tl.steering.vector import SteeringVector

    steering = SteeringVector.load(vector)
    strength = steering.strength(coefficient, scale=scale)
    loaded = _load(model, model_class, processed, device, dtype)
    rows = sample_texts(
        loaded,
        prompt,
        {"plain": None, "steered": (steering, strength)},
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        prepend_bos=prepend_bos,
        seed=seed,
    )
    print_columns(f"coefficient {coefficient:g} ({scale})", rows)


@app.command()
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
    grid = _numbers(coefficients)
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
        _load(target, model_class, processed, device, dtype),
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


def main() -> None:
    """The `lrt-tl` command: what the package refuses is one line on stderr and exit status 1."""
    try:
        app()
    except LrtError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _documents(given: str | None, *models: str) -> "Documents":
    from lrt_tl.storyworld.named import default_documents, named_documents
    from lrt_tl.text.documents import read_documents

    return read_documents(named_documents(default_documents(*models) if given is None else given))


def _load(name: str, model_class: ModelClass, processed: bool, device: str | None, dtype: Dtype) -> "HookedModel":
    import torch

    from lrt_tl.models.loading import load_model

    precision: torch.dtype = getattr(torch, dtype)
    return load_model(name, model_class=model_class, processed=processed, device=device, dtype=precision)


def _ends(layers: str) -> dict[str, Any]:
    """`2:3`, or two hook names with a colon between them, as arguments of a fit."""
    ends = layers.split(":")
    if len(ends) != 2 or not all(ends):
        raise LrtError(f"--layers {layers!r}: give source and target layer with a colon between them, as 2:3")
    if all(end.isdigit() for end in ends):
        return {"layers": (int(ends[0]), int(ends[1]))}
    names = [f"blocks.{end}.hook_resid_post" if end.isdigit() else end for end in ends]
    return {"hook_names": (names[0], names[1])}


def _position(position: str) -> Any:
    if position in ("mean", "last"):
        return position
    try:
        return int(position)
    except ValueError as error:
        raise LrtError(f"--position {position!r}: use mean, last, or a number") from error


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise LrtError(f"{text!r} is not a list of numbers with commas between them, as {GRID}") from error
