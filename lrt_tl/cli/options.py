"""What the commands share: their options, and what these mean."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lrt_tl.errors import LrtError

if TYPE_CHECKING:
    from lrt_tl.models.protocol import HookedModel
    from lrt_tl.text.documents import Documents

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
    str,
    typer.Option(
        help="Source and target layer, as 2:3 (the residual stream after these blocks), or several source layers, as "
        "0,1,2:3, or all of them, as all:3; or hook names. transfer chooses among several target layers, as all:3,4,5."
    ),
]
LayerList = Annotated[str | None, typer.Option(help="Layers to try, as 0,2,4; by default all.")]
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
Position = Annotated[
    str,
    typer.Option(
        help="Where contrast texts are read: mean (over tokens), last, a number, answer (where the two texts of a pair "
        """differ last), or a selector as JSON, such as '{"within": "text"}'."""
    ),
]
ExtractionOption = Annotated[
    Literal["mean_difference", "pca_of_differences", "pca_of_states", "logistic_probe", "linear_discriminant"],
    typer.Option(help="How the vector is found."),
]
Coefficients = Annotated[str, typer.Option(help="In units of the native vector, symmetric about 0.")]
Draws = Annotated[int, typer.Option(min=1, help="Random vectors, and maps of shuffled pairs, to compare with.")]
RandomWeights = Annotated[
    bool, typer.Option(help="Measure what a source with random weights carries: takes another pass over the text.")
]
Questions = Annotated[
    str | None,
    typer.Option(help="Questions with choices, .jsonl or .json, to see what steering does to what the target can do."),
]
Search = Annotated[
    bool, typer.Option("--search", help="Show in the report how alike all pairs of layers are: takes another pass.")
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Say in the report whether the two models are one distribution: see compare.")
]
Seed = Annotated[int, typer.Option(help="Of the nulls, the bootstrap and the sampled texts.")]
Contrasts = Annotated[
    list[str], typer.Option(help="Contrast pairs, .jsonl or .json, or storyworld:mood; repeat it with --behavior.")
]
Behaviors = Annotated[
    list[str], typer.Option(help="The behavior that the vector should change, .json, or storyworld:mood.")
]
MethodOption = Annotated[
    Literal[
        "ridge", "ridge_per_target", "least_squares", "reduced_rank", "procrustes", "whitened", "partial_least_squares"
    ],
    typer.Option(help="Which map; docs/guides/maps.md says which to choose when."),
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Contrast pairs or behaviors: documents that contain their texts are left out.")
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="A folder to keep the moments in every minute, to go on from after a kill.")
]
ChatTemplate = Annotated[
    bool, typer.Option("--chat-template", help="Read documents through the target's chat template.")
]
SelectLayers = Annotated[
    bool, typer.Option("--select-layers", help="Of several source layers, keep those that the map needs.")
]
Sequential = Annotated[
    bool, typer.Option("--sequential", help="Have one model in memory at a time, for two that do not fit together.")
]
GRID = "-8,-4,0,4,8"


def documents_of(given: str | None, *models: str, chat_template: Any = None) -> "Documents":
    from lrt_tl.storyworld.named import default_documents, named_documents
    from lrt_tl.text.documents import read_documents

    source = named_documents(default_documents(*models) if given is None else given)
    return read_documents(source, chat_template=chat_template)


def load(name: str, model_class: ModelClass, processed: bool, device: str | None, dtype: Dtype) -> "HookedModel":
    import torch

    from lrt_tl.models.loading import load_model

    precision: torch.dtype = getattr(torch, dtype)
    return load_model(name, model_class=model_class, processed=processed, device=device, dtype=precision)


def ends_of(layers: str, *, several_targets: bool = False) -> dict[str, Any]:
    """`2:3`, `0,1,2:3`, or hook names in their places, as arguments of a fit; with several targets, `all:3,4` too."""
    ends = [end.split(",") for end in layers.split(":")]
    if len(ends) != 2 or not all(map(all, ends)) or (len(ends[1]) != 1 and not several_targets):
        raise LrtError(
            f"--layers {layers!r}: give source and target layer with a colon between them, as 2:3; or several source "
            "layers, as 0,1,2:3 or all:3"
        )
    by_layer = [[int(part) if part.isdigit() else part for part in end] for end in ends]
    numbers = [all(isinstance(part, int) for part in end) for end in by_layer]
    if numbers[1] and (numbers[0] or ends[0] == ["all"]):
        return {"layers": ("all" if ends[0] == ["all"] else _one_or_several(by_layer[0]), _one_or_several(by_layer[1]))}
    if "all" in ends[0]:
        raise LrtError(f"--layers {layers!r}: all goes with the number of a target layer, as all:3")
    named = [[f"blocks.{part}.hook_resid_post" if part.isdigit() else part for part in end] for end in ends]
    return {"hook_names": (_one_or_several(named[0]), _one_or_several(named[1]))}


def _one_or_several(parts: list[Any]) -> Any:
    return parts if len(parts) > 1 else parts[0]


def layers_of(layers: str | None) -> list[int] | None:
    """`0,2,4` as numbers."""
    return None if layers is None else [int(number) for number in numbers_of(layers)]


def position_of(position: str) -> Any:
    if position in ("mean", "last", "answer"):
        return position
    try:
        return json.loads(position)
    except ValueError as error:
        raise LrtError(
            f"""--position {position!r}: use mean, last, answer, a number, or JSON such as '{{"within": "text"}}'"""
        ) from error


def selector_of(positions: str) -> Any:
    if positions in ("all", "prompt", "generated"):
        return positions
    try:
        return json.loads(positions)
    except ValueError as error:
        raise LrtError(
            f"""--positions {positions!r}: use all, prompt, generated, or JSON such as '{{"last": 1}}'"""
        ) from error


def numbers_of(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise LrtError(f"{text!r} is not a list of numbers with commas between them, as {GRID}") from error
