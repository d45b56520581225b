"""The command line. What takes seconds to import is imported by the command that needs it."""

import sys

import typer

from lrt_tl.cli.compare import compare
from lrt_tl.cli.maps import fit, harvest, merge, search, solve
from lrt_tl.cli.report import report
from lrt_tl.cli.runs import demo, evaluate, transfer
from lrt_tl.cli.vectors import extract, steer, transport
from lrt_tl.errors import LrtError

app = typer.Typer(
    help="Carry steering vectors from a small language model to a large one, and measure what they do there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    transfer,
    demo,
    fit,
    search,
    harvest,
    merge,
    solve,
    extract,
    transport,
    steer,
    evaluate,
    compare,
    report,
):
    app.command()(command)


def main() -> None:
    """The `lrt-tl` command: what the package refuses is one line on stderr and exit status 1."""
    try:
        app()
    except LrtError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
