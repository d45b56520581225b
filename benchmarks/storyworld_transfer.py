"""Do the bundled models share their vectors? Four behaviors over five pairs of models, two of which should fail.

`python benchmarks/storyworld_transfer.py` prints a table for people, and last one line of JSON.
It takes about ten minutes on two cores.
"""

import argparse
import json
import time
from typing import Any

from lrt_tl import storyworld
from lrt_tl.demo import BEHAVIORS, demonstrate
from lrt_tl.tables import print_columns
from lrt_tl.transfer import TransferRun

PAIRS = (
    ("small", "large"),
    ("medium", "large"),
    ("large", "large-b"),
    ("medium-early", "large"),
    ("medium-foreign", "large"),
)
N_DRAWS = 24


def figures(source: str, target: str, run: TransferRun, seconds: float) -> list[dict[str, Any]]:
    """What is reported of one pair: a row a behavior."""
    found = []
    for behavior in run.behaviors:
        summary = behavior.result.summary()
        found.append(
            {
                "source": source,
                "target": target,
                "behavior": summary["name"],
                "r_squared": run.affine_map.report.test_r2,
                "cosine": summary["cosine_with_native"],
                "slopes": {name: summary[f"{name}_slope"] for name in ("source_native", "native", "transferred")},
                "recovery": summary["recovery"],
                "recovery_matched_kl": summary["recovery_matched_kl"],
                "random": summary["random_slope"],
                "shuffled_map": summary["shuffled_map_slope"],
                "seconds_for_pair": seconds,
            }
        )
    return found


def row(figure: dict[str, Any]) -> dict[str, str]:
    """The same for people."""
    recovery = figure["recovery"]
    share = "none" if recovery["estimate"] is None else "{estimate:.2f} [{low:.2f}, {high:.2f}]".format(**recovery)
    ranks = [f"{figure[null]['rank_of_transferred']} of {figure[null]['n'] + 1}" for null in ("random", "shuffled_map")]
    return {
        "pair": f"{figure['source']} → {figure['target']}",
        "behavior": figure["behavior"],
        "R²": f"{figure['r_squared']:.2f}",
        "cosine": f"{figure['cosine']:.2f}",
        "native": f"{figure['slopes']['native']:+.2f}",
        "transferred": f"{figure['slopes']['transferred']:+.2f}",
        "recovery": share,
        "rank: random": ranks[0],
        "rank: shuffled": ranks[1],
    }


def main() -> None:
    """Run all pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=N_DRAWS, help="random vectors, and shuffled maps")
    parser.add_argument("--model-class", choices=("bridge", "hooked"), default="bridge")
    given = parser.parse_args()
    found: list[dict[str, Any]] = []
    for source, target in PAIRS:
        started = time.perf_counter()
        models = [storyworld.load(name, model_class=given.model_class) for name in (source, target)]
        run = demonstrate(models[0], models[1], BEHAVIORS, n_draws=given.draws)
        found += figures(source, target, run, time.perf_counter() - started)
    print_columns("Carried over", map(row, found))
    print(json.dumps({"benchmark": "storyworld_transfer", "draws": given.draws, "results": found}))


if __name__ == "__main__":
    main()
