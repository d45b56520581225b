"""From data to the chosen map: ours against scikit-learn's searches and himalaya's ridge.

`python benchmarks/fit_engine.py` plants a map, and chooses among 20 penalties by 5 folds: all engines get the same
float32 arrays, folds, penalties and number of threads, each in a process of its own, so that its peak memory is its
own; once with half of the positions, to see what each further one takes. How far each map is from the exact solution
at its own penalty is checked in float64. himalaya is left out where it is not installed (`pip install himalaya`).
Prints a table for people, and last one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

N_FOLDS, N_PENALTIES = 5, 20
N_RUNS, SECONDS = 3, 10.0
"""The median of so many runs is taken, of fewer once they have taken so long."""
Array = NDArray[np.float32]
Found = tuple[NDArray[Any], float, float]
"""Weight, the chosen λ and that of the final fit. Both are per position: some keep Σ‖·‖² + α‖W‖² at the α that served
four folds of five, when they refit on all."""


def data(n: int, d_source: int, d_target: int) -> tuple[Array, Array, Any]:
    """A planted map with noise, and the fold of each row; float32, as activations are."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n, d_source), dtype=np.float32)
    x *= np.geomspace(1, 0.03, d_source, dtype=np.float32)
    weight = generator.standard_normal((d_source, d_target), dtype=np.float32) / np.float32(d_source**0.5)
    y = x @ weight
    for row in y:  # in place, so that nothing beside the data takes memory
        row += np.float32(0.3) * generator.standard_normal(d_target, dtype=np.float32)
    return x, y, generator.permutation(np.arange(n) % N_FOLDS)


def penalties(x: Array) -> NDArray[np.float64]:
    """Per position, the same for all engines."""
    return np.logspace(-6, 2, N_PENALTIES) * float(x[:5000].var(0).mean())


def with_lrt_tl(x: Array, y: Array, folds: Any) -> Found:
    import torch

    from lrt_tl.alignment.moments import Moments, fit_pairs, pool
    from lrt_tl.alignment.selection import ridge_fold_r2
    from lrt_tl.alignment.solvers import ridge

    a, b, splits = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(folds)
    shifts = {"x": a[:2000].double().mean(0), "y": b[:2000].double().mean(0)}
    moments = Moments.empty(N_FOLDS, shifts, fit_pairs(["x"], ["y"]))
    for start in range(0, len(a), 4096):  # as a harvest comes
        part = slice(start, start + 4096)
        moments.update({"x": a[part], "y": b[part]}, splits[part])
    parts, grid = moments.between(["x"], "y"), torch.from_numpy(penalties(x))
    penalty = float(grid[int(ridge_fold_r2(parts, grid).mean(1).argmax())])
    return ridge(pool(parts), penalty).weight.numpy(), penalty, penalty


def with_sklearn_grid_search(x: Array, y: Array, folds: Any) -> Found:
    from sklearn.linear_model import Ridge
    from sklearn.metrics import make_scorer, r2_score
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    n = len(x) * (N_FOLDS - 1) / N_FOLDS
    scoring = make_scorer(r2_score, multioutput="variance_weighted")  # all target dimensions together, as ours
    search = GridSearchCV(Ridge(), {"alpha": penalties(x) * n}, cv=PredefinedSplit(folds), scoring=scoring).fit(x, y)
    alpha = search.best_params_["alpha"]
    return search.best_estimator_.coef_.T, alpha / n, alpha / len(x)


def with_sklearn_ridge_cv(x: Array, y: Array, folds: Any) -> Found:
    from sklearn.linear_model import RidgeCV

    found = RidgeCV(penalties(x) * len(x)).fit(x, y)
    return found.coef_.T, float(found.alpha_) / len(x), float(found.alpha_) / len(x)


def with_himalaya(x: Array, y: Array, folds: Any) -> Found:
    """One penalty for all targets, and one at a time: all at once take as many times the memory. It is made for more
    columns than rows: each penalty costs products of test rows by training rows, which grow with the square of n."""
    from himalaya.backend import set_backend
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import PredefinedSplit

    backend = set_backend("torch")
    n = len(x) * (N_FOLDS - 1) / N_FOLDS
    options = {"local_alpha": False, "n_alphas_batch": 1}
    alphas, folded = (penalties(x) * n).astype(np.float32), PredefinedSplit(folds)
    found = RidgeCV(alphas=alphas, cv=folded, fit_intercept=True, solver_params=options).fit(x, y)
    alpha = float(backend.to_numpy(found.best_alphas_)[0])
    return backend.to_numpy(found.coef_), alpha / n, alpha / len(x)


ENGINES: dict[str, tuple[str, Callable[[Array, Array, Any], Found]]] = {
    "lrt_tl": ("lrt_tl", with_lrt_tl),
    "sklearn_grid_search": ("scikit-learn GridSearchCV(Ridge)", with_sklearn_grid_search),
    "sklearn_ridge_cv": ("scikit-learn RidgeCV, leave one out", with_sklearn_ridge_cv),
    "himalaya": ("himalaya RidgeCV, torch", with_himalaya),
}


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes that the process holds at most during the call, over what it held before; looked at every 2 ms."""
    process, done = psutil.Process(), Event()
    seen = [process.memory_info().rss]

    def look() -> None:
        while not done.wait(0.002):
            seen.append(process.memory_info().rss)

    looking = Thread(target=look)
    looking.start()
    try:
        work()
    finally:
        done.set()
        looking.join()
    return max(seen) - seen[0]


def run_one(engine: str, shape: tuple[int, int, int], out: str) -> None:
    """Time an engine, and write what it found."""
    x, y, folds = data(*shape)
    _, work = ENGINES[engine]
    work(*data(200, 8, 8))  # imports, and what is set up once
    found: list[Found] = []
    wall: list[float] = []
    cpu: list[float] = []

    def timed() -> None:
        started = time.perf_counter(), time.process_time()
        found.append(work(x, y, folds))
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])

    peak = peak_memory(timed)
    while len(wall) < N_RUNS and sum(wall) < SECONDS:
        timed()
    weight, penalty, final = found[-1]
    np.save(out, weight)
    figures = {"seconds": median(wall), "cpu_seconds": median(cpu), "peak_bytes": peak}
    print(json.dumps({**figures, "penalty": float(penalty), "final": float(final), "precision": str(weight.dtype)}))


def run_apart(engine: str, shape: tuple[int, int, int], threads: int) -> tuple[dict[str, Any], NDArray[Any]] | str:
    """What an engine found in a process of its own, or why it did not."""
    with TemporaryDirectory() as folder:
        out = f"{folder}/weight.npy"
        n, *widths = shape
        command = [sys.executable, __file__, "--engine", engine, "--out", out, "--positions", str(n)]
        command += ["--widths", ",".join(map(str, widths))]
        libraries = ("OMP", "MKL", "OPENBLAS")
        environment = os.environ | {f"{library}_NUM_THREADS": str(threads) for library in libraries}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return json.loads(done.stdout.splitlines()[-1]), np.load(out)


def exact(x: Array, y: Array, penalty: float) -> NDArray[np.float64]:
    """The ridge map from the definition, in float64."""
    a, b = (z - z.mean(0, dtype=np.float64) for z in (x, y))
    solved: NDArray[np.float64] = np.linalg.solve(a.T @ a + len(a) * penalty * np.eye(a.shape[1]), a.T @ b)
    return solved


def main() -> None:
    """Run every engine that is installed."""
    from lrt_tl.tables import print_columns

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=20_000)
    parser.add_argument("--widths", default="256,512", help="of source and target")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    given = parser.parse_args()
    d_source, d_target = map(int, given.widths.split(","))
    shape = (given.positions, d_source, d_target)
    if given.engine:
        run_one(given.engine, shape, given.out)
        return
    x, y, _ = data(*shape)
    half = (given.positions // 2, d_source, d_target)
    found: dict[str, dict[str, Any]] = {}
    for engine in ENGINES:
        whole, fewer = (run_apart(engine, some, given.threads) for some in (shape, half))
        if isinstance(whole, str) or isinstance(fewer, str):
            print(f"{engine}: left out ({whole if isinstance(whole, str) else fewer})")
            continue
        wanted = exact(x, y, whole[0]["final"])
        found[engine] = whole[0] | {
            "memory_growth": (whole[0]["peak_bytes"] - fewer[0]["peak_bytes"]) / (shape[0] - half[0]),
            "relative_difference": float(np.abs(whole[1] - wanted).max() / np.abs(wanted).max()),
        }
    ours = found["lrt_tl"]
    rows = [
        {
            "engine": ENGINES[engine][0],
            "s (CPU)": f"{one['seconds']:.2f} ({one['cpu_seconds']:.2f})",
            "ours faster": f"{one['seconds'] / ours['seconds']:.1f} ×",
            "memory": f"{one['peak_bytes'] / 1e6:,.0f} MB + {one['memory_growth']:,.0f} B/position",
            "weights": one["precision"],
            "λ": f"{one['penalty']:.2g}",
            "error": f"{one['relative_difference']:.1e}",
        }
        for engine, one in found.items()
    ]
    print_columns(
        f"{shape[0]:,} positions, {d_source} → {d_target}, {N_PENALTIES} penalties, {N_FOLDS} folds, "
        f"{given.threads} threads; float32 throughout, but for our sums and solution in float64; memory over the data",
        rows,
    )
    speedups = {engine: one["seconds"] / ours["seconds"] for engine, one in found.items()}
    print(
        json.dumps(
            {
                "benchmark": "fit_engine",
                "shape": shape,
                "threads": given.threads,
                "speedup_vs_sklearn": speedups["sklearn_grid_search"],
                "speedup_vs_himalaya": speedups.get("himalaya"),
                "memory_growth": ours["memory_growth"],
                "max_relative_difference": max(one["relative_difference"] for one in found.values()),
                "engines": found,
            }
        )
    )


if __name__ == "__main__":
    main()
