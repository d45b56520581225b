"""The command that compares two models as predictors of the next token."""

import shlex
import sys
from typing import Annotated

import typer

from lrt_tl.cli.options import (
    MODEL,
    BatchSize,
    Device,
    DtypeOption,
    ModelClassOption,
    Out,
    PrependBos,
    Processed,
    documents_of,
    load,
)
from lrt_tl.errors import LrtError
from lrt_tl.tables import print_columns, print_table


def compare(
    model_a: Annotated[str, typer.Argument(help=MODEL, metavar="A")],
    model_b: Annotated[str, typer.Argument(help="Another one.", metavar="B")],
    out: Out,
    documents: Annotated[
        str | None,
        typer.Option(help="Text to compare them on: .txt, .jsonl or .parquet; storyworld's models have their own."),
    ] = None,
    relations: Annotated[
        str | None,
        typer.Option(
            help="Facts to look for linear relations in, .jsonl or .json, an entry of relation, subject, prompt and "
            "answer each; models of storyworld have their own."
        ),
    ] = None,
    epsilon: Annotated[
        float, typer.Option(help="The largest mean KL divergence, in nats, that counts as equal.")
    ] = 0.01,
    probing: Annotated[
        bool, typer.Option("--probing", help="Linear probes of relations too: far longer than all else.")
    ] = False,
    contexts: Annotated[int, typer.Option(min=1, help="Of the documents: the first so many.")] = 10_000,
    model_class: ModelClassOption = "bridge",
    processed: Processed = False,
    device: Device = None,
    dtype: DtypeOption = "float32",
    batch_size: BatchSize = 16,
    prepend_bos: PrependBos = True,
) -> None:
    """Say whether two models are one distribution, and which linear properties they therefore share."""
    if not epsilon > 0:
        raise LrtError(f"--epsilon {epsilon:g}: it must be positive")
    from lrt_tl.artifacts import refuse_existing
    from lrt_tl.compare import compare as run_compare
    from lrt_tl.identifiability.relation_files import read_relations

    refuse_existing(out)
    read = documents_of(documents, model_a, model_b)
    facts = None if relations is None else read_relations(relations)
    models = [load(name, model_class, processed, device, dtype) for name in (model_a, model_b)]
    run = run_compare(
        models[0],
        models[1],
        read,
        relations=facts,
        epsilon=epsilon,
        probing=probing,
        n_contexts=contexts,
        batch_size=batch_size,
        prepend_bos=prepend_bos,
        arguments={"command": shlex.join(["lrt-tl", *sys.argv[1:]])},
    )
    run.save(out)
    print_table("The premise", run.verdict.summary())
    if run.verdict.properties:
        print_columns("Linear properties: effective scores", run.verdict.short_rows())
    if run.verdict.missing:
        print_table("Not measured", run.verdict.missing)
    for note in run.verdict.notes:
        print(note)
    print(run.verdict.sentence())
    print(f"{out / 'report.html'} shows it all, {out / 'summary.json'} holds the figures.")
