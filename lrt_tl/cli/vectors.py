"""Commands about steering vectors."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lrt_tl.cli.options import (
    MODEL,
    Device,
    DtypeOption,
    ExtractionOption,
    ModelClassOption,
    Out,
    Position,
    PrependBos,
    Processed,
    Seed,
    load,
    position_of,
    selector_of,
)
from lrt_tl.tables import print_columns, print_table


def extract(
    model: Annotated[str, typer.Option(help=MODEL)],
    contrast: Annotated[str, typer.Option(help="Contrast pairs, .jsonl or .json, or storyworld:mood.")],
    layer: Annotated[
        str, typer.Option(help="The residual stream after this block; or a hook name; or several, as 2,3: one pass.")
    ],
    out: Out,
    method: ExtractionOption = "mean_difference",
    position: Position = "mean",
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Read the pairs through the model's chat template.")
    ] = False,
    model_class: ModelClassOption = "bridge",
    processed: Processed = False,
    device: Device = None,
    dtype: DtypeOption = "float32",
    prepend_bos: PrependBos = True,
) -> None:
    """Find a steering vector from contrast pairs; of several layers one each, in folders within the one given."""
    from lrt_tl.artifacts import new_folder, refuse_existing
    from lrt_tl.steering.extraction import EXTRACTIONS
    from lrt_tl.storyworld.named import named_contrast_pairs

    refuse_existing(out)
    places = [f"blocks.{part}.hook_resid_post" if part.isdigit() else part for part in layer.split(",")]
    loaded = load(model, model_class, processed, device, dtype)
    vectors = EXTRACTIONS[method](
        loaded,
        named_contrast_pairs(contrast),
        hook_name=places,
        position=position_of(position),
        prepend_bos=prepend_bos,
        chat_template=loaded.tokenizer if chat_template else None,
    )
    if len(vectors) == 1:
        vectors[0].save(out)
    else:
        with new_folder(out) as folder:
            for vector in vectors:
                _, block, point = vector.site.hook_name.split(".")
                vector.save(folder / f"blocks-{block}-{point.removeprefix('hook_')}")
    for vector in vectors:
        assert vector.report is not None
        print_table(repr(vector), vector.report.summary())


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
        Literal["vector", "unit", "residual"],
        typer.Option(help="The unit: the vector, the vector at length 1, or the residual stream's median norm."),
    ] = "vector",
    operator: Annotated[
        Literal["add", "rotate", "ablate", "clamp"],
        typer.Option(help="Add; add and keep the norm; take the component away; or make it --value."),
    ] = "add",
    value: Annotated[float | None, typer.Option(help="Of a clamp, in the residual stream's units.")] = None,
    positions: Annotated[
        str, typer.Option(help="""Where: all, prompt, generated, or JSON such as '{"prompt": {"last": 1}}'.""")
    ] = "all",
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

    steering = SteeringVector.load(vector).operate(
        operator, coefficient, value=value, scale=scale, positions=selector_of(positions)
    )
    loaded = load(model, model_class, processed, device, dtype)
    rows = sample_texts(
        loaded,
        prompt,
        {"plain": None, "steered": steering},
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        prepend_bos=prepend_bos,
        seed=seed,
    )
    print_columns(repr(steering), rows)
