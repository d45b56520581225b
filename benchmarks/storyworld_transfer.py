"""Do the bundled models share their vectors? Four behaviors over six pairs of models, three of which should fail: from
a model that was hardly trained, one that speaks another language, and one that was not trained at all.

`python benchmarks/storyworld_transfer.py` prints a table for people, and last one line of JSON.
It takes about ten minutes on two cores.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lrt_tl import storyworld
from lrt_tl.demo import BEHAVIORS, demonstrate
from lrt_tl.models.loading import BUNDLED, load_model
from lrt_tl.runs.run import TransferRun
from lrt_tl.tables import print_columns

PAIRS = (
    ("small", "large"),
    ("medium", "large"),
    ("large", "large-b"),
    ("medium-early", "large"),
    ("medium-foreign", "large"),
    ("untrained", "large"),
)
N_DRAWS = 24


def load(name: str, model_class: str) -> Any:
    """A bundled model; `untrained` is medium with random weights."""
    if name != "untrained":
        return storyworld.load(name, model_class=model_class)
    with TemporaryDirectory() as root:
        folder = Path(root) / "storyworld-untrained"
        shutil.copytree(BUNDLED / "storyworld-medium", folder)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
        return load_model(str(folder), model_class=model_class)


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
        models = [load(name, given.model_class) for name in (source, target)]
        run = demonstrate(models[0], models[1], BEHAVIORS, n_draws=given.draws)
        found += figures(source, target, run, time.perf_counter() - started)
    print_columns("Carried over", map(row, found))
    print(json.dumps({"benchmark": "storyworld_transfer", "draws": given.draws, "results": found}))


if __name__ == "__main__":
    main()
