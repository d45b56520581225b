"""What brings representations together? Small storyworld models, each unlike a reference in one respect: the order of
the data, the initial weights, the documents, the width, the length of the training; or taught by the reference.

`python benchmarks/what_learning_does.py` prints a table for people, and last one line of JSON; `--out FOLDER` adds both
as files, and a figure. It trains 38 models: half an hour of processor time, a quarter of an hour on two cores.
"""

import argparse
import io
import json
import resource
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from learners import learn, learners
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrt_tl import fit_affine_map, storyworld
from lrt_tl.identifiability.all_or_none import all_or_none
from lrt_tl.identifiability.equivalence import Equivalence
from lrt_tl.identifiability.reading import read_predictors
from lrt_tl.identifiability.similarity import mean_cca
from lrt_tl.models.loading import BUNDLED, load_model
from lrt_tl.storyworld.quality import excess_loss
from lrt_tl.tables import print_columns

COMMAND = "python benchmarks/what_learning_does.py --out benchmarks/results"
TOKENS, EPSILON, WORKERS = 800_000, 0.01, 2
SEED, N_COMPARED, N_FITTED, N_LOSS = 77, 200, 400, 200
"""Of the documents that predictors are compared at, that maps of the middle layer are fitted on, and that losses are
of. Training takes other seeds."""
ALONE = ("storyworld-large-b", "storyworld-large")
"""A pair that is bundled: eight layers of 192 dimensions, 8 million tokens, other weights and documents."""


def compare(pair: tuple[str, str], folder: Path) -> dict[str, Any]:
    """The figures of a model and its reference; of two ways, the lesser likeness.

    Of k and k′ > k dimensions that is of the larger from the smaller, which is never whole: even at its best the
    duality's residual is √(1 − k/k′), 0.50 of 48 and 64, 0.58 of 64 and 96.
    """
    kept = [folder / name if (folder / name).is_dir() else BUNDLED / name for name in pair]
    model, reference = map(load_model, kept)
    documents = storyworld.documents(N_COMPARED, seed=SEED)
    p, q = read_predictors(reference, model, documents)
    verdict = all_or_none(p, q, {}, epsilon=EPSILON)
    middle = model.cfg.n_layers // 2, reference.cfg.n_layers // 2
    with redirect_stdout(io.StringIO()):
        fitted = fit_affine_map(model, reference, storyworld.documents(N_FITTED, seed=SEED + 1), layers=middle)
    features = verdict.distance_features()
    return {
        **{name: features[name] for name in ("kl", "js", "logit_distance")},
        "context_r2": min(features["context_r2"], features["context_r2_back"]),
        "token_r2": min(features["token_r2"], features["token_r2_back"]),
        "context_worst_r2": worst(verdict.equivalences, "of_contexts"),
        "token_worst_r2": worst(verdict.equivalences, "of_tokens"),
        "duality_residual": features["duality_residual"],
        "mean_cca_contexts": mean_cca(p.f, q.f),
        "mean_cca_tokens": mean_cca(p.g, q.g),
        "middle_r2": fitted.report.test_r2,
        "identical": torch.equal(p.f, q.f) and torch.equal(p.g, q.g),
        "equality": verdict.equality.to_json(),
        "loss": loss(kept[0]),
    }


def worst(both_ways: tuple[Equivalence, Equivalence], what: str) -> float:
    """R² of the worst canonical direction, of as many as the smaller of the two models has."""
    shared = min(each.subspaces[0].k for each in both_ways)
    return min(float(getattr(each, what).r2_by_direction[:shared].min()) for each in both_ways)


def loss(folder: Path) -> dict[str, float]:
    """In nats per word, and the grammar's own, which no model beats."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = excess_loss(model, AutoTokenizer.from_pretrained(folder), N_LOSS)
    return {name: found[name] for name in ("model", "grammar")}


def span(values: Iterable[float], digits: int = 2) -> str:
    """The least and the largest."""
    ordered = sorted(values)
    low, high = (f"{round(value, digits) + 0.0:.{digits}f}" for value in (ordered[0], ordered[-1]))
    return low if low == high else f"{low} to {high}"


def row(arm: str, found: list[dict[str, Any]]) -> dict[str, str]:
    """An arm for people, from its models' figures."""

    def of(name: str, digits: int = 2) -> str:
        return span((each[name] for each in found), digits)

    return {
        "unlike the reference": f"{arm} ({len(found)})",
        "loss over the grammar's": span(each["loss"]["model"] - each["loss"]["grammar"] for each in found),
        "KL": of("kl", 3),
        "JS": of("js", 4),
        "R², contexts": of("context_r2"),
        "worst of contexts": of("context_worst_r2"),
        "R², tokens": of("token_r2"),
        "worst of tokens": of("token_worst_r2"),
        "duality": of("duality_residual"),
        "CCA, contexts": of("mean_cca_contexts"),
        "CCA, tokens": of("mean_cca_tokens"),
        "R², middle": of("middle_r2"),
        "equal": f"{sum(each['equality']['equal'] for each in found)} of {len(found)}",
    }


def conclusions(arms: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the figures say."""

    def mean(arm: str, name: str) -> float:
        return float(sum(each[name] for each in arms[arm])) / len(arms[arm])

    def order(name: str, *, reverse: bool) -> str:
        nearest_first = sorted(arms, key=lambda arm: mean(arm, name), reverse=reverse)
        return "; ".join(f"{arm} {mean(arm, name):.3f}" for arm in nearest_first)

    equal = [arm for arm, found in arms.items() if all(each["equality"]["equal"] for each in found)]
    same = [arm for arm, found in arms.items() if all(each["identical"] for each in found)]
    return [
        f"Exactly its reference: {', '.join(same) or 'none'}.",
        f"One distribution with its reference, to KL {EPSILON:g}: {', '.join(equal) or 'none'}.",
        f"By KL, nearest first: {order('kl', reverse=False)}.",
        f"By R² of contexts: {order('context_r2', reverse=True)}.",
        f"By the worst direction of contexts: {order('context_worst_r2', reverse=True)}.",
        f"By R² in the middle layer: {order('middle_r2', reverse=True)}.",
    ]


def figure(arms: dict[str, list[dict[str, Any]]]) -> Any:
    """Likeness of representations against the divergence of distributions."""
    from plotly.graph_objects import Figure, Scatter

    drawn = Figure()
    for arm, found in arms.items():
        x, y = ([each[name] for each in found] for name in ("kl", "context_r2"))
        drawn.add_trace(Scatter(x=x, y=y, mode="markers", name=arm))
    drawn.update_layout(
        xaxis={"type": "log", "title": "KL from the reference, nats (the same again has 0, and is not drawn)"},
        yaxis={"title": "held-out R² of contexts", "range": [-0.03, 1.03]},
        template="plotly_white",
    )
    return drawn


def in_processes(pool: ProcessPoolExecutor, task: Callable[..., Any], tasks: list[Any], title: str) -> list[Any]:
    """The task's results, in order."""
    return list(tqdm(pool.map(task, tasks), total=len(tasks), desc=title))


def measured(tokens: int) -> dict[str, list[dict[str, Any]]]:
    """Train and compare all: figures by arm."""
    every = list(learners(tokens))
    taught = [each for each in every if each.teaching in ("KL", "L2")]
    others = [each for each in every if each not in taught]
    pairs = {each.name: each for each in every if each.name != each.against}
    with TemporaryDirectory() as root:
        folder = Path(root)
        with ProcessPoolExecutor(WORKERS, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            in_processes(pool, partial(learn, folder=folder), others, "learning")
            in_processes(pool, partial(learn, folder=folder), taught, "being taught")
            asked = [(each.name, each.against) for each in pairs.values()]
            found = in_processes(pool, partial(compare, folder=folder), [*asked, ALONE], "comparing")
    arms: dict[str, list[dict[str, Any]]] = {}
    for arm, figures in zip([*(each.arm for each in pairs.values()), "large and large-b"], found, strict=True):
        arms.setdefault(arm, []).append(figures)
    return arms


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for what_learning_does.json and what_learning_does.html")
    given = parser.parse_args()
    started = time.perf_counter()
    arms = measured(TOKENS)
    print_columns("What learning does", [row(arm, found) for arm, found in arms.items()])
    said = conclusions(arms)
    print(*said, sep="\n")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    saved = json.dumps(
        {
            "benchmark": "what_learning_does",
            "command": COMMAND,
            "tokens": TOKENS,
            "epsilon": EPSILON,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": sum(each.ru_utime + each.ru_stime for each in used),
            "conclusions": said,
            "arms": arms,
        },
        allow_nan=False,
    )
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "what_learning_does.json").write_text(saved + "\n")
        figure(arms).write_html(given.out / "what_learning_does.html", include_plotlyjs="cdn")
    print(saved)


if __name__ == "__main__":
    main()
