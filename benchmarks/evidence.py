"""How long the whole default evidence for one behavior takes, from storyworld's small model to its large one: the map,
the vectors, the nulls, the source with random weights, the costs, the forecast and the verdict; and what share of it
the models' own forward passes are.

`python benchmarks/evidence.py` prints a table for people, and last one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch

from lrt_tl import storyworld
from lrt_tl.demo import COEFFICIENTS, N_DOCUMENTS, N_PAIRS, N_PROMPTS, middle_layer
from lrt_tl.evaluation.controls import N_DRAWS
from lrt_tl.tables import print_table
from lrt_tl.transfer import transfer


@contextmanager
def forward_passes(*classes: type) -> Iterator[list[float]]:
    """The seconds of every call of a model of these classes, those within another call left out."""
    taken: list[float] = []
    plain = {each: each.forward for each in classes}
    depth = 0

    def timed(forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            started, depth = time.perf_counter(), depth + 1
            try:
                return forward(*args, **kwargs)
            finally:
                depth -= 1
                if depth == 0:
                    taken.append(time.perf_counter() - started)

        return run

    for each, forward in plain.items():
        each.forward = timed(forward)  # type: ignore[attr-defined]
    try:
        yield taken
    finally:
        for each, forward in plain.items():
            each.forward = forward  # type: ignore[attr-defined]


def main() -> None:
    """Measure it once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--behavior", default="mood")
    parser.add_argument("--draws", type=int, default=N_DRAWS, help="random vectors, shuffled maps, and random maps")
    parser.add_argument("--model-class", choices=("bridge", "hooked"), default="bridge")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    source, target = (storyworld.load(name, model_class=given.model_class) for name in ("small", "large"))
    documents = storyworld.documents(N_DOCUMENTS)
    task = (storyworld.contrast_pairs(given.behavior, N_PAIRS), storyworld.behavior(given.behavior, N_PROMPTS))
    started = time.perf_counter()
    with forward_passes(type(source)) as taken, redirect_stderr(StringIO()):
        run = transfer(
            source,
            target,
            documents,
            [task],
            layers=("all", middle_layer(target)),
            position="last",
            coefficients=COEFFICIENTS,
            n_draws=given.draws,
            batch_size=64,
        )
    seconds = time.perf_counter() - started
    found = {
        "benchmark": "evidence",
        "behavior": given.behavior,
        "draws": given.draws,
        "threads": given.threads,
        "seconds": seconds,
        "forward_seconds": sum(taken),
        "forward_share": sum(taken) / seconds,
        "forward_passes": len(taken),
        "recovery": vars(run.behaviors[0].result.recovery),
        "verdict": run.behaviors[0].decision.verdict,
    }
    print_table("The default evidence", {name.replace("_", " "): str(value) for name, value in found.items()})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
