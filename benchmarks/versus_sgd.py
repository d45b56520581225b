"""The exact map against the recipe of the paper: AdamW on the same activations.

Bello et al. 2025 (arXiv 2506.00653) fit ‖A h_S + b − h_T‖² with AdamW, batch 32, 4 epochs, learning rate 1e-4 or 1e-3.
`python benchmarks/versus_sgd.py` does so on activations of the bundled models, and gives the loss on test documents and
the time of each. Prints a table for people, and last one line of JSON.
"""

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from tqdm.auto import tqdm

import lrt_tl as lrt
from lrt_tl.alignment.counts import HarvestCounts
from lrt_tl.alignment.fit import RELATIVE_RIDGES
from lrt_tl.alignment.harvest import Harvest
from lrt_tl.alignment.moments import Moments, fit_pairs
from lrt_tl.alignment.selection import choose
from lrt_tl.models.hook_names import resolve_hook_name
from lrt_tl.storyworld.named import named_documents
from lrt_tl.tables import print_columns
from lrt_tl.text.documents import N_FOLDS, TEST, read_documents

LEARNING_RATES = (1e-4, 1e-3)
BATCH, EPOCHS = 32, 4


def activations(given: argparse.Namespace, layers: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Both models' states at the same positions, and their splits."""
    models = [lrt.load_model(name) for name in (given.source, given.target)]
    hooks = [resolve_hook_name(model, layer=layer) for model, layer in zip(models, layers, strict=True)]
    documents = read_documents(named_documents(given.documents))
    harvest = Harvest(models[0], models[1], hooks[:1], hooks[1:], documents)
    batches = list(harvest.run(harvest.calibrate(), HarvestCounts()))
    x, y = (torch.cat([batch.states[key] for batch in batches]) for key in batches[0].states)
    return x, y, torch.cat([batch.splits for batch in batches])


def by_adamw(x: Tensor, y: Tensor, learning_rate: float) -> torch.nn.Linear:
    """The paper's recipe."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(x.shape[1], y.shape[1])
    optimizer = torch.optim.AdamW(linear.parameters(), lr=learning_rate)
    for _ in range(EPOCHS):
        for rows in tqdm(torch.randperm(len(x)).split(BATCH), leave=False, desc=f"AdamW, {learning_rate:g}"):
            optimizer.zero_grad()
            mse_loss(linear(x[rows]), y[rows]).backward()
            optimizer.step()
    return linear


def main() -> None:
    """Fit both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="storyworld-small")
    parser.add_argument("--target", default="storyworld-large")
    parser.add_argument("--documents", default="storyworld")
    parser.add_argument("--layers", default="2:4")
    given = parser.parse_args()
    layers = tuple(map(int, given.layers.split(":")))
    x, y, splits = activations(given, (layers[0], layers[1]))
    train, test = splits < N_FOLDS, splits == TEST
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    shifts = {"x": x[train].double().mean(0), "y": y[train].double().mean(0)}
    moments = Moments.empty(N_FOLDS, shifts, fit_pairs(["x"], ["y"]))
    moments.update({"x": x[train], "y": y[train]}, splits[train])
    solution = choose("ridge", moments.between(["x"], "y"), RELATIVE_RIDGES).solution
    seconds = time.perf_counter() - started
    loss = float(mse_loss(x[test] @ solution.weight.float() + solution.bias.float(), y[test]))
    rows.append({"fit": "exact ridge, 5-fold", "test_loss": loss, "seconds": seconds})
    for learning_rate in LEARNING_RATES:
        started = time.perf_counter()
        linear = by_adamw(x[train], y[train], learning_rate)
        seconds = time.perf_counter() - started
        with torch.no_grad():
            loss = float(mse_loss(linear(x[test]), y[test]))
        rows.append({"fit": f"AdamW, learning rate {learning_rate:g}", "test_loss": loss, "seconds": seconds})
    best = min(rows[1:], key=lambda row: row["test_loss"])
    print_columns(
        f"{given.source} → {given.target}, {int(train.sum()):,} positions",
        [
            {"fit": r["fit"], "loss on test documents": f"{r['test_loss']:.5g}", "s": f"{r['seconds']:.2f}"}
            for r in rows
        ],
    )
    print(
        json.dumps(
            {
                "benchmark": "versus_sgd",
                "loss_ratio": rows[0]["test_loss"] / best["test_loss"],
                "speedup": best["seconds"] / rows[0]["seconds"],
                "positions": int(train.sum()),
                "results": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
