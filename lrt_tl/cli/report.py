"""The command that reads runs back."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders that lrt-tl transfer or demo wrote.", metavar="RUN…")],
    out: Annotated[
        Path | None, typer.Option(help="A page of HTML to write, such as report.html. It must not exist.")
    ] = None,
) -> None:
    """Show what a run found, or compare several: recovery of each behavior, and in what the runs differ."""
    from lrt_tl.artifacts import new_file, refuse_existing
    from lrt_tl.report.render import render
    from lrt_tl.runs.saved import compare, read_run
    from lrt_tl.tables import print_columns

    if out is not None:
        refuse_existing(out)
    read = [read_run(folder) for folder in runs]
    page = compare(read)
    print_columns("Recovery: the share of the native vector's effect", [row for run in read for row in run.rows()])
    print(page.answer.sentence)
    if out is not None:
        with new_file(out) as file:
            file.write(render(page).encode())
        print(f"{out} shows it.")
