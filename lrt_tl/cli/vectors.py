"""Commands about steering vectors."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lrt_tl.cli.options import (
    MODEL,
    Device,
    DtypeOption,
    ModelClassOption,
    Out,
    Position,
    PrependBos,
    Processed,
    Seed,
    load,
    position_of,
)
from lrt_tl.tables import print_columns


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
    loaded = load(model, model_class, processed, device, dtype)
    vector = mean_difference(loaded, pairs, position=position_of(position), prepend_bos=prepend_bos, **place)
    vector.save(out)
    print(vector)


def transport(
    map: Annotated[Path, typer.Option(help="The folder of an affine map.")],
    vector: Annotated[
        list[Path],
        typer.Option(help="The folder of a steering vector of the source; for a map from several layers, one of each."),
    ],
    out: Out,
) -> None:
    """Carry a steering vector through a map."""
    from lrt_tl.alignment.affine_map import AffineMap
    from lrt_tl.steering.vector import SteeringVector

    carried = AffineMap.load(map).transport([SteeringVector.load(folder) for folder in vector])
    carried.save(out)
    print(carried)


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
    loaded = load(model, model_class, processed, device, dtype)
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
