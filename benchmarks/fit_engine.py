"""From data to the chosen map: ours against scikit-learn's searches and himalaya's ridge.

`python benchmarks/fit_engine.py` plants a map, and chooses among 20 penalties by 5 folds, each engine in a process of
its own so that its peak memory is its own. himalaya is left out where it is not installed (`pip install himalaya`).
Prints a table for people, and last one line of JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_FOLDS, N_PENALTIES = 5, 20
ENGINES = ("lrt_tl", "sklearn_grid_search", "sklearn_ridge_cv", "himalaya")
NAMES = {
    "lrt_tl": "lrt_tl, moments then ridge",
    "sklearn_grid_search": "scikit-learn GridSearchCV(Ridge), 5 folds",
    "sklearn_ridge_cv": "scikit-learn RidgeCV (leave one out, no folds)",
    "himalaya": "himalaya RidgeCV, torch backend, 5 folds",
}
Array = NDArray[np.float32]


def data(n: int, d_source: int, d_target: int) -> tuple[Array, Array, Any]:
    """A planted map with noise, and the fold of each row; float32, as activations are."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n, d_source), dtype=np.float32) * np.geomspace(1, 0.03, d_source, dtype=np.float32)
    weight = generator.standard_normal((d_source, d_target), dtype=np.float32) / d_source**0.5
    y = x @ weight + 0.3 * generator.standard_normal((n, d_target), dtype=np.float32)
    return x, y, generator.integers(0, N_FOLDS, n)


def penalties(x: Array) -> NDArray[np.float64]:
    """Per position, the same for all engines."""
    return np.logspace(-6, 2, N_PENALTIES) * float(x[:5000].var(0).mean())


def with_lrt_tl(x: Array, y: Array, folds: Any) -> tuple[NDArray[Any], float]:
    import torch

    from lrt_tl.alignment.moments import Moments, fit_pairs, pool
    from lrt_tl.alignment.selection import ridge_fold_r2
    from lrt_tl.alignment.solvers import ridge

    a, b, splits = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(folds)
    shifts = {"x": a[:2000].double().mean(0), "y": b[:2000].double().mean(0)}
    moments = Moments.empty(N_FOLDS, shifts, fit_pairs(["x"], ["y"]))
    for start in range(0, len(a), 16384):  # as a harvest comes
        part = slice(start, start + 16384)
        moments.update({"x": a[part], "y": b[part]}, splits[part])
    parts, grid = moments.between(["x"], "y"), torch.from_numpy(penalties(x))
    penalty = float(grid[int(ridge_fold_r2(parts, grid).mean(1).argmax())])
    return ridge(pool(parts), penalty).weight.numpy(), penalty


def with_sklearn_grid_search(x: Array, y: Array, folds: Any) -> tuple[NDArray[Any], float]:
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, PredefinedSplit

    n = len(x) * (N_FOLDS - 1) / N_FOLDS
    search = GridSearchCV(Ridge(), {"alpha": penalties(x) * n}, cv=PredefinedSplit(folds), scoring="r2").fit(x, y)
    return search.best_estimator_.coef_.T, search.best_params_["alpha"] / n


def with_sklearn_ridge_cv(x: Array, y: Array, folds: Any) -> tuple[NDArray[Any], float]:
    from sklearn.linear_model import RidgeCV

    found = RidgeCV(penalties(x) * len(x)).fit(x, y)
    return found.coef_.T, float(found.alpha_) / len(x)


def with_himalaya(x: Array, y: Array, folds: Any) -> tuple[NDArray[Any], float]:
    from himalaya.backend import set_backend
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import PredefinedSplit

    backend = set_backend("torch")
    n = len(x) * (N_FOLDS - 1) / N_FOLDS
    found = RidgeCV(alphas=penalties(x) * n, cv=PredefinedSplit(folds), fit_intercept=True).fit(x, y)
    return backend.to_numpy(found.coef_), float(np.median(backend.to_numpy(found.best_alphas_))) / n


def run_one(engine: str, shape: tuple[int, int, int], out: str) -> None:
    """Time an engine, and write what it found."""
    x, y, folds = data(*shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work = {
        "lrt_tl": with_lrt_tl,
        "sklearn_grid_search": with_sklearn_grid_search,
        "sklearn_ridge_cv": with_sklearn_ridge_cv,
        "himalaya": with_himalaya,
    }[engine]
    work(x[:2000], y[:2000], folds[:2000])  # imports, and what is set up once
    started = time.perf_counter()
    weight, penalty = work(x, y, folds)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scale = 1024 if sys.platform == "linux" else 1
    np.save(out, weight)
    print(json.dumps({"seconds": seconds, "peak_bytes": (peak - before) * scale, "penalty": float(penalty)}))


def main() -> None:
    """Run every engine that is installed."""
    from tempfile import TemporaryDirectory

    from lrt_tl.tables import print_columns

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=100_000)
    parser.add_argument("--widths", default="512,1024")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    given = parser.parse_args()
    widths = tuple(map(int, given.widths.split(",")))
    shape = (given.positions, widths[0], widths[1])
    if given.engine:
        run_one(given.engine, shape, given.out)
        return
    found: dict[str, Any] = {}
    weights = {}
    with TemporaryDirectory() as folder:
        for engine in ENGINES:
            out = f"{folder}/{engine}.npy"
            command = [sys.executable, __file__, "--engine", engine, "--out", out]
            command += ["--positions", str(given.positions), "--widths", given.widths]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{engine}: left out ({done.stderr.strip().splitlines()[-1]})")
                continue
            found[engine] = json.loads(done.stdout.splitlines()[-1])
            weights[engine] = np.load(out)
    ours = found["lrt_tl"]
    for engine, weight in weights.items():
        difference = np.abs(weight - weights["lrt_tl"]).max() / np.abs(weights["lrt_tl"]).max()
        found[engine]["relative_difference"] = float(difference)
    rows = [
        {
            "engine": NAMES[engine],
            "seconds": f"{one['seconds']:.2f}",
            "peak memory over the data": f"{one['peak_bytes'] / 1e6:,.0f} MB",
            "λ per position": f"{one['penalty']:.2g}",
            "ours is faster by": f"{one['seconds'] / ours['seconds']:.1f} ×",
            "largest difference from ours": f"{one['relative_difference']:.1e}",
        }
        for engine, one in found.items()
    ]
    print_columns(f"{shape[0]:,} positions, {widths[0]} → {widths[1]}, {N_PENALTIES} penalties, {N_FOLDS} folds", rows)
    peer, himalaya = found["sklearn_grid_search"], found.get("himalaya")
    print(
        json.dumps(
            {
                "benchmark": "fit_engine",
                "shape": shape,
                "speedup_vs_sklearn": peer["seconds"] / ours["seconds"],
                "speedup_vs_himalaya": himalaya and himalaya["seconds"] / ours["seconds"],
                "memory_ratio_vs_sklearn": peer["peak_bytes"] / max(1, ours["peak_bytes"]),
                "max_relative_difference": max(one["relative_difference"] for one in found.values()),
                "engines": found,
            }
        )
    )


if __name__ == "__main__":
    main()
