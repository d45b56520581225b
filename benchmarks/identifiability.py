"""What it costs to compare two predictors: over the bare products that make their logits, and over a plain SVD.

`python benchmarks/identifiability.py` makes random predictors of 10,000 contexts and 50,000 tokens, d 512 and 768, in
float32, and times distances, subspaces and equivalence together against f gᵀ of both, some contexts at a time, which is
the least that any comparison of their probabilities must do. Every run is a process of its own, so that its peak memory
is its own. At a size where that fits, the spectrum from QR is compared with an SVD of the log-ratio matrix. CPU seconds
are of all threads, and of work alone: threads that wait do so without. Prints a table for people, and last one line of
JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

Shape = tuple[int, int, int]
"""Contexts, tokens, dimensions."""
SMALL: Shape = (3000, 5000, 256)
PRODUCTS_AT_ONCE = 2**24


def predictors(shape: Shape) -> tuple[Any, Any]:
    """Two that are near each other, in float32, of documents of ten contexts."""
    import torch

    from lrt_tl.identifiability.predictor import Predictor

    n_contexts, n_tokens, d = shape
    generator = torch.Generator().manual_seed(0)
    f, g = (torch.randn(n, d, generator=generator) for n in (n_contexts, n_tokens))
    documents = torch.arange(n_contexts) // 10
    p = Predictor.from_arrays(f, g * (3 / d**0.5), documents=documents)
    f = f + 0.1 * torch.randn(f.shape, generator=generator)
    return p, Predictor.from_arrays(f, p.g, documents=documents)


def compare(p: Any, q: Any) -> None:
    """All of it, part by part; the seconds of each go to stderr."""
    from lrt_tl.identifiability.distribution import distances
    from lrt_tl.identifiability.equality import equality
    from lrt_tl.identifiability.equivalence import equivalence

    started = time.process_time()
    equality(distances(p, q), 0.01)
    between = time.process_time()
    equivalence(p, q)  # which finds the subspaces of both
    print(f"distances {between - started:.1f}, the rest {time.process_time() - between:.1f}", file=sys.stderr)


def bare_logits(p: Any, q: Any) -> None:
    at_once = max(1, PRODUCTS_AT_ONCE // len(p.g))
    for start in range(0, len(p.f), at_once):
        for each in (p, q):
            each.f[start : start + at_once] @ each.g.T


def spectrum(p: Any, q: Any) -> None:
    from lrt_tl.identifiability.subspaces import subspaces

    subspaces(p)


def plain_svd(p: Any, q: Any) -> None:
    import torch

    ratios = p.logits()
    torch.linalg.svdvals(ratios - ratios.mean(1, keepdim=True))


WORK: dict[str, Callable[[Any, Any], None]] = {
    "compare": compare,
    "bare_logits": bare_logits,
    "spectrum": spectrum,
    "plain_svd": plain_svd,
}


def run_one(work: str, shape: Shape) -> None:
    p, q = predictors(shape)
    WORK[work](*predictors((200, 300, 8)))  # imports, and what is set up once
    started = time.perf_counter(), time.process_time()
    WORK[work](p, q)
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": wall, "cpu_seconds": cpu, "peak_bytes": peak}))


def run_apart(work: str, shape: Shape, threads: int) -> dict[str, float]:
    """Seconds, CPU seconds, and the peak memory of the whole process, predictors included."""
    command = [sys.executable, __file__, "--work", work, "--shape", ",".join(map(str, shape))]
    environment = os.environ | {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    environment["OMP_WAIT_POLICY"] = "passive"  # a thread that waits, for one that others keep from running, takes none
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run everything."""
    from lrt_tl.tables import print_columns

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--widths", default="512,768")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        n_contexts, n_tokens, d = map(int, given.shape.split(","))
        run_one(given.work, (n_contexts, n_tokens, d))
        return
    widths = {}
    for d in map(int, given.widths.split(",")):
        found = {
            work: run_apart(work, (given.contexts, given.tokens, d), given.threads)
            for work in ("bare_logits", "compare")
        }
        ratio = found["compare"]["cpu_seconds"] / found["bare_logits"]["cpu_seconds"]
        widths[d] = {**found, "ratio_to_logits": ratio}
    small = {work: run_apart(work, SMALL, given.threads) for work in ("spectrum", "plain_svd")}
    rows = [
        {
            "d": str(d),
            "logits, s (CPU)": f"{one['bare_logits']['seconds']:.1f} ({one['bare_logits']['cpu_seconds']:.1f})",
            "all of it, s (CPU)": f"{one['compare']['seconds']:.1f} ({one['compare']['cpu_seconds']:.1f})",
            "ratio of CPU": f"{one['ratio_to_logits']:.2f}",
            "peak memory": f"{one['compare']['peak_bytes'] / 2**30:.2f} GiB",
        }
        for d, one in widths.items()
    ]
    print_columns(f"{given.contexts:,} contexts × {given.tokens:,} tokens, {given.threads} threads", rows)
    svd = [
        {"of": work, "CPU s": f"{one['cpu_seconds']:.2f}", "peak memory": f"{one['peak_bytes'] / 2**30:.2f} GiB"}
        for work, one in small.items()
    ]
    print_columns(f"The spectrum, {SMALL[0]:,} contexts × {SMALL[1]:,} tokens, d {SMALL[2]}", svd)
    print(
        json.dumps(
            {
                "benchmark": "identifiability",
                "shape": [given.contexts, given.tokens],
                "threads": given.threads,
                "ratio_to_logits": max(one["ratio_to_logits"] for one in widths.values()),
                "peak_bytes": max(one["compare"]["peak_bytes"] for one in widths.values()),
                "speedup_vs_svd": small["plain_svd"]["cpu_seconds"] / small["spectrum"]["cpu_seconds"],
                "widths": widths,
                "spectrum": small,
            }
        )
    )


if __name__ == "__main__":
    main()
