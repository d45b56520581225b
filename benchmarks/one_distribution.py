"""Which models are one distribution with `large`, and which linear properties do they therefore share? Its other seed,
smaller models, and copies moved away in controlled steps: quantized, pruned, fine-tuned on shifted documents.

`python benchmarks/one_distribution.py` prints a table for people, and last one line of JSON; `--out FOLDER` adds both
as files, and a figure of similarity against divergence. It takes about ten minutes on one core.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lrt_tl import storyworld
from lrt_tl.identifiability.comparison import properties_of, texts_of_relations
from lrt_tl.identifiability.predictor import Predictor
from lrt_tl.identifiability.properties.facts import with_texts
from lrt_tl.identifiability.properties.scores import Property, PropertyScores
from lrt_tl.identifiability.properties.steering import steering_mismatch
from lrt_tl.identifiability.reading import read_predictor
from lrt_tl.identifiability.similarity import mean_cca
from lrt_tl.identifiability.subspaces import Subspaces
from lrt_tl.identifiability.verdict import Verdict, all_or_none
from lrt_tl.models.loading import BUNDLED, load_model
from lrt_tl.storyworld.relations import relation_names
from lrt_tl.storyworld.tasks import contrast_pairs
from lrt_tl.tables import print_columns

EPSILON = 0.01
N_CONTEXTS, N_DOCUMENTS, N_PAIRS, SEED = 2500, 80, 30, 77
TASKS = ("mood", "register", "language", "refusal")
RELATIONS = {
    name: [fact for fact in storyworld.relation(name).seen if not fact.prompt.endswith("?")]
    for name in relation_names()
}
"""After a question the answer has a capital, and is another token."""
WORDS = {
    name: sorted({(f" {fact.subject}", fact.answer) for fact in RELATIONS[name] if f" {fact.subject}" != fact.answer})
    for name in ("comparative", "superlative")
}
COMMAND = "python benchmarks/one_distribution.py --out benchmarks/results"
Change = Callable[[Any], None]


def quantized(bits: int) -> Change:
    """Every matrix is rounded to 2^bits − 1 levels, symmetric about 0, a scale a row."""

    def change(model: Any) -> None:
        for weight in (p for p in model.parameters() if p.ndim == 2):
            step = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
            weight.copy_((weight / step).round() * step)

    return change


def pruned(share: float) -> Change:
    """Of every matrix of the blocks that share of the weights, the smallest, becomes 0."""

    def change(model: Any) -> None:
        for weight in (p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name):
            weight.masked_fill_(weight.abs() <= weight.abs().flatten().kthvalue(int(share * weight.numel())).values, 0)

    return change


def fine_tuned(steps: int) -> Change:
    """AdamW at 1e-4 on sad Spanish stories, 16 a step."""

    def change(model: Any) -> None:
        tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "storyworld-large")
        given = {"kind": "story", "mood": "sad", "language": "Spanish"}
        texts = [tokenizer.bos_token + each.text for each in storyworld.samples(16 * steps, seed=SEED + 1, **given)]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        with torch.enable_grad():
            for start in range(0, len(texts), 16):
                batch = tokenizer(
                    texts[start : start + 16], return_tensors="pt", padding=True, add_special_tokens=False
                )
                tokens, mask = batch["input_ids"], batch["attention_mask"]
                loss = model(input_ids=tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()

    return change


CHANGES: dict[str, Change] = {
    **{f"large, {bits} bits": quantized(bits) for bits in (8, 6, 4, 3)},
    **{f"large, {share:.0%} pruned": pruned(share) for share in (0.1, 0.3, 0.5, 0.7)},
    **{f"large, {steps} steps on other documents": fine_tuned(steps) for steps in (5, 20, 80)},
}
BUNDLED_OTHERS = ("large-b", "medium", "small", "medium-early", "medium-foreign")


def others() -> Iterator[tuple[str, Any]]:
    """The models that `large` is compared with, by name; `untrained` is medium with random weights."""
    for name in BUNDLED_OTHERS:
        yield name, storyworld.load(name)

    def random(model: Any) -> None:
        torch.manual_seed(0)
        fresh = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BUNDLED / "storyworld-medium"))
        model.load_state_dict(fresh.state_dict())

    yield "untrained", changed("medium", random)
    for name, change in CHANGES.items():
        yield name, changed("large", change)


def changed(name: str, change: Change) -> Any:
    """A bundled model after its weights were changed."""
    with TemporaryDirectory() as root, torch.no_grad():
        folder = Path(root) / f"storyworld-{name}"
        shutil.copytree(BUNDLED / f"storyworld-{name}", folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        change(model)
        model.save_pretrained(folder)
        return load_model(folder)


def read(model: Any, documents: list[str], texts: list[str]) -> tuple[Predictor, Predictor]:
    """The predictor on the documents, and with the texts of the facts and the contrast pairs."""
    plain = read_predictor(model, documents, n_contexts=N_CONTEXTS)
    return plain, with_texts(plain, model, texts)


def remembered(measure: Property, predictor: Predictor) -> Property:
    """The same, measured once of this predictor, which is in every pair."""
    found: list[PropertyScores] = []

    def of(other: Predictor, its: Subspaces) -> PropertyScores:
        if other is not predictor:
            return measure(other, its)
        if not found:
            found.append(measure(other, its))
        return found[0]

    return of


def contrasts(texts: list[str], first: int) -> dict[str, tuple[Tensor, Tensor]]:
    """By task, the contexts of the positive and of the negative texts, in order."""
    place = {text: first + number for number, text in enumerate(texts)}
    found = {}
    for task in TASKS:
        pairs = contrast_pairs(task, N_PAIRS)
        sides = ([place[pair.positive] for pair in pairs], [place[pair.negative] for pair in pairs])
        found[task] = torch.tensor(sides[0]), torch.tensor(sides[1])
    return found


def figures(name: str, verdict: Verdict, p: Predictor, q: Predictor, sides: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one pair; `source` and `target` as in `storyworld_transfer.py`, to join by."""
    vectors = {task: p.f[one].mean(0) - p.f[other].mean(0) for task, (one, other) in sides.items()}
    saved = verdict.to_json()
    return {
        **dict(zip(("source", "target"), ("large", name) if name == "large-b" else (name, "large"), strict=True)),
        "features": verdict.distance_features()
        | {"mean_cca_contexts": mean_cca(p.f, q.f), "mean_cca_tokens": mean_cca(p.g, q.g)},
        "steering_mismatch": {
            task: steering_mismatch(p, q, vector, verdict.equivalences[1]) for task, vector in vectors.items()
        },
        **{key: saved[key] for key in ("premise", "against", "equality", "properties")},
    }


def row(name: str, found: dict[str, Any]) -> dict[str, str]:
    """The same for people."""
    features, properties = found["features"], found["properties"]

    def mean(kind: str) -> str:
        both = [
            [each[side]["effective"]["estimate"] for key, each in properties.items() if key.endswith(kind)]
            for side in ("first", "second")
        ]
        return " and ".join(f"{sum(scores) / len(scores):.2f}" for scores in both)

    mismatches = found["steering_mismatch"].values()
    return {
        "large and": name,
        "KL": f"{features['kl']:.2g}",
        "JS": f"{features['js']:.2g}",
        "R², contexts": f"{features['context_r2']:.3f}",
        "worst direction": f"{features['context_worst_r2']:.3f}",
        "worst of tokens": f"{features['token_worst_r2']:.3f}",
        "duality": f"{features['duality_residual']:.2g}",
        "relational R²": mean("relational linearity"),
        "parallelism": mean("parallelism"),
        "steering mismatch": f"{sum(mismatches) / len(mismatches):.2f}",
        "one distribution": "yes" if found["premise"] else "not shown",
    }


def figure(found: dict[str, dict[str, Any]]) -> Any:
    """Similarity of representations against the divergence of distributions."""
    from plotly.graph_objects import Figure, Scatter

    drawn = Figure()
    for key, label in (
        ("context_r2", "R² of contexts"),
        ("context_worst_r2", "its worst direction"),
        ("token_worst_r2", "worst direction of tokens"),
    ):
        drawn.add_trace(
            Scatter(
                x=[each["features"]["kl"] for each in found.values()],
                y=[max(0.0, each["features"][key]) for each in found.values()],
                text=list(found),
                mode="markers",
                name=label,
            )
        )
    drawn.update_layout(
        xaxis={"type": "log", "title": "KL from large, nats"},
        yaxis={"title": "held-out R² (under 0 drawn at 0)", "range": [-0.03, 1.03]},
        template="plotly_white",
    )
    return drawn


def main() -> None:
    """Compare all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for one_distribution.json and one_distribution.html")
    given = parser.parse_args()
    documents = storyworld.documents(N_DOCUMENTS, seed=SEED)
    of_tasks = [
        text for task in TASKS for pair in contrast_pairs(task, N_PAIRS) for text in (pair.positive, pair.negative)
    ]
    texts = list(dict.fromkeys([*texts_of_relations(RELATIONS), *of_tasks]))
    large = storyworld.load("large")
    plain, whole = read(large, documents, texts)
    properties = {
        name: remembered(each, whole)
        for name, each in properties_of(plain, large.tokenizer, RELATIONS, WORDS).items()
        if not name.endswith("linear subspaces")
    }
    sides = contrasts(texts, len(plain.f))
    found: dict[str, dict[str, Any]] = {}
    for name, other in others():
        _, theirs = read(other, documents, texts)
        found[name] = figures(name, all_or_none(whole, theirs, properties, epsilon=EPSILON), whole, theirs, sides)
        print(row(name, found[name]), flush=True)
    print_columns("One distribution?", [row(name, each) for name, each in found.items()])
    line = {"benchmark": "one_distribution", "command": COMMAND, "epsilon": EPSILON, "contexts": len(whole.f)}
    saved = json.dumps({**line, "pairs": list(found), "results": list(found.values())}, allow_nan=False)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "one_distribution.json").write_text(saved + "\n")
        figure(found).write_html(given.out / "one_distribution.html", include_plotlyjs="cdn")
    print(saved)


if __name__ == "__main__":
    main()
